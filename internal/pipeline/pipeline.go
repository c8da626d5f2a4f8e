// Package pipeline runs a list of named steps that can be taken back.
package pipeline

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"time"
)

// Step is one thing to do and how to take it back. A step is undone also when it failed half-way, so Undo has to cope with
// whatever Do had done by then, nothing included.
type Step struct {
	Name string // verb and object, as log lines and errors show it
	Do   func(context.Context) error
	// Undo takes Do back. A step that has nothing to take back says why in NoUndo instead; exactly one of both is set.
	Undo   func(context.Context) error
	NoUndo string
}

// StepError names the step that failed.
type StepError struct {
	Step string
	Err  error
}

func (e *StepError) Error() string { return e.Step + ": " + e.Err.Error() }
func (e *StepError) Unwrap() error { return e.Err }

// Observer is told of every step that ran or was undone; err is nil where it went well.
type Observer func(step string, undo bool, took time.Duration, err error)

// Run does the steps in order. The first failure, a panic, or the end of ctx stops it: then the step that failed and all
// before it are undone, last first, under a context of their own that lasts undoTimeout. What could not be undone is joined
// to the error.
func Run(ctx context.Context, steps []Step, undoTimeout time.Duration, observe Observer) error {
	if err := check(steps); err != nil {
		return err
	}
	for i, step := range steps {
		do := step.Do
		if ctx.Err() != nil {
			do = context.Cause
		}
		err := timed(ctx, step.Name, false, do, observe)
		if err == nil {
			continue
		}
		return errors.Join(&StepError{step.Name, err}, undo(ctx, steps[:i+1], undoTimeout, observe))
	}
	return nil
}

func undo(ctx context.Context, steps []Step, timeout time.Duration, observe Observer) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), timeout)
	defer cancel()
	var errs []error
	for _, step := range slices.Backward(steps) {
		if step.Undo == nil {
			continue
		}
		if err := timed(ctx, step.Name, true, step.Undo, observe); err != nil {
			errs = append(errs, &StepError{"undo " + step.Name, err})
		}
	}
	return errors.Join(errs...)
}

// RunAll does every step, whatever becomes of the others, and joins their errors. Nothing is undone.
func RunAll(ctx context.Context, steps []Step, observe Observer) error {
	if err := check(steps); err != nil {
		return err
	}
	var errs []error
	for _, step := range steps {
		if err := timed(ctx, step.Name, false, step.Do, observe); err != nil {
			errs = append(errs, &StepError{step.Name, err})
		}
	}
	return errors.Join(errs...)
}

func check(steps []Step) error {
	for _, step := range steps {
		if step.Name == "" || step.Do == nil || (step.Undo == nil) == (step.NoUndo == "") {
			return fmt.Errorf("step %q: needs a name, a Do, and either Undo or NoUndo", step.Name)
		}
	}
	return nil
}

func timed(
	ctx context.Context, name string, undo bool, call func(context.Context) error, observe Observer,
) (err error) {
	start := time.Now()
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
		if end := context.Cause(ctx); end != nil && err != nil && !errors.Is(err, end) {
			err = errors.Join(err, end)
		}
		observe(name, undo, time.Since(start), err)
	}()
	return call(ctx)
}

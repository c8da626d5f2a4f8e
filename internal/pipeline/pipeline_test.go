package pipeline

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// trace records what steps do.
type trace struct{ events []string }

func (tr *trace) step(name string, do error) Step {
	return Step{
		Name: name,
		Do: func(context.Context) error {
			tr.events = append(tr.events, "do "+name)
			return do
		},
		Undo: func(context.Context) error {
			tr.events = append(tr.events, "undo "+name)
			return nil
		},
	}
}

func ignore(string, bool, time.Duration, error) {}

var errBoom = errors.New("boom")

func TestRun(t *testing.T) {
	t.Parallel()
	var tr trace
	require.NoError(t, Run(t.Context(), []Step{tr.step("a", nil), tr.step("b", nil)}, time.Second, ignore))
	require.Equal(t, []string{"do a", "do b"}, tr.events)
}

// For every step: it fails, and it and those before are undone in reverse.
func TestRunFailsAtEachStep(t *testing.T) {
	t.Parallel()
	names := []string{"a", "b", "c", "d"}
	for k := range names {
		var tr trace
		steps := make([]Step, len(names))
		var want []string
		for i, name := range names {
			var err error
			if i == k {
				err = errBoom
			}
			steps[i] = tr.step(name, err)
			if i <= k {
				want = append(want, "do "+name)
			}
		}
		for i := k; i >= 0; i-- {
			want = append(want, "undo "+names[i])
		}
		err := Run(t.Context(), steps, time.Second, ignore)
		require.ErrorIs(t, err, errBoom)
		var stepErr *StepError
		require.ErrorAs(t, err, &stepErr)
		require.Equal(t, names[k], stepErr.Step)
		require.Equal(t, want, tr.events)
	}
}

func TestRunUndoesAfterPanic(t *testing.T) {
	t.Parallel()
	var tr trace
	bad := tr.step("b", nil)
	bad.Do = func(context.Context) error { panic("boom") }
	err := Run(t.Context(), []Step{tr.step("a", nil), bad}, time.Second, ignore)
	require.ErrorContains(t, err, "b: panic: boom")
	require.Equal(t, []string{"do a", "undo b", "undo a"}, tr.events)
}

// The end of the context stops the run between steps; undo still has time of its own.
func TestRunDeadline(t *testing.T) {
	t.Parallel()
	var tr trace
	ctx, cancel := context.WithCancelCause(t.Context())
	first := tr.step("a", nil)
	first.Do = func(context.Context) error {
		cancel(errBoom)
		return nil
	}
	first.Undo = func(ctx context.Context) error {
		tr.events = append(tr.events, fmt.Sprint("undo a: ", ctx.Err()))
		_, limited := ctx.Deadline()
		require.True(t, limited)
		return nil
	}
	err := Run(ctx, []Step{first, tr.step("b", nil)}, time.Second, ignore)
	require.ErrorIs(t, err, errBoom)
	require.Equal(t, []string{"undo b", "undo a: <nil>"}, tr.events)
}

func TestUndoFailureIsReported(t *testing.T) {
	t.Parallel()
	var tr trace
	errUndo := errors.New("stuck")
	bad := tr.step("b", errBoom)
	bad.Undo = func(context.Context) error { return errUndo }
	var seen []string
	observe := func(step string, undo bool, _ time.Duration, err error) {
		seen = append(seen, fmt.Sprintf("%s %t %v", step, undo, err))
	}
	err := Run(t.Context(), []Step{tr.step("a", nil), bad}, time.Second, observe)
	require.ErrorIs(t, err, errBoom)
	require.ErrorIs(t, err, errUndo)
	require.ErrorContains(t, err, "undo b: stuck")
	require.Equal(t, []string{"do a", "do b", "undo a"}, tr.events)
	require.Equal(t, []string{"a false <nil>", "b false boom", "b true stuck", "a true <nil>"}, seen)
}

func TestRunAll(t *testing.T) {
	t.Parallel()
	var tr trace
	bad := tr.step("b", nil)
	bad.Do = func(context.Context) error { panic("boom") }
	err := RunAll(t.Context(), []Step{tr.step("a", errBoom), bad, tr.step("c", nil)}, ignore)
	require.ErrorIs(t, err, errBoom)
	require.ErrorContains(t, err, "b: panic: boom")
	require.Equal(t, []string{"do a", "do c"}, tr.events)
}

func TestStepsHaveAnUndoOrSayWhyNot(t *testing.T) {
	t.Parallel()
	do := func(context.Context) error { t.Error("done"); return nil }
	for name, step := range map[string]Step{
		"no name": {Do: do, Undo: do},
		"no do":   {Name: "x", Undo: do},
		"neither": {Name: "x", Do: do},
		"both":    {Name: "x", Do: do, Undo: do, NoUndo: "why"},
	} {
		require.Error(t, Run(t.Context(), []Step{step}, time.Second, ignore), name)
		require.Error(t, RunAll(t.Context(), []Step{step}, ignore), name)
	}
}

//go:build linux

package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"isula.org/syscontainer-hooks/internal/kernel"
)

// endSignals end a prestart, after it has taken back what it did, and never a poststop.
var endSignals = []os.Signal{unix.SIGINT, unix.SIGHUP, unix.SIGQUIT, unix.SIGTERM}

// ignoreSignals is for a run that is to come to its end. It costs next to nothing.
func ignoreSignals() { signal.Ignore(endSignals...) }

// runContext is the context of a run: it ends at the time limit and at a signal.
//
// To watch for either takes the runtime as long as half of a short run. So a run that has only the shared paths to see to, in a
// fraction of a millisecond, ignores signals and is as if they had come right after it, and just looks at the clock between the
// steps. It begins to watch where it has to wait, and the kernel kills what hangs all the same.
type runContext struct {
	context.Context
	end      context.CancelCauseFunc
	timeout  time.Duration
	deadline time.Time
	ignoring bool // signals, until it has to wait

	timer, signals sync.Once
	caught         chan struct{} // closed once signals are
}

func newContext(timeout time.Duration) *runContext {
	c := &runContext{timeout: timeout, deadline: time.Now().Add(timeout), caught: make(chan struct{})}
	c.Context, c.end = context.WithCancelCause(context.Background())
	if err := kernel.KillAfter(timeout + 2*undoTimeout); err != nil { // the user has too many signals waiting
		c.keepTime()
	}
	return c
}

// Done is where whoever waits asks for the end.
func (c *runContext) Done() <-chan struct{} {
	c.keepTime()
	if c.ignoring {
		c.catch()
	}
	return c.Context.Done()
}

// Deadline is for whoever divides the time that is left.
func (c *runContext) Deadline() (time.Time, bool) { return c.deadline, true }

func (c *runContext) Err() error {
	if time.Now().After(c.deadline) {
		c.timeUp()
	}
	return c.Context.Err()
}

func (c *runContext) timeUp() {
	c.end(fmt.Errorf("not done within %s; -timeout sets another limit", c.timeout))
}

// keepTime ends the context in time even when nobody asks.
func (c *runContext) keepTime() {
	c.timer.Do(func() { time.AfterFunc(time.Until(c.deadline), c.timeUp) })
}

// ignoreSignals makes signals no matter, until somebody waits.
func (c *runContext) ignoreSignals() {
	ignoreSignals()
	c.ignoring = true
}

// startCatching lets the runtime begin to catch signals, beside what changes nothing yet: until they are caught they just end the
// process. It lasts to the very end: a signal that comes when all is done must not make it look undone.
func (c *runContext) startCatching() {
	c.signals.Do(func() {
		go func() {
			received := make(chan os.Signal, 1)
			signal.Notify(received, endSignals...)
			close(c.caught)
			c.end(fmt.Errorf("signal: %s", <-received))
		}()
	})
}

// catch returns when signals end the context and nothing else.
func (c *runContext) catch() {
	c.startCatching()
	<-c.caught
}

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

// limits is the context of a run: it ends at the time limit and at a signal.
//
// To watch for either takes the runtime as long as half of a short run. So a run that has only the shared paths to see to, in a
// fraction of a millisecond, ignores signals and is as if they had come right after it, and just looks at the clock between the
// steps. It begins to watch where it has to wait, and the kernel kills what hangs all the same.
type limits struct {
	context.Context
	end      context.CancelCauseFunc
	timeout  time.Duration
	deadline time.Time
	ignoring bool // signals, until it has to wait

	timer, signals sync.Once
	caught         chan struct{} // closed once signals are
}

func newLimits(timeout time.Duration) (*limits, error) {
	l := &limits{timeout: timeout, deadline: time.Now().Add(timeout), caught: make(chan struct{})}
	l.Context, l.end = context.WithCancelCause(context.Background())
	if err := kernel.KillAfter(timeout + 2*undoTimeout); err != nil {
		return nil, fmt.Errorf("limit the time of the run: %w", err)
	}
	return l, nil
}

// Done is where whoever waits asks for the end.
func (l *limits) Done() <-chan struct{} {
	l.keepTime()
	if l.ignoring {
		l.catch()
	}
	return l.Context.Done()
}

func (l *limits) Err() error {
	if time.Now().After(l.deadline) {
		l.timeUp()
	}
	return l.Context.Err()
}

func (l *limits) timeUp() {
	l.end(fmt.Errorf("not done within %s; -timeout sets another limit", l.timeout))
}

// keepTime ends the context in time even when nobody asks.
func (l *limits) keepTime() {
	l.timer.Do(func() { time.AfterFunc(time.Until(l.deadline), l.timeUp) })
}

// ignoreSignals makes signals no matter, until somebody waits.
func (l *limits) ignoreSignals() {
	ignoreSignals()
	l.ignoring = true
}

// startCatching lets the runtime begin to catch signals, beside what changes nothing yet: until they are caught they just end the
// process. It lasts to the very end: a signal that comes when all is done must not make it look undone.
func (l *limits) startCatching() {
	l.signals.Do(func() {
		go func() {
			c := make(chan os.Signal, 1)
			signal.Notify(c, endSignals...)
			close(l.caught)
			l.end(fmt.Errorf("signal: %s", <-c))
		}()
	})
}

// catch returns when signals end the context and nothing else.
func (l *limits) catch() {
	l.startCatching()
	<-l.caught
}

//go:build linux

package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"sync"

	"golang.org/x/sys/unix"
)

// endSignals end a prestart, after it has taken back what it did, and never a poststop.
var endSignals = []os.Signal{unix.SIGINT, unix.SIGHUP, unix.SIGQUIT, unix.SIGTERM}

// ignoreSignals is for a run that is to come to its end. It costs next to nothing.
func ignoreSignals() { signal.Ignore(endSignals...) }

// signals end a context. Until they are caught, or ignored, they just end the process: that is for as long as nothing has been
// changed, not even a file made.
//
// To catch them takes the runtime as long as half of a short run. So a run that has only the shared paths to prepare, in a
// fraction of a millisecond, ignores them and is as if they had come right after it. It catches them where it has to wait.
type signals struct {
	end    context.CancelCauseFunc
	once   sync.Once
	caught chan struct{} // closed once they are
}

// newSignals gives a context that ends with a signal.
func newSignals(ctx context.Context) (context.Context, *signals) {
	ctx, end := context.WithCancelCause(ctx)
	return ctx, &signals{end: end, caught: make(chan struct{})}
}

// startCatching lets the runtime begin with it, beside what changes nothing yet. It lasts to the very end: a signal that comes
// when all is done must not make it look undone.
func (s *signals) startCatching() {
	s.once.Do(func() {
		go func() {
			c := make(chan os.Signal, 1)
			signal.Notify(c, endSignals...)
			close(s.caught)
			s.end(fmt.Errorf("signal: %s", <-c))
		}()
	})
}

// catch returns when signals end the context and nothing else.
func (s *signals) catch() {
	s.startCatching()
	<-s.caught
}

// catchingWaits is a context that catches signals from the moment that somebody waits for its end.
type catchingWaits struct {
	context.Context
	signals *signals
}

func (c catchingWaits) Done() <-chan struct{} {
	c.signals.catch()
	return c.Context.Done()
}

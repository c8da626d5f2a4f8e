//go:build linux

// Package thread runs a function on an operating system thread of its own, for what a thread changes of itself and cannot take
// back: the namespaces that it is in.
package thread

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"golang.org/x/sys/unix"
)

// Own runs f on a thread that is never used for anything else, and waits for it: it stays locked, so that the runtime ends it.
// f must not start a program or a goroutine that depends on what the thread is.
//
// The leader of the thread group cannot end: it would stay as f left it for ever, and with it /proc/self. A goroutine that
// finds itself on the leader keeps it busy while another one, which then cannot get the leader, does the work.
func Own(f func() error) error {
	result := make(chan error, 1)
	go func() {
		defer func() { // nobody else could: it is another goroutine
			if r := recover(); r != nil {
				result <- fmt.Errorf("panic: %v\n%s", r, debug.Stack())
			}
		}()
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			result <- Own(f)
			runtime.UnlockOSThread()
			return
		}
		result <- f()
	}()
	return <-result
}

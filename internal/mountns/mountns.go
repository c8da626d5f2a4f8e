//go:build linux

// Package mountns runs a function inside another mount namespace.
package mountns

import (
	"fmt"
	"os"
	"runtime"
	"runtime/debug"

	"golang.org/x/sys/unix"
)

// Do runs f on a thread of its own that has entered the mount namespace ns, and waits for it. The thread's root and working
// directory are the namespace's root, and it shares them with no other thread. Nobody else moves, and the thread ends with f.
//
// Inside, only handles opened before name anything on the host, paths are the container's: f must not open a path, start a
// program or start a goroutine that does.
func Do(ns *os.File, f func() error) error {
	return onOwnThread(func() error {
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNS); err != nil {
			return fmt.Errorf("enter mount namespace: %w", err)
		}
		return f()
	})
}

// DoPrivate runs f like Do, inside a new mount namespace that is a private copy of this one and vanishes with the last handle
// on what was mounted there.
func DoPrivate(f func() error) error {
	return onOwnThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
			return fmt.Errorf("unshare mount namespace: %w", err)
		}
		if err := unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("make mounts private: %w", err)
		}
		return f()
	})
}

// onOwnThread runs f on a thread that is never used for anything else, and waits for it: it stays locked, so that the runtime
// ends it. It shares its root and working directory with no other thread, else setns(2) refuses.
//
// The leader of the thread group cannot end: it would stay in the container for ever, and with it /proc/self. A goroutine that
// finds itself on the leader keeps it busy while another one, which then cannot get the leader, does the work.
func onOwnThread(f func() error) error {
	result := make(chan error, 1)
	go func() {
		defer func() { // nobody else could: it is another goroutine
			if r := recover(); r != nil {
				result <- fmt.Errorf("panic: %v\n%s", r, debug.Stack())
			}
		}()
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			result <- onOwnThread(f)
			runtime.UnlockOSThread()
			return
		}
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			result <- fmt.Errorf("unshare fs: %w", err)
			return
		}
		result <- f()
	}()
	return <-result
}

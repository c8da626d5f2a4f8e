//go:build linux

// Package mountns runs a function inside another mount namespace.
package mountns

import (
	"fmt"
	"os"
	"runtime"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"isula.org/syscontainer-hooks/internal/kernel"
	"isula.org/syscontainer-hooks/internal/thread"
)

// settled is what Settle has declared.
var settled atomic.Bool

// Settle declares that this process never changes its root directory, working directory and umask again. Threads may then have
// these to themselves, and Do needs no thread of its own: it saves two hand-overs between threads.
func Settle() { settled.Store(true) }

// Do runs f on a thread that has entered the mount namespace ns, and waits for it. The thread's root and working directory are
// the namespace's root, and it shares them with no other thread. Nobody else moves. The thread ends with f, or comes back
// where the process is settled.
//
// Inside, only handles opened before name anything on the host, paths are the container's: f must not open a path, start a
// program or start a goroutine that does.
func Do(ns *os.File, f func() error) error {
	if settled.Load() {
		return onThisThread(ns, f)
	}
	return onOwnThread(func() error { return inside(ns, f) })
}

func inside(ns *os.File, f func() error) error {
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("enter mount namespace: %w", err)
	}
	return f()
}

// onThisThread comes back to the same root as well, which need not be the root of the host's namespace.
func onThisThread(ns *os.File, f func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	home, err := kernel.Open("/proc/thread-self/ns/mnt", unix.O_RDONLY)
	if err != nil {
		return err
	}
	defer home.Close()
	root, err := kernel.Open("/", unix.O_PATH)
	if err != nil {
		return err
	}
	defer root.Close()
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("unshare fs: %w", err)
	}
	defer func() {
		if err := comeBack(home, root); err != nil {
			// Whatever this thread did next it would do in the container.
			fmt.Fprintln(os.Stderr, "leave mount namespace:", err)
			os.Exit(1)
		}
	}()
	return inside(ns, f)
}

func comeBack(home, root *os.File) error {
	if err := unix.Setns(int(home.Fd()), unix.CLONE_NEWNS); err != nil {
		return err
	}
	if err := unix.Fchdir(int(root.Fd())); err != nil {
		return err
	}
	return unix.Chroot(".")
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

// onOwnThread runs f on a thread of its own that shares its root and working directory with no other, else setns(2) refuses.
func onOwnThread(f func() error) error {
	return thread.Own(func() error {
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return fmt.Errorf("unshare fs: %w", err)
		}
		return f()
	})
}

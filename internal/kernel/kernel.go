//go:build linux

// Package kernel makes system calls the way all of them have to be made here: repeated when a signal interrupts them, and with
// descriptors that programs started later do not inherit and that stay out of Go's network poller, which a hook has no use for
// and would pay for at every start.
package kernel

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Do repeats call until it answers something else than EINTR. The Go runtime preempts with signals, and file systems in user
// space or on a network answer EINTR whatever SA_RESTART asks for.
func Do(call func() error) error {
	for {
		if err := call(); err != unix.EINTR { //nolint:errorlint // a bare errno, straight from the system call
			return err
		}
	}
}

// Value is Do for calls with a result.
func Value[T any](call func() (T, error)) (T, error) {
	for {
		if v, err := call(); err != unix.EINTR { //nolint:errorlint // a bare errno, straight from the system call
			return v, err
		}
	}
}

// Open is open(2) with O_CLOEXEC.
func Open(path string, flags int) (*os.File, error) {
	fd, err := Value(func() (int, error) { return unix.Open(path, flags|unix.O_CLOEXEC, 0) })
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// OpenAt is openat(2) with O_CLOEXEC.
func OpenAt(dir *os.File, name string, flags int, perm uint32) (*os.File, error) {
	path := filepath.Join(dir.Name(), name)
	fd, err := Value(func() (int, error) { return unix.Openat(int(dir.Fd()), name, flags|unix.O_CLOEXEC, perm) })
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// maxStacked is how many mounts are taken off one path.
const maxStacked = 64

// DetachAll takes all mounts off path, lazily and without following a link. A path without a mount is no error, one that is not
// there is fs.ErrNotExist.
func DetachAll(path string) error {
	for range maxStacked {
		err := Do(func() error { return unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW) })
		switch {
		case errors.Is(err, unix.EINVAL): // no mount any more
			return nil
		case err != nil:
			return &fs.PathError{Op: "unmount", Path: path, Err: err}
		}
	}
	return fmt.Errorf("unmount %s: still mounted after %d times", path, maxStacked)
}

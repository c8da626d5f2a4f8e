// Package eintr repeats system calls that a signal interrupted. The Go runtime preempts with signals, and file systems in
// user space or on a network answer EINTR whatever SA_RESTART asks for.
package eintr

import "golang.org/x/sys/unix"

// Do repeats call until it answers something else than EINTR.
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

//go:build linux

package udev

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"isula.org/syscontainer-hooks/internal/atomicfile"
	"isula.org/syscontainer-hooks/internal/command"
)

// ErrNotTold is the cause when the rules are changed, but udevd could not be told. It looks for changed rules by itself when an
// event comes, though not more often than every three seconds.
var ErrNotTold = errors.New("udevd could not be told to reload its rules, and will notice later")

const (
	controlSocket = "/run/udev/control"
	reloadLock    = "udevd_reload.lock" // beside LockFile
	reloadLimit   = 5 * time.Second
)

// reload has udevd read its rules again, where it runs.
func reload(ctx context.Context) error {
	var stat unix.Stat_t
	err := unix.Lstat(controlSocket, &stat)
	switch {
	case errors.Is(err, unix.ENOENT), err == nil && stat.Mode&unix.S_IFMT != unix.S_IFSOCK:
		return nil
	case err != nil:
		return fmt.Errorf("%w: stat %s: %w", ErrNotTold, controlSocket, err)
	}
	limited, cancel := context.WithTimeoutCause(ctx, reloadLimit, command.ErrTimeout)
	defer cancel()
	turn, err := waitForTurn(limited)
	if err == nil {
		defer turn.Close()
		err = tellTwice(limited)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNotTold, err)
	}
	return nil
}

// waitForTurn takes a lock: udevd turns away all who come while it has one to talk to and one in line.
func waitForTurn(ctx context.Context) (*os.File, error) {
	dir, err := atomicfile.MakeDir(filepath.Dir(LockFile))
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	return atomicfile.Lock(ctx, dir, reloadLock)
}

// tellTwice does so since udevd ignores a message that comes between its accept(2) and its setsockopt(2) for credentials, which
// udevadm(8) takes for success: on a busy machine that happens to one in a thousand. The second one costs udevd next to nothing.
func tellTwice(ctx context.Context) error {
	for range 2 {
		if err := tell(ctx); err != nil {
			return err
		}
	}
	return nil
}

// tell tries again where udevd answers that it cannot talk now: other programs do not know of our turns.
func tell(ctx context.Context) error {
	for pause := 20 * time.Millisecond; ; pause *= 2 {
		_, _, err := command.Run(ctx, reloadLimit, "udevadm", "control", "--reload", "--timeout=4")
		if err == nil || refused() {
			return nil
		}
		if _, ended := errors.AsType[*command.Error](err); !ended {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", err, context.Cause(ctx))
		case <-time.After(pause):
		}
	}
}

// refused tells whether udevd has gone and left its socket. To ask before would cost udevd a connection that says nothing.
func refused() bool {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return false
	}
	defer func() { _ = unix.Close(fd) }()
	err = unix.Connect(fd, &unix.SockaddrUnix{Name: controlSocket})
	return errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.ENOENT)
}

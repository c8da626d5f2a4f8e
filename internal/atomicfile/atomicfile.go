//go:build linux

// Package atomicfile reads, locks and replaces small files that several programs share, beneath a directory handle. It trusts
// a file only when nobody but its own user can have written it: a regular file, ours, not writable by group and others, and
// never through a link.
package atomicfile

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"isula.org/syscontainer-hooks/internal/kernel"
)

// ErrUntrusted is the cause when somebody else may have written the file or directory.
var ErrUntrusted = errors.New("not trusted")

// lockPoll is how often a lock that another process holds is tried again: flock(2) has no time limit of its own.
const lockPoll = 2 * time.Millisecond

// OpenDir opens a directory that only its owner, who has to be this process's user, can change.
func OpenDir(path string) (*os.File, error) {
	dir, err := kernel.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW)
	if err != nil {
		return nil, err
	}
	if _, err := checkOwn(dir, unix.S_IFDIR); err != nil {
		dir.Close()
		return nil, err
	}
	return dir, nil
}

// MakeDir is OpenDir for a directory that is made when it is missing, for its owner alone, and its parent, for all to read.
func MakeDir(path string) (*os.File, error) {
	dir, err := OpenDir(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return dir, err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	return OpenDir(path)
}

// Read gives the content of the file name in dir, which may have limit bytes at the most. A missing file is fs.ErrNotExist.
func Read(dir *os.File, name string, limit int64) ([]byte, error) {
	return read(dir, name, limit, checkOwn)
}

// ReadAnyones is Read for a file that is not trusted more than who called us: it may belong to anybody.
func ReadAnyones(dir *os.File, name string, limit int64) ([]byte, error) {
	return read(dir, name, limit, checkKind)
}

type check func(f *os.File, kind uint32) (*unix.Stat_t, error)

func read(dir *os.File, name string, limit int64, check check) ([]byte, error) {
	f, err := openAt(dir, name, unix.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	stat, err := check(f, unix.S_IFREG)
	if err != nil {
		return nil, err
	}
	if stat.Size > limit {
		return nil, fmt.Errorf("read %s: %d bytes, %d are the limit", f.Name(), stat.Size, limit)
	}
	data := make([]byte, stat.Size)
	n, err := io.ReadFull(f, data)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, err
	}
	return data[:n], nil
}

// Lock takes the exclusive flock(2) of the file name in dir, making the file (mode 0600) when it is missing. It waits until
// ctx is done. The caller closes the file it gets to release the lock; the file itself stays.
//
// A file that was replaced while we waited is two files with two owners: the lock counts only on the one that has the name.
func Lock(ctx context.Context, dir *os.File, name string) (*os.File, error) {
	for {
		f, err := openAt(dir, name, unix.O_RDWR|unix.O_CREAT|unix.O_APPEND, 0o600)
		if err != nil {
			return nil, err
		}
		current, err := lockOpen(ctx, dir, name, f)
		if err == nil && current {
			return f, nil
		}
		f.Close()
		if err != nil {
			return nil, err
		}
	}
}

func lockOpen(ctx context.Context, dir *os.File, name string, f *os.File) (current bool, err error) {
	mine, err := checkOwn(f, unix.S_IFREG)
	if err != nil {
		return false, err
	}
	if err := flock(ctx, f); err != nil {
		return false, err
	}
	var named unix.Stat_t
	err = unix.Fstatat(int(dir.Fd()), name, &named, unix.AT_SYMLINK_NOFOLLOW)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return false, &fs.PathError{Op: "stat", Path: f.Name(), Err: err}
	}
	return err == nil && named.Dev == mine.Dev && named.Ino == mine.Ino, nil
}

// LockDir takes the exclusive flock(2) of the open directory dir itself, waiting until ctx is done. Closing dir releases it.
func LockDir(ctx context.Context, dir *os.File) error { return flock(ctx, dir) }

func flock(ctx context.Context, f *os.File) error {
	for {
		err := kernel.Do(func() error { return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) })
		if !errors.Is(err, unix.EWOULDBLOCK) {
			if err != nil {
				return &fs.PathError{Op: "lock", Path: f.Name(), Err: err}
			}
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("lock %s: another process holds it: %w", f.Name(), context.Cause(ctx))
		case <-time.After(lockPoll):
		}
	}
}

// Replace makes data the content of the file name in dir, or leaves the old file as it is. The caller holds the lock that all
// writers of the file take; so one temporary name is enough, and what a killed writer left under it goes away here.
func Replace(dir *os.File, name string, data []byte, perm os.FileMode) (err error) {
	temp := "." + name + ".tmp"
	if err := unix.Unlinkat(int(dir.Fd()), temp, 0); err != nil && !errors.Is(err, unix.ENOENT) {
		return &fs.PathError{Op: "unlink", Path: dir.Name() + "/" + temp, Err: err}
	}
	f, err := openAt(dir, temp, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, perm)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, unlinkTemp(dir, temp))
		}
	}()
	if err := writeSync(f, data, perm); err != nil {
		return err
	}
	if err := unix.Renameat(int(dir.Fd()), temp, int(dir.Fd()), name); err != nil {
		return &fs.PathError{Op: "rename", Path: f.Name(), Err: err}
	}
	if err := dir.Sync(); err != nil {
		return fmt.Errorf("sync directory: %w", err)
	}
	return nil
}

func writeSync(f *os.File, data []byte, perm os.FileMode) error {
	_, err := f.Write(data)
	if err == nil {
		err = f.Chmod(perm) // whatever the umask is
	}
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

func unlinkTemp(dir *os.File, temp string) error {
	if err := unix.Unlinkat(int(dir.Fd()), temp, 0); err != nil && !errors.Is(err, unix.ENOENT) {
		return &fs.PathError{Op: "unlink", Path: dir.Name() + "/" + temp, Err: err}
	}
	return nil
}

// openAt never waits for the other end of a FIFO and never follows a link; checkOwn looks at what it got.
func openAt(dir *os.File, name string, flags int, perm os.FileMode) (*os.File, error) {
	path := dir.Name() + "/" + name
	fd, err := kernel.Value(func() (int, error) {
		return unix.Openat(int(dir.Fd()), name, flags|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, uint32(perm))
	})
	if err == nil { // os.File would hand what does not block to the poller
		if _, err = unix.FcntlInt(uintptr(fd), unix.F_SETFL, flags&unix.O_APPEND); err != nil {
			unix.Close(fd)
		}
	}
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

func checkKind(f *os.File, kind uint32) (*unix.Stat_t, error) {
	var stat unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &stat); err != nil {
		return nil, &fs.PathError{Op: "stat", Path: f.Name(), Err: err}
	}
	if stat.Mode&unix.S_IFMT != kind {
		return nil, fmt.Errorf("%s: %w: not the kind of file it should be", f.Name(), ErrUntrusted)
	}
	return &stat, nil
}

func checkOwn(f *os.File, kind uint32) (*unix.Stat_t, error) {
	stat, err := checkKind(f, kind)
	switch {
	case err != nil:
		return nil, err
	case int(stat.Uid) != os.Geteuid():
		return nil, fmt.Errorf("%s: %w: owned by user %d; make it root's", f.Name(), ErrUntrusted, stat.Uid)
	case stat.Mode&0o022 != 0:
		return nil, fmt.Errorf("%s: %w: others can write it (mode %04o); chmod go-w", f.Name(), ErrUntrusted, stat.Mode&0o7777)
	}
	return stat, nil
}

//go:build linux

package network

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"isula.org/syscontainer-hooks/internal/atomicfile"
	"isula.org/syscontainer-hooks/internal/kernel"
)

// PinDir has a bind mount of each container's network namespace, under the container's id. It keeps the namespace, and what is
// in it, when the container has ended: interfaces of the host come home from there.
const PinDir = "/run/syscontainer-tools/netns"

// Pin keeps the network namespace ns of the container id. What a crash left under the id is replaced.
func Pin(id string, ns *os.File) error {
	if err := pinNamespace(PinDir, id, ns); err != nil {
		return fmt.Errorf("pin network namespace: %w", err)
	}
	return nil
}

// OpenPin opens the namespace that Pin keeps for the container id. Without one it is fs.ErrNotExist.
func OpenPin(id string) (*os.File, error) {
	ns, err := openPinned(PinDir, id)
	if err != nil {
		return nil, fmt.Errorf("open pinned network namespace: %w", err)
	}
	return ns, nil
}

// Pinned tells whether Unpin would find anything.
func Pinned(id string) bool {
	var stat unix.Stat_t
	return unix.Lstat(filepath.Join(PinDir, id), &stat) == nil
}

// Unpin lets the namespace go. One that is not pinned is no error.
func Unpin(id string) error {
	if err := unpinNamespace(PinDir, id); err != nil {
		return fmt.Errorf("unpin network namespace: %w", err)
	}
	return nil
}

// pinNamespace mounts ns on the new file name in dir, which is for root alone, so that a path to it is safe.
func pinNamespace(dir, name string, ns *os.File) error {
	if err := checkFileName(name); err != nil {
		return err
	}
	d, err := atomicfile.MakeDir(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	path := filepath.Join(dir, name)
	create := func() error { return unix.Mknodat(int(d.Fd()), name, unix.S_IFREG|0o600, 0) }
	err = create()
	if errors.Is(err, unix.EEXIST) {
		if err := unpinNamespace(dir, name); err != nil {
			return fmt.Errorf("remove what an earlier run left: %w", err)
		}
		err = create()
	}
	if err != nil {
		return &fs.PathError{Op: "create", Path: path, Err: err}
	}
	source := fmt.Sprintf("/proc/thread-self/fd/%d", ns.Fd())
	if err := unix.Mount(source, path, "", unix.MS_BIND, ""); err != nil {
		return errors.Join(&fs.PathError{Op: "mount network namespace on", Path: path, Err: err}, os.Remove(path))
	}
	return nil
}

// openPinned opens a namespace that was pinned. What else stands there, as after a crash, is as good as nothing.
func openPinned(dir, name string) (*os.File, error) {
	if err := checkFileName(name); err != nil {
		return nil, err
	}
	d, err := atomicfile.OpenDir(dir)
	if isMissing(err) {
		return nil, fs.ErrNotExist
	}
	if err != nil {
		return nil, err
	}
	defer d.Close()
	var stat unix.Stat_t
	if err := unix.Fstatat(int(d.Fd()), name, &stat, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return nil, &fs.PathError{Op: "stat", Path: filepath.Join(dir, name), Err: err}
	}
	if stat.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, fmt.Errorf("%s is no network namespace: %w", filepath.Join(dir, name), fs.ErrNotExist)
	}
	file, err := kernel.OpenAt(d, name, unix.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	if kind, err := unix.IoctlRetInt(int(file.Fd()), unix.NS_GET_NSTYPE); err != nil || kind != unix.CLONE_NEWNET {
		file.Close()
		return nil, fmt.Errorf("%s is no network namespace: %w", file.Name(), fs.ErrNotExist)
	}
	return file, nil
}

// unpinNamespace removes whatever stands there: the directory is for root alone, and this name for this container.
func unpinNamespace(dir, name string) error {
	if err := checkFileName(name); err != nil {
		return err
	}
	path := filepath.Join(dir, name)
	err := kernel.DetachAll(path)
	if err == nil {
		err = os.Remove(path)
	}
	if isMissing(err) {
		return nil
	}
	return err
}

// isMissing tells whether something is not there, also because what should be its directory is none.
func isMissing(err error) bool { return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) }

func checkFileName(id string) error {
	if id == "" || id == "." || id == ".." || filepath.Base(id) != id {
		return fmt.Errorf("container id %q is no file name", id)
	}
	return nil
}

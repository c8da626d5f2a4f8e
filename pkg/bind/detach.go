//go:build linux

package bind

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"isula.org/syscontainer-hooks/internal/atroot"
	"isula.org/syscontainer-hooks/internal/hostpath"
	"isula.org/syscontainer-hooks/internal/kernel"
	"isula.org/syscontainer-hooks/internal/mountns"
	"isula.org/syscontainer-hooks/internal/mounttable"
)

// Detach takes back what AttachBase and Attach did in the container, completely or in part, in this process or another: the
// mounts, where the container still has a mount namespace, and the mount points that were made. What is gone already, or is
// not ours any more, is left alone. Remove, which comes after, does the same on the host.
func (t *Transfer) Detach(c Container, attachments []Attachment) error {
	var errs []error
	for _, a := range slices.Backward(attachments) {
		if err := t.detach(c, &a); err != nil {
			errs = append(errs, fmt.Errorf("detach %s: %w", a.Target, err))
		}
	}
	return errors.Join(errs...)
}

// RemoveSources removes the directories and mount points that Attach made on the host, as far as they are empty.
func RemoveSources(attachments []Attachment) error {
	var errs []error
	for _, a := range slices.Backward(attachments) {
		for _, dir := range slices.Backward(a.HostDirs) {
			if err := removeOnHost(dir); err != nil {
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}

func removeOnHost(path string) error {
	parent, err := hostpath.Open(filepath.Dir(path))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer parent.Close()
	stat, err := atroot.Stat(parent)
	if err != nil {
		return err
	}
	return errors.Join(
		removeFile(parent, filepath.Base(path), stat.Dev),
		atroot.RemoveDir(parent, filepath.Base(path), stat.Dev),
	)
}

func (t *Transfer) detach(c Container, a *Attachment) error {
	target := filepath.Clean(a.Target)
	parent, err := atroot.Open(c.Root, filepath.Dir(target), unix.O_DIRECTORY)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return atroot.RemoveDirs(c.Root, a.Dirs, a.Dev)
	}
	if err != nil {
		return err
	}
	defer parent.Close()
	name := filepath.Base(target)
	if c.MountNS != nil {
		if err := t.unmount(c.MountNS, a, parent, name); err != nil {
			return err
		}
	}
	if a.File {
		if err := removeFile(parent, name, a.Dev); err != nil {
			return err
		}
	}
	return atroot.RemoveDirs(c.Root, a.Dirs, a.Dev)
}

// unmount takes the mount off name if it is the attachment's.
func (t *Transfer) unmount(ns *os.File, a *Attachment, parent *os.File, name string) error {
	f, err := atroot.OpenName(parent, name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	_, mounted, err := mounttable.ID(f)
	if err != nil || !mounted {
		return err
	}
	if a.Source != "" { // the base has no source, and PlanBase saw that nothing else was mounted on its place
		entry, err := kernel.Open(filepath.Join(t.midPath(), a.entry()), unix.O_PATH|unix.O_NOFOLLOW)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		defer entry.Close()
		if !sameInode(f, entry) {
			return nil
		}
	}
	return mountns.Do(ns, func() error {
		if err := unix.Fchdir(int(parent.Fd())); err != nil {
			return err
		}
		return kernel.Do(func() error { return unix.Unmount(name, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW) })
	})
}

// removeFile removes the empty file that was made as a mount point.
func removeFile(parent *os.File, name string, dev uint64) error {
	stat, err := atroot.StatName(parent, name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if stat.Dev != dev || stat.Mode&unix.S_IFMT != unix.S_IFREG || stat.Size != 0 {
		return nil
	}
	err = unix.Unlinkat(int(parent.Fd()), name, 0)
	if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EBUSY) {
		return &fs.PathError{Op: "unlink", Path: filepath.Join(parent.Name(), name), Err: err}
	}
	return nil
}

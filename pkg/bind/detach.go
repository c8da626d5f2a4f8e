//go:build linux

package bind

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"isula.org/syscontainer-hooks/internal/atroot"
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

func (t *Transfer) detach(c Container, a *Attachment) error {
	root := c.Root
	if a.Target == Dir { // it was made through the host's side, which can be written also where the container's cannot
		root = c.hostRoot()
	}
	if c.MountNS != nil {
		if err := t.unmount(c, a); err != nil {
			return err
		}
	}
	parent, err := atroot.OpenParent(root, a.Target, a.on())
	if err != nil || parent == nil {
		return errors.Join(err, atroot.RemoveDirs(root, a.Dirs, a.on()))
	}
	defer parent.Close()
	if a.File {
		name := filepath.Base(a.Target)
		if stat, statErr := atroot.StatName(parent, name); statErr == nil {
			err = removePoint(parent, name, stat)
		}
	}
	return errors.Join(err, atroot.RemoveDirs(root, a.Dirs, a.on()))
}

// unmount takes the attachment's mount off its container path, if it is there. Only a thread inside the namespace can, and it
// names the mount by its directory's handle: paths inside are the container's.
func (t *Transfer) unmount(c Container, a *Attachment) error {
	f, err := atroot.Open(c.Root, a.Target, unix.O_NOFOLLOW)
	if err != nil {
		return ignoreGone(err)
	}
	defer f.Close()
	_, mounted, err := mounttable.ID(f)
	if err != nil || !mounted {
		return err
	}
	entry := t.masterPath()
	if a.Target != Dir {
		entry = filepath.Join(t.midPath(), a.entry())
	}
	ours, err := kernel.Open(entry, unix.O_PATH|unix.O_NOFOLLOW)
	if err != nil {
		return ignoreGone(err)
	}
	defer ours.Close()
	if !sameInode(f, ours) {
		return nil // something else that was mounted meanwhile
	}
	parent, err := atroot.Open(c.Root, filepath.Dir(a.Target), unix.O_DIRECTORY)
	if err != nil {
		return ignoreGone(err)
	}
	defer parent.Close()
	return mountns.Do(c.MountNS, func() error {
		if err := unix.Fchdir(int(parent.Fd())); err != nil {
			return err
		}
		name := filepath.Base(a.Target)
		return kernel.Do(func() error { return unix.Unmount(name, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW) })
	})
}

func ignoreGone(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return nil
	}
	return err
}

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
func (c Container) Detach(attachments []Attachment) error {
	var errs []error
	for _, a := range slices.Backward(attachments) {
		if err := a.detach(c); err != nil {
			errs = append(errs, fmt.Errorf("detach %s: %w", a.Target, err))
		}
	}
	return errors.Join(errs...)
}

func (a *Attachment) detach(c Container) error {
	root := c.Root
	if a.Target == Dir { // it was made through the host's side, which can be written also where the container's cannot
		root = c.hostRoot()
	}
	if c.MountNS != nil {
		if err := a.unmount(c); err != nil {
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
func (a *Attachment) unmount(c Container) error {
	f, err := atroot.Open(c.Root, a.Target, unix.O_NOFOLLOW)
	if err != nil {
		return ignoreGone(err)
	}
	defer f.Close()
	_, mounted, err := mounttable.ID(f)
	if err != nil || !mounted {
		return err
	}
	ours, err := a.isMount(f)
	if err != nil || !ours {
		return err // something else that was mounted meanwhile
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

// isMount tells whether f, the root of a mount, is the attachment's.
func (a *Attachment) isMount(f *os.File) (bool, error) {
	stat, err := atroot.Stat(f)
	if err != nil || a.Target != Dir {
		return err == nil && stat.Dev == a.SourceDev && stat.Ino == a.SourceIno, err
	}
	master, err := hostpath.Open(Dir + "/master") // nothing else of that tmpfs is in the container
	if err != nil {
		return false, ignoreGone(err)
	}
	defer master.Close()
	base, err := atroot.Stat(master)
	return err == nil && stat.Dev == base.Dev, err
}

func ignoreGone(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return nil
	}
	return err
}

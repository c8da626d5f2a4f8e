//go:build linux

package device

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"isula.org/syscontainer-hooks/internal/atroot"
	"isula.org/syscontainer-hooks/internal/kernel"
	"isula.org/syscontainer-hooks/internal/mountns"
	"isula.org/syscontainer-hooks/internal/mounttable"
)

// Place makes what was planned. When it fails, Remove takes back what it did.
//
// Where a node cannot work, on a file system that was mounted inside a user namespace or with nodev, an empty file is made and
// a node on a file system of the host is mounted on it. The device is usable there all the same; who may use it is up to the
// cgroup. Since Linux 5.6; with such mounts since 5.2 as well.
func (c Container) Place(placements []Placement) error {
	mounts, err := c.place(placements)
	defer func() {
		for _, m := range mounts {
			m.target.Close()
		}
	}()
	if err != nil || len(mounts) == 0 {
		return err
	}
	return c.mountNodes(mounts)
}

// place makes the nodes, and files for those that have to be mounted, which it gives back.
func (c Container) place(placements []Placement) (mounts []mount, err error) {
	maker, done := newMaker()
	defer done()
	dirs := atroot.NewDirs(c.Root)
	defer dirs.Close()
	owner := atroot.Owner{UID: c.UID, GID: c.GID}
	for _, p := range placements {
		dir, err := dirs.Locate(p.Path)
		if err == nil && p.mount != 0 && dir.Mount != p.mount {
			err = fmt.Errorf("%w: a mount that was not there when the change was planned", ErrOccupied)
		}
		if err == nil {
			err = dir.Make(owner)
		}
		var target *os.File
		if err == nil {
			target, err = p.place(maker, dir, owner)
		}
		if err != nil {
			return mounts, fmt.Errorf("container path %s: %w", p.Path, err)
		}
		if target != nil {
			mounts = append(mounts, mount{p.Node, target})
		}
	}
	return mounts, nil
}

// place makes the node or, where it cannot work, a file to mount it on, of which it gives a handle.
func (p *Placement) place(maker *maker, dir *atroot.Dir, owner atroot.Owner) (target *os.File, err error) {
	name := filepath.Base(p.Path)
	temp := name
	if p.Aside != "" {
		temp = p.Aside
	}
	err = unix.EOVERFLOW
	if !dir.NoDev {
		err = maker.create(&p.Node, dir.Anchor, temp, p.Aside != "")
	}
	isFile := atroot.IsOverflow(err)
	if isFile {
		err = maker.createFile(dir.Anchor, temp, owner)
	}
	if err == nil && p.Aside != "" {
		err = unix.Renameat2(int(dir.Anchor.Fd()), temp, int(dir.Anchor.Fd()), name, unix.RENAME_EXCHANGE)
		if err != nil {
			err = fmt.Errorf("exchange with what is there: %w", err)
		}
	}
	if err != nil || !isFile {
		return nil, err
	}
	return atroot.OpenName(dir.Anchor, name)
}

// Commit drops what the nodes have replaced.
func (c Container) Commit(placements []Placement) error {
	var errs []error
	for _, p := range placements {
		if p.Aside == "" {
			continue
		}
		parent, err := atroot.Open(c.Root, filepath.Dir(p.Path), unix.O_DIRECTORY)
		if err == nil {
			err = unlink(parent, p.Aside)
			parent.Close()
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// Remove takes back what Place did, completely or in part, before or after Commit, in this process or another: mounts, nodes
// and directories go, what was replaced and not yet dropped comes back. What is gone already, or has become something else
// meanwhile, is left alone.
func (c Container) Remove(placements []Placement) error {
	var errs []error
	for _, p := range slices.Backward(placements) {
		if err := c.remove(&p); err != nil {
			errs = append(errs, fmt.Errorf("container path %s: %w", p.Path, err))
		}
	}
	return errors.Join(errs...)
}

func (c Container) remove(p *Placement) error {
	parent, err := atroot.OpenParent(c.Root, p.Path, p.on())
	if err != nil || parent == nil {
		return errors.Join(err, atroot.RemoveDirs(c.Root, p.Dirs, p.on()))
	}
	defer parent.Close()
	name := filepath.Base(p.Path)
	if c.MountNS != nil {
		if err := c.unmountNode(p, parent, name); err != nil {
			return err
		}
	}
	if p.Aside != "" {
		err = p.putBack(parent, name)
	} else {
		err = p.unlinkOwn(parent, name, false)
	}
	return errors.Join(err, atroot.RemoveDirs(c.Root, p.Dirs, p.on()))
}

// putBack takes a replacement back. The entry aside is our node before the exchange, what was there before after it, and
// missing both before the node was made and after Commit.
func (p *Placement) putBack(parent *os.File, name string) error {
	stat, err := atroot.StatName(parent, p.Aside)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return p.unlinkOwn(parent, name, true)
	case err != nil:
		return err
	case stat.Ino != p.Replaced && (p.is(stat) || p.isUnfinished(stat)):
		return unlink(parent, p.Aside)
	}
	if err := unix.Renameat(int(parent.Fd()), p.Aside, int(parent.Fd()), name); err != nil {
		return &fs.PathError{Op: "rename", Path: filepath.Join(parent.Name(), p.Aside), Err: err}
	}
	return nil
}

// isUnfinished tells whether stat is a node that has not got its mode yet, or the file below a mounted node: both have mode 0,
// so that neither is taken for what was there before.
func (p *Placement) isUnfinished(stat *unix.Stat_t) bool {
	isFile := stat.Mode&unix.S_IFMT == unix.S_IFREG && stat.Size == 0
	return stat.Mode&0o7777 == 0 && (isFile || p.isDevice(stat))
}

// unlinkOwn removes the entry if it is what Place made: the node, or the empty file below a mounted one. exact asks for the
// node's own mode and owner too, where another node for the device may have been there before.
func (p *Placement) unlinkOwn(parent *os.File, name string, exact bool) error {
	stat, err := atroot.StatName(parent, name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if !p.is(stat) && !p.isUnfinished(stat) && (exact || !p.isDevice(stat)) {
		return nil
	}
	return unlink(parent, name)
}

func unlink(parent *os.File, name string) error {
	if err := unix.Unlinkat(int(parent.Fd()), name, 0); err != nil && !errors.Is(err, unix.ENOENT) {
		return &fs.PathError{Op: "unlink", Path: filepath.Join(parent.Name(), name), Err: err}
	}
	return nil
}

// mount is a node to be mounted on the handle of a file in the container.
type mount struct {
	node   Node
	target *os.File
}

// mountNodes makes the nodes on a file system of their own and mounts each on its file. That file system is mounted only in a
// mount namespace that ends right away, so the host never sees it and a killed hook leaves nothing of it.
func (c Container) mountNodes(mounts []mount) error {
	if c.MountNS == nil {
		return errors.New("a node that has to be mounted needs the container's mount namespace")
	}
	trees := make([]*os.File, 0, len(mounts))
	defer func() {
		for _, tree := range trees {
			tree.Close()
		}
	}()
	err := mountns.DoPrivate(func() error {
		dir, err := mountTmpfs()
		if err != nil {
			return err
		}
		defer dir.Close()
		for i, m := range mounts {
			name := strconv.Itoa(i)
			if err := new(maker).create(&m.node, dir, name, false); err != nil {
				return err
			}
			fd, err := unix.OpenTree(int(dir.Fd()), name, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
			if err != nil {
				return fmt.Errorf("clone mount of node: %w", err)
			}
			trees = append(trees, os.NewFile(uintptr(fd), m.node.Path))
		}
		return nil
	})
	if err != nil {
		return err
	}
	targets := make([]*os.File, len(mounts))
	for i, m := range mounts {
		targets[i] = m.target
	}
	return mounttable.Inside(c.MountNS, targets, func() error {
		for i, m := range mounts {
			flags := unix.MOVE_MOUNT_F_EMPTY_PATH | unix.MOVE_MOUNT_T_EMPTY_PATH
			if err := unix.MoveMount(int(trees[i].Fd()), "", int(m.target.Fd()), "", flags); err != nil {
				return fmt.Errorf("container path %s: mount node: %w", m.node.Path, err)
			}
		}
		return nil
	})
}

// mountTmpfs mounts a tmpfs over the root of this thread's own mount namespace and gives a handle on it. Older kernels clone
// from no file system that is not mounted somewhere.
func mountTmpfs() (*os.File, error) {
	config, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("open tmpfs: %w", err)
	}
	defer unix.Close(config)
	if err := unix.FsconfigCreate(config); err != nil {
		return nil, fmt.Errorf("create tmpfs: %w", err)
	}
	fd, err := unix.Fsmount(config, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NOEXEC)
	if err != nil {
		return nil, fmt.Errorf("mount tmpfs: %w", err)
	}
	dir := os.NewFile(uintptr(fd), "tmpfs")
	if err := unix.MoveMount(fd, "", unix.AT_FDCWD, "/", unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		dir.Close()
		return nil, fmt.Errorf("attach tmpfs: %w", err)
	}
	return dir, nil
}

// unmountNode takes the mount off name, if there is one. Only a thread inside the namespace can, and it names the mount by its
// directory's handle: paths inside are the container's.
func (c Container) unmountNode(p *Placement, parent *os.File, name string) error {
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
	if stat, err := atroot.Stat(f); err != nil || !p.isDevice(stat) {
		return err // something else that was mounted meanwhile
	}
	return mountns.Do(c.MountNS, func() error {
		if err := unix.Fchdir(int(parent.Fd())); err != nil {
			return err
		}
		return kernel.Do(func() error { return unix.Unmount(name, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW) })
	})
}

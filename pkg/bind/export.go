//go:build linux

package bind

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"isula.org/syscontainer-hooks/internal/atroot"
	"isula.org/syscontainer-hooks/internal/hostpath"
	"isula.org/syscontainer-hooks/internal/kernel"
	"isula.org/syscontainer-hooks/internal/mounttable"
)

// export makes the attachment's transfer entry in both directories, and tells whether the source is a directory. An entry for
// that very source stays as it is.
func (at *attacher) export(a *Attachment) (isDir bool, err error) {
	tree, err := at.cloneSource(a)
	if err != nil {
		return false, err
	}
	defer unix.Close(tree)
	stat, err := a.checkTree(tree)
	if err != nil {
		return false, err
	}
	if isDir, err = checkSource(stat); err != nil || at.exported[a.Source] != "" {
		return isDir, err
	}
	entry := a.entry()
	if err := a.attachEntry(tree, at.mid, entry, isDir); err != nil {
		return false, err
	}
	mid, err := openTree(int(at.mid.Fd()), entry)
	if err != nil {
		return false, err
	}
	defer unix.Close(mid)
	at.exported[a.Source] = entry
	return isDir, a.attachEntry(mid, at.master, entry, isDir)
}

// cloneSource gives a detached copy of the single mount at the source.
func (at *attacher) cloneSource(a *Attachment) (int, error) {
	parent, err := at.sources.Of(a.Source)
	if err != nil {
		return -1, err
	}
	if parent != nil {
		fd, err := openTree(int(parent.Fd()), filepath.Base(a.Source))
		if err != nil {
			return -1, err
		}
		if _, err := a.checkTree(fd); err == nil {
			return fd, nil
		}
		unix.Close(fd) // a link perhaps
	}
	source, err := hostpath.Open(a.Source)
	if err != nil {
		return -1, err
	}
	defer source.Close()
	return openTree(int(source.Fd()), "")
}

// attachEntry mounts the detached tree on the entry name of dir, with the attachment's options.
func (a *Attachment) attachEntry(tree int, dir *os.File, name string, isDir bool) error {
	made, err := makeEntry(dir, name, isDir)
	if err != nil {
		return err
	}
	if !made {
		mounted, err := a.isMounted(dir, name)
		if err != nil || mounted {
			return err
		}
	}
	if err := a.setOptions(tree); err != nil {
		return err
	}
	if err := moveTree(tree, int(dir.Fd()), name); err != nil {
		return err
	}
	if !a.private() {
		return nil
	}
	// What is mounted below a shared mount has become shared.
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Propagation: unix.MS_PRIVATE}); err != nil {
		return fmt.Errorf("make mount of %s private: %w", a.Source, err)
	}
	return nil
}

// makeEntry makes the directory or empty file that a transfer entry is mounted on.
func makeEntry(dir *os.File, name string, isDir bool) (made bool, err error) {
	if isDir {
		err = unix.Mkdirat(int(dir.Fd()), name, 0o700)
	} else {
		err = unix.Mknodat(int(dir.Fd()), name, unix.S_IFREG|0o600, 0)
	}
	switch {
	case err == nil:
		return true, nil
	case errors.Is(err, unix.EEXIST):
		return false, nil
	default:
		return false, &fs.PathError{Op: "make", Path: filepath.Join(dir.Name(), name), Err: err}
	}
}

// isMounted tells whether the source is mounted on the entry; something else there is an error.
func (a *Attachment) isMounted(dir *os.File, name string) (bool, error) {
	f, err := atroot.OpenName(dir, name)
	if err != nil {
		return false, err
	}
	defer f.Close()
	_, mounted, err := mounttable.ID(f)
	if err != nil || !mounted {
		return false, err
	}
	stat, err := atroot.Stat(f)
	if err == nil && !a.isSource(stat) {
		err = fmt.Errorf("%s: %w: a mount of something else", f.Name(), ErrOccupied)
	}
	return true, err
}

func (a *Attachment) isSource(stat *unix.Stat_t) bool {
	return stat.Dev == a.SourceDev && stat.Ino == a.SourceIno
}

// checkTree makes sure that a tree is of the planned source, whatever happened to the paths that lead there.
func (a *Attachment) checkTree(tree int) (*unix.Stat_t, error) {
	var stat unix.Stat_t
	if err := unix.Fstat(tree, &stat); err != nil {
		return nil, &fs.PathError{Op: "stat", Path: a.Source, Err: err}
	}
	if !a.isSource(&stat) {
		return nil, fmt.Errorf("not the host path as it was when the change was planned: %w", ErrOccupied)
	}
	return &stat, nil
}

// setOptions gives a detached tree the options of the spec. Everything is decided before the mount is visible anywhere.
func (s Spec) setOptions(tree int) error {
	attr := unix.MountAttr{Propagation: unix.MS_SLAVE}
	if s.private() {
		attr.Propagation = unix.MS_PRIVATE
	}
	if s.ReadOnly {
		attr.Attr_set = unix.MOUNT_ATTR_RDONLY
	}
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		return fmt.Errorf("set options of mount of %s: %w", s.Source, err)
	}
	return nil
}

// openTree gives a detached copy of the single mount at the entry name of dir, or at dir itself. It does not follow a link.
func openTree(dir int, name string) (int, error) {
	flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC | unix.AT_SYMLINK_NOFOLLOW)
	if name == "" {
		flags |= unix.AT_EMPTY_PATH
	}
	fd, err := kernel.Value(func() (int, error) { return unix.OpenTree(dir, name, flags) })
	if err != nil {
		return -1, fmt.Errorf("clone mount: %w", err)
	}
	return fd, nil
}

// moveTree mounts the detached tree on the entry name of dir, or on dir itself. It does not follow a link.
func moveTree(tree, dir int, name string) error {
	flags := unix.MOVE_MOUNT_F_EMPTY_PATH
	if name == "" {
		flags |= unix.MOVE_MOUNT_T_EMPTY_PATH
	}
	if err := unix.MoveMount(tree, "", dir, name, flags); err != nil {
		return fmt.Errorf("mount: %w", err)
	}
	return nil
}

//go:build linux

package bind

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"isula.org/syscontainer-hooks/internal/atroot"
	"isula.org/syscontainer-hooks/internal/hostpath"
)

// MakeSources makes what Attach needs on the host and what is missing there: directories for sources, and mount points that are
// inside another shared path. It notes in the attachments what it has made, also when it fails, so that RemoveSources can take
// back that and nothing else. What it makes belongs to the container's root user, but for parent directories.
func (c Container) MakeSources(attachments []Attachment) error {
	for i := range attachments {
		a := &attachments[i]
		var err error
		if len(a.Missing) > 0 {
			err = a.makeOnHost(a.Source, true, c.owner())
			if err == nil {
				err = a.identifySource()
			}
		}
		if err == nil && a.inner {
			err = a.makeInner(attachments[:i], c.owner())
		}
		if err != nil {
			return fmt.Errorf("share %s: %w", a.Spec, err)
		}
	}
	return nil
}

func (a *Attachment) identifySource() error {
	source, err := hostpath.Open(a.Source)
	if err != nil {
		return err
	}
	defer source.Close()
	stat, err := atroot.Stat(source)
	if err == nil {
		a.SourceDev, a.SourceIno = stat.Dev, stat.Ino
	}
	return err
}

// makeInner makes the mount point inside the shared path that holds it, one of those before.
func (a *Attachment) makeInner(before []Attachment, owner atroot.Owner) error {
	for _, outer := range slices.Backward(before) {
		if inner, ok := strings.CutPrefix(a.Target, outer.Target+"/"); ok {
			return a.makeOnHost(filepath.Join(outer.Source, inner), a.isDir, owner)
		}
	}
	return nil
}

// makeOnHost makes path unless it is there. No link is followed on the way to something new.
func (a *Attachment) makeOnHost(path string, isDir bool, owner atroot.Owner) error {
	f, err := hostpath.Open(path)
	if err == nil {
		return f.Close()
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	dir := filepath.Clean(path)
	if !isDir {
		dir = filepath.Dir(dir)
	}
	parent, made, err := hostpath.MkdirAll(dir, owner)
	for _, path := range made {
		err = errors.Join(err, a.note(path))
	}
	if err != nil {
		return err
	}
	defer parent.Close()
	if isDir {
		return nil
	}
	if err := atroot.CreateFile(parent, filepath.Base(path), owner, 0o644); err != nil {
		return err
	}
	return a.note(path)
}

func (a *Attachment) note(path string) error {
	var stat unix.Stat_t
	if err := unix.Lstat(path, &stat); err != nil {
		return &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	a.Made = append(a.Made, HostPath{path, stat.Dev, stat.Ino})
	return nil
}

// RemoveSources removes what MakeSources has made, as far as it is empty and nobody has put something else in its place; and what
// a killed one has left half made.
func RemoveSources(attachments []Attachment) error {
	var errs []error
	for _, a := range slices.Backward(attachments) {
		for _, made := range slices.Backward(a.Made) {
			same := func(stat *unix.Stat_t) bool { return stat.Dev == made.Dev && stat.Ino == made.Ino }
			errs = append(errs, removeOnHost(made.Path, same))
		}
		for _, path := range slices.Backward(a.Missing) {
			errs = append(errs, removeOnHost(path, hostpath.IsUnfinished))
		}
	}
	return errors.Join(errs...)
}

func removeOnHost(path string, ours func(*unix.Stat_t) bool) error {
	parent, err := hostpath.Open(filepath.Dir(path))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer parent.Close()
	name := filepath.Base(path)
	stat, err := atroot.StatName(parent, name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil || !ours(stat) {
		return err
	}
	return removePoint(parent, name, stat)
}

// removePoint removes an empty directory or file that was made as a mount point.
func removePoint(parent *os.File, name string, stat *unix.Stat_t) error {
	switch {
	case stat.Mode&unix.S_IFMT == unix.S_IFDIR:
		return atroot.RemoveDir(parent, name)
	case stat.Mode&unix.S_IFMT != unix.S_IFREG || stat.Size != 0:
		return nil
	}
	err := unix.Unlinkat(int(parent.Fd()), name, 0)
	if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EBUSY) {
		return &fs.PathError{Op: "unlink", Path: filepath.Join(parent.Name(), name), Err: err}
	}
	return nil
}

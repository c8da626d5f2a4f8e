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
	"isula.org/syscontainer-hooks/internal/mounttable"
)

// AttachBase mounts the container's part of the transfer layout, which Prepare has made, in the container.
func (t *Transfer) AttachBase(c Container) error {
	part, err := hostpath.Open(t.masterPath())
	if err != nil {
		return err
	}
	defer part.Close()
	tree, err := openTree(int(part.Fd()), "")
	if err != nil {
		return err
	}
	defer unix.Close(tree)
	if err := (Spec{Source: t.masterPath(), ReadOnly: true}).setOptions(tree); err != nil {
		return err
	}
	made, err := atroot.Mkdir(c.hostRoot(), filepath.Base(Dir), c.owner())
	if err != nil {
		return err
	}
	made.Close()
	point, err := atroot.OpenName(c.Root, filepath.Base(Dir))
	if err != nil {
		return err
	}
	defer point.Close()
	return mounttable.Inside(c.MountNS, []*os.File{point}, func() error { return moveTree(tree, int(point.Fd()), "") })
}

// Attach shares what was planned; AttachBase has to come first. When it fails, Detach takes back what it did in the container
// and Remove what it did on the host.
func (t *Transfer) Attach(c Container, attachments []Attachment) error {
	at := &attacher{Container: c, exported: make(map[string]string)}
	defer at.close()
	if err := at.open(t); err != nil {
		return err
	}
	// All that stand beside each other go at once. A path inside another one is resolved when that one is mounted, and where
	// links make it uncertain which is inside which, each is resolved when all before it are mounted.
	oneByOne := slices.ContainsFunc(attachments, func(a Attachment) bool { return a.linked })
	for rest := attachments; len(rest) > 0; {
		n := 1
		for n < len(rest) && !oneByOne && !rest[n].inner {
			n++
		}
		if err := at.attach(rest[:n]); err != nil {
			return err
		}
		rest = rest[n:]
	}
	return nil
}

// attacher has the handles that all attachments of one call go through.
type attacher struct {
	Container
	master, mid *os.File // the container's directories on the host
	base        *os.File // and in the container
	sources     hostpath.Parents
	exported    map[string]string // the entries of the sources that are
}

// open also makes sure that the container's side of the transfer layout is the host's: what the image put under its name is
// not used.
func (at *attacher) open(t *Transfer) (err error) {
	if at.master, err = hostpath.Open(t.masterPath()); err != nil {
		return err
	}
	if at.mid, err = hostpath.Open(t.midPath()); err != nil {
		return err
	}
	if at.base, err = atroot.OpenName(at.Root, filepath.Base(Dir)); err != nil {
		return err
	}
	if !sameInode(at.base, at.master) {
		return fmt.Errorf("container path %s: %w", Dir, ErrOccupied)
	}
	return nil
}

func (at *attacher) close() {
	for _, f := range []*os.File{at.master, at.mid, at.base} {
		if f != nil {
			f.Close()
		}
	}
	at.sources.Close()
}

// point is a mount point: the entry name of dir, or dir itself.
type point struct {
	dir   *os.File
	name  string
	mount int // that it is on
}

func (at *attacher) attach(attachments []Attachment) error {
	dirs := atroot.NewDirs(at.Root)
	defer dirs.Close()
	points := make([]*point, len(attachments)) // nil where the source is mounted already
	defer func() {
		for _, p := range points {
			if p != nil && p.name == "" {
				p.dir.Close()
			}
		}
	}()
	var checks []*os.File // one on each mount
	mounts := make(map[int]bool)
	for i := range attachments {
		a := &attachments[i]
		p, err := at.prepare(a, dirs)
		if err != nil {
			return fmt.Errorf("share %s: %w", a.Spec, err)
		}
		points[i] = p
		if p != nil && !mounts[p.mount] {
			mounts[p.mount] = true
			checks = append(checks, p.dir)
		}
	}
	if len(checks) == 0 {
		return nil
	}
	return mounttable.Inside(at.MountNS, checks, func() error {
		for i, p := range points {
			a := &attachments[i]
			if p == nil {
				continue
			}
			if err := at.mountEntry(a, at.exported[a.Source], p); err != nil {
				return fmt.Errorf("share %s: %w", a.Spec, err)
			}
		}
		return nil
	})
}

// mountEntry mounts a copy of the transfer entry, as the container sees it, on the mount point.
func (at *attacher) mountEntry(a *Attachment, entry string, p *point) error {
	fd, err := openTree(int(at.base.Fd()), entry)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if _, err := a.checkTree(fd); err != nil {
		return fmt.Errorf("%s/%s in the container: %w", Dir, entry, err)
	}
	if err := a.setOptions(fd); err != nil {
		return err
	}
	return moveTree(fd, int(p.dir.Fd()), p.name)
}

// prepare makes the transfer entry and the mount point.
func (at *attacher) prepare(a *Attachment, dirs *atroot.Dirs) (*point, error) {
	isDir, err := at.export(a)
	if err != nil {
		return nil, err
	}
	dir, err := dirs.Locate(a.Target)
	if err != nil {
		return nil, err
	}
	if a.mount != 0 && a.mount != dir.Mount {
		return nil, fmt.Errorf("%w: a mount that was not there when the change was planned", ErrOccupied)
	}
	if err := dir.Make(at.owner()); err != nil {
		return nil, err
	}
	p := &point{dir: dir.Anchor, name: filepath.Base(a.Target), mount: dir.Mount}
	made, err := p.make(isDir, at.owner())
	if err != nil || made {
		return p, err
	}
	return a.existing(p, isDir)
}

// make makes the mount point unless something has its name.
func (p *point) make(isDir bool, owner atroot.Owner) (made bool, err error) {
	if isDir {
		err = atroot.MkdirNew(p.dir, p.name, owner)
	} else {
		err = atroot.CreateFile(p.dir, p.name, owner, 0o644)
	}
	if errors.Is(err, fs.ErrExist) {
		return false, nil
	}
	return true, err
}

// existing takes what has the mount point's name. It gives nil if the very source is mounted there.
func (a *Attachment) existing(p *point, isDir bool) (*point, error) {
	f, err := atroot.OpenName(p.dir, p.name)
	if err != nil {
		return nil, err
	}
	stat, err := atroot.Stat(f)
	var mounted bool
	if err == nil {
		err = checkTarget(stat, isDir)
	}
	if err == nil {
		p.mount, mounted, err = mounttable.ID(f)
	}
	if err != nil || mounted && a.isSource(stat) {
		f.Close()
		return nil, err
	}
	return &point{dir: f, mount: p.mount}, nil
}

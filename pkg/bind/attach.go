//go:build linux

package bind

import (
	"cmp"
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
	"isula.org/syscontainer-hooks/internal/mountns"
	"isula.org/syscontainer-hooks/internal/mounttable"
)

// ErrOccupied is the cause when something that cannot take the mount stands at its path.
var ErrOccupied = atroot.ErrOccupied

// Container is where paths are shared to.
type Container struct {
	Root     *os.File // the root directory as the container sees it, an O_PATH handle
	HostRoot *os.File // the same directory as the host sees it, writable also where Root is not; nil to use Root
	MountNS  *os.File // its mount namespace, nil when it has ended and only the root file system is left
	UID, GID int      // the host's ids of its root user, who owns what is made
}

func (c Container) hostRoot() *os.File {
	if c.HostRoot == nil {
		return c.Root
	}
	return c.HostRoot
}

func (c Container) owner() atroot.Owner { return atroot.Owner{UID: c.UID, GID: c.GID} }

// Attachment is what attaching one path changes. It can be kept as JSON, for a Detach by another process.
type Attachment struct {
	Spec
	// Dirs are the directories to be made in the container, outermost first; the mount point is the last one, or a file.
	Dirs []string `json:"dirs,omitempty"`
	File bool     `json:"file,omitempty"` // the mount point is a file to be made
	// The file system that they are made on: the one of the root directory, else the one of this number.
	OnRoot bool   `json:"onRoot,omitempty"`
	Dev    uint64 `json:"dev,omitempty"`

	// SourceDev and SourceIno are the source's identity, by which its mount is known again. MakeSources sets that of a new one.
	SourceDev uint64 `json:"sourceDev,omitempty"`
	SourceIno uint64 `json:"sourceIno,omitempty"`

	Missing []string   `json:"missing,omitempty"` // what is missing of the source on the host, outermost first
	Made    []HostPath `json:"made,omitempty"`    // what MakeSources has made on the host, outermost first

	mount  int  // the mount that the mount point is on; only within one process
	linked bool // a link is on the way to it
	inner  bool // the mount point is inside another shared path
}

func (a *Attachment) on() atroot.FileSystem { return atroot.FileSystem{Root: a.OnRoot, Dev: a.Dev} }

// HostPath is a directory or file that was made on the host.
type HostPath struct {
	Path string `json:"path"`
	Dev  uint64 `json:"dev"`
	Ino  uint64 `json:"ino"`
}

// PlanBase works out what AttachBase changes in the container. It is nil when the container's part is mounted there already.
func (t *Transfer) PlanBase(c Container) (*Attachment, error) {
	base, err := atroot.OpenName(c.Root, filepath.Base(Dir))
	if errors.Is(err, fs.ErrNotExist) {
		return &Attachment{Spec: Spec{Target: Dir}, Dirs: []string{Dir}, OnRoot: true}, nil
	}
	if err != nil {
		return nil, err
	}
	defer base.Close()
	stat, err := atroot.Stat(base)
	if err != nil {
		return nil, err
	}
	if stat.Mode&unix.S_IFMT != unix.S_IFDIR {
		return nil, fmt.Errorf("container path %s: %w: no directory", Dir, ErrOccupied)
	}
	_, mounted, err := mounttable.ID(base)
	if err != nil {
		return nil, err
	}
	if !mounted {
		return &Attachment{Spec: Spec{Target: Dir}, OnRoot: true}, nil
	}
	part, err := hostpath.Open(t.masterPath())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if err == nil {
		defer part.Close()
		if sameInode(base, part) {
			return nil, nil
		}
	}
	return nil, fmt.Errorf("container path %s: %w: a mount of something else", Dir, ErrOccupied)
}

// AttachBase mounts the container's part of the transfer layout, which Prepare has made, in the container.
func (t *Transfer) AttachBase(c Container) error {
	part, err := hostpath.Open(t.masterPath())
	if err != nil {
		return err
	}
	defer part.Close()
	tree, err := cloneMount(part, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY, Propagation: unix.MS_SLAVE})
	if err != nil {
		return err
	}
	defer tree.Close()
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
	return mountAll(c.MountNS, []mount{{spec: Spec{Source: t.masterPath(), Target: Dir}, target: point, tree: tree}})
}

// Plan works out what attaching the specs changes in the container and on the host, and changes nothing. The order is the one
// in which they have to be attached: outer paths before inner ones.
func (t *Transfer) Plan(c Container, specs []Spec) ([]Attachment, error) {
	if err := checkSpecs(specs); err != nil {
		return nil, err
	}
	specs = slices.Clone(specs)
	for i := range specs {
		specs[i].Target = filepath.Clean(specs[i].Target)
	}
	slices.SortFunc(specs, func(a, b Spec) int { return cmp.Compare(a.Target, b.Target) })
	attachments := make([]Attachment, 0, len(specs))
	for i, spec := range specs {
		a := Attachment{Spec: spec}
		a.inner = outerOf(specs[:i], spec.Target) >= 0
		isDir, err := a.planSource()
		if err == nil && !a.inner {
			err = a.planTarget(c.Root, isDir)
		}
		if err != nil {
			return nil, fmt.Errorf("share %s: %w", spec, err)
		}
		attachments = append(attachments, a)
	}
	return attachments, nil
}

// outerOf gives the index of the innermost spec whose container path holds target, -1 when there is none. The specs are sorted
// by their container paths, those of Clean.
func outerOf(specs []Spec, target string) int {
	for i, spec := range slices.Backward(specs) {
		if strings.HasPrefix(target, spec.Target+"/") {
			return i
		}
	}
	return -1
}

func (a *Attachment) planSource() (isDir bool, err error) {
	source, err := hostpath.Open(a.Source)
	if errors.Is(err, fs.ErrNotExist) {
		a.Missing = missingOnHost(filepath.Clean(a.Source))
		return true, nil // MakeSources makes a directory
	}
	if err != nil {
		return false, err
	}
	defer source.Close()
	if err := a.identify(source); err != nil {
		return false, err
	}
	return checkSource(source)
}

func (a *Attachment) identify(source *os.File) error {
	stat, err := atroot.Stat(source)
	if err == nil {
		a.SourceDev, a.SourceIno = stat.Dev, stat.Ino
	}
	return err
}

// missingOnHost gives what is missing of path, outermost first.
func missingOnHost(path string) []string {
	var missing []string
	for ; path != "/"; path = filepath.Dir(path) {
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			break
		}
		missing = append([]string{path}, missing...)
	}
	return missing
}

func checkSource(source *os.File) (isDir bool, err error) {
	stat, err := atroot.Stat(source)
	if err != nil {
		return false, err
	}
	switch stat.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return true, nil
	case unix.S_IFREG, unix.S_IFSOCK, unix.S_IFIFO:
		return false, nil
	default:
		return false, errors.New("host path is neither a directory nor a file; devices have their own place in the record")
	}
}

func (a *Attachment) planTarget(root *os.File, isDir bool) error {
	place, err := atroot.Locate(root, a.Target)
	if err != nil {
		return err
	}
	defer place.Anchor.Close()
	if _, err := atroot.CheckFileSystem(place.Anchor); err != nil {
		return err
	}
	on, err := atroot.FileSystemOf(root, place.Anchor)
	if err != nil {
		return err
	}
	a.OnRoot, a.Dev = on.Root, on.Dev
	if a.mount, _, err = mounttable.ID(place.Anchor); err != nil {
		return err
	}
	if a.linked, err = atroot.Linked(root, filepath.Dir(a.Target)); err != nil {
		return err
	}
	a.Dirs = place.Made(a.Target)
	if len(a.Dirs) == 0 {
		stat, err := atroot.StatName(place.Anchor, place.Name)
		if err == nil {
			if err := checkReserved(root, stat, a.linked); err != nil {
				return err
			}
			return checkTarget(stat, isDir)
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if isDir {
		a.Dirs = append(a.Dirs, a.Target)
	}
	a.File = !isDir
	return nil
}

// checkReserved refuses a mount point that is one of the reserved paths by way of a link; Check has seen the others.
func checkReserved(root *os.File, stat *unix.Stat_t, linked bool) error {
	if !linked {
		return nil
	}
	for _, path := range reserved {
		f, err := atroot.Open(root, path, 0)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		other, err := atroot.Stat(f)
		f.Close()
		if err != nil {
			return err
		}
		if other.Dev == stat.Dev && other.Ino == stat.Ino {
			return fmt.Errorf("container path leads to %s, which is reserved", path)
		}
	}
	return nil
}

// checkTarget refuses what cannot be mounted on, and links: what they lead to is not what the record names.
func checkTarget(stat *unix.Stat_t, isDir bool) error {
	switch format := stat.Mode & unix.S_IFMT; {
	case format == unix.S_IFLNK:
		return fmt.Errorf("container path: %w: a symbolic link", ErrOccupied)
	case isDir && format != unix.S_IFDIR:
		return fmt.Errorf("container path: %w: no directory, but the host path is one", ErrOccupied)
	case !isDir && format != unix.S_IFREG:
		return fmt.Errorf("container path: %w: no file, but the host path is one", ErrOccupied)
	}
	return nil
}

// Attach shares what was planned; AttachBase has to come first. When it fails, Detach takes back what it did in the container
// and Remove what it did on the host.
func (t *Transfer) Attach(c Container, attachments []Attachment) error {
	base, err := t.openBase(c)
	if err != nil {
		return err
	}
	defer base.Close()
	// All that stand beside each other go at once. A path inside another one is resolved when that one is mounted, and where
	// links make it uncertain which is inside which, each is resolved when all before it are mounted.
	oneByOne := slices.ContainsFunc(attachments, func(a Attachment) bool { return a.linked })
	for rest := attachments; len(rest) > 0; {
		n := 1
		for n < len(rest) && !oneByOne && !rest[n].inner {
			n++
		}
		if err := t.attach(c, base, rest[:n]); err != nil {
			return err
		}
		rest = rest[n:]
	}
	return nil
}

// openBase gives the container's side of the transfer layout. That it is the host's side proves that what the image put under
// the name is not used.
func (t *Transfer) openBase(c Container) (*os.File, error) {
	base, err := atroot.OpenName(c.Root, filepath.Base(Dir))
	if err != nil {
		return nil, err
	}
	part, err := hostpath.Open(t.masterPath())
	if err == nil {
		if !sameInode(base, part) {
			err = fmt.Errorf("container path %s: %w", Dir, ErrOccupied)
		}
		part.Close()
	}
	if err != nil {
		base.Close()
		return nil, err
	}
	return base, nil
}

func (t *Transfer) attach(c Container, base *os.File, attachments []Attachment) error {
	mounts := make([]mount, 0, len(attachments))
	defer func() {
		for _, m := range mounts {
			m.target.Close()
			m.source.Close()
		}
	}()
	for _, a := range attachments {
		m, err := t.prepareMount(c, base, a)
		if err != nil {
			return fmt.Errorf("share %s: %w", a.Spec, err)
		}
		if m != nil {
			mounts = append(mounts, *m)
		}
	}
	return mountAll(c.MountNS, mounts)
}

// prepareMount makes the transfer entry and the mount point. It gives nil where the source is mounted already.
func (t *Transfer) prepareMount(c Container, base *os.File, a Attachment) (_ *mount, err error) {
	source, err := hostpath.Open(a.Source)
	if err != nil {
		return nil, err
	}
	defer source.Close()
	isDir, err := checkSource(source)
	if err != nil {
		return nil, err
	}
	planned := a
	if err := a.identify(source); err != nil {
		return nil, err
	}
	if planned.SourceIno != a.SourceIno || planned.SourceDev != a.SourceDev {
		return nil, errors.New("the host path has become another one since the change was planned")
	}
	if err := t.export(a.Spec, source); err != nil {
		return nil, err
	}
	target, err := makeTarget(c, &a, isDir)
	if err != nil {
		return nil, err
	}
	entry, err := atroot.OpenName(base, a.entry())
	if err == nil && !sameInode(entry, source) {
		entry.Close()
		err = fmt.Errorf("the host path does not appear at %s/%s in the container: %w", Dir, a.entry(), ErrOccupied)
	}
	if err != nil {
		target.Close()
		return nil, err
	}
	_, mounted, err := mounttable.ID(target)
	if err != nil || mounted && sameInode(target, source) {
		target.Close()
		entry.Close()
		return nil, err
	}
	return &mount{spec: a.Spec, target: target, source: entry}, nil
}

// makeTarget gives a handle on the mount point, which it makes when it is missing.
func makeTarget(c Container, a *Attachment, isDir bool) (*os.File, error) {
	place, err := atroot.Locate(c.Root, a.Target)
	if err != nil {
		return nil, err
	}
	defer place.Anchor.Close()
	if a.mount != 0 {
		if now, _, err := mounttable.ID(place.Anchor); err != nil || now != a.mount {
			return nil, errors.Join(err, fmt.Errorf("%w: a mount that was not there when the change was planned", ErrOccupied))
		}
	}
	if _, err := atroot.CheckFileSystem(place.Anchor); err != nil {
		return nil, err
	}
	parent, err := place.MakeParent(c.owner())
	if err != nil {
		return nil, err
	}
	defer parent.Close()
	stat, err := atroot.StatName(parent, place.Name)
	switch {
	case errors.Is(err, fs.ErrNotExist) && isDir:
		return atroot.Mkdir(parent, place.Name, c.owner())
	case errors.Is(err, fs.ErrNotExist):
		err = atroot.CreateFile(parent, place.Name, c.owner(), 0o644)
	case err == nil:
		err = checkTarget(stat, isDir)
	}
	if err != nil {
		return nil, err
	}
	return atroot.OpenName(parent, place.Name)
}

// mount is a tree to be mounted on the handle of a mount point in the container: a detached one, or a copy of the mount that
// source stands on, which can be copied only inside the container's mount namespace.
type mount struct {
	spec         Spec
	target       *os.File
	tree, source *os.File
}

func (m *mount) do() error {
	tree := m.tree
	if tree == nil {
		var err error
		if tree, err = m.spec.clone(m.source); err != nil {
			return err
		}
		defer tree.Close()
	}
	return moveMount(tree, m.target)
}

// mountAll mounts all of them on one thread inside the container's mount namespace.
func mountAll(ns *os.File, mounts []mount) error {
	if len(mounts) == 0 {
		return nil
	}
	proc, err := mounttable.OpenProc()
	if err != nil {
		return err
	}
	defer proc.Close()
	return mountns.Do(ns, func() error {
		targets := make([]*os.File, len(mounts))
		for i, m := range mounts {
			targets[i] = m.target
		}
		if err := proc.RefuseShared(targets); err != nil {
			return err
		}
		for _, m := range mounts {
			if err := m.do(); err != nil {
				return fmt.Errorf("share %s: %w", m.spec, err)
			}
		}
		return nil
	})
}

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
	Dev  uint64   `json:"dev"`            // the file system, stat(2)'s st_dev, of what is made

	HostDirs []string `json:"hostDirs,omitempty"` // directories and mount points to be made on the host, outermost first
}

// PlanBase works out what AttachBase changes in the container. It is nil when the container's part is mounted there already.
func (t *Transfer) PlanBase(c Container) (*Attachment, error) {
	base, err := atroot.OpenName(c.Root, filepath.Base(Dir))
	if errors.Is(err, fs.ErrNotExist) {
		stat, err := atroot.Stat(c.hostRoot())
		if err != nil {
			return nil, err
		}
		return &Attachment{Spec: Spec{Target: Dir}, Dirs: []string{Dir}, Dev: stat.Dev}, nil
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
		return &Attachment{Spec: Spec{Target: Dir}, Dev: stat.Dev}, nil
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
	slices.SortStableFunc(specs, func(a, b Spec) int { return cmp.Compare(filepath.Clean(a.Target), filepath.Clean(b.Target)) })
	attachments := make([]Attachment, 0, len(specs))
	for i, spec := range specs {
		a := Attachment{Spec: spec}
		isDir, err := a.planSource()
		outer := outerOf(specs[:i], spec.Target)
		switch {
		case err != nil:
		case outer < 0:
			err = a.planTarget(c.Root, isDir)
		default: // the mount point is inside another shared path, and so on the host
			inner, _ := strings.CutPrefix(filepath.Clean(spec.Target), filepath.Clean(specs[outer].Target))
			a.HostDirs = append(a.HostDirs, missingOnHost(filepath.Join(specs[outer].Source, inner))...)
		}
		if err != nil {
			return nil, fmt.Errorf("share %s: %w", spec, err)
		}
		attachments = append(attachments, a)
	}
	return attachments, nil
}

// outerOf gives the index of a spec whose container path holds target, -1 when there is none.
func outerOf(specs []Spec, target string) int {
	return slices.IndexFunc(specs, func(s Spec) bool {
		return strings.HasPrefix(filepath.Clean(target), filepath.Clean(s.Target)+"/")
	})
}

func (a *Attachment) planSource() (isDir bool, err error) {
	source, err := hostpath.Open(a.Source)
	if errors.Is(err, fs.ErrNotExist) {
		a.HostDirs = missingOnHost(filepath.Clean(a.Source))
		return true, nil
	}
	if err != nil {
		return false, err
	}
	defer source.Close()
	return checkSource(source)
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
	target := filepath.Clean(a.Target)
	place, err := atroot.Locate(root, target)
	if err != nil {
		return err
	}
	defer place.Anchor.Close()
	if _, err := atroot.CheckFileSystem(place.Anchor); err != nil {
		return err
	}
	stat, err := atroot.Stat(place.Anchor)
	if err != nil {
		return err
	}
	a.Dev, a.Dirs = stat.Dev, place.Made(target)
	if len(a.Dirs) == 0 {
		stat, err = atroot.StatName(place.Anchor, place.Name)
		if err == nil {
			return checkTarget(stat, isDir)
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if isDir {
		a.Dirs = append(a.Dirs, target)
	}
	a.File = !isDir
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
	for rest := attachments; len(rest) > 0; {
		n := 1 // how many stand beside each other: a path inside another is resolved when that one is mounted
		for n < len(rest) && outerOf(specsOf(rest[:n]), rest[n].Target) < 0 {
			n++
		}
		if err := t.attach(c, base, rest[:n]); err != nil {
			return err
		}
		rest = rest[n:]
	}
	return nil
}

func specsOf(attachments []Attachment) []Spec {
	specs := make([]Spec, len(attachments))
	for i, a := range attachments {
		specs[i] = a.Spec
	}
	return specs
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
	source, err := a.openSource(c.owner())
	if err != nil {
		return nil, err
	}
	defer source.Close()
	isDir, err := checkSource(source)
	if err != nil {
		return nil, err
	}
	if err := t.export(a.Spec, source); err != nil {
		return nil, err
	}
	target, err := makeTarget(c, filepath.Clean(a.Target), isDir)
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

func (a *Attachment) openSource(owner atroot.Owner) (*os.File, error) {
	source, err := hostpath.Open(a.Source)
	if errors.Is(err, fs.ErrNotExist) {
		source, _, err = hostpath.MkdirAll(a.Source, owner)
	}
	return source, err
}

// makeTarget gives a handle on the mount point, which it makes when it is missing.
func makeTarget(c Container, path string, isDir bool) (*os.File, error) {
	place, err := atroot.Locate(c.Root, path)
	if err != nil {
		return nil, err
	}
	defer place.Anchor.Close()
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

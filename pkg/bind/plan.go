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

	"golang.org/x/sys/unix"

	"isula.org/syscontainer-hooks/internal/atroot"
	"isula.org/syscontainer-hooks/internal/hostpath"
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
	isDir  bool // the source is a directory
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
	var parents hostpath.Parents
	defer parents.Close()
	dirs := atroot.NewDirs(c.Root)
	defer dirs.Close()
	targets := make(map[string]bool, len(specs))
	attachments := make([]Attachment, 0, len(specs))
	for _, spec := range specs {
		a := Attachment{Spec: spec, inner: hasOuter(targets, spec.Target)}
		targets[spec.Target] = true
		err := a.planSource(&parents)
		if err == nil && !a.inner {
			err = a.planTarget(c.Root, dirs)
		}
		if err != nil {
			return nil, fmt.Errorf("share %s: %w", spec, err)
		}
		attachments = append(attachments, a)
	}
	return attachments, nil
}

// hasOuter tells whether one of the container paths holds target.
func hasOuter(targets map[string]bool, target string) bool {
	for dir := filepath.Dir(target); dir != "/"; dir = filepath.Dir(dir) {
		if targets[dir] {
			return true
		}
	}
	return false
}

func (a *Attachment) planSource(parents *hostpath.Parents) error {
	stat, err := parents.Stat(a.Source)
	if errors.Is(err, fs.ErrNotExist) {
		a.Missing, a.isDir = missingOnHost(filepath.Clean(a.Source)), true // MakeSources makes a directory
		return nil
	}
	if err != nil {
		return err
	}
	a.SourceDev, a.SourceIno = stat.Dev, stat.Ino
	a.isDir, err = checkSource(stat)
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

func checkSource(stat *unix.Stat_t) (isDir bool, err error) {
	switch stat.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return true, nil
	case unix.S_IFREG, unix.S_IFSOCK, unix.S_IFIFO:
		return false, nil
	default:
		return false, errors.New("host path is neither a directory nor a file; devices have their own place in the record")
	}
}

func (a *Attachment) planTarget(root *os.File, dirs *atroot.Dirs) error {
	dir, err := dirs.Locate(a.Target)
	if err != nil {
		return err
	}
	a.OnRoot, a.Dev, a.mount = dir.On.Root, dir.On.Dev, dir.Mount
	if a.linked, err = dir.Linked(); err != nil {
		return err
	}
	a.Dirs = dir.Made(a.Target)
	if len(a.Dirs) == 0 {
		stat, err := dir.Stat(filepath.Base(a.Target))
		if err == nil {
			if err := checkReserved(root, stat, a.linked); err != nil {
				return err
			}
			return checkTarget(stat, a.isDir)
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if a.isDir {
		a.Dirs = append(a.Dirs, a.Target)
	}
	a.File = !a.isDir
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

//go:build linux

package atroot

import (
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"isula.org/syscontainer-hooks/internal/mounttable"
)

// Dirs resolves the directories that things are to be made in, each of them once: most devices go to /dev.
type Dirs struct {
	root *os.File
	dirs map[string]*Dir
}

// Dir is a directory beneath the root, as far as it exists.
type Dir struct {
	*Place
	On    FileSystem
	Mount int  // the mount that it is on
	NoDev bool // which forbids device nodes

	root   *os.File
	path   string
	linked *bool
	asked  int             // how often Stat was called
	names  map[string]bool // of a small directory that was asked often
}

const (
	askedOften = 4
	listSize   = 32 << 10 // bytes of getdents64(2); a directory with more is not small
)

// NewDirs works beneath root, which stays the caller's.
func NewDirs(root *os.File) *Dirs { return &Dirs{root, make(map[string]*Dir)} }

// Close closes the handles.
func (d *Dirs) Close() {
	for _, dir := range d.dirs {
		dir.Anchor.Close()
	}
}

// Locate is the function of that name for the directory that path is in, with all that has to be known of it. It refuses the
// kernel's own file systems.
func (d *Dirs) Locate(path string) (*Dir, error) {
	parent := filepath.Dir(path)
	if dir := d.dirs[parent]; dir != nil {
		return dir, nil
	}
	place, err := Locate(d.root, path)
	if err != nil {
		return nil, err
	}
	dir := &Dir{Place: place, root: d.root, path: parent}
	if dir.NoDev, err = CheckFileSystem(place.Anchor); err == nil {
		dir.On, err = FileSystemOf(d.root, place.Anchor)
	}
	if err == nil {
		dir.Mount, _, err = mounttable.ID(place.Anchor)
	}
	if err != nil {
		place.Anchor.Close()
		return nil, err
	}
	d.dirs[parent] = dir
	return dir, nil
}

// Linked tells whether a link is on the way to the directory, or in its place.
func (d *Dir) Linked() (bool, error) {
	if d.linked == nil {
		linked, err := Linked(d.root, d.path)
		if err != nil {
			return false, err
		}
		d.linked = &linked
	}
	return *d.linked, nil
}

// Stat is StatName for the directory. Asked for many names, it lists the directory once and takes the word of that for those
// that are missing.
func (d *Dir) Stat(name string) (*unix.Stat_t, error) {
	if d.asked++; d.asked == askedOften {
		d.names = list(d.Anchor)
	}
	if d.names != nil && !d.names[name] {
		return nil, &fs.PathError{Op: "stat", Path: filepath.Join(d.path, name), Err: unix.ENOENT}
	}
	return StatName(d.Anchor, name)
}

// list gives the names in dir, nil for a large directory and one that cannot be read.
func list(dir *os.File) map[string]bool {
	content, err := OpenContent(dir, ".")
	if err != nil {
		return nil
	}
	defer content.Close()
	buf := make([]byte, listSize)
	var names []string
	for {
		n, err := unix.ReadDirent(int(content.Fd()), buf)
		if err != nil || names != nil && n > 0 {
			return nil
		}
		if n == 0 {
			break
		}
		_, _, names = unix.ParseDirent(buf[:n], -1, make([]string, 0, 16))
	}
	found := make(map[string]bool, len(names))
	for _, name := range names {
		found[name] = true
	}
	return found
}

// Make makes what is missing of the directory. Afterwards its anchor is the directory itself.
func (d *Dir) Make(owner Owner) error {
	if len(d.Missing) == 0 {
		return nil
	}
	made, err := d.MakeParent(owner)
	if err != nil {
		return err
	}
	d.Anchor.Close()
	d.Anchor, d.Missing = made, nil
	return nil
}

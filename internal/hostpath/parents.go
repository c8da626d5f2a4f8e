//go:build linux

package hostpath

import (
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"isula.org/syscontainer-hooks/internal/atroot"
)

// Parents looks up many paths of the host and resolves the directory of each only once. The zero value is ready to use.
type Parents struct{ dirs map[string]*os.File }

// Close closes the directories.
func (p *Parents) Close() {
	for _, dir := range p.dirs {
		dir.Close()
	}
	p.dirs = nil
}

// Stat is stat(2) of the inode that Open would give a handle on.
func (p *Parents) Stat(path string) (*unix.Stat_t, error) {
	dir, err := p.Of(path)
	if err != nil {
		return nil, err
	}
	if dir != nil {
		stat, err := atroot.StatName(dir, filepath.Base(path))
		if err != nil || stat.Mode&unix.S_IFMT != unix.S_IFLNK {
			return stat, err
		}
	}
	f, err := Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return atroot.Stat(f)
}

// Of gives the directory that the path's last component is in, nil for a path that is not clean: then the directory is not the
// path's first part.
func (p *Parents) Of(path string) (*os.File, error) {
	if !filepath.IsAbs(path) {
		return nil, &fs.PathError{Op: "open", Path: path, Err: unix.EINVAL}
	}
	if filepath.Clean(path) != path || path == "/" {
		return nil, nil
	}
	parent := filepath.Dir(path)
	if dir := p.dirs[parent]; dir != nil {
		return dir, nil
	}
	dir, err := Open(parent)
	if err != nil {
		return nil, err
	}
	if p.dirs == nil {
		p.dirs = make(map[string]*os.File)
	}
	p.dirs[parent] = dir
	return dir, nil
}

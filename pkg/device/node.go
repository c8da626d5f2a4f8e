//go:build linux

package device

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/opencontainers/selinux/go-selinux"
	"golang.org/x/sys/unix"

	"isula.org/syscontainer-hooks/internal/atroot"
	"isula.org/syscontainer-hooks/internal/mounttable"
)

// ErrOccupied is the cause when a directory, or a mount of something else, stands at a node's path.
var ErrOccupied = atroot.ErrOccupied

// Node is a device node as it shall be in a container.
type Node struct {
	Path  string `json:"path"` // absolute, in the container
	Type  Type   `json:"type"`
	Major uint32 `json:"major"`
	Minor uint32 `json:"minor"`
	Mode  uint32 `json:"mode"` // permission bits
	UID   int    `json:"uid"`  // as the host counts
	GID   int    `json:"gid"`
	Label string `json:"label,omitempty"` // SELinux label, "" for what the file system gives
}

// Container is where nodes are made.
type Container struct {
	Root     *os.File // the root directory as the container sees it; see open_by_handle_at(2) for O_PATH handles
	MountNS  *os.File // its mount namespace, nil when it has ended and only the root file system is left
	UID, GID int      // the host's ids of its root user, who owns the directories that are made
}

// Placement is what making one node changes. It can be kept as JSON, for a Remove by another process.
type Placement struct {
	Node
	Dirs []string `json:"dirs,omitempty"` // directories to be made on the way, outermost first
	// The file system that they and the node are made on: the one of the root directory, else the one of this number.
	OnRoot bool   `json:"onRoot,omitempty"`
	Dev    uint64 `json:"dev,omitempty"`
	// Aside is the name, in the node's directory, under which the node is made when something else has its path. Both are
	// exchanged; what was there waits under this name until Commit drops it or Remove puts it back.
	Aside    string `json:"aside,omitempty"`
	Replaced uint64 `json:"replaced,omitempty"` // inode of what was there

	mount int // the mount that the directory is on; only within one process
}

func (p *Placement) on() atroot.FileSystem { return atroot.FileSystem{Root: p.OnRoot, Dev: p.Dev} }

// asidePrefix starts the name of what waits beside a node.
const asidePrefix = ".syscontainer-hooks."

// Create makes the nodes, or none of them. A node that is there already is left alone.
func (c Container) Create(nodes ...Node) error {
	placements, err := c.Plan(nodes)
	if err == nil {
		err = c.Place(placements)
		if err == nil {
			err = c.Commit(placements)
		}
		if err != nil {
			err = errors.Join(err, c.Remove(placements))
		}
	}
	return err
}

// Plan works out what has to change for the nodes to be there, and changes nothing. Missing directories are made. A link, a
// FIFO, a file or another node at the path is replaced; a directory or a mount is ErrOccupied. A node that is there already,
// and a mount of the same device such as a runtime makes in a user namespace, needs no placement.
func (c Container) Plan(nodes []Node) ([]Placement, error) {
	if err := checkNodes(nodes); err != nil {
		return nil, err
	}
	dirs := atroot.NewDirs(c.Root)
	defer dirs.Close()
	var placements []Placement
	for _, node := range nodes {
		placement, err := plan(dirs, node)
		if err != nil {
			return nil, fmt.Errorf("container path %s: %w", node.Path, err)
		}
		if placement != nil {
			placements = append(placements, *placement)
		}
	}
	return placements, nil
}

// checkNodes refuses what could only end in a surprise: paths that are not clean, that stand twice, or that contain another.
func checkNodes(nodes []Node) error {
	paths := make(map[string]bool, len(nodes))
	for _, node := range nodes {
		if err := CheckPath(node.Path); err != nil {
			return err
		}
		if node.Type != Char && node.Type != Block {
			return fmt.Errorf("container path %s: unknown device type %q", node.Path, node.Type)
		}
		if node.Type == Char && node.Major == 0 && node.Minor == 0 {
			return fmt.Errorf("container path %s: 0:0 is what overlayfs takes for a whiteout", node.Path)
		}
		if paths[node.Path] {
			return fmt.Errorf("container path %s stands twice", node.Path)
		}
		paths[node.Path] = true
	}
	for path := range paths {
		for dir := filepath.Dir(path); dir != "/"; dir = filepath.Dir(dir) {
			if paths[dir] {
				return fmt.Errorf("container paths %s and %s exclude each other", dir, path)
			}
		}
	}
	return nil
}

// CheckPath tells whether path can be a node's path in a container: absolute, clean, without ":", which separates the parts of
// a device in a record, and without control characters.
func CheckPath(path string) error {
	if err := atroot.CheckPath(path); err != nil {
		return fmt.Errorf("container %w", err)
	}
	if path == "/" || strings.Contains(path, ":") {
		return fmt.Errorf("container path %q cannot be a device's", path)
	}
	return nil
}

func plan(dirs *atroot.Dirs, node Node) (*Placement, error) {
	dir, err := dirs.Locate(node.Path)
	if err != nil {
		return nil, err
	}
	placement := &Placement{Node: node, Dirs: dir.Made(node.Path), OnRoot: dir.On.Root, Dev: dir.On.Dev, mount: dir.Mount}
	if len(placement.Dirs) > 0 {
		return placement, nil
	}
	name := filepath.Base(node.Path)
	stat, err := dir.Stat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return placement, nil
	case err != nil:
		return nil, err
	case stat.Mode&unix.S_IFMT == unix.S_IFDIR:
		return nil, fmt.Errorf("%w: a directory", ErrOccupied)
	}
	mounted, err := isMount(dir.Anchor, name)
	switch {
	case err != nil:
		return nil, err
	case mounted && node.isDevice(stat), node.is(stat):
		return nil, nil
	case mounted:
		return nil, fmt.Errorf("%w: a mount", ErrOccupied)
	}
	placement.Aside, placement.Replaced = fmt.Sprintf("%s%016x", asidePrefix, rand.Uint64()), stat.Ino
	return placement, nil
}

// isDevice tells whether stat is a node for the same device, whatever its mode and owner.
func (n *Node) isDevice(stat *unix.Stat_t) bool {
	return stat.Mode&unix.S_IFMT == n.Type.format() && stat.Rdev == n.rdev()
}

// is tells whether stat is the node as it shall be.
func (n *Node) is(stat *unix.Stat_t) bool {
	return n.isDevice(stat) && stat.Mode&0o7777 == n.Mode && int(stat.Uid) == n.UID && int(stat.Gid) == n.GID
}

func (n *Node) rdev() uint64 { return unix.Mkdev(n.Major, n.Minor) }

func isMount(dir *os.File, name string) (bool, error) {
	f, err := atroot.OpenName(dir, name)
	if err != nil {
		return false, err
	}
	defer f.Close()
	_, root, err := mounttable.ID(f)
	return root, err
}

// maker makes nodes with the file system group of this thread set to theirs: so a node of root's comes out as it shall be from
// one system call, as far as the umask leaves its mode alone.
type maker struct{ gid int }

// newMaker locks the calling goroutine to its thread until done is called.
func newMaker() (m *maker, done func()) {
	runtime.LockOSThread()
	m = &maker{}
	return m, func() {
		m.setGID(0)
		runtime.UnlockOSThread()
	}
}

func (m *maker) setGID(gid int) {
	if m.gid != gid {
		_, _ = unix.SetfsgidRetGid(gid) // cannot report an error; what comes out tells
		m.gid = gid
	}
}

// create makes the node under name, which must be free, in dir, which may be the container's to write: so it looks at what it
// made before it relies on it. A node that waits under a temporary name has no mode until it is done; see isUnfinished.
func (m *maker) create(n *Node, dir *os.File, name string, temporary bool) error {
	mode := n.Type.format()
	if !temporary {
		mode |= n.Mode
	}
	m.setGID(n.GID)
	if err := unix.Mknodat(int(dir.Fd()), name, mode, int(n.rdev())); err != nil {
		return &fs.PathError{Op: "mknod", Path: filepath.Join(dir.Name(), name), Err: err}
	}
	stat, err := atroot.StatName(dir, name)
	if err != nil {
		return err
	}
	if n.is(stat) && n.Label == "" {
		return nil
	}
	return n.finish(dir, name)
}

// createFile makes an empty file to mount a node on.
func (m *maker) createFile(dir *os.File, name string, owner atroot.Owner) error {
	m.setGID(0)
	return atroot.CreateFile(dir, name, owner, 0)
}

// finish gives the node that was made under name its label, owner and mode, by a handle that nobody can exchange.
func (n *Node) finish(dir *os.File, name string) error {
	f, err := atroot.OpenName(dir, name)
	if err != nil {
		return err
	}
	defer f.Close()
	stat, err := atroot.Stat(f)
	if err != nil {
		return err
	}
	if !n.isDevice(stat) {
		return fmt.Errorf("%s: %w: it was exchanged while the node was made", f.Name(), ErrOccupied)
	}
	if n.Label != "" {
		err := selinux.LsetFileLabel(fmt.Sprintf("/proc/thread-self/fd/%d/%s", dir.Fd(), name), n.Label)
		if err != nil && !errors.Is(err, unix.ENOTSUP) { // a file system mounted with context= has its own label
			return fmt.Errorf("label %s: %w", f.Name(), err)
		}
	}
	return atroot.Own(f, atroot.Owner{UID: n.UID, GID: n.GID}, n.Mode)
}

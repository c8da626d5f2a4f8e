//go:build linux

// Package atroot works beneath a container's root directory, which its image and its processes may have filled with anything:
// links to the host, mounts, FIFOs. The root is a handle, every path is resolved by the kernel inside it, and all that follows
// happens on handles. Nothing but a directory that stands there already is ever opened otherwise than with O_PATH.
package atroot

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"isula.org/syscontainer-hooks/internal/kernel"
)

// ErrOccupied is the cause when something else stands where the container's path should be made.
var ErrOccupied = errors.New("something else is there")

// maxRetries bounds how often a resolution is tried again that a rename made uncertain (EAGAIN, openat2(2)).
const maxRetries = 256

// Owner is who owns what is made: the host's ids of the container's root user.
type Owner struct{ UID, GID int }

// Open gives an O_PATH handle on path beneath root. Links are followed inside root as if it were /; the last one too, unless
// flags has O_NOFOLLOW. Magic links of procfs are not followed.
func Open(root *os.File, path string, flags uint64) (*os.File, error) {
	return openat2(root, path, flags, unix.RESOLVE_IN_ROOT|unix.RESOLVE_NO_MAGICLINKS)
}

// OpenName gives an O_PATH handle on the entry name of dir itself, also when it is a link.
func OpenName(dir *os.File, name string) (*os.File, error) {
	return openat2(dir, name, unix.O_NOFOLLOW, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_MAGICLINKS)
}

// Linked tells whether a link is on the way to path beneath root, or at its end.
func Linked(root *os.File, path string) (bool, error) {
	f, err := openat2(root, path, 0, unix.RESOLVE_IN_ROOT|unix.RESOLVE_NO_SYMLINKS)
	switch {
	case err == nil:
		return false, f.Close()
	case errors.Is(err, unix.ELOOP):
		return true, nil
	case errors.Is(err, fs.ErrNotExist):
		return Linked(root, filepath.Dir(path))
	default:
		return false, err
	}
}

// OpenContent opens the directory name in dir for reading, unless it is a link or something is mounted on it. Reading the names
// in a directory does nothing to what has them.
func OpenContent(dir *os.File, name string) (*os.File, error) {
	how := unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV,
	}
	full := filepath.Join(dir.Name(), name)
	fd, err := kernel.Value(func() (int, error) { return unix.Openat2(int(dir.Fd()), name, &how) })
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: full, Err: err}
	}
	return os.NewFile(uintptr(fd), full), nil
}

func openat2(dir *os.File, path string, flags, resolve uint64) (*os.File, error) {
	how := unix.OpenHow{Flags: flags | unix.O_PATH | unix.O_CLOEXEC, Resolve: resolve}
	full := filepath.Join(dir.Name(), path)
	for range maxRetries {
		fd, err := kernel.Value(func() (int, error) { return unix.Openat2(int(dir.Fd()), path, &how) })
		switch {
		case errors.Is(err, unix.EAGAIN):
			continue
		case err != nil:
			return nil, &fs.PathError{Op: "open", Path: full, Err: err}
		}
		return os.NewFile(uintptr(fd), full), nil
	}
	return nil, &fs.PathError{Op: "open", Path: full, Err: fmt.Errorf("the path keeps changing: %w", unix.EAGAIN)}
}

// Place is the directory that a path's last component is or will be in.
type Place struct {
	Anchor  *os.File // the deepest directory on the way that exists
	Missing []string // the directories below it that have to be made, outermost first
}

// Locate resolves all but the last component of the absolute, clean path as far as it exists.
func Locate(root *os.File, path string) (*Place, error) {
	place := &Place{}
	for dir := filepath.Dir(path); ; dir = filepath.Dir(dir) {
		anchor, err := Open(root, dir, unix.O_DIRECTORY)
		if err == nil {
			place.Anchor = anchor
			return place, nil
		}
		if !errors.Is(err, fs.ErrNotExist) || dir == "/" {
			return nil, err
		}
		place.Missing = append([]string{filepath.Base(dir)}, place.Missing...)
	}
}

// Made gives the absolute paths of the missing directories of path, outermost first.
func (p *Place) Made(path string) []string {
	var made []string
	for dir := filepath.Dir(path); len(made) < len(p.Missing); dir = filepath.Dir(dir) {
		made = append([]string{dir}, made...)
	}
	return made
}

// MakeParent makes the missing directories, mode 0755, and gives a handle on the last one. The anchor stays open.
func (p *Place) MakeParent(owner Owner) (*os.File, error) {
	dir, err := OpenName(p.Anchor, ".")
	if err != nil {
		return nil, err
	}
	for _, name := range p.Missing {
		next, err := Mkdir(dir, name, owner)
		dir.Close()
		if err != nil {
			return nil, err
		}
		dir = next
	}
	return dir, nil
}

// Mkdir makes the directory name in dir, mode 0755, or takes the one that is there, and gives a handle on it.
func Mkdir(dir *os.File, name string, owner Owner) (*os.File, error) {
	if err := MkdirNew(dir, name, owner); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	return openat2(dir, name, unix.O_NOFOLLOW|unix.O_DIRECTORY, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_MAGICLINKS)
}

// MkdirNew makes the directory name in dir, mode 0755. Where something has the name it is fs.ErrExist.
func MkdirNew(dir *os.File, name string, owner Owner) error {
	err := asOwnerOnOverflow(owner, func() error { return unix.Mkdirat(int(dir.Fd()), name, 0o755) })
	if err != nil {
		return &fs.PathError{Op: "mkdir", Path: filepath.Join(dir.Name(), name), Err: err}
	}
	stat, err := StatName(dir, name)
	if err != nil || stat.Mode&0o7777 == 0o755 && int(stat.Uid) == owner.UID && int(stat.Gid) == owner.GID {
		return err // as it comes from a umask of 0 and a container without a user namespace
	}
	// What is new has nothing mounted on it.
	resolve := uint64(unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV)
	f, err := openat2(dir, name, unix.O_NOFOLLOW|unix.O_DIRECTORY, resolve)
	if err != nil {
		return err
	}
	defer f.Close()
	return Own(f, owner, 0o755)
}

// CreateFile makes the empty file name in dir.
func CreateFile(dir *os.File, name string, owner Owner, mode uint32) error {
	fd := -1
	err := asOwnerOnOverflow(owner, func() (err error) {
		flags := unix.O_WRONLY | unix.O_CREAT | unix.O_EXCL | unix.O_NOFOLLOW | unix.O_CLOEXEC
		fd, err = unix.Openat(int(dir.Fd()), name, flags, 0)
		return err
	})
	if err == nil {
		defer unix.Close(fd)
		err = unix.Fchown(fd, owner.UID, owner.GID)
	}
	if err == nil {
		err = unix.Fchmod(fd, mode)
	}
	if err != nil {
		return &fs.PathError{Op: "create", Path: filepath.Join(dir.Name(), name), Err: err}
	}
	return nil
}

// Own sets the owner and the exact mode of an inode that the caller has just made.
func Own(f *os.File, owner Owner, mode uint32) error {
	if err := unix.Fchownat(int(f.Fd()), "", owner.UID, owner.GID, unix.AT_EMPTY_PATH); err != nil {
		return &fs.PathError{Op: "chown", Path: f.Name(), Err: err}
	}
	err := unix.Fchmodat(int(f.Fd()), "", mode, unix.AT_EMPTY_PATH)
	if errors.Is(err, unix.EOPNOTSUPP) { // fchmodat2(2) came with Linux 6.6; this /proc is the host's
		err = unix.Chmod(fmt.Sprintf("/proc/thread-self/fd/%d", f.Fd()), mode)
	}
	if err != nil {
		return &fs.PathError{Op: "chmod", Path: f.Name(), Err: err}
	}
	return nil
}

// FileSystem tells one file system from another while the container runs, and the container's root file system from all
// others also when it has been mounted anew: then its number is another one.
type FileSystem struct {
	Root bool   // the one that the root directory is on
	Dev  uint64 // else stat(2)'s st_dev
}

// FileSystemOf gives the file system of the directory dir beneath root.
func FileSystemOf(root, dir *os.File) (FileSystem, error) {
	top, err := Stat(root)
	if err != nil {
		return FileSystem{}, err
	}
	stat, err := Stat(dir)
	if err != nil || stat.Dev == top.Dev {
		return FileSystem{Root: true}, err
	}
	return FileSystem{Dev: stat.Dev}, nil
}

// OpenParent opens the directory that path is in, to remove it. It gives nil when the directory is not there any more, or is one
// of another file system under the same name.
func OpenParent(root *os.File, path string, on FileSystem) (*os.File, error) {
	parent, err := Open(root, filepath.Dir(path), unix.O_DIRECTORY)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	got, err := FileSystemOf(root, parent)
	if err != nil || got != on {
		parent.Close()
		return nil, err
	}
	return parent, nil
}

// RemoveDirs removes the directories paths, outermost first, beneath root. One that is missing, in use or no longer empty
// stays what it is: then it is not only ours any more.
func RemoveDirs(root *os.File, paths []string, on FileSystem) error {
	var errs []error
	for _, path := range slices.Backward(paths) {
		parent, err := OpenParent(root, path, on)
		if parent != nil {
			err = RemoveDir(parent, filepath.Base(path))
			parent.Close()
		}
		if err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// RemoveDir is RemoveDirs for the entry name of parent.
func RemoveDir(parent *os.File, name string) error {
	err := unix.Unlinkat(int(parent.Fd()), name, unix.AT_REMOVEDIR)
	switch {
	case err == nil, errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTEMPTY), errors.Is(err, unix.EBUSY),
		errors.Is(err, unix.ENOTDIR):
		return nil
	default:
		return &fs.PathError{Op: "rmdir", Path: filepath.Join(parent.Name(), name), Err: err}
	}
}

// Stat is fstat(2) of a handle.
func Stat(f *os.File) (*unix.Stat_t, error) {
	var stat unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &stat); err != nil {
		return nil, &fs.PathError{Op: "stat", Path: f.Name(), Err: err}
	}
	return &stat, nil
}

// StatName is lstat(2) of the entry name of dir; a missing one is fs.ErrNotExist.
func StatName(dir *os.File, name string) (*unix.Stat_t, error) {
	var stat unix.Stat_t
	if err := unix.Fstatat(int(dir.Fd()), name, &stat, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return nil, &fs.PathError{Op: "stat", Path: filepath.Join(dir.Name(), name), Err: err}
	}
	return &stat, nil
}

// CheckFileSystem refuses directories on the kernel's own file systems, where a name means something to the kernel. It tells
// whether the mount forbids device nodes.
func CheckFileSystem(dir *os.File) (nodev bool, err error) {
	var statfs unix.Statfs_t
	if err := unix.Fstatfs(int(dir.Fd()), &statfs); err != nil {
		return false, &fs.PathError{Op: "statfs", Path: dir.Name(), Err: err}
	}
	switch statfs.Type {
	case unix.PROC_SUPER_MAGIC, unix.SYSFS_MAGIC, unix.CGROUP_SUPER_MAGIC, unix.CGROUP2_SUPER_MAGIC,
		unix.DEVPTS_SUPER_MAGIC, unix.SELINUX_MAGIC, unix.SECURITYFS_MAGIC, unix.DEBUGFS_MAGIC, unix.TRACEFS_MAGIC,
		unix.BPF_FS_MAGIC, unix.NSFS_MAGIC:
		return false, fmt.Errorf("%s: is on a file system of the kernel (magic %#x)", dir.Name(), statfs.Type)
	}
	return statfs.Flags&unix.ST_NODEV != 0, nil
}

// IsOverflow tells whether a file system refused to make an inode because the host's root user does not exist in it: one that
// was mounted inside a user namespace. Device nodes do not work there at all.
func IsOverflow(err error) bool { return errors.Is(err, unix.EOVERFLOW) }

// asOwnerOnOverflow calls create, and once more as owner where the host's root user cannot make an inode.
func asOwnerOnOverflow(owner Owner, create func() error) error {
	if err := create(); !IsOverflow(err) {
		return err
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	// setfsuid(2) concerns this thread alone and cannot report an error; what create answers tells.
	_, _ = unix.SetfsgidRetGid(owner.GID)
	_, _ = unix.SetfsuidRetUid(owner.UID)
	defer func() {
		_, _ = unix.SetfsuidRetUid(0)
		_, _ = unix.SetfsgidRetGid(0)
	}()
	return create()
}

// CheckPath refuses what is no absolute, clean path of plain components: the form of a path in a record.
func CheckPath(path string) error {
	switch {
	case len(path) >= unix.PathMax:
		return fmt.Errorf("path of %d bytes is too long", len(path))
	case !strings.HasPrefix(path, "/"):
		return fmt.Errorf("path %q is not absolute", path)
	case filepath.Clean(path) != path:
		return fmt.Errorf("path %q is not clean", path)
	case strings.ContainsFunc(path, func(r rune) bool { return r < ' ' || r == 0x7f }):
		return fmt.Errorf("path %q has a control character", path)
	}
	for name := range strings.SplitSeq(path, "/") {
		if len(name) > unix.NAME_MAX {
			return fmt.Errorf("path %q has a component of more than %d bytes", path, unix.NAME_MAX)
		}
	}
	return nil
}

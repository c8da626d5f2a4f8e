//go:build linux

// Package hostpath opens what an operator named on the host: the source of a shared path, a device. Other users of the host
// may own directories on the way, so a symbolic link counts only where root alone can have put it, and magic links of procfs
// never do.
package hostpath

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"isula.org/syscontainer-hooks/internal/atroot"
	"isula.org/syscontainer-hooks/internal/kernel"
)

// ErrLink is the cause when a link on the way could have been put there by somebody else than root.
var ErrLink = errors.New("link that others than root may have put there; name the path behind it")

// maxLinks is the kernel's own limit, path_resolution(7).
const maxLinks = 40

// Open gives an O_PATH handle on the absolute path, links followed where they are trusted. What it stands on cannot be
// exchanged any more.
func Open(path string) (*os.File, error) {
	f, err := open(unix.AT_FDCWD, path, unix.RESOLVE_NO_SYMLINKS)
	if !errors.Is(err, unix.ELOOP) {
		return f, err
	}
	return follow(path)
}

// MkdirAll opens the directory path and makes what is missing of it, mode 0755, with owner for the last component and root for
// those before. No link is followed. It tells which directories it made, outermost first, also when it fails.
func MkdirAll(path string, owner atroot.Owner) (dir *os.File, made []string, err error) {
	dir, err = open(unix.AT_FDCWD, "/", 0)
	if err != nil {
		return nil, nil, err
	}
	names := strings.Split(strings.Trim(filepath.Clean(path), "/"), "/")
	for i, name := range names {
		if name == "" {
			continue // the path is /
		}
		next, openErr := open(int(dir.Fd()), name, unix.RESOLVE_NO_SYMLINKS)
		if errors.Is(openErr, fs.ErrNotExist) {
			who := atroot.Owner{}
			if i == len(names)-1 {
				who = owner
			}
			next, openErr = mkdir(dir, name, who)
			if openErr == nil {
				made = append(made, "/"+filepath.Join(names[:i+1]...))
			}
		}
		dir.Close()
		if openErr != nil {
			return nil, made, openErr
		}
		dir = next
	}
	return dir, made, nil
}

// mkdir makes the directory name in dir, which gets its mode last: until then IsUnfinished knows it.
func mkdir(dir *os.File, name string, owner atroot.Owner) (*os.File, error) {
	if err := unix.Mkdirat(int(dir.Fd()), name, unfinished); err != nil {
		return nil, &fs.PathError{Op: "mkdir", Path: name, Err: err}
	}
	made, err := open(int(dir.Fd()), name, unix.RESOLVE_NO_SYMLINKS)
	if err != nil {
		return nil, err
	}
	if err := atroot.Own(made, owner, 0o755); err != nil {
		made.Close()
		return nil, err
	}
	return made, nil
}

// unfinished is the mode of a directory that MkdirAll has not given its owner yet.
const unfinished = 0o700

// IsUnfinished tells whether stat can be a directory that a killed MkdirAll has left half made.
func IsUnfinished(stat *unix.Stat_t) bool { return stat.Mode == unix.S_IFDIR|unfinished }

// follow walks path component by component and looks at each link before it takes it.
func follow(path string) (*os.File, error) {
	at, err := open(unix.AT_FDCWD, "/", 0)
	if err != nil {
		return nil, err
	}
	rest := strings.Split(path, "/")
	for links := 0; len(rest) > 0; {
		name := rest[0]
		rest = rest[1:]
		if name == "" || name == "." {
			continue
		}
		next, target, err := step(at, name)
		at.Close()
		if err != nil {
			return nil, fmt.Errorf("open %s: %w", path, err)
		}
		at = next
		if target == "" {
			continue
		}
		if links++; links > maxLinks {
			at.Close()
			return nil, &fs.PathError{Op: "open", Path: path, Err: unix.ELOOP}
		}
		rest = append(strings.Split(target, "/"), rest...)
	}
	return at, nil
}

// step goes from dir to its entry name. Where that is a link, it gives the target and the directory to go on from.
func step(dir *os.File, name string) (next *os.File, target string, err error) {
	next, err = open(int(dir.Fd()), name, unix.RESOLVE_NO_MAGICLINKS)
	if err != nil {
		return nil, "", err
	}
	target, err = readLink(dir, next)
	if err == nil && target == "" {
		return next, "", nil
	}
	next.Close()
	if err != nil {
		return nil, "", err
	}
	if strings.HasPrefix(target, "/") {
		next, err = open(unix.AT_FDCWD, "/", 0)
	} else {
		next, err = open(int(dir.Fd()), ".", 0)
	}
	return next, target, err
}

// readLink gives where the link f in dir leads, "" when f is no link.
func readLink(dir, f *os.File) (string, error) {
	stat, err := atroot.Stat(f)
	if err != nil || stat.Mode&unix.S_IFMT != unix.S_IFLNK {
		return "", err
	}
	parent, err := atroot.Stat(dir)
	if err != nil {
		return "", err
	}
	var statfs unix.Statfs_t
	if err := unix.Fstatfs(int(dir.Fd()), &statfs); err != nil {
		return "", &fs.PathError{Op: "statfs", Path: dir.Name(), Err: err}
	}
	if stat.Uid != 0 || parent.Uid != 0 || parent.Mode&0o022 != 0 || statfs.Type == unix.PROC_SUPER_MAGIC {
		return "", fmt.Errorf("%s: %w", f.Name(), ErrLink)
	}
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(int(f.Fd()), "", buf)
	if err != nil {
		return "", &fs.PathError{Op: "readlink", Path: f.Name(), Err: err}
	}
	return string(buf[:n]), nil
}

// open opens the single component or absolute path itself, a link at its end included unless resolve forbids.
func open(dir int, path string, resolve uint64) (*os.File, error) {
	flags := uint64(unix.O_PATH | unix.O_CLOEXEC)
	if resolve&unix.RESOLVE_NO_SYMLINKS == 0 {
		flags |= unix.O_NOFOLLOW
	}
	how := unix.OpenHow{Flags: flags, Resolve: resolve}
	fd, err := kernel.Value(func() (int, error) { return unix.Openat2(dir, path, &how) })
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

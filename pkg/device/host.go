//go:build linux

package device

import (
	"fmt"

	"github.com/opencontainers/selinux/go-selinux"
	"golang.org/x/sys/unix"

	"isula.org/syscontainer-hooks/internal/hostpath"
)

// Type is the kind of a device.
type Type string

// The kinds of devices, with the letters that records and cgroups use.
const (
	Char  Type = "c"
	Block Type = "b"
)

func (t Type) format() uint32 {
	if t == Block {
		return unix.S_IFBLK
	}
	return unix.S_IFCHR
}

// Host is a device of the host.
type Host struct {
	Path         string // as asked for
	Type         Type
	Major, Minor uint32
	Mode         uint32 // permission bits
	UID, GID     int
	Label        string // SELinux label, "" where SELinux is off
}

// Lookup finds the device behind path now; the numbers that a record keeps may date from before a reboot. Symbolic links such
// as those in /dev/disk/by-id are followed where root alone can have put them, links of procfs never. The device itself is
// not opened.
func Lookup(path string) (*Host, error) {
	var finder Finder
	defer finder.Close()
	return finder.Lookup(path)
}

// Finder looks up many devices: each directory is resolved only once. The zero value is ready to use.
type Finder struct{ parents hostpath.Parents }

// Close closes the directories.
func (f *Finder) Close() { f.parents.Close() }

// Lookup is like the function of that name.
func (f *Finder) Lookup(path string) (*Host, error) {
	stat, err := f.parents.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("look up host device: %w", err)
	}
	host := &Host{
		Path:  path,
		Type:  Char,
		Major: unix.Major(stat.Rdev), Minor: unix.Minor(stat.Rdev),
		Mode: stat.Mode & 0o7777,
		UID:  int(stat.Uid), GID: int(stat.Gid),
	}
	switch stat.Mode & unix.S_IFMT {
	case unix.S_IFCHR:
	case unix.S_IFBLK:
		host.Type = Block
	default:
		return nil, fmt.Errorf("look up host device: %s is no device", path)
	}
	if host.Type == Char && host.Major == 0 && host.Minor == 0 {
		return nil, fmt.Errorf("look up host device: %s is 0:0, which no driver has and overlayfs takes for a whiteout", path)
	}
	if selinux.GetEnabled() {
		if host.Label, err = label(path); err != nil {
			return nil, fmt.Errorf("look up label of host device %s: %w", path, err)
		}
	}
	return host, nil
}

func label(path string) (string, error) {
	device, err := hostpath.Open(path)
	if err != nil {
		return "", err
	}
	defer device.Close()
	// The link is followed, to the inode that is open: go-selinux has no call that takes a handle.
	return selinux.FileLabel(fmt.Sprintf("/proc/thread-self/fd/%d", device.Fd()))
}

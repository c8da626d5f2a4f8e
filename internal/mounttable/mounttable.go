//go:build linux

// Package mounttable answers the questions that only /proc/<pid>/mountinfo answers: what a mount is, and with whom it shares
// its mount events (mount_namespaces(7)).
package mounttable

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"isula.org/syscontainer-hooks/internal/kernel"
	"isula.org/syscontainer-hooks/internal/mountns"
)

// Mount is one line of mountinfo, proc_pid_mountinfo(5), with the escapes of its paths undone.
type Mount = mountinfo.Info

// Table is a mount namespace's mounts in the order they were made.
type Table []*Mount

// Read parses mountinfo.
func Read(r io.Reader) (Table, error) {
	mounts, err := mountinfo.GetMountsFromReader(r, nil)
	if err != nil {
		return nil, fmt.Errorf("read mount table: %w", err)
	}
	return mounts, nil
}

// Find gives the mount that the handle f stands on, nil when the table does not have it.
func (t Table) Find(f *os.File) (*Mount, error) {
	id, _, err := ID(f)
	if err != nil {
		return nil, err
	}
	for _, m := range t {
		if m.ID == id {
			return m, nil
		}
	}
	return nil, nil
}

// PeerGroups gives the peer groups that have a member among the mounts.
func (t Table) PeerGroups() map[int]bool {
	groups := make(map[int]bool)
	for _, m := range t {
		if group := PeerGroup(m); group != 0 {
			groups[group] = true
		}
	}
	return groups
}

// PeerGroup gives the peer group that m sends its mount events to, 0 when it is not shared.
func PeerGroup(m *Mount) int {
	for field := range strings.FieldsSeq(m.Optional) {
		if value, ok := strings.CutPrefix(field, "shared:"); ok {
			if n, err := strconv.Atoi(value); err == nil {
				return n
			}
		}
	}
	return 0
}

// Inside calls f on a thread inside the mount namespace ns, see mountns.Do, after it has made sure that mounts on targets, which
// are in there, appear nowhere else. One that is made below a mount whose peers are on the host appears there as well, and stays
// when the container is gone.
func Inside(ns *os.File, targets []*os.File, f func() error) error {
	err := mountns.Do(ns, func() error {
		if err := refuseShared(targets, nil); err != nil {
			return err
		}
		return f()
	})
	if !errors.Is(err, errNeedsProc) {
		return err
	}
	proc, err := openProc()
	if err != nil {
		return err
	}
	defer proc.close()
	return mountns.Do(ns, func() error {
		if err := refuseShared(targets, proc); err != nil {
			return err
		}
		return f()
	})
}

// errNeedsProc is the answer where the host's procfs is needed, which has to be opened outside of the container's namespace. It
// seldom is, and costs more than the question.
var errNeedsProc = errors.New("needs procfs")

// hostProc is the host's procfs and mount table. A thread inside a container's mount namespace reads its own mount table through
// it: /proc there is whatever the container mounted.
type hostProc struct {
	dir  *os.File
	host *os.File // mountinfo: of the namespace in which it was opened, not the one in which it is read
}

// openProc opens the procfs of the namespace that the caller is in now.
func openProc() (*hostProc, error) {
	dir, err := kernel.Open("/proc", unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	host, err := kernel.OpenAt(dir, "thread-self/mountinfo", unix.O_RDONLY, 0)
	if err != nil {
		dir.Close()
		return nil, err
	}
	return &hostProc{dir, host}, nil
}

func (p *hostProc) close() {
	p.dir.Close()
	p.host.Close()
}

func refuseShared(targets []*os.File, proc *hostProc) error {
	var hostGroups map[int]bool
	for _, target := range targets {
		group, err := peerGroup(target, proc)
		if err != nil {
			return err
		}
		if group == 0 {
			continue
		}
		if proc == nil {
			return errNeedsProc
		}
		if hostGroups == nil {
			host, err := Read(proc.host)
			if err != nil {
				return err
			}
			hostGroups = host.PeerGroups()
		}
		if hostGroups[group] {
			return fmt.Errorf("%s: its mount is shared with the host, so the host would get the new mount too", target.Name())
		}
	}
	return nil
}

// peerGroup asks the kernel for the one mount, or a kernel older than Linux 6.8 for all of them.
func peerGroup(target *os.File, proc *hostProc) (int, error) {
	group, err := statPeerGroup(target)
	if !errors.Is(err, errors.ErrUnsupported) {
		return group, err
	}
	if proc == nil {
		return 0, errNeedsProc
	}
	f, err := kernel.OpenAt(proc.dir, "thread-self/mountinfo", unix.O_RDONLY, 0)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	table, err := Read(f)
	if err != nil {
		return 0, err
	}
	below, err := table.Find(target)
	if err == nil && below == nil {
		err = fmt.Errorf("%s: its mount is not in the container's mount namespace", target.Name())
	}
	if err != nil {
		return 0, err
	}
	return PeerGroup(below), nil
}

// ID gives the mount that the handle stands on, and whether the handle is that mount's root. Since Linux 5.8.
func ID(f *os.File) (id int, root bool, err error) {
	var stat unix.Statx_t
	if err := unix.Statx(int(f.Fd()), "", unix.AT_EMPTY_PATH, unix.STATX_MNT_ID, &stat); err != nil {
		return 0, false, &os.PathError{Op: "statx", Path: f.Name(), Err: err}
	}
	if stat.Mask&unix.STATX_MNT_ID == 0 {
		return 0, false, fmt.Errorf("statx %s: this kernel gives no mount id, Linux 5.8 does", f.Name())
	}
	return int(stat.Mnt_id), stat.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0, nil
}

//go:build linux

package hookstate

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"isula.org/syscontainer-hooks/internal/atroot"
	"isula.org/syscontainer-hooks/internal/hostpath"
	"isula.org/syscontainer-hooks/internal/kernel"
	"isula.org/syscontainer-hooks/internal/mounttable"
)

// ErrGone is the cause when the container's process has ended.
var ErrGone = errors.New("the container's process has ended")

// Container is a live container as handles. They stay on this very container, also when it ends and its pid gets another
// process: then what needs the process fails with ESRCH.
type Container struct {
	ID       string
	Instance Instance
	Spec     *Spec

	Root     *os.File // its root directory as it sees it, before or after pivot_root, O_PATH
	HostRoot *os.File // the same directory as the host sees it, O_PATH
	MountNS  *os.File
	NetNS    *os.File // nil when the container has the network namespace of the host

	UserNS           bool // it has a user namespace of its own
	RootUID, RootGID int  // the host's ids of its root user

	proc *os.File // /proc/<pid>
}

// Instance tells one run of a container from the next: an id comes back, this does not.
type Instance struct {
	Pid       int64  `json:"pid"`
	StartTime uint64 `json:"startTime"` // of the process, in clock ticks since boot, proc_pid_stat(5)
}

// Alive tells whether the run goes on.
func (i Instance) Alive() bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", i.Pid))
	if err != nil {
		return false
	}
	state, start, err := parseStat(stat)
	return err == nil && start == i.StartTime && state != 'Z' && state != 'X'
}

// Open pins the container that the state and the specification describe, and makes sure that it is one: a live process in a
// mount namespace of its own, with the specification's root directory mounted in it.
func Open(state *State, spec *Spec) (_ *Container, err error) {
	c := &Container{ID: state.ID, Spec: spec}
	defer func() {
		if err != nil {
			c.Close()
		}
	}()
	if err := c.openProcess(state.Pid); err != nil {
		return nil, fmt.Errorf("container process %d: %w", state.Pid, err)
	}
	if err := c.openRoot(state, spec); err != nil {
		return nil, fmt.Errorf("container root: %w", err)
	}
	if err := c.readMappings(); err != nil {
		return nil, fmt.Errorf("container user namespace: %w", err)
	}
	if c.Instance.StartTime, err = c.startTime(); err != nil {
		return nil, fmt.Errorf("container process %d: %w", state.Pid, err)
	}
	return c, nil
}

// Close closes the handles.
func (c *Container) Close() {
	for _, f := range []*os.File{c.Root, c.HostRoot, c.MountNS, c.NetNS, c.proc} {
		if f != nil {
			f.Close()
		}
	}
}

// startTime also tells whether the process still runs; ErrGone when it does not.
func (c *Container) startTime() (uint64, error) {
	stat, err := c.readProc("stat")
	if err != nil {
		return 0, err
	}
	state, start, err := parseStat(stat)
	if err == nil && (state == 'Z' || state == 'X') {
		err = ErrGone
	}
	return start, err
}

// openProcess opens everything first and asks afterwards whether it is what it should be: a pid that was reused before counts
// as what it is now, and cannot change any more.
func (c *Container) openProcess(pid int64) (err error) {
	if pid <= 1 || pid > 1<<22 { // PID_MAX_LIMIT, proc_sys_kernel(5)
		return errors.New("not a pid that a container can have")
	}
	c.proc, err = kernel.Open("/proc/"+strconv.FormatInt(pid, 10), unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return gone(err)
	}
	// pidfd_open(2) takes no thread but the leader of its group. Should the number have got another process since we opened
	// it, what follows fails with ESRCH.
	pidfd, err := unix.PidfdOpen(int(pid), 0)
	if err != nil {
		return gone(fmt.Errorf("not the leader of a process: %w", err))
	}
	unix.Close(pidfd)
	if c.MountNS, err = c.openNamespace("mnt"); err != nil {
		return err
	}
	if c.MountNS == nil {
		return errors.New("it has the mount namespace of the host")
	}
	c.Instance = Instance{Pid: pid}
	c.NetNS, err = c.openNamespace("net")
	return err
}

// IPCNamespace opens the IPC namespace of the process, nil when it is the one of the host. The caller closes it.
func (c *Container) IPCNamespace() (*os.File, error) { return c.openNamespace("ipc") }

// openNamespace opens a namespace of the process, nil when it is the one that this thread is in.
func (c *Container) openNamespace(kind string) (*os.File, error) {
	ns, err := c.openProc("ns/"+kind, unix.O_RDONLY)
	if err != nil {
		return nil, err
	}
	theirs, err := atroot.Stat(ns)
	var ours unix.Stat_t
	if err == nil {
		err = unix.Stat("/proc/self/ns/"+kind, &ours)
	}
	if err != nil || theirs.Ino == ours.Ino {
		ns.Close()
		return nil, err
	}
	return ns, nil
}

// openRoot finds the root directory. Until pivot_root the process still has the host's tree as its root, and the container's
// is the mount at the root path; afterwards it is the process's own root, and the root path leads nowhere. Which of both
// holds is told by what the process's root is, and either has to be the directory that the specification names.
func (c *Container) openRoot(state *State, spec *Spec) (err error) {
	if c.HostRoot, err = hostpath.Open(spec.Root.Path); err != nil {
		return err
	}
	want, err := atroot.Stat(c.HostRoot)
	if err != nil {
		return err
	}
	if want.Mode&unix.S_IFMT != unix.S_IFDIR {
		return fmt.Errorf("%s is no directory", spec.Root.Path)
	}
	if c.Root, err = c.openProc("root", unix.O_PATH|unix.O_DIRECTORY); err != nil {
		return err
	}
	got, err := atroot.Stat(c.Root)
	if err != nil {
		return err
	}
	var host unix.Stat_t
	if err := unix.Stat("/", &host); err != nil {
		return err
	}
	if got.Dev == host.Dev && got.Ino == host.Ino {
		path := spec.Root.Path
		if state.Root != "" {
			path = filepath.Join("/", state.Root)
			if !filepath.IsAbs(state.Root) {
				path = filepath.Join(state.Bundle, state.Root)
			}
		}
		root, err := atroot.Open(c.Root, path, unix.O_DIRECTORY)
		if err != nil {
			return err
		}
		c.Root.Close()
		c.Root = root
		_, mounted, err := mounttable.ID(c.Root)
		if err != nil {
			return err
		}
		if !mounted {
			return fmt.Errorf("%s is no mount in the container, and the container has no other root", path)
		}
		if got, err = atroot.Stat(c.Root); err != nil {
			return err
		}
		if got.Dev == host.Dev && got.Ino == host.Ino {
			return fmt.Errorf("%s is the root directory of the host", path)
		}
	}
	if got.Dev != want.Dev || got.Ino != want.Ino {
		return fmt.Errorf("it is not the directory %s, which the specification names", spec.Root.Path)
	}
	return nil
}

// openProc opens a file of the process.
func (c *Container) openProc(name string, flags int) (*os.File, error) {
	f, err := kernel.OpenAt(c.proc, name, flags, 0)
	return f, gone(err)
}

// readProc reads a file of the process.
func (c *Container) readProc(name string) ([]byte, error) {
	f, err := c.openProc(name, unix.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(f)
	return data, gone(err)
}

// gone says so in words when err means that the process has ended.
func gone(err error) error {
	if errors.Is(err, unix.ESRCH) || errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w (%w)", ErrGone, err)
	}
	return err
}

// parseStat reads the state and the start time of /proc/<pid>/stat. The name in parentheses may hold anything.
func parseStat(data []byte) (state byte, start uint64, err error) {
	fields := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
	if len(fields) < 20 {
		return 0, 0, fmt.Errorf("process status %.100q: too few fields", data)
	}
	start, err = strconv.ParseUint(fields[19], 10, 64)
	return fields[0][0], start, err
}

//go:build linux

package harness

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

const cgroupDir = "/sys/fs/cgroup"

// Runtime is an OCI runtime of this machine.
type Runtime struct {
	Name, Path string
	start      func(*exec.Cmd) error
}

// FindRuntime looks for runc or crun in PATH.
func FindRuntime(name string) (*Runtime, error) {
	path, err := exec.LookPath(name)
	if err != nil {
		return nil, err
	}
	return NewRuntime(name, path)
}

// NewRuntime is the runtime at path. Where crun finds the hybrid layout of cgroups it cannot work (1.8.1: "drop all
// controllers from cgroupv2"), so it gets a mount namespace that has the v1 hierarchies only.
func NewRuntime(name, path string) (*Runtime, error) {
	rt := &Runtime{Name: name, Path: path, start: (*exec.Cmd).Start}
	if name == "crun" && hybrid() {
		view, err := v1View()
		if err != nil {
			return nil, fmt.Errorf("v1 view of cgroups: %w", err)
		}
		rt.start = func(cmd *exec.Cmd) error {
			return view.do(cmd.Start) // a child starts in the namespace of the thread that forks it
		}
	}
	return rt, nil
}

// InV2View is the same runtime on a host that has cgroup v2 only: /sys/fs/cgroup is a cgroup2 mount, and so containers' devices
// are governed by a filter.
func (rt *Runtime) InV2View() (*Runtime, error) {
	view, err := v2View()
	if err != nil {
		return nil, fmt.Errorf("v2 view of cgroups: %w", err)
	}
	start := func(cmd *exec.Cmd) error { return view.do(cmd.Start) }
	return &Runtime{Name: rt.Name, Path: rt.Path, start: start}, nil
}

// V1Devices says whether the devices controller is one of cgroup v1: the only kind whose permissions can be read back.
func V1Devices() bool {
	_, err := os.Stat(cgroupDir + "/devices/devices.list")
	return err == nil
}

func hybrid() bool {
	controllers, err := os.ReadFile(cgroupDir + "/unified/cgroup.controllers")
	return err == nil && strings.TrimSpace(string(controllers)) != ""
}

// thread runs functions on one thread that has a mount namespace of its own.
type thread struct{ jobs chan func() }

func (t *thread) do(f func() error) error {
	done := make(chan error)
	t.jobs <- func() { done <- f() }
	return <-done
}

var (
	v1View = sync.OnceValues(func() (*thread, error) { return newView(onlyV1) })
	v2View = sync.OnceValues(func() (*thread, error) { return newView(onlyV2) })
)

// newView lives as long as the process. Mounts below /sys/fs/cgroup, which fill makes, are private to it; all others stay peers
// of the test's own, so what a hook mounts in it arrives there.
func newView(fill func() error) (*thread, error) {
	t := &thread{jobs: make(chan func())}
	ready := make(chan error)
	serve := func() {
		err := ownCgroupDir()
		if err == nil {
			err = fill()
		}
		ready <- err
		if err != nil {
			return // still locked: the thread ends with its namespace
		}
		for job := range t.jobs {
			job()
		}
	}
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() != unix.Getpid() {
			serve()
			return
		}
		// /proc/self describes the first thread, which must stay where it is: take another while this one is held.
		defer runtime.UnlockOSThread()
		started := make(chan struct{})
		go func() {
			runtime.LockOSThread()
			close(started)
			serve()
		}()
		<-started
	}()
	return t, <-ready
}

func ownCgroupDir() error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	if err := unix.Mount("", cgroupDir, "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make %s private: %w", cgroupDir, err)
	}
	return nil
}

func onlyV2() error {
	if err := unix.Mount("cgroup2", cgroupDir, "cgroup2", 0, ""); err != nil {
		return fmt.Errorf("mount cgroup2: %w", err)
	}
	return nil
}

func onlyV1() error {
	entries, err := os.ReadDir(cgroupDir)
	if err != nil {
		return err
	}
	hierarchies := map[string]int{} // opened before the tmpfs hides them
	for _, e := range entries {
		fd, err := unix.Open(filepath.Join(cgroupDir, e.Name()), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		var fs unix.Statfs_t
		if err := unix.Fstatfs(fd, &fs); err != nil {
			return err
		}
		if fs.Type == unix.CGROUP_SUPER_MAGIC {
			hierarchies[e.Name()] = fd
		}
	}
	if err := unix.Mount("v1view", cgroupDir, "tmpfs", 0, "mode=0755"); err != nil {
		return fmt.Errorf("mount tmpfs: %w", err)
	}
	for name, fd := range hierarchies {
		dir := filepath.Join(cgroupDir, name)
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(fmt.Sprintf("/proc/thread-self/fd/%d", fd), dir, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind %s: %w", name, err)
		}
	}
	return nil
}

//go:build linux

package bench

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// container is a bundle, and at times a process that is the container.
type container struct {
	tb             testing.TB
	id             string
	dir            string
	bundle, rootfs string
	cgroup         string // directory in the devices hierarchy, "" for none
	stderr         *os.File

	process *exec.Cmd // nil while there is none
	stdin   io.Closer
	pid     int
}

var containers atomic.Int32

// newContainer makes the bundle, with a specification of at least specSize bytes.
func newContainer(tb testing.TB, specSize int) *container {
	tb.Helper()
	c := &container{tb: tb, id: fmt.Sprintf("bench-%d-%d", os.Getpid(), containers.Add(1))}
	c.dir = filepath.Join(base, c.id)
	c.bundle, c.rootfs = c.dir+"/bundle", c.dir+"/rootfs"
	for _, dir := range []string{c.bundle, c.rootfs + "/dev", c.rootfs + "/mnt"} {
		require.NoError(tb, os.MkdirAll(dir, 0o755))
	}
	c.writeSpec(specSize)
	var err error
	c.stderr, err = os.OpenFile(c.dir+"/stderr", os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	require.NoError(tb, err)
	tb.Cleanup(c.remove)
	return c
}

// writeSpec writes what runtimes write: much of it is of no interest to the hook.
func (c *container) writeSpec(size int) {
	c.tb.Helper()
	spec := &specs.Spec{
		Version: "1.0.2", Hostname: c.id,
		Root:    &specs.Root{Path: c.rootfs},
		Process: &specs.Process{Args: []string{"/sbin/init"}, Cwd: "/", Env: []string{"PATH=/usr/sbin:/usr/bin", "container=oci"}},
		Linux: &specs.Linux{
			CgroupsPath: "/" + c.id,
			Namespaces:  []specs.LinuxNamespace{{Type: specs.MountNamespace}, {Type: specs.PIDNamespace}},
			Seccomp:     &specs.LinuxSeccomp{DefaultAction: specs.ActErrno},
		},
	}
	for i := 0; ; i++ {
		text, err := json.Marshal(spec)
		require.NoError(c.tb, err)
		if len(text) >= size {
			require.NoError(c.tb, os.WriteFile(c.specPath(), text, 0o640))
			return
		}
		names := []string{fmt.Sprintf("syscall_%d", 2*i), fmt.Sprintf("syscall_%d", 2*i+1)}
		spec.Mounts = append(spec.Mounts, specs.Mount{
			Destination: fmt.Sprintf("/mnt/volume%d", i), Type: "bind", Source: fmt.Sprintf("/var/lib/volumes/%d/_data", i),
			Options: []string{"rbind", "rprivate", "rw"},
		})
		spec.Linux.Seccomp.Syscalls = append(spec.Linux.Seccomp.Syscalls, specs.LinuxSyscall{Names: names, Action: specs.ActAllow})
	}
}

func (c *container) specPath() string { return filepath.Join(c.bundle, "config.json") }

func (c *container) writeRecord(record any) {
	c.tb.Helper()
	text, err := json.Marshal(record)
	require.NoError(c.tb, err)
	require.NoError(c.tb, os.WriteFile(filepath.Join(c.bundle, "device_hook.json"), text, 0o600))
}

// start starts the container's process.
func (c *container) start() {
	c.tb.Helper()
	c.process = exec.Command(programs.aid, "hold", c.rootfs)
	c.process.Env = []string{"GOMAXPROCS=1"}
	c.process.Stderr = os.Stderr
	c.process.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET}
	stdin, err := c.process.StdinPipe()
	require.NoError(c.tb, err)
	stdout, err := c.process.StdoutPipe()
	require.NoError(c.tb, err)
	require.NoError(c.tb, c.process.Start())
	c.stdin, c.pid = stdin, c.process.Process.Pid
	line, err := bufio.NewReader(stdout).ReadString('\n')
	require.NoError(c.tb, err)
	require.Equal(c.tb, "ready\n", line)
	if c.cgroup != "" {
		require.NoError(c.tb, os.WriteFile(c.cgroup+"/cgroup.procs", fmt.Append(nil, c.pid), 0))
	}
}

// stop ends the container's process.
func (c *container) stop() {
	c.tb.Helper()
	if c.process == nil {
		return
	}
	require.NoError(c.tb, c.stdin.Close())
	require.NoError(c.tb, c.process.Wait())
	c.process, c.pid = nil, 0
}

func (c *container) remove() {
	c.stop()
	if c.tb.Failed() {
		c.run(programs.hook, "-state", "poststop") //nolint:errcheck // the failure is known
	}
	require.NoError(c.tb, c.stderr.Close())
	if c.cgroup != "" {
		c.removeCgroup()
	}
	require.NoError(c.tb, os.RemoveAll(c.dir))
}

// makeCgroup gives the container a cgroup of its own, in the state in which a runtime leaves it.
func (c *container) makeCgroup() {
	c.tb.Helper()
	c.cgroup = filepath.Join(devicesRoot, c.id)
	require.NoError(c.tb, os.Mkdir(c.cgroup, 0o755))
	c.resetCgroup()
}

func (c *container) resetCgroup() {
	c.tb.Helper()
	require.NoError(c.tb, os.WriteFile(c.cgroup+"/devices.deny", []byte("a"), 0))
	defaults := []string{"c *:* m", "b *:* m", "c 1:3 rwm", "c 1:5 rwm", "c 1:7 rwm", "c 1:8 rwm", "c 1:9 rwm", "c 5:0 rwm"}
	for _, rule := range defaults {
		require.NoError(c.tb, os.WriteFile(c.cgroup+"/devices.allow", []byte(rule), 0))
	}
}

// removeCgroup waits until the kernel has seen the end of the last process.
func (c *container) removeCgroup() {
	end := time.Now().Add(5 * time.Second)
	for {
		err := unix.Rmdir(c.cgroup)
		if err == nil {
			return
		}
		if !errors.Is(err, unix.EBUSY) || time.Now().After(end) {
			c.tb.Errorf("remove cgroup %s: %v", c.cgroup, err)
			return
		}
		time.Sleep(time.Millisecond)
	}
}

// input is what a runtime sends to a hook.
func (c *container) input() []byte {
	text, err := json.Marshal(map[string]any{
		"ociVersion": "1.0.2", "id": c.id, "pid": c.pid, "root": c.rootfs, "bundle": c.bundle, "status": "created",
		"annotations": map[string]string{},
	})
	require.NoError(c.tb, err)
	return text
}

// command prepares a program that gets the container's state: the pipe is filled before it starts.
func (c *container) command(path string, args ...string) *exec.Cmd {
	c.tb.Helper()
	r, w, err := os.Pipe()
	require.NoError(c.tb, err)
	_, err = w.Write(c.input())
	require.NoError(c.tb, errors.Join(err, w.Close()))
	cmd := exec.Command(path, args...)
	cmd.Dir, cmd.Env, cmd.Stdin, cmd.Stderr = "/", []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}, r, c.stderr
	return cmd
}

// run runs a program that gets the container's state.
func (c *container) run(path string, args ...string) error {
	c.tb.Helper()
	cmd := c.command(path, args...)
	defer cmd.Stdin.(*os.File).Close()
	return c.explain(cmd.Run())
}

// explain adds what the program has written to its error.
func (c *container) explain(err error) error {
	if err == nil {
		return nil
	}
	text, readErr := io.ReadAll(io.NewSectionReader(c.stderr, 0, 1<<16))
	return errors.Join(fmt.Errorf("%w: %s", err, bytes.TrimSpace(text)), readErr)
}

// measure is run with the time taken.
func (c *container) measure(m *meter, name, path string, args ...string) {
	c.tb.Helper()
	cmd := c.command(path, args...)
	defer cmd.Stdin.(*os.File).Close()
	m.time(name, func() error { return c.explain(cmd.Run()) })
}

func (c *container) hook(m *meter, name, stage string) {
	c.tb.Helper()
	c.measure(m, name, programs.hook, "-state", stage)
}

func (c *container) floor(m *meter) {
	c.tb.Helper()
	c.measure(m, "floor", programs.floor, c.specPath())
}

// open opens a file of the container's process.
func (c *container) open(name string, flags int) *os.File {
	c.tb.Helper()
	f, err := os.OpenFile(fmt.Sprintf("/proc/%d/%s", c.pid, name), flags, 0)
	require.NoError(c.tb, err)
	c.tb.Cleanup(func() { f.Close() })
	return f
}

// mounts are the mounts of the container that contain text, without numbers that the kernel hands out.
func mounts(tb testing.TB, pid, text string) []string {
	tb.Helper()
	table, err := os.ReadFile("/proc/" + pid + "/mountinfo")
	require.NoError(tb, err)
	var lines []string
	for line := range strings.Lines(string(table)) {
		if !strings.Contains(line, text) {
			continue
		}
		fields := strings.Fields(line)[2:]
		for i, field := range fields {
			if kind, _, ok := strings.Cut(field, ":"); ok && (kind == "shared" || kind == "master" || kind == "propagate_from") {
				fields[i] = kind
			}
		}
		lines = append(lines, strings.Join(fields, " "))
	}
	return lines
}

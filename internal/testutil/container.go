//go:build linux

package testutil

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// MapBase is the host's id of the root user of a Container with a user namespace.
const MapBase = 100000

// Container is what a runtime has made when it calls a hook before pivot_root: a process that waits in mount, network, IPC and
// perhaps user namespaces of its own, with the root file system mounted on itself, and a tmpfs that it has mounted on /dev.
type Container struct {
	Pid    int
	Root   string // directory on the host
	Bundle string // directory of config.json
	ID     string
	UserNS bool
	Cgroup string // directory of its version 1 devices cgroup
	IO     string // and of its blkio one, "" on a host without

	HostNetwork bool // the next Start leaves it in the network namespace of the test

	tb  testing.TB
	cmd *exec.Cmd
}

var containers atomic.Int32

// Where machines with cgroup v1 have the controllers.
const (
	devicesRoot = "/sys/fs/cgroup/devices"
	ioRoot      = "/sys/fs/cgroup/blkio"
)

// NewContainer makes a container and its bundle; all of it is gone at the end of the test.
func NewContainer(tb testing.TB, userns bool) *Container {
	tb.Helper()
	id := fmt.Sprintf("test-%d-%d", os.Getpid(), containers.Add(1))
	c := &Container{ID: id, UserNS: userns, tb: tb, Cgroup: filepath.Join(devicesRoot, id)}
	c.Bundle = tb.TempDir()
	require.NoError(tb, os.Chmod(c.Bundle, 0o750))
	for dir := c.Bundle; dir != "/"; dir = filepath.Dir(dir) { // the mapped root has to get through
		info, err := os.Stat(dir)
		require.NoError(tb, err)
		if info.Mode()&0o001 == 0 {
			require.NoError(tb, os.Chmod(dir, info.Mode()|0o001))
		}
	}
	c.Root = filepath.Join(c.Bundle, "rootfs")
	for _, dir := range []string{"", "dev", "proc", "mnt", "etc"} {
		dir = filepath.Join(c.Root, dir)
		require.NoError(tb, os.Mkdir(dir, 0o755))
		require.NoError(tb, os.Lchown(dir, c.RootID(), c.RootID()))
	}
	linux := fmt.Sprintf(`{"cgroupsPath":"/%s"`, id)
	if userns {
		const mapping = `[{"containerID":0,"hostID":100000,"size":65536}]`
		linux += `,"uidMappings":` + mapping + `,"gidMappings":` + mapping
	}
	spec := `{"ociVersion":"1.0.2","root":{"path":"rootfs"},"linux":` + linux + `}}`
	require.NoError(tb, os.WriteFile(filepath.Join(c.Bundle, "config.json"), []byte(spec), 0o600))
	cgroups := []string{c.Cgroup}
	if _, err := os.Stat(ioRoot); err == nil {
		c.IO = filepath.Join(ioRoot, id)
		cgroups = append(cgroups, c.IO)
	}
	for _, cgroup := range cgroups {
		require.NoError(tb, os.Mkdir(cgroup, 0o755))
		tb.Cleanup(func() {
			c.Stop()
			if err := os.Remove(cgroup); err != nil {
				tb.Error(err)
			}
		})
	}
	c.put("devices.deny", "a")
	for _, rule := range []string{"c *:* m", "b *:* m", "c 1:3 rwm"} {
		c.put("devices.allow", rule)
	}
	c.Start()
	return c
}

// RootID is the host's id of the container's root user.
func (c *Container) RootID() int {
	if c.UserNS {
		return MapBase
	}
	return 0
}

// Start starts the container's process, a new run of the same container.
func (c *Container) Start() {
	c.tb.Helper()
	// Bind mount of the root and tmpfs on /dev, as runtimes do it, then wait for the end of standard input.
	const script = `mount --make-rslave / && mount --bind "$0" "$0" && mount -t tmpfs -o mode=755 dev "$0/dev" && ` +
		`mkdir "$0/dev/shm" && echo ready && read -r end`
	cmd := exec.Command("/bin/sh", "-c", script, c.Root)
	cmd.Stderr = os.Stderr
	// No Pdeathsig: it follows the thread that starts the process, and package mountns ends threads.
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWIPC}
	if !c.HostNetwork {
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWNET
	}
	if c.UserNS {
		ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: MapBase, Size: 65536}}
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings, cmd.SysProcAttr.GidMappings = ids, ids
		cmd.SysProcAttr.GidMappingsEnableSetgroups = true
		cmd.SysProcAttr.Credential = &syscall.Credential{}
	}
	_, err := cmd.StdinPipe()
	require.NoError(c.tb, err)
	stdout, err := cmd.StdoutPipe()
	require.NoError(c.tb, err)
	require.NoError(c.tb, cmd.Start())
	line, err := bufio.NewReader(stdout).ReadString('\n')
	require.NoError(c.tb, err)
	require.Equal(c.tb, "ready\n", line)
	c.cmd, c.Pid = cmd, cmd.Process.Pid
	c.put("cgroup.procs", fmt.Sprint(c.Pid))
	if c.IO != "" {
		require.NoError(c.tb, os.WriteFile(c.IO+"/cgroup.procs", []byte(fmt.Sprint(c.Pid)), 0))
	}
}

// Stop kills the container's process and waits for its end.
func (c *Container) Stop() {
	if c.cmd == nil {
		return
	}
	_ = c.cmd.Process.Kill()
	_ = c.cmd.Wait()
	c.cmd = nil
}

// State is what a runtime writes to a hook's standard input.
func (c *Container) State() string {
	return fmt.Sprintf(`{"ociVersion":"1.0.2","id":%q,"pid":%d,"bundle":%q}`, c.ID, c.Pid, c.Bundle)
}

// Path is where the host sees a path of the container, as long as its process lives.
func (c *Container) Path(path string) string {
	return fmt.Sprintf("/proc/%d/root%s", c.Pid, filepath.Join(c.Root, path))
}

// Allowed is the cgroup's devices.list.
func (c *Container) Allowed() []string {
	c.tb.Helper()
	data, err := os.ReadFile(filepath.Join(c.Cgroup, "devices.list"))
	require.NoError(c.tb, err)
	return strings.Split(strings.TrimSpace(string(data)), "\n")
}

func (c *Container) put(file, line string) {
	c.tb.Helper()
	require.NoError(c.tb, os.WriteFile(filepath.Join(c.Cgroup, file), []byte(line), 0))
}

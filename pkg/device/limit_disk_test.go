//go:build linux

package device_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"isula.org/syscontainer-hooks/pkg/device"
)

// firstLoop is the number of the first loop device to try: far from what losetup(8) takes.
const firstLoop = 3000

// disk is a loop device of the test's own.
type disk struct {
	t            *testing.T
	name, path   string
	major, minor uint32
	remove       func()
}

func newDisk(t *testing.T) *disk {
	t.Helper()
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	require.NoError(t, err)
	t.Cleanup(func() { control.Close() })
	number := firstLoop
	for {
		err = unix.IoctlSetInt(int(control.Fd()), unix.LOOP_CTL_ADD, number)
		if err != unix.EEXIST { //nolint:errorlint // a bare errno, straight from the system call
			break
		}
		number++
	}
	require.NoError(t, err)
	d := &disk{t: t, name: fmt.Sprintf("loop%d", number)}
	d.path = "/dev/" + d.name
	removed := false
	d.remove = func() {
		if !removed {
			removed = true
			d.detach()
			require.NoError(t, unix.IoctlSetInt(int(control.Fd()), unix.LOOP_CTL_REMOVE, number))
		}
	}
	d.attach()
	t.Cleanup(d.remove)
	host, err := device.Lookup(d.path)
	require.NoError(t, err)
	d.major, d.minor = host.Major, host.Minor
	return d
}

func (d *disk) attach() {
	d.t.Helper()
	backing, err := os.Create(filepath.Join(d.t.TempDir(), "disk"))
	require.NoError(d.t, err)
	defer backing.Close()
	require.NoError(d.t, backing.Truncate(32<<20))
	loop, err := os.OpenFile(d.path, os.O_RDWR, 0)
	require.NoError(d.t, err)
	defer loop.Close()
	require.NoError(d.t, unix.IoctlLoopConfigure(int(loop.Fd()), &unix.LoopConfig{Fd: uint32(backing.Fd())}))
}

func (d *disk) detach() {
	d.t.Helper()
	loop, err := os.Open(d.path)
	require.NoError(d.t, err)
	defer loop.Close()
	require.NoError(d.t, unix.IoctlSetInt(int(loop.Fd()), unix.LOOP_CLR_FD, 0))
}

func (d *disk) limit(kind device.LimitKind, value uint64) device.Limit {
	return device.Limit{Kind: kind, Major: d.major, Minor: d.minor, Value: value}
}

func (d *disk) String() string { return fmt.Sprintf("%s (%d:%d)", d.name, d.major, d.minor) }

// partition makes one, and gives its numbers.
func (d *disk) partition() (major, minor uint32) {
	d.t.Helper()
	out, err := exec.Command("addpart", d.path, "1", "8", "64").CombinedOutput()
	require.NoError(d.t, err, string(out))
	text, err := os.ReadFile(fmt.Sprintf("/sys/block/%s/%sp1/dev", d.name, d.name))
	require.NoError(d.t, err)
	_, err = fmt.Sscanf(string(text), "%d:%d", &major, &minor)
	require.NoError(d.t, err)
	return major, minor
}

func (d *disk) choose(scheduler string) {
	d.t.Helper()
	require.NoError(d.t, os.WriteFile("/sys/block/"+d.name+"/queue/scheduler", []byte(scheduler), 0))
}

// ioCgroup is a cgroup of the test's own.
type ioCgroup struct {
	*device.IOCgroup
	t    *testing.T
	path string
}

func newIOCgroup(t *testing.T) *ioCgroup {
	t.Helper()
	path := fmt.Sprintf("/sys/fs/cgroup/blkio/test-%d-%s", os.Getpid(), strings.ReplaceAll(t.Name(), "/", "-"))
	require.NoError(t, os.Mkdir(path, 0o755))
	t.Cleanup(func() { require.NoError(t, os.Remove(path)) })
	dir, err := os.OpenFile(path, unix.O_PATH|unix.O_DIRECTORY, 0)
	require.NoError(t, err)
	t.Cleanup(func() { dir.Close() })
	cgroup, err := device.OpenIOCgroup(dir)
	require.NoError(t, err)
	return &ioCgroup{cgroup, t, path}
}

func (c *ioCgroup) plan(limits ...device.Limit) []device.LimitChange {
	c.t.Helper()
	changes, err := c.Plan(limits)
	require.NoError(c.t, err)
	return changes
}

func (c *ioCgroup) has(limits ...device.Limit) {
	c.t.Helper()
	got, err := c.Limits()
	require.NoError(c.t, err)
	require.ElementsMatch(c.t, limits, got)
}

// content is what the kernel shows in a file.
func (c *ioCgroup) content(file string) string {
	c.t.Helper()
	text, err := os.ReadFile(filepath.Join(c.path, file))
	require.NoError(c.t, err)
	return string(text)
}

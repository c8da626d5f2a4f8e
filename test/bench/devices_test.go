//go:build linux

package bench

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"isula.org/syscontainer-hooks/pkg/device"
)

// Numbers of the devices: a range for local use, devices.txt in the kernel's documentation. Nobody opens them.
const (
	major     = 240
	nodeMode  = 0o660
	nodeGroup = 6
)

// devices are nodes on the host, and a root directory and a cgroup to give them to.
type devices struct {
	*container
	n      int
	root   *os.File // of the container
	group  *os.File // its cgroup
	host   []string // paths
	names  []string // in the container's /dev
	rules  [][]byte // as the cgroup takes them
	wanted []string // what all ways come to, once one of them has
}

func newDevices(tb testing.TB, n int) *devices {
	tb.Helper()
	d := &devices{container: newContainer(tb, 0), n: n}
	d.makeCgroup()
	require.NoError(tb, unix.Mount("dev", d.rootfs+"/dev", "tmpfs", 0, "mode=0755"))
	tb.Cleanup(func() { require.NoError(tb, unix.Unmount(d.rootfs+"/dev", unix.MNT_DETACH)) })
	d.root, d.group = openPath(tb, d.rootfs), openPath(tb, d.cgroup)
	require.NoError(tb, os.Mkdir(d.dir+"/host", 0o755))
	for i := range n {
		path := d.dir + "/host/node" + strconv.Itoa(i)
		require.NoError(tb, unix.Mknod(path, unix.S_IFCHR|nodeMode, int(unix.Mkdev(major, uint32(i)))))
		require.NoError(tb, os.Chown(path, 0, nodeGroup))
		require.NoError(tb, unix.Chmod(path, nodeMode))
		d.host, d.names = append(d.host, path), append(d.names, "bench"+strconv.Itoa(i))
		d.rules = append(d.rules, fmt.Appendf(nil, "c %d:%d rw", major, i))
	}
	return d
}

func openPath(tb testing.TB, path string) *os.File {
	tb.Helper()
	f, err := os.OpenFile(path, unix.O_PATH|unix.O_DIRECTORY, 0)
	require.NoError(tb, err)
	tb.Cleanup(func() { f.Close() })
	return f
}

// entries is the list for a record.
func (d *devices) entries() []map[string]any {
	var list []map[string]any
	for i := range d.n {
		list = append(list, map[string]any{
			"Type": "c", "Major": major, "Minor": i, "PathOnHost": d.host[i], "PathInContainer": "/dev/" + d.names[i],
			"CgroupPermissions": "rw", "Parent": "",
		})
	}
	return list
}

// devicesRound restores the devices through package device and with bare system calls.
func devicesRound(tb testing.TB, n int) func(m *meter) {
	tb.Helper()
	d := newDevices(tb, n)
	return func(m *meter) {
		m.inTurn(
			func() { d.measure(m, "bare", d.bare) },
			func() { d.measure(m, "hook", d.restore) },
		)
	}
}

// measure starts from a /dev without the nodes and a cgroup without the permissions, and leaves them so.
func (d *devices) measure(m *meter, name string, way func() error) {
	d.tb.Helper()
	m.time(name, way)
	if m.check {
		if got := d.result(); d.wanted == nil {
			d.wanted = got
		} else {
			require.Equal(d.tb, d.wanted, got, name)
		}
	}
	for _, node := range d.names {
		require.NoError(d.tb, os.Remove(filepath.Join(d.rootfs, "dev", node)))
	}
	d.resetCgroup()
}

// restore is the way of the hook.
func (d *devices) restore() error {
	nodes := make([]device.Node, 0, d.n)
	rules := make([]device.Rule, 0, d.n)
	var finder device.Finder
	defer finder.Close()
	for i, path := range d.host {
		host, err := finder.Lookup(path)
		if err != nil {
			return err
		}
		nodes = append(nodes, device.Node{
			Path: "/dev/" + d.names[i], Type: host.Type, Major: host.Major, Minor: host.Minor,
			Mode: host.Mode, UID: host.UID, GID: host.GID,
		})
		rules = append(rules, device.Rule{
			Type: host.Type, Major: host.Major, Minor: host.Minor, Access: device.Read | device.Write,
		})
	}
	group, err := device.OpenCgroup(d.group)
	if err != nil {
		return err
	}
	grant, err := group.Plan(rules)
	if err != nil {
		return err
	}
	target := device.Container{Root: d.root}
	placements, err := target.Plan(nodes)
	if err != nil {
		return err
	}
	if err := group.Allow(grant); err != nil {
		return err
	}
	if err := target.Place(placements); err != nil {
		return err
	}
	return target.Commit(placements)
}

// bare is the way without any check: it takes it that nothing is in the way and all is known.
func (d *devices) bare() error {
	allow, err := unix.Openat(int(d.group.Fd()), "devices.allow", unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(allow)
	how := unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	}
	for i, name := range d.names {
		dir, err := unix.Openat2(int(d.root.Fd()), "/dev", &how)
		if err != nil {
			return err
		}
		if err := unix.Mknodat(dir, name, unix.S_IFCHR, int(unix.Mkdev(major, uint32(i)))); err != nil {
			return err
		}
		if err := unix.Fchownat(dir, name, 0, nodeGroup, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return err
		}
		if err := unix.Fchmodat(dir, name, nodeMode, 0); err != nil {
			return err
		}
		if err := unix.Close(dir); err != nil {
			return err
		}
		if _, err := unix.Write(allow, d.rules[i]); err != nil {
			return err
		}
	}
	return nil
}

// result is what a way has come to: nodes and permissions.
func (d *devices) result() []string {
	d.tb.Helper()
	list, err := os.ReadFile(d.cgroup + "/devices.list")
	require.NoError(d.tb, err)
	result := []string{string(list)}
	entries, err := os.ReadDir(d.rootfs + "/dev")
	require.NoError(d.tb, err)
	require.Len(d.tb, entries, d.n)
	for _, entry := range entries {
		var stat unix.Stat_t
		require.NoError(d.tb, unix.Lstat(filepath.Join(d.rootfs, "dev", entry.Name()), &stat))
		result = append(result, fmt.Sprintf("%s %o %d %d %x", entry.Name(), stat.Mode, stat.Uid, stat.Gid, stat.Rdev))
	}
	return result
}

// toolDevicesRound restores the devices with the system's programs, one after the other.
func toolDevicesRound(tb testing.TB, n int) func(m *meter) {
	tb.Helper()
	d := newDevices(tb, n)
	return func(m *meter) {
		d.measure(m, "hook", d.restore)
		d.measure(m, "tools", d.tools)
	}
}

func (d *devices) tools() error {
	for i, name := range d.names {
		path := filepath.Join(d.rootfs, "dev", name)
		for _, args := range [][]string{
			{"mknod", path, "c", strconv.Itoa(major), strconv.Itoa(i)},
			{"chown", fmt.Sprintf("0:%d", nodeGroup), path},
			{"chmod", fmt.Sprintf("%o", nodeMode), path},
			{"sh", "-c", fmt.Sprintf("echo '%s' >%s/devices.allow", d.rules[i], d.cgroup)},
		} {
			if err := tool(args...); err != nil {
				return fmt.Errorf("%q: %w", args, err)
			}
		}
	}
	return nil
}

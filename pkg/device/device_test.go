//go:build linux

package device_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"isula.org/syscontainer-hooks/internal/testutil"
	"isula.org/syscontainer-hooks/pkg/device"
)

func TestMain(m *testing.M) { os.Exit(testutil.Main(m)) }

// trustedDir is not below the temporary directory, where everybody can put links.
func trustedDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/srv", "test") //nolint:usetesting // not below the temporary directory
	require.NoError(t, err)
	require.NoError(t, os.Chmod(dir, 0o755))
	return dir
}

func openContainer(t testing.TB, c *testutil.Container) device.Container {
	t.Helper()
	root, err := os.OpenFile(c.Path("/"), unix.O_PATH|unix.O_DIRECTORY, 0)
	require.NoError(t, err)
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/mnt", c.Pid))
	require.NoError(t, err)
	t.Cleanup(func() { root.Close(); ns.Close() })
	return device.Container{Root: root, MountNS: ns, UID: c.RootID(), GID: c.RootID()}
}

func zero(path string) device.Node {
	return device.Node{Path: path, Type: device.Char, Major: 1, Minor: 5, Mode: 0o640, UID: 12, GID: 34}
}

func describe(t *testing.T, path string) string {
	t.Helper()
	var stat unix.Stat_t
	require.NoError(t, unix.Lstat(path, &stat))
	return fmt.Sprintf("%o %d:%d %d:%d", stat.Mode, unix.Major(stat.Rdev), unix.Minor(stat.Rdev), stat.Uid, stat.Gid)
}

func eachContainer(t *testing.T, test func(t *testing.T, c *testutil.Container)) {
	testutil.RequireRoot(t)
	for _, userns := range []bool{false, true} {
		t.Run(fmt.Sprintf("userns %t", userns), func(t *testing.T) { test(t, testutil.NewContainer(t, userns)) })
	}
}

func TestLookup(t *testing.T) {
	testutil.RequireRoot(t)
	dir := trustedDir(t)
	require.NoError(t, os.Symlink("/dev/zero", dir+"/by-id"))
	require.NoError(t, unix.Mknod(dir+"/block", unix.S_IFBLK|0o600, int(unix.Mkdev(259, 1<<19))))
	require.NoError(t, os.Chown(dir+"/block", 7, 8))
	whiteout := t.TempDir() + "/whiteout" // not on the overlay that is / here
	require.NoError(t, unix.Mknod(whiteout, unix.S_IFCHR, 0))
	require.NoError(t, os.WriteFile(dir+"/file", nil, 0o600))
	require.NoError(t, unix.Mkfifo(dir+"/fifo", 0o600))
	require.NoError(t, os.Symlink("loop", dir+"/loop"))

	host, err := device.Lookup(dir + "/by-id")
	require.NoError(t, err)
	require.Equal(t, &device.Host{Path: dir + "/by-id", Type: device.Char, Major: 1, Minor: 5, Mode: 0o666}, host)
	host, err = device.Lookup(dir + "/block")
	require.NoError(t, err)
	require.Equal(t,
		&device.Host{Path: dir + "/block", Type: device.Block, Major: 259, Minor: 1 << 19, Mode: 0o600, UID: 7, GID: 8}, host)
	for _, path := range []string{
		whiteout, dir + "/file", dir + "/fifo", dir + "/loop", dir, dir + "/missing",
		"/dev/stdin", "/dev/fd/0", "/proc/self/root/dev/null",
	} {
		_, err := device.Lookup(path)
		require.Error(t, err, path)
	}
}

func TestCreateAndRemove(t *testing.T) {
	eachContainer(t, func(t *testing.T, c *testutil.Container) {
		container := openContainer(t, c)
		before := append(testutil.Tree(t, c.Path("/dev"), c.Path("/mnt")), testutil.Mounts(t, fmt.Sprint(c.Pid))...)
		nodes := []device.Node{zero("/dev/a"), zero("/dev/new/b"), zero("/mnt/c"), zero("/mnt/x/y/d")}
		placements, err := container.Plan(nodes)
		require.NoError(t, err)
		require.Len(t, placements, 4)
		require.NoError(t, container.Place(placements))
		require.NoError(t, container.Commit(placements))
		for _, node := range nodes {
			require.Equal(t, "20640 1:5 12:34", describe(t, c.Path(node.Path)), node.Path)
			f, err := os.OpenFile(c.Path(node.Path), os.O_RDONLY, 0)
			require.NoError(t, err, "%s is not usable", node.Path)
			f.Close()
		}
		require.Equal(t, fmt.Sprintf("40755 0:0 %d:%d", c.RootID(), c.RootID()), describe(t, c.Path("/mnt/x/y")))

		again, err := container.Plan(nodes)
		require.NoError(t, err)
		require.Empty(t, again, "what is there needs nothing")

		require.NoError(t, container.Remove(placements))
		require.NoError(t, container.Remove(placements))
		after := append(testutil.Tree(t, c.Path("/dev"), c.Path("/mnt")), testutil.Mounts(t, fmt.Sprint(c.Pid))...)
		require.Equal(t, before, after)
	})
}

// What has the path is replaced, and comes back until it is dropped.
func TestReplace(t *testing.T) {
	eachContainer(t, func(t *testing.T, c *testutil.Container) {
		container := openContainer(t, c)
		dir := filepath.Join(c.Root, "etc")
		secret := filepath.Join(c.Root, "secret")
		require.NoError(t, os.WriteFile(secret, []byte("secret"), 0o600))
		require.NoError(t, os.Symlink("/etc/passwd", dir+"/link"))
		require.NoError(t, os.Link(secret, dir+"/hardlink"))
		require.NoError(t, unix.Mkfifo(dir+"/fifo", 0o600))
		require.NoError(t, unix.Mknod(dir+"/other", unix.S_IFBLK|0o666, int(unix.Mkdev(8, 0))))
		require.NoError(t, unix.Mknod(dir+"/same", unix.S_IFCHR|0o600, int(unix.Mkdev(1, 5))))
		var nodes []device.Node
		for _, name := range []string{"link", "hardlink", "fifo", "other", "same"} {
			nodes = append(nodes, zero("/etc/"+name))
		}
		before := testutil.Tree(t, c.Root)
		placements, err := container.Plan(nodes)
		require.NoError(t, err)
		require.NoError(t, container.Place(placements))
		for _, node := range nodes {
			require.Equal(t, "20640 1:5 12:34", describe(t, c.Root+node.Path))
		}
		require.NoError(t, container.Remove(placements))
		require.Equal(t, before, testutil.Tree(t, c.Root))

		require.NoError(t, container.Create(nodes...))
		entries, err := os.ReadDir(dir)
		require.NoError(t, err)
		require.Len(t, entries, len(nodes), "what was replaced is dropped")
		data, err := os.ReadFile(secret)
		require.NoError(t, err)
		require.Equal(t, "secret", string(data))
	})
}

func TestPlanRefuses(t *testing.T) {
	eachContainer(t, func(t *testing.T, c *testutil.Container) {
		container := openContainer(t, c)
		require.NoError(t, os.Mkdir(c.Root+"/etc/full", 0o755))
		require.NoError(t, os.Symlink("loop", c.Root+"/loop"))
		long := "/" + strings.Repeat("a/", 4096)
		for _, path := range []string{
			"", "/", "dev/x", "/dev/../x", "/dev/x/", "/dev//x", "/dev/a\x00b", "/dev/a\nb", "/dev/a:b", long, "/dev", "/etc/full",
			"/loop/x",
		} {
			_, err := container.Plan([]device.Node{zero(path)})
			require.Error(t, err, "%.40q", path)
		}
		for _, nodes := range [][]device.Node{
			{zero("/dev/a"), zero("/dev/a")},
			{zero("/dev/a/b"), zero("/dev/a-"), zero("/dev/a")},
			{{Path: "/dev/x", Type: "p", Major: 1, Minor: 1}},
			{{Path: "/dev/x", Type: device.Char}},
		} {
			_, err := container.Plan(nodes)
			require.Error(t, err)
		}
	})
}

// A mount of the very device, as runtimes make in user namespaces, is as good as a node; any other mount is in the way.
func TestMountAtPath(t *testing.T) {
	testutil.RequireRoot(t)
	c := testutil.NewContainer(t, true)
	container := openContainer(t, c)
	require.NoError(t, container.Create(zero("/dev/mounted")))
	node := zero("/dev/mounted")
	node.Mode = 0o600
	placements, err := container.Plan([]device.Node{node})
	require.NoError(t, err)
	require.Empty(t, placements)
	node.Minor = 3
	_, err = container.Plan([]device.Node{node})
	require.ErrorIs(t, err, device.ErrOccupied)
}

// Create makes all or nothing.
func TestCreateFailsWhole(t *testing.T) {
	testutil.RequireRoot(t)
	dir := t.TempDir()
	require.NoError(t, unix.Mount("full", dir, "tmpfs", 0, "nr_inodes=4"))
	t.Cleanup(func() { require.NoError(t, unix.Unmount(dir, unix.MNT_DETACH)) })
	require.NoError(t, os.Mkdir(dir+"/dev", 0o755))
	root, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	require.NoError(t, err)
	defer root.Close()
	before := testutil.Tree(t, dir)
	err = device.Container{Root: root}.Create(zero("/dev/first"), zero("/dev/second"), zero("/dev/third"))
	require.ErrorIs(t, err, unix.ENOSPC)
	require.Equal(t, before, testutil.Tree(t, dir))
}

func TestCgroup(t *testing.T) {
	testutil.RequireRoot(t)
	c := testutil.NewContainer(t, false)
	dir, err := os.OpenFile(c.Cgroup, unix.O_PATH|unix.O_DIRECTORY, 0)
	require.NoError(t, err)
	defer dir.Close()
	cgroup, err := device.OpenCgroup(dir)
	require.NoError(t, err)
	before := c.Allowed() // c *:* m, b *:* m, c 1:3 rwm
	rules := []device.Rule{
		{Type: device.Char, Major: 1, Minor: 3, Access: device.Read | device.Write},
		{Type: device.Char, Major: 1, Minor: 5, Access: device.Mknod},
		{Type: device.Char, Major: 1, Minor: 7, Access: device.Read},
		{Type: device.Block, Major: 7, Minor: 0, Access: device.Read | device.Write | device.Mknod},
	}
	grant, err := cgroup.Plan(rules)
	require.NoError(t, err)
	require.Equal(t, device.Grant{Rules: rules[2:]}, grant, "the rest is allowed already")
	require.NoError(t, cgroup.Allow(grant))
	require.Equal(t, append(before, "c 1:7 r", "b 7:0 rwm"), c.Allowed())
	again, err := cgroup.Plan(rules)
	require.NoError(t, err)
	require.Empty(t, again.Rules)

	more, err := cgroup.Plan([]device.Rule{{Type: device.Char, Major: 1, Minor: 7, Access: device.Read | device.Write}})
	require.NoError(t, err)
	require.Equal(t, device.Write, more.Rules[0].Access)
	require.NoError(t, cgroup.Allow(more))
	require.Contains(t, c.Allowed(), "c 1:7 rw")
	require.NoError(t, cgroup.Revoke(more))
	require.Contains(t, c.Allowed(), "c 1:7 r")

	require.NoError(t, cgroup.Revoke(grant))
	require.NoError(t, cgroup.Revoke(grant))
	require.Equal(t, before, c.Allowed())
}

// A cgroup that allows all hides what it denies: the rule is written, and what was denied is never taken back.
func TestCgroupDefaultAllow(t *testing.T) {
	testutil.RequireRoot(t)
	c := testutil.NewContainer(t, false)
	require.NoError(t, os.WriteFile(filepath.Join(c.Cgroup, "devices.allow"), []byte("a"), 0))
	require.NoError(t, os.WriteFile(filepath.Join(c.Cgroup, "devices.deny"), []byte("c 1:5 rwm"), 0))
	require.Equal(t, []string{"a *:* rwm"}, c.Allowed())
	dir, err := os.OpenFile(c.Cgroup, unix.O_PATH|unix.O_DIRECTORY, 0)
	require.NoError(t, err)
	defer dir.Close()
	cgroup, err := device.OpenCgroup(dir)
	require.NoError(t, err)
	grant, err := cgroup.Plan([]device.Rule{{Type: device.Char, Major: 1, Minor: 5, Access: device.Read}})
	require.NoError(t, err)
	require.True(t, grant.DefaultAllow)
	require.NoError(t, cgroup.Allow(grant))
	require.NoError(t, cgroup.Revoke(grant))
	require.Equal(t, []string{"a *:* rwm"}, c.Allowed())
}

func TestOpenCgroupRefuses(t *testing.T) {
	testutil.RequireRoot(t)
	dir, err := os.OpenFile(t.TempDir(), unix.O_PATH|unix.O_DIRECTORY, 0)
	require.NoError(t, err)
	defer dir.Close()
	_, err = device.OpenCgroup(dir)
	require.ErrorContains(t, err, "no cgroup")
	v2 := t.TempDir()
	require.NoError(t, unix.Mount("cgroup2", v2, "cgroup2", 0, ""))
	t.Cleanup(func() { require.NoError(t, unix.Unmount(v2, unix.MNT_DETACH)) })
	dir2, err := os.OpenFile(v2, unix.O_PATH|unix.O_DIRECTORY, 0)
	require.NoError(t, err)
	defer dir2.Close()
	_, err = device.OpenCgroup(dir2)
	require.ErrorIs(t, err, device.ErrCgroupV2)
}

//go:build linux

package e2e

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"isula.org/syscontainer-hooks/test/harness"
)

const loopText = "of the loop device"

// entry is a device of the record, with the members in the order in which syscontainer-tools writes them.
type entry struct {
	Type              string
	Minor, Major      uint32
	PathOnHost        string
	PathInContainer   string
	CgroupPermissions string
	Parent            string
}

type record struct {
	BindToAdd   []string `json:"bindToAdd,omitempty"`
	DeviceToAdd []entry  `json:"deviceToAdd,omitempty"`

	NetworkInterfaces []nic   `json:"networkInterfaces,omitempty"`
	NetworkRoute      []route `json:"networkRoute,omitempty"`
}

func (r record) String() string {
	text, err := json.Marshal(r)
	if err != nil {
		panic(err) // strings and numbers only
	}
	return string(text)
}

// resources are host directories and devices, the record that gives them to a container, and what one looks for inside.
type resources struct {
	dir    string
	loop   string
	node   []string // mode and owner of the loop device on the host
	record record
}

// newResources makes them for containers whose root is this id on the host.
func newResources(t *testing.T, rootID int) *resources {
	t.Helper()
	r := &resources{dir: filepath.Join(harness.TempDir(t), "share"), loop: harness.LoopDevice(t, loopText)}
	harness.Mkdir(t, r.dir, 0o755, 0)
	for _, name := range []string{"c0", "c1", "slave", "slave/sub", "private", "private/sub", "live"} {
		harness.Mkdir(t, r.dir+"/"+name, 0o755, rootID)
	}
	for _, name := range []string{"c0/hello", "c1/hello", "file", "live/hello"} {
		harness.WriteFile(t, r.dir+"/"+name, "hello from "+name, rootID)
	}
	r.node = harness.Tree(t, r.loop)
	r.record = record{
		BindToAdd: []string{
			r.dir + "/c0:/mnt/c0:rw",
			r.dir + "/c1:/mnt/c1:ro",
			r.dir + "/file:/mnt/file:ro,rslave",
			r.dir + "/c0:/mnt/c0b:rw",
			r.dir + "/newdir:/mnt/newdir:rw,rslave", // not there before the first start
			r.dir + "/slave:/mnt/slave:rw,rslave",
			r.dir + "/private:/mnt/a/b/private:rw,rprivate",
		},
		DeviceToAdd: []entry{
			{Type: "c", Major: 1, Minor: 5, PathOnHost: "/dev/zero", PathInContainer: "/dev/tzero", CgroupPermissions: "rwm"},
			{Type: "c", Major: 1, Minor: 7, PathOnHost: "/dev/full", PathInContainer: "/dev/sub/tfull", CgroupPermissions: "r"},
			{
				Type: "c", Major: 10, Minor: 237, PathOnHost: "/dev/loop-control", PathInContainer: "/dev/tcontrol",
				CgroupPermissions: "r",
			},
			// The numbers are those of before a reboot.
			{Type: "b", Major: 8, Minor: 77, PathOnHost: r.loop, PathInContainer: "/dev/tloop", CgroupPermissions: "r"},
		},
	}
	return r
}

// check looks at everything in the record from inside the container and from the host. It can be repeated.
func (r *resources) check(t *testing.T, c *harness.Container) {
	t.Helper()
	r.checkNodes(t, c)
	r.checkContent(t, c)
	r.checkReadOnly(t, c)
	r.checkMounts(t, c)
	r.checkPropagation(t, c)
	r.checkSavedNumbers(t, c)
}

func (r *resources) checkNodes(t *testing.T, c *harness.Container) {
	t.Helper()
	require.Equal(t, r.node, harness.Tree(t, r.loop), "the host's node is not the container's to own")
	allowed := c.AllowedDevices()
	for _, d := range r.record.DeviceToAdd {
		var st unix.Stat_t
		require.NoError(t, unix.Stat(d.PathOnHost, &st))
		if c.RootID() != 0 {
			st.Uid, st.Gid = 0, 0
		}
		number := fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
		require.Equal(t, fmt.Sprintf("%s %s %04o %d %d", d.Type, number, st.Mode&0o7777, st.Uid, st.Gid),
			c.Exec("stat", d.PathInContainer), d.PathInContainer)
		access := d.CgroupPermissions
		if d.PathOnHost == "/dev/full" {
			access = "rwm" // the runtime's own permission, and no record takes that away
		}
		require.Contains(t, allowed, d.Type+" "+number+" "+access)
	}
	require.Equal(t, "00000000", c.Exec("read", "/dev/tzero", "4"))
	require.Equal(t, "00000000", c.Exec("read", "/dev/sub/tfull", "4"))
	require.Equal(t, hex.EncodeToString([]byte(loopText)), c.Exec("read", "/dev/tloop", fmt.Sprint(len(loopText))))
	c.Exec("openw", "/dev/tzero")
	c.Exec("openw", "/dev/sub/tfull")
	refused(t, c, "operation not permitted", "openw", "/dev/tloop")
	refused(t, c, "operation not permitted", "openw", "/dev/tcontrol")
}

// refused runs the payload for what must fail, and not for another reason.
func refused(t *testing.T, c *harness.Container, reason string, args ...string) {
	t.Helper()
	r := c.TryExec(args...)
	require.Equal(t, 1, r.Code, "%v: %+v", args, r)
	require.Contains(t, r.Stderr, reason, "%v", args)
}

func (r *resources) checkContent(t *testing.T, c *harness.Container) {
	t.Helper()
	for _, path := range []string{"c0/hello", "c1/hello", "file"} {
		require.Equal(t, "hello from "+path, c.Exec("read", "/mnt/"+path))
	}
	require.Equal(t, "hello from c0/hello", c.Exec("read", "/mnt/c0b/hello"))
	for _, dir := range []string{"c0", "newdir", "slave"} {
		written := fmt.Sprintf("by init %d in %s", c.Pid, dir)
		name := fmt.Sprintf("container-%d", c.Pid)
		c.Exec("write", "/mnt/"+dir+"/"+name, written)
		text, err := os.ReadFile(filepath.Join(r.dir, dir, name))
		require.NoError(t, err)
		require.Equal(t, written, string(text))
	}
	name := fmt.Sprintf("host-%d", c.Pid)
	harness.WriteFile(t, filepath.Join(r.dir, "c0", name), name, c.RootID())
	require.Equal(t, name, c.Exec("read", "/mnt/c0/"+name))
	require.Equal(t, name, c.Exec("read", "/mnt/c0b/"+name))

	var st unix.Stat_t
	require.NoError(t, unix.Stat(r.dir+"/newdir", &st))
	require.Equal(t, []uint32{unix.S_IFDIR | 0o755, uint32(c.RootID()), uint32(c.RootID())}, []uint32{st.Mode, st.Uid, st.Gid})
}

func (r *resources) checkReadOnly(t *testing.T, c *harness.Container) {
	t.Helper()
	const reason = "read-only file system"
	for range 2 {
		refused(t, c, reason, "write", "/mnt/c1/new", "x")
		refused(t, c, reason, "openw", "/mnt/c1/hello")
		refused(t, c, reason, "openw", "/mnt/file")
		baseRefused(t, c)
		if c.RootID() == 0 {
			return // has no CAP_SYS_ADMIN
		}
		// Root of a user namespace may call mount: it gets no further by that.
		for _, path := range []string{"/mnt/c1", "/mnt/file", "/.sharedpath"} {
			c.TryExec("remount-rw", path)
		}
	}
}

// baseRefused looks whether the container's root cannot write its part of the transfer layout. In a user namespace it can take
// read-only off, and still has no right to.
func baseRefused(t *testing.T, c *harness.Container) {
	t.Helper()
	r := c.TryExec("write", "/.sharedpath/new", "x")
	require.Equal(t, 1, r.Code)
	if c.RootID() == 0 || !strings.Contains(r.Stderr, "permission denied") {
		require.Contains(t, r.Stderr, "read-only file system")
	}
}

func (r *resources) checkMounts(t *testing.T, c *harness.Container) {
	t.Helper()
	mounts := c.Mounts()
	for _, want := range []struct {
		point    string
		readOnly bool
		slave    bool // asked for
		private  bool // asked for
	}{
		{point: "/mnt/c0"},
		{point: "/mnt/c1", readOnly: true},
		{point: "/mnt/file", readOnly: true, slave: true},
		{point: "/mnt/c0b"},
		{point: "/mnt/newdir", slave: true},
		{point: "/mnt/slave", slave: true},
		{point: "/mnt/a/b/private", private: true},
	} {
		at := harness.At(mounts, want.point)
		require.Len(t, at, 1, want.point)
		require.Equal(t, want.readOnly, at[0].Has("ro"), "%s: %v", want.point, at[0])
		if want.slave {
			require.Equal(t, !c.CutOff(), at[0].Slave(), "%s: %v", want.point, at[0].Peers)
			require.False(t, at[0].Shared(), "%s: %v", want.point, at[0].Peers)
		}
		if want.private {
			require.Empty(t, at[0].Peers, want.point)
		}
	}
	checkBase(t, c)
}

// checkBase looks for what syscontainer-tools needs to add a path to the running container.
func checkBase(t *testing.T, c *harness.Container) {
	t.Helper()
	master := harness.At(harness.HostMounts(t), "/.sharedpath/master")
	require.Len(t, master, 1)
	require.Equal(t, "tmpfs", master[0].Type)
	require.Contains(t, master[0].Super, "size=16384k")
	require.True(t, master[0].Shared(), master[0].Peers)

	base := harness.At(c.Mounts(), "/.sharedpath")
	require.Len(t, base, 1)
	require.Equal(t, master[0].Dev, base[0].Dev)
	require.Equal(t, "/"+c.ID, base[0].Root)
	if c.RootID() == 0 { // root of a user namespace may have taken it off, which baseRefused shows to be no use
		require.True(t, base[0].Has("ro"), base[0])
	}
	require.Equal(t, !c.CutOff(), base[0].Slave(), base[0].Peers)
	require.False(t, base[0].Shared(), base[0].Peers)
}

// checkPropagation mounts below two sources: an rslave bind shows it, an rprivate one does not.
func (r *resources) checkPropagation(t *testing.T, c *harness.Container) {
	t.Helper()
	for _, name := range []string{"slave", "private"} {
		sub := filepath.Join(r.dir, name, "sub")
		require.NoError(t, unix.Mount("later", sub, "tmpfs", 0, "mode=0755"))
		harness.WriteFile(t, sub+"/later", "mounted later", 0)
	}
	slave, private := c.TryExec("ls", "/mnt/slave/sub"), c.TryExec("ls", "/mnt/a/b/private/sub")
	for _, name := range []string{"slave", "private"} {
		require.NoError(t, unix.Unmount(filepath.Join(r.dir, name, "sub"), 0))
	}
	if c.CutOff() {
		require.Equal(t, harness.Result{}, slave)
	} else {
		require.Equal(t, harness.Result{Stdout: "later\n"}, slave)
	}
	require.Equal(t, harness.Result{}, private)
	require.Empty(t, c.Exec("ls", "/mnt/slave/sub"))
}

// checkSavedNumbers looks for the device numbers in the record: the host's, whatever the record had.
func (r *resources) checkSavedNumbers(t *testing.T, c *harness.Container) {
	t.Helper()
	text, err := os.ReadFile(c.Record())
	require.NoError(t, err)
	var saved record
	require.NoError(t, json.Unmarshal(text, &saved))
	want := record{BindToAdd: r.record.BindToAdd}
	for _, d := range r.record.DeviceToAdd {
		var st unix.Stat_t
		require.NoError(t, unix.Stat(d.PathOnHost, &st))
		d.Major, d.Minor = unix.Major(st.Rdev), unix.Minor(st.Rdev)
		want.DeviceToAdd = append(want.DeviceToAdd, d)
	}
	require.Equal(t, want, saved)
}

// checkLiveAdd shares a directory with the running container as syscontainer-tools add-path does, up to the last step, which is
// its own bind inside the container.
func (r *resources) checkLiveAdd(t *testing.T, c *harness.Container) {
	t.Helper()
	if c.CutOff() {
		return
	}
	source := filepath.Join(r.dir, "live")
	name := fmt.Sprintf("%x", sha256.Sum256([]byte(source)))
	from := source
	for _, dir := range []string{"/.sharedpath/midpath", "/.sharedpath/master"} {
		to := filepath.Join(dir, c.ID, name)
		require.NoError(t, os.MkdirAll(to, 0o755))
		require.NoError(t, unix.Mount(from, to, "", unix.MS_BIND, ""))
		from = to
	}
	require.Equal(t, "hello from live/hello", c.Exec("read", "/.sharedpath/"+name+"/hello"))
	baseRefused(t, c)
}

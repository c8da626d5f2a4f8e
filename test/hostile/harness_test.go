//go:build linux

package hostile

import (
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// TestHarness checks the container and the assertions by themselves: what they cannot see, no row can find.
func TestHarness(t *testing.T) {
	begin(t, false)
	for _, v := range append(append([]variant{}, rowVariants[:4]...), variant{name: "pivot", pivot: true},
		variant{name: "user+pivot", user: true, pivot: true}, variant{name: "shared", shared: true}) {
		t.Run(v.name, func(t *testing.T) { checkContainer(t, v) })
	}
	t.Run("assertions", checkAssertions)
}

func checkContainer(t *testing.T, v variant) {
	w := newWorld(t, v)
	host := w.host(true)
	w.start()
	own, err := os.Readlink("/proc/thread-self/ns/mnt")
	require.NoError(t, err)
	theirs, err := os.Readlink("/proc/" + pidText(w) + "/ns/mnt")
	require.NoError(t, err)
	require.NotEqual(t, own, theirs)
	group, err := os.ReadFile("/proc/" + pidText(w) + "/cgroup")
	require.NoError(t, err)
	require.Contains(t, string(group), "devices:/"+w.cgroup+"\n")
	require.Contains(t, string(group), "blkio:/"+w.cgroup+"\n")
	require.ElementsMatch(t, []string{"c *:* m", "b *:* m", "c 1:3 rwm", "c 1:8 rwm", "c 5:0 rwm"}, w.permissions())
	require.Len(t, w.mountsAt("/"), 1, "the root is a mount point")
	if v.shared {
		require.NotEmpty(t, diff(host, w.host(true)), "the root's mount has a peer on the host")
		require.Contains(t, w.mountsAt("/")[0].tags, "shared:")
		return
	}
	require.Empty(t, diff(host, w.host(true)), "nothing of a container is on the host")
	require.NotContains(t, w.mountsAt("/")[0].tags, "shared:")
	w.hasText("/etc/passwd", "secret\n")
	if v.tmpfs {
		require.Equal(t, "tmpfs", w.mountsAt("/dev")[0].fstype)
	}
	ids, err := os.ReadFile("/proc/" + pidText(w) + "/uid_map")
	require.NoError(t, err)
	if v.user {
		require.Equal(t, []string{"0", "100000", "65536"}, strings.Fields(string(ids)))
		require.ErrorIs(t, probeNode(w), map[bool]error{true: unix.EOVERFLOW}[v.tmpfs])
	} else {
		require.Equal(t, []string{"0", "0", "4294967295"}, strings.Fields(string(ids)))
		require.NoError(t, probeNode(w))
	}
	if v.pivot {
		return
	}
	// The container cannot open what its cgroup does not allow, and can once it does.
	if !v.user {
		w.sh("mknod $RF/tmp/zero c 1 5")
		_, err = w.try("open", "/tmp/zero")
		require.ErrorContains(t, err, unix.EPERM.Error())
		w.put("devices.allow", "c 1:5 r")
		w.in("open", "/tmp/zero")
	}
	w.sh("ln -s $HD $RF/a")
	_, err = w.try("read", "/a/file")
	require.Error(t, err, "the container's own view does not leave its root")
}

func pidText(w *world) string { return strconv.Itoa(w.pid) }

// probeNode makes a node from the host in the container's /dev and removes it.
func probeNode(w *world) error {
	p := w.view() + "/dev/probe"
	if err := unix.Mknod(p, unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))); err != nil {
		return err
	}
	return os.Remove(p)
}

// checkAssertions makes each change that a row must find.
func checkAssertions(t *testing.T) {
	w := newWorld(t, variant{})
	w.start()
	for name, change := range map[string]string{
		"chmod and back": "chmod 600 $HD/file; chmod 640 $HD/file",
		"chown and back": "chown 1 $HD/node; chown 0 $HD/node",
		"content":        "echo x >>$HD/dir/keep",
		"rename":         "mv $HD/dir $HD/d; mv $HD/d $HD/dir",
		"new name":       ": >$HD/RAN",
		"link":           "ln $HD/file $BUNDLE/../file",
	} {
		before := w.canary()
		w.hostSh(change)
		require.NotEmpty(t, diff(before, w.canary()), name)
	}
	for name, change := range map[string]func(){
		"host mount":      func() { w.hostSh("mount -t tmpfs x $SRC/d") },
		"container mount": func() { w.sh("mount -t tmpfs x $RF/tmp") },
		"node":            func() { w.sh("mknod $RF/dev/x c 1 5") },
		"mode":            func() { w.sh("chmod 600 $RF/etc/passwd") },
		"permission":      func() { w.put("devices.allow", "c 1:5 r") },
		"temporary file":  func() { w.write(w.bundle+"/.tmp", "") },
		"I/O limit":       func() { w.limit("read_bps", "1000") },
	} {
		before := w.clean()
		require.Empty(t, diff(before, w.clean()), "a snapshot is stable")
		change()
		require.NotEmpty(t, diff(before, w.clean()), name)
	}
	w.hostSh("umount $SRC/d")
}

// TestGoodRecord has a record that is restored in every kind of container, so that rows which expect a failure fail for
// their own reason.
func TestGoodRecord(t *testing.T) {
	good := row{
		id: "good",
		record: func(w *world) any {
			return object{
				"deviceToAdd": []object{zero("/dev/sub/zero")},
				"bindToAdd":   []string{w.src + "/d:/mnt/d:rw,rslave", w.src + "/f:/mnt/f:ro"},
			}
		},
		want: okIn,
		inside: func(w *world) {
			hasZero("/dev/sub/zero")(w)
			w.hasText("/mnt/d/marker", "marker of the source\n")
			w.hasText("/mnt/f", "content of the source\n")
			_, err := w.try("append", "/mnt/f")
			require.Error(w.t, err, "a read-only bind was written")
			require.Len(w.t, w.mountsAt("/mnt/d"), 1)
			require.Len(w.t, w.mountsAt("/.sharedpath"), 1)
		},
	}
	begin(t, true)
	for _, v := range append(append([]variant{}, rowVariants...), variant{name: "pivot", pivot: true},
		variant{name: "user+pivot", user: true, pivot: true}) {
		t.Run(v.name, func(t *testing.T) { good.play(t, v) })
	}
}

// execSh runs a script on the host that belongs to no container.
func execSh(script string) (string, error) {
	out, err := exec.Command("/bin/sh", "-ec", script).CombinedOutput()
	return string(out), err
}

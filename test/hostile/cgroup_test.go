//go:build linux

package hostile

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// otherCgroup makes a cgroup that is not the container's, and checks at the end that nothing was written to it.
func otherCgroup(t *testing.T) string {
	t.Helper()
	name := fmt.Sprintf("hostile-%d-other", os.Getpid())
	dir := filepath.Join(devicesRoot, name)
	require.NoError(t, os.Mkdir(dir, 0o755))
	require.NoError(t, os.WriteFile(dir+"/devices.deny", []byte("a"), 0))
	require.NoError(t, os.WriteFile(dir+"/devices.allow", []byte("c 1:3 rwm"), 0))
	d, io := hostDisk(t), filepath.Join(ioRoot, name)
	limit := fmt.Sprintf("%d:%d 4000\n", d.major, d.minor)
	require.NoError(t, os.Mkdir(io, 0o755))
	for _, file := range limitFiles[:4] {
		require.NoError(t, os.WriteFile(io+"/"+file, []byte(limit), 0))
	}
	t.Cleanup(func() {
		for _, file := range limitFiles[:4] {
			b, err := os.ReadFile(io + "/" + file)
			require.NoError(t, err)
			require.Equal(t, limit, string(b), "another container's I/O limits changed")
			b, err = os.ReadFile(ioRoot + "/" + file)
			require.NoError(t, err)
			require.Empty(t, string(b), "the host's I/O limits changed")
		}
		require.NoError(t, unix.Rmdir(io))
		list, err := os.ReadFile(dir + "/devices.list")
		require.NoError(t, err)
		require.Equal(t, "c 1:3 rwm\n", string(list), "another container's permissions changed")
		root, err := os.ReadFile(devicesRoot + "/devices.list")
		require.NoError(t, err)
		require.Equal(t, "a *:* rwm\n", string(root), "the host's permissions changed")
		require.NoError(t, unix.Rmdir(dir))
	})
	return name
}

func TestCgroupPaths(t *testing.T) {
	begin(t, true)
	other := otherCgroup(t)
	var rows []row
	for name, p := range map[string]string{
		"dots": "/../..", "dots-inside": "a/../../b", "root": "//", "slash": "/", "5000": "/" + strings.Repeat("a/", 2500),
		"systemd": "x.slice:../..:y", "systemd-root": "::", "newline": "/NAME\n", "up-and-down": "/NAME/../" + other,
		"own-dots": "/./NAME/.", "parent-link": "/NAME/..", "missing": "/NAME/none", "nul": "/NAME\x00",
	} {
		rows = append(rows, cgroupRows("CGR-01/"+name, p)...)
	}
	rows = append(append(rows, cgroupRows("CGR-01/other-container", "/"+other)...), cgroupRows("CGR-02/same", "/"+other)...)
	// A path that only looks odd may be cleaned; then it must be the container's own.
	for i := range rows {
		if strings.HasPrefix(rows[i].id, "CGR-01/own-dots") {
			rows[i].want = either
		}
	}
	for _, controller := range []string{"devices", "blkio"} {
		rows = append(rows, movedRow("CGR-02/moved-"+controller, controller, "/"+other))
	}
	for _, r := range rows {
		t.Run(r.id, func(t *testing.T) { r.play(t, variant{}) })
	}
}

// cgroupRows has the path for a device, for I/O limits, and for both.
func cgroupRows(id, path string) []row {
	host := func(w *world) {
		w.linux()["cgroupsPath"] = strings.ReplaceAll(path, "NAME", w.cgroup)
		w.writeConfig()
	}
	return []row{
		{id: id, record: one("/dev/sdx"), host: host, inside: hasZero("/dev/sdx")},
		{id: id + "-io", record: oneLimit("readBps", "1000"), host: host, inside: func(w *world) {
			w.hasLimits(hostDisk(w.t).line("read_bps", "1000"))
		}},
		{id: id + "-both", record: fourLimits, host: host, inside: fourInside},
	}
}

// movedRow has a container whose process is in another one's cgroup of one controller.
func movedRow(id, controller, other string) row {
	return row{
		id: id, record: fourLimits, name: other,
		mounts: func(w *world) {
			procs := filepath.Join("/sys/fs/cgroup", controller, other, "cgroup.procs")
			require.NoError(w.t, os.WriteFile(procs, []byte(pidText(w)), 0))
			w.t.Cleanup(func() { w.stop() }) // before the cgroup goes
		},
		after: func(w *world) { w.t.Helper(); w.hasLimits() },
	}
}

// TestCgroupFiles is CGR-07: something else is mounted where the container's cgroup should be.
func TestCgroupFiles(t *testing.T) {
	begin(t, true)
	otherCgroup(t)
	devices := "for f in list allow deny; do echo 'c 1:3 rwm' >devices.$f; done; : >cgroup.procs; : >tasks; "
	limits := "for f in read_iops write_iops read_bps write_bps; do : >blkio.throttle.${f}_device; done; : >cgroup.procs; : >tasks; "
	for name, script := range map[string]string{
		"empty": "", "plain": devices, "link": devices + "ln -sf $HD/file devices.allow",
		"fifo":      devices + "rm devices.allow; mkfifo devices.allow",
		"list-fifo": devices + "rm devices.list; mkfifo devices.list",
		"other":     "",
	} {
		t.Run("CGR-07/"+name, func(t *testing.T) { fakeCgroup(t, name, devicesRoot, script) })
	}
	for name, script := range map[string]string{
		"empty": "", "plain": limits, "link": limits + "ln -sf $HD/file blkio.throttle.read_bps_device",
		"fifo":  limits + "rm blkio.throttle.read_bps_device; mkfifo blkio.throttle.read_bps_device",
		"fifos": "for f in read_iops write_iops read_bps write_bps; do mkfifo blkio.throttle.${f}_device; done",
		"other": "",
	} {
		t.Run("CGR-07/io-"+name, func(t *testing.T) { fakeCgroup(t, name, ioRoot, script) })
	}
}

// fakeCgroup mounts a tmpfs with what the script makes, or another container's cgroup, over the container's.
func fakeCgroup(t *testing.T, name, root, script string) {
	w := newWorld(t, variant{})
	w.record(fourLimits(w))
	w.start()
	cg := filepath.Join(root, w.cgroup)
	list, err := os.Open(w.cgroupDir() + "/devices.list")
	require.NoError(t, err)
	defer list.Close()
	throttle, err := os.Open(w.ioDir() + "/blkio.throttle.read_bps_device")
	require.NoError(t, err)
	defer throttle.Close()
	t.Cleanup(func() { _ = unix.Unmount(cg, unix.MNT_DETACH) })
	var fake snapshot
	if name == "other" { // its files change by themselves
		w.hostSh("mount --bind " + root + "/hostile-" + fmt.Sprint(os.Getpid()) + "-other " + cg)
	} else {
		w.hostSh("mount -t tmpfs x " + cg + "; cd " + cg + "; " + script)
		fake = tree(t, "fake", cg, false)
	}
	canary, host := w.canary(), w.host(true)
	w.failed(w.prestart(), "", 2*time.Second)
	require.Zero(t, w.poststop().code)
	require.Empty(t, diff(canary, w.canary()), "CANARY")
	require.Empty(t, diff(host, w.host(true)), "HOST")
	if fake != nil {
		require.Empty(t, diff(fake, tree(t, "fake", cg, false)), "something was written in the wrong place")
	}
	b := make([]byte, 4096)
	n, err := list.Read(b)
	require.NoError(t, err)
	require.NotContains(t, string(b[:n]), "1:5")
	n, err = throttle.Read(b)
	require.Zero(t, n, "%v: %s", err, b[:n])
}

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
	t.Cleanup(func() {
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
		rows = append(rows, cgroupRow("CGR-01/"+name, p))
	}
	rows = append(rows, cgroupRow("CGR-01/other-container", "/"+other), cgroupRow("CGR-02", "/"+other))
	// A path that only looks odd may be cleaned; then it must be the container's own.
	for i := range rows {
		if rows[i].id == "CGR-01/own-dots" {
			rows[i].want, rows[i].inside = either, hasZero("/dev/sdx")
		}
	}
	for _, r := range rows {
		t.Run(r.id, func(t *testing.T) { r.play(t, variant{}) })
	}
}

func cgroupRow(id, path string) row {
	return row{
		id: id, record: one("/dev/sdx"),
		host: func(w *world) {
			w.linux()["cgroupsPath"] = strings.ReplaceAll(path, "NAME", w.cgroup)
			w.writeConfig()
		},
	}
}

// TestCgroupFiles is CGR-07: something else is mounted where the container's cgroup should be.
func TestCgroupFiles(t *testing.T) {
	begin(t, true)
	otherCgroup(t)
	files := "for f in list allow deny; do echo 'c 1:3 rwm' >devices.$f; done; : >cgroup.procs; : >tasks; "
	for name, script := range map[string]string{
		"empty": "", "plain": files, "link": files + "ln -sf $HD/file devices.allow",
		"fifo":      files + "rm devices.allow; mkfifo devices.allow",
		"list-fifo": files + "rm devices.list; mkfifo devices.list",
		"other":     "cd /; umount CG; mount --bind " + devicesRoot + "/hostile-" + fmt.Sprint(os.Getpid()) + "-other CG",
	} {
		t.Run("CGR-07/"+name, func(t *testing.T) {
			w := newWorld(t, variant{})
			w.record(devices(zero("/dev/sdx")))
			w.start()
			cg := w.cgroupDir()
			list, err := os.Open(cg + "/devices.list")
			require.NoError(t, err)
			defer list.Close()
			t.Cleanup(func() { _ = unix.Unmount(cg, unix.MNT_DETACH) })
			w.hostSh(strings.ReplaceAll("mount -t tmpfs x CG; cd CG; "+script, "CG", cg))
			fake := tree(t, "fake", cg, false)
			if name == "other" {
				fake = nil // its files change by themselves
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
		})
	}
}

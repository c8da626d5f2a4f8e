//go:build linux

package hostile

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// one is a record with /dev/zero at one path.
func one(container string) func(w *world) any {
	return func(*world) any { return devices(zero(container)) }
}

func sh(script string) func(w *world) {
	return func(w *world) { w.t.Helper(); w.sh(script) }
}

func shNode(script string) func(w *world) {
	return func(w *world) { w.t.Helper(); w.shNode(script) }
}

func hostSh(script string) func(w *world) {
	return func(w *world) { w.t.Helper(); w.hostSh(script) }
}

// stillFile asserts that the canary planted for the device is a regular file.
func stillFile(w *world) {
	w.t.Helper()
	st, err := os.Lstat(w.hd + "/sdx")
	require.NoError(w.t, err)
	require.True(w.t, st.Mode().IsRegular())
}

// nextStarts asserts that the hook of one container keeps nothing from another.
func nextStarts(w *world) {
	w.t.Helper()
	next := newWorld(w.t, variant{})
	next.record(devices(zero("/dev/zero")))
	next.start()
	res := next.prestart()
	require.Zero(w.t, res.code, "a second container: %s", res)
	require.Zero(w.t, next.poststop().code)
	next.remove()
}

func inHD(name string) func(w *world) []string {
	return func(w *world) []string { return []string{w.hd + name} }
}

func TestDevices(t *testing.T) {
	link41 := sh("for i in $(seq 0 40); do ln -s l$((i+1)) $RF/l$i; done; mkdir $RF/l41")
	rows := []row{
		{
			id: "DEV-01/dangling", want: either, not: noTmpfs, record: one("/dev/sdx"), name: "/dev/sdx", allowed: inHD(""),
			host: hostSh("echo x >$HD/sdx"), content: sh("rm -r $RF/dev; ln -s $HD $RF/dev"), after: stillFile,
		},
		{
			id: "DEV-01/inside", want: okIn, not: noTmpfs, record: one("/dev/sdx"), allowed: inHD("/sdx"),
			host:    hostSh("echo x >$HD/sdx"),
			content: sh("rm -r $RF/dev; mkdir -p $RF$HD; ln -s $HD $RF/dev"),
			inside:  func(w *world) { hasZero(w.hd + "/sdx")(w) }, after: stillFile,
		},
		{
			id: "DEV-02", want: either, not: noTmpfs, record: one("/dev/sdx"), name: "/dev/sdx", allowed: inHD(""),
			content: sh("rm -r $RF/dev; ln -s ../../../../../..$HD $RF/dev"),
		},
		{
			id: "DEV-03", want: okIn, content: sh("ln -s $HD/node $RF/dev/zero0"),
			record: func(*world) any { return devices(dev("c", 1, 3, "/dev/null", "/dev/zero0", "rw")) },
			inside: func(w *world) { w.hasNode("/dev/zero0", 1, 3, 0o666) },
		},
		{
			id: "DEV-04/self", want: okIn, within: 2 * time.Second, content: sh("ln -s sda $RF/dev/sda"),
			record: one("/dev/sda"), inside: hasZero("/dev/sda"), after: nextStarts,
		},
		{
			id: "DEV-04/pair", want: okIn, within: 2 * time.Second, content: sh("ln -s b $RF/dev/a; ln -s a $RF/dev/b"),
			record: one("/dev/a"), inside: hasZero("/dev/a"), after: nextStarts,
		},
		{
			id: "DEV-04/chain-at-the-end", want: okIn, within: 2 * time.Second, content: link41,
			record: one("/l0"), inside: hasZero("/l0"), after: nextStarts,
		},
		{
			id: "DEV-04/chain-of-parents", within: 2 * time.Second, content: link41,
			record: one("/l0/x"), name: "/l0/x", after: nextStarts,
		},
		{
			id: "DEV-05/directory", content: sh("mkdir -p $RF/dev/sdx/full"), record: one("/dev/sdx"), name: "/dev/sdx",
			after: func(w *world) {
				_, err := w.stat("/dev/sdx/full")
				require.NoError(w.t, err)
			},
		},
		{
			id: "DEV-05/mountpoint", content: sh(": >$RF/dev/sdx"), record: one("/dev/sdx"), name: "/dev/sdx",
			mounts: sh("mount --bind $RF/etc/passwd $RF/dev/sdx"),
			after:  func(w *world) { w.hasText("/dev/sdx", "secret\n") },
		},
		{
			id: "DEV-06", want: okIn, record: one("/dev/sdx"),
			content: sh("d=$RF/etc; ! mountpoint -q $RF/dev || d=$RF/dev\n" + // a link does not lead out of a mount
				"echo secret >$d/passwd; chmod 640 $d/passwd; ln $d/passwd $RF/dev/sdx"),
			allowed: func(*world) []string { return []string{"/etc/passwd", "/dev/passwd"} }, // the number of its links
			inside: func(w *world) {
				hasZero("/dev/sdx")(w)
				file := "/etc/passwd"
				if w.v.tmpfs {
					file = "/dev/passwd"
				}
				st, err := w.stat(file)
				require.NoError(w.t, err)
				require.EqualValues(w.t, unix.S_IFREG|0o640, st.Mode)
				require.Equal(w.t, w.rootUID(), st.Uid)
				w.hasText(file, "secret\n")
			},
		},
		{
			id: "DEV-07/fifo", want: okIn, within: 2 * time.Second, content: sh("mkfifo $RF/dev/sdx"),
			record: one("/dev/sdx"), inside: hasZero("/dev/sdx"),
		},
		{
			id: "DEV-07/socket", want: okIn, within: 2 * time.Second,
			content: func(w *world) { w.in("socket", "/dev/sdx") },
			record:  one("/dev/sdx"), inside: hasZero("/dev/sdx"),
		},
		{
			id: "DEV-07/char-5-1", want: okIn, within: 2 * time.Second, not: noUserTmpfs, content: shNode("mknod $RF/dev/sdx c 5 1"),
			record: one("/dev/sdx"), inside: hasZero("/dev/sdx"),
		},
		{
			id: "DEV-08", want: okIn, not: noUserTmpfs, content: shNode("mknod -m 666 $RF/dev/sdx b 8 0"),
			host:   hostSh("mknod -m 640 $NODES/zero c 1 5"),
			record: func(w *world) any { return devices(dev("c", 1, 5, w.nodes+"/zero", "/dev/sdx", "rwm")) },
			inside: func(w *world) { w.hasNode("/dev/sdx", 1, 5, 0o640) },
		},
		{
			id: "DEV-09", want: either, content: sh("ln -s $HD $RF/dev/a"), record: one("/dev/a/b/c/n"), name: "/dev/a/b/c/n",
			allowed: inHD(""),
		},
		{
			id: "DEV-12/proc", content: kernelDirs, mounts: kernelMounts, record: one("/proc/sys/kernel/x"),
			name: "/proc/sys/kernel/x",
		},
		{id: "DEV-12/sys", content: kernelDirs, mounts: kernelMounts, record: one("/sys/x"), name: "/sys/x"},
		{id: "DEV-12/cgroup2", content: kernelDirs, mounts: kernelMounts, record: one("/cg/x"), name: "/cg/x"},
		{
			id: "DEV-12/magic-link", content: kernelDirs, mounts: kernelMounts, record: one("/proc/1/root/x"),
			name: "/proc/1/root/x",
		},
		{
			id:   "DEV-12/through-a-link",
			want: fail, content: func(w *world) { kernelDirs(w); w.sh("ln -s ../sys $RF/dev/s") },
			mounts: kernelMounts, record: one("/dev/s/x"), name: "/dev/s/x",
		},
		{
			id: "DEV-16", not: noTmpfs, host: overlayRoot, name: "/nodes/none",
			record: func(w *world) any { return devices(dev("c", 0, 0, w.nodes+"/none", "/dev/w", "rwm")) },
			after:  func(w *world) { w.hasText("/dev/w", "of the lower layer\n") },
		},
		{
			id: "DEV-18", name: "/dev/missing",
			record: func(*world) any {
				return devices(zero("/dev/new/a"), dev("c", 1, 7, "/dev/full", "/dev/b", "rw"),
					dev("c", 1, 9, "/dev/missing", "/dev/c", "rw"))
			},
		},
		{
			id: "DEV-20/read-only", not: noTmpfs, record: one("/dev/sdx"), name: "/dev/sdx",
			mounts: sh("mount --bind $RF/dev $RF/dev; mount -o remount,bind,ro $RF/dev"),
		},
		{id: "DEV-20/full", not: noTmpfs, host: fullRoot, record: one("/dev/sdx"), name: "/dev/sdx"},
		{
			id: "DEV-20/immutable", not: noTmpfs, record: one("/dev/sdx"), name: "/dev/sdx",
			content: func(w *world) {
				w.hostSh("chmod 0 $RF/dev; chattr +i $RF/dev")
				w.t.Cleanup(func() { w.hostSh("chattr -i $RF/dev") })
			},
		},
		{
			id: "DEV-21/renumbered", want: okIn, host: hostSh("mknod -m 660 $NODES/disk c 1 7"),
			record: func(w *world) any { return devices(dev("c", 1, 5, w.nodes+"/disk", "/dev/disk", "rw")) },
			inside: func(w *world) {
				w.hasNode("/dev/disk", 1, 7, 0o660)
				w.numbersAre(1, 7)
				for _, p := range w.permissions() {
					require.NotContains(w.t, p, "1:5", "the old numbers were allowed")
				}
				log, err := os.ReadFile(w.logFile)
				require.NoError(w.t, err)
				require.Contains(w.t, string(log), "1:7", "the change is logged")
			},
		},
		{
			id: "DEV-21/other-kind", name: "/nodes/disk", host: hostSh("mknod $NODES/disk c 1 7"),
			record: func(w *world) any { return devices(dev("b", 8, 16, w.nodes+"/disk", "/dev/disk", "rw")) },
		},
		{
			id: "DEV-21/gone", name: "/nodes/disk",
			record: func(w *world) any { return devices(dev("b", 8, 16, w.nodes+"/disk", "/dev/disk", "rw")) },
		},
	}
	for _, umask := range []string{"0", "0777"} {
		rows = append(rows, row{
			id: "DEV-19/umask-" + umask, want: okIn, record: one("/dev/new/sub/zero"),
			run: func(*world) run {
				return run{wrap: []string{"/bin/sh", "-c", "umask " + umask + `; exec "$@"`, "sh"}}
			},
			inside: func(w *world) {
				hasZero("/dev/new/sub/zero")(w)
				for _, d := range []string{"/dev/new", "/dev/new/sub"} {
					st, err := w.stat(d)
					require.NoError(w.t, err)
					require.EqualValues(w.t, unix.S_IFDIR|0o755, st.Mode, d)
					require.Equal(w.t, w.rootUID(), st.Uid, d)
				}
			},
		})
	}
	runRows(t, rows)
}

func kernelDirs(w *world) { w.sh("mkdir $RF/proc $RF/sys $RF/cg") }

// kernelMounts has the kernel's file systems in the container. One with a user namespace can only bind the host's.
func kernelMounts(w *world) {
	if w.v.user {
		w.sh("mount --rbind /proc $RF/proc; mount --rbind /sys $RF/sys; mount --rbind /sys/fs/cgroup/unified $RF/cg")
		return
	}
	w.sh("mount -t proc proc $RF/proc; mount -t sysfs sys $RF/sys; mount -t cgroup2 cg $RF/cg")
}

// overlayRoot makes the root filesystem an overlay with a file in its lower layer. A node 0:0 there would be a whiteout.
func overlayRoot(w *world) {
	w.hostSh(`mknod $NODES/none c 0 0; mkdir upper work; echo of the lower layer >$RF/dev/w; mv $RF lower; mkdir $RF
		mount -t overlay overlay -o lowerdir=lower,upperdir=upper,workdir=work $RF`)
	if w.v.user {
		w.chownRF()
	}
}

// fullRoot makes the root filesystem a tmpfs without a free inode.
func fullRoot(w *world) {
	w.hostSh(`mount -t tmpfs -o nr_inodes=32,mode=0755 full $RF; mkdir -p $RF/dev $RF/etc $RF/tmp $RF/.sharedpath
		i=0; while touch $RF/tmp/$i; do i=$((i+1)); done 2>/dev/null`)
	if w.v.user {
		w.chownRF()
	}
}

// numbersAre asserts the numbers of the first device in the saved record.
func (w *world) numbersAre(major, minor int) {
	w.t.Helper()
	var rec struct{ DeviceToAdd []struct{ Major, Minor int } }
	require.NoError(w.t, json.Unmarshal([]byte(w.readRecord()), &rec))
	require.NotEmpty(w.t, rec.DeviceToAdd)
	require.Equal(w.t, fmt.Sprint(major, minor), fmt.Sprint(rec.DeviceToAdd[0].Major, rec.DeviceToAdd[0].Minor))
	st, err := os.Lstat(w.recordFile())
	require.NoError(w.t, err)
	require.Equal(w.t, os.FileMode(0o600), st.Mode())
}

// TestDeviceValidation has records that must be refused before anything else happens.
func TestDeviceValidation(t *testing.T) {
	rows := []row{
		{
			id: "DEV-13/twice", name: "/dev/x", light: true,
			record: func(*world) any {
				return devices(zero("/dev/x"), dev("c", 1, 7, "/dev/full", "/dev/x", "rw"))
			},
		},
		{
			id: "DEV-13/below", name: "/dev/a/b", light: true,
			record: func(*world) any {
				return devices(zero("/dev/a"), dev("c", 1, 7, "/dev/full", "/dev/a/b", "rw"))
			},
		},
		{
			id: "DEV-13/below-first", name: "/dev/a/b", light: true,
			record: func(*world) any {
				return devices(zero("/dev/a/b"), dev("c", 1, 7, "/dev/full", "/dev/a", "rw"))
			},
		},
		{
			id: "DEV-13/device-and-bind", name: "/mnt/x", light: true,
			record: func(w *world) any {
				return object{"deviceToAdd": []object{zero("/mnt/x")}, "bindToAdd": []string{w.src + "/f:/mnt/x:ro"}}
			},
		},
	}
	for i, p := range []string{
		"/dev/../../../../tmp/x", "dev/x", "/", "/dev", "/dev/x/", "/dev//x", "", "/dev/a\x00b", "/dev/a\nb", "/dev/a:b",
		"/" + strings.Repeat("a/", 4096) + "x", "/dev/./x", "/dev/..", "/.sharedpath/x", "/dev/" + strings.Repeat("n", 256),
	} {
		rows = append(rows, row{id: fmt.Sprintf("DEV-10/path-%d", i), record: one(p), light: true})
	}
	for name, change := range map[string]object{
		"major-negative": {"Major": -1}, "major-4096": {"Major": 4096}, "major-2^32+8": {"Major": 1<<32 + 8},
		"minor-negative": {"Minor": -1}, "minor-2^20": {"Minor": 1 << 20}, "minor-2^32+8": {"Minor": 1<<32 + 8},
		"minor-fraction": {"Minor": 5.5}, "major-1e400": {"Major": json.Number("1e400")},
		"type-x": {"Type": "x"}, "type-p": {"Type": "p"}, "type-u": {"Type": "u"}, "type-none": {"Type": ""},
		"perms-none": {"CgroupPermissions": ""}, "perms-rwmx": {"CgroupPermissions": "rwmx"},
		"perms-rr": {"CgroupPermissions": "rr"}, "perms-star": {"CgroupPermissions": "*"},
	} {
		rows = append(rows, row{id: "DEV-15/" + name, light: true, record: changed(change), name: "deviceToAdd"})
	}
	for name, change := range map[string]object{
		"type-a": {"Type": "a"}, "type-line": {"Type": "a *:* rwm"}, "type-two-lines": {"Type": "c 1:5 r\na"},
		"perms-line": {"CgroupPermissions": "rwm\na *:* rwm"}, "major-text": {"Major": "*"}, "minor-text": {"Minor": "* rwm\na"},
	} {
		rows = append(rows, row{id: "CGR-06/" + name, light: true, record: changed(change), after: noWildcard})
	}
	runRows(t, rows)
}

// changed is a record with one good device but for the given members.
func changed(members object) func(w *world) any {
	return func(*world) any {
		d := zero("/dev/sdx")
		maps.Copy(d, members)
		return devices(d)
	}
}

func noWildcard(w *world) {
	w.t.Helper()
	for _, p := range w.permissions() {
		require.NotEqual(w.t, "a *:* rwm", p)
	}
}

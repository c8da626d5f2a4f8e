//go:build linux

package hostile

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

const master = "/.sharedpath/master"

func TestTransfer(t *testing.T) {
	planted := func(w *world) {
		w.sh("mkdir -p $RF/.sharedpath/" + hexOf(w.src+"/d") + "; echo planted >$RF/.sharedpath/" + hexOf(w.src+"/d") + "/planted")
	}
	notPlanted := func(w *world) {
		w.t.Helper()
		_, err := w.try("read", "/guest/planted")
		require.Error(w.t, err, "the image chose the source of a bind")
	}
	runRows(t, []row{
		{id: "XFR-01/host-directory", content: sh("ln -s $HD $RF/.sharedpath"), name: ".sharedpath", after: seesNoCanary},
		{id: "XFR-01/root", content: sh("ln -s / $RF/.sharedpath"), name: ".sharedpath", after: seesNoCanary},
		{
			id: "XFR-01/with-a-bind", content: sh("ln -s $HD $RF/.sharedpath"), record: bindOf("SRC/d:/guest:rw"),
			name: ".sharedpath", after: seesNoCanary,
		},
		{id: "XFR-02/file", within: 2 * time.Second, content: sh(": >$RF/.sharedpath"), name: ".sharedpath"},
		{id: "XFR-02/fifo", within: 2 * time.Second, content: sh("mkfifo $RF/.sharedpath"), name: ".sharedpath"},
		{
			id: "XFR-02/closed-directory", want: okIn, within: 2 * time.Second, content: sh("mkdir -m 0 $RF/.sharedpath"),
			record: bindOf("SRC/d:/guest:rw"), inside: reads("/guest/marker", textOfD),
		},
		{
			id: "XFR-03/base-fails", content: planted, record: bindOf("SRC/d:/guest:rw"),
			mounts: func(w *world) { w.write(master+"/"+w.id, "in the way") },
			after:  notPlanted,
			undo:   func(w *world) { require.NoError(w.t, os.Remove(master+"/"+w.id)) },
		},
		{
			id: "XFR-03/base-works", want: okIn, content: planted, record: bindOf("SRC/d:/guest:rw"), after: notPlanted,
			inside: reads("/guest/marker", textOfD),
		},
	})
}

// TestIDs is XFR-05: the id becomes a part of paths on the host.
func TestIDs(t *testing.T) {
	begin(t, true)
	w := newWorld(t, variant{})
	w.record(binds(w.src + "/d:/guest:rw"))
	w.start()
	for _, d := range []string{"/.sharedpath/marker", "/.sharedpath/master/a/b", "/.sharedpath/midpath/a/b"} {
		require.NoError(t, os.MkdirAll(d, 0o755))
		w.write(d+"/keep", "keep")
	}
	t.Cleanup(func() {
		for _, d := range []string{"/.sharedpath/marker", "/.sharedpath/master/a", "/.sharedpath/midpath/a"} {
			require.NoError(t, os.RemoveAll(d))
		}
	})
	before, canary := w.clean(), w.canary()
	for i, id := range []string{
		"", ".", "..", "../..", "../midpath", "a/b", "a/../a", strings.Repeat("a", 300), "a\nb", "a\x00b", " ", "-x", ".hidden", "ä",
		"/", "%s",
	} {
		t.Run(fmt.Sprintf("XFR-05/id-%d", i), func(t *testing.T) {
			st := w.state()
			st["id"] = id
			w.failed(w.hook("prestart", run{stdin: asJSON(w, st)}), "", 0)
			require.Empty(t, diff(before, w.clean()), "CLEAN after prestart")
			res := w.hook("poststop", run{stdin: asJSON(w, st)})
			require.Zero(t, res.code, res)
			require.NotEmpty(t, res.stderr, "it says what is wrong")
			require.Empty(t, diff(before, w.clean()), "CLEAN after poststop")
			require.Empty(t, diff(canary, w.canary()), "CANARY")
		})
	}
	t.Run("XFR-05/prefix", func(t *testing.T) {
		short := newWorld(t, variant{})
		short.id = w.id[:12]
		short.record(binds(short.src + "/d:/guest:rw"))
		short.start()
		for _, c := range []*world{w, short} {
			res := c.prestart()
			require.Zero(t, res.code, res)
		}
		own := w.host(true)
		require.Zero(t, short.poststop().code)
		for k := range own {
			if strings.Contains(k, short.id) && !strings.Contains(k, w.id) {
				delete(own, k)
			}
		}
		require.Empty(t, diff(own, w.host(true)), "poststop of the id that is a prefix touched the other container")
		w.hasText("/guest/marker", textOfD)
		require.Zero(t, w.poststop().code)
		require.Empty(t, diff(w.host(false), w.host(true)), "something with the id is left")
	})
}

// dropMaster takes the transfer directories off the host, as after a boot.
func dropMaster(t testing.TB) {
	t.Helper()
	for _, m := range hostMounts(t) {
		if m.point == master || strings.HasPrefix(m.point, "/.sharedpath") {
			_ = unix.Unmount(m.point, unix.MNT_DETACH)
		}
	}
	require.NoError(t, os.RemoveAll("/.sharedpath"))
}

// masters are the host's mounts on the master directory.
func masters(t testing.TB) []mountLine {
	t.Helper()
	var at []mountLine
	for _, m := range hostMounts(t) {
		if m.point == master {
			at = append(at, m)
		}
	}
	return at
}

// TestMasterRace is XFR-06: the first containers after a boot start at once.
func TestMasterRace(t *testing.T) {
	begin(t, true)
	t.Run("XFR-06/2", func(t *testing.T) { raceForMaster(t, 2, scaled(20, 200)) })
	t.Run("XFR-06/50", func(t *testing.T) { raceForMaster(t, scaled(16, 50), scaled(1, 10)) })
}

func raceForMaster(t *testing.T, n, rounds int) {
	for range rounds {
		dropMaster(t)
		list := make([]*world, n)
		for i := range list {
			list[i] = newWorld(t, variant{})
			list[i].record(binds(list[i].src + "/d:/guest:rw"))
			list[i].start()
		}
		results := make([]result, n)
		var wg sync.WaitGroup
		for i, w := range list {
			p := w.spawn(run{args: []string{"-state", "prestart"}, limit: 30 * time.Second})
			wg.Go(func() { results[i] = p.wait() })
		}
		wg.Wait()
		for i, w := range list {
			require.Zero(t, results[i].code, results[i])
			w.hasText("/guest/marker", textOfD)
			w.hasText("/.sharedpath/"+hexOf(w.src+"/d")+"/marker", textOfD)
		}
		at := masters(t)
		require.Len(t, at, 1)
		require.Equal(t, "tmpfs", at[0].fstype)
		require.Contains(t, at[0].tags, "shared:")
		for _, w := range list {
			require.Zero(t, w.poststop().code)
			require.Empty(t, diff(w.host(false), w.host(true)), "something of the container is left")
			w.remove()
		}
	}
}

// TestMaster is XFR-07: something else is where the master should be.
func TestMaster(t *testing.T) {
	begin(t, true)
	t.Cleanup(func() { dropMaster(t); warmUp(t) })
	for name, script := range map[string]string{
		"plain-directory": "mkdir -p /.sharedpath/master; echo planted >/.sharedpath/master/planted",
		"other-fs":        "mkdir -p /.sharedpath/master; mount -t ramfs x /.sharedpath/master",
		"bind":            "mkdir -p /.sharedpath/master; mount --bind $SRC /.sharedpath/master",
		"private":         "mkdir -p /.sharedpath/master; mount -t tmpfs --make-private x /.sharedpath/master",
		"of-a-user":       "mkdir -p /.sharedpath/master; mount -t tmpfs -o uid=1000 x /.sharedpath/master",
		"public":          "mkdir -p /.sharedpath/master; mount -t tmpfs -o mode=777 x /.sharedpath/master",
		"base-of-a-user":  "mkdir -p /.sharedpath; chown 1000 /.sharedpath",
		"base-is-a-link":  "ln -s $HD /.sharedpath",
		"master-is-link":  "mkdir /.sharedpath; ln -s $HD /.sharedpath/master",
		"midpath-is-link": "mkdir /.sharedpath; ln -s $HD /.sharedpath/midpath",
		"master-is-fifo":  "mkdir /.sharedpath; mkfifo /.sharedpath/master",
	} {
		t.Run("XFR-07/"+name, func(t *testing.T) {
			dropMaster(t)
			t.Cleanup(func() { dropMaster(t) })
			w := newWorld(t, variant{})
			w.record(binds(w.src + "/d:/guest:rw"))
			w.hostSh(script)
			w.start()
			canary := w.canary()
			res := w.prestart()
			require.Empty(t, diff(canary, w.canary()), "CANARY")
			if res.code == 0 {
				repaired(t, w)
			} else {
				w.failed(res, ".sharedpath", 0)
			}
			require.Zero(t, w.poststop().code)
			require.Empty(t, diff(canary, w.canary()), "CANARY after poststop")
			// What could not be cleaned up there is, once it can be.
			dropMaster(t)
			require.Zero(t, w.poststop().code)
			require.Empty(t, diff(w.host(false), w.host(true)), "something of the container is left")
		})
	}
}

// repaired asserts that the master is as the first prestart makes it, and works.
func repaired(t *testing.T, w *world) {
	t.Helper()
	at := masters(t)
	require.NotEmpty(t, at)
	last := at[len(at)-1]
	require.Equal(t, "tmpfs", last.fstype)
	require.Contains(t, last.tags, "shared:")
	for _, d := range []string{"/.sharedpath", master} {
		var st unix.Stat_t
		require.NoError(t, unix.Lstat(d, &st))
		require.EqualValues(t, unix.S_IFDIR, st.Mode&unix.S_IFMT, d)
		require.Zero(t, st.Uid, d)
		require.Zero(t, st.Mode&0o022, d)
	}
	w.hasText("/guest/marker", textOfD)
	live(w)
}

// live asserts that what the host attaches in the transfer directory afterwards arrives in the container.
func live(w *world) {
	w.t.Helper()
	w.hostSh("mkdir -p /.sharedpath/master/" + w.id + "/live; mount --bind $SRC/d /.sharedpath/master/" + w.id + "/live")
	w.hasText("/.sharedpath/live/marker", textOfD)
	w.hostSh("umount /.sharedpath/master/" + w.id + "/live; rmdir /.sharedpath/master/" + w.id + "/live")
}

// TestTransferInContainer is XFR-08 and XFR-09: what a running container does to its transfer directory.
func TestTransferInContainer(t *testing.T) {
	for _, v := range []variant{{name: "pivot", pivot: true}, {name: "user+pivot", pivot: true, user: true}} {
		t.Run("XFR-08/"+v.name, func(t *testing.T) {
			begin(t, true)
			w := newWorld(t, v)
			w.record(binds(w.src + "/d:/guest:rw"))
			w.start()
			fresh := w.host(true)
			res := w.prestart()
			require.Zero(t, res.code, res)
			before, canary := w.host(true), w.canary()
			entry := "/.sharedpath/" + hexOf(w.src+"/d")
			w.in("mount", "x", entry, "tmpfs")
			require.Empty(t, diff(before, w.host(true)), "HOST")
			live(w)
			w.kill()
			require.Zero(t, w.poststop().code)
			require.Empty(t, diff(fresh, w.host(true)), "HOST after poststop")
			require.Empty(t, diff(canary, w.canary()), "CANARY")
		})
	}
	t.Run("XFR-09", func(t *testing.T) {
		begin(t, true)
		w := newWorld(t, variant{pivot: true})
		w.start()
		before := w.host(true)
		res := w.prestart()
		require.Zero(t, res.code, res)
		w.in("umount", "/.sharedpath")
		w.in("remove", "/.sharedpath")
		w.in("symlink", w.hd, "/.sharedpath")
		// What the companion tool does for add-path.
		name := hexOf(w.src + "/d")
		for _, dir := range []string{"/.sharedpath/midpath/", "/.sharedpath/master/"} {
			w.hostSh("mkdir -p " + dir + w.id + "/" + name + "; mount --bind $SRC/d " + dir + w.id + "/" + name)
		}
		w.record(binds(w.src + "/d:/guest:rw"))
		canary := w.canary()
		w.kill()
		require.Zero(t, w.poststop().code)
		require.Empty(t, diff(canary, w.canary()), "CANARY")
		require.Empty(t, diff(before, w.host(true)), "the transfer directories are gone")
	})
}

// TestMasterFull is XFR-10: no inode is left on the master's file system.
func TestMasterFull(t *testing.T) {
	begin(t, true)
	t.Cleanup(func() { dropMaster(t); warmUp(t) })
	first := newWorld(t, variant{})
	first.record(binds(first.src + "/d:/guest:rw"))
	first.start()
	res := first.prestart()
	require.Zero(t, res.code, res)
	first.hostSh(`mount -o remount,nr_inodes=$(($(stat -f -c '%c - %d' /.sharedpath/master)+3)) /.sharedpath/master
		mkdir /.sharedpath/master/fill; i=0; while mkdir /.sharedpath/master/fill/$i; do i=$((i+1)); done 2>/dev/null`)
	w := newWorld(t, variant{})
	w.record(binds(w.src + "/d:/guest:rw"))
	w.start()
	before := w.clean()
	res = w.prestart()
	w.failed(res, unix.ENOSPC.Error(), 0)
	require.Empty(t, diff(before, w.clean()), "CLEAN")
	first.hasText("/guest/marker", textOfD)
	first.hostSh("rm -r /.sharedpath/master/fill; mount -o remount,nr_inodes=0 /.sharedpath/master")
	res = w.prestart()
	require.Zero(t, res.code, res)
	w.hasText("/guest/marker", textOfD)
	require.Zero(t, w.poststop().code)
	require.Zero(t, first.poststop().code)
}

//go:build linux

package hostile

import (
	"fmt"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

const pinDir = "/run/syscontainer-tools/netns"

// pins are the host's mounts on the container's namespace handle.
func (w *world) pins() []mountLine {
	w.t.Helper()
	var at []mountLine
	for _, m := range hostMounts(w.t) {
		if m.point == pinDir+"/"+w.id {
			at = append(at, m)
		}
	}
	return at
}

// pinned asserts that there is one handle, and that it is the container's own namespace.
func (w *world) pinned() {
	w.t.Helper()
	require.Len(w.t, w.pins(), 1)
	require.Equal(w.t, "nsfs", w.pins()[0].fstype)
	var pin, own unix.Stat_t
	require.NoError(w.t, unix.Stat(pinDir+"/"+w.id, &pin))
	require.NoError(w.t, unix.Stat(fmt.Sprintf("/proc/%d/ns/net", w.pid), &own))
	require.Equal(w.t, own.Ino, pin.Ino, "the handle of another namespace")
}

// crashes leave something where the handle belongs; $P is its path.
var crashes = map[string]string{
	"plain":       ": >$P",
	"content":     "echo content >$P",
	"mounted":     ": >$P; " + otherNS + "mount --bind /proc/$p/ns/net $P; kill $p",
	"twice":       ": >$P; " + otherNS + "for i in 1 2; do mount --bind /proc/$p/ns/net $P; done; kill $p",
	"of-the-host": ": >$P; mount --bind /proc/self/ns/net $P",
	"uts":         ": >$P; mount --bind /proc/self/ns/uts $P",
	"canary":      ": >$P; mount --bind $HD/file $P",
	"canary-dir":  "mkdir $P; mount --bind $HD $P",
	"link":        "ln -s $HD/file $P",
	"link-to-dir": "ln -s $HD $P",
	"dangling":    "ln -s $HD/RAN $P",
	"directory":   "mkdir $P",
	"full":        "mkdir -p $P/x; echo x >$P/x/y",
	"fifo":        "mkfifo $P",
	"device":      "mknod $P c 1 5",
	"hard-link":   ": >$P.x; ln $P.x $P; rm $P.x",
	"immutable":   ": >$P; chmod 0 $P",
}

// TestNetworkPin is NET-09: what a crash left in the place of the handle is replaced, or prestart fails; it is not
// followed.
func TestNetworkPin(t *testing.T) {
	beginNet(t)
	for name, script := range crashes {
		script = "P=" + pinDir + "/%s\n" + script
		for how, record := range map[string]func(*world) any{"no-record": nil, "record": ownsNIC} {
			v := variant{net: true, user: record != nil}
			t.Run("NET-09/"+name+"-"+how, func(t *testing.T) { crashed(t, v, script, record) })
		}
		t.Run("NET-09/"+name+"-poststop", func(t *testing.T) {
			w := newWorld(t, variant{net: true})
			w.start()
			fresh := w.host(true)
			w.hostSh(fmt.Sprintf(script, w.id))
			left, canary := w.host(true), w.canary()
			stop := w.poststop()
			require.Zero(t, stop.code, stop)
			require.Empty(t, diff(canary, w.canary()), "CANARY")
			if d := w.settled(fresh, func() snapshot { return w.host(true) }); len(d) > 0 {
				require.Empty(t, diff(left, w.host(true)), "neither removed nor left alone")
				require.Contains(t, []string{"full"}, name, "left: %s", stop)
				w.hostSh(fmt.Sprintf("rm -r "+pinDir+"/%s", w.id))
			}
		})
	}
}

func crashed(t *testing.T, v variant, script string, record func(*world) any) {
	w := newWorld(t, v)
	w.hostSh(bridge + nicIFB)
	if record != nil {
		w.record(record(w))
	}
	fresh := w.host(true)
	w.hostSh(fmt.Sprintf(script, w.id))
	w.start()
	canary, left := w.canary(), w.clean()
	res := w.prestart()
	require.Empty(t, diff(canary, w.canary()), "CANARY: %s", res)
	if res.code == 0 {
		w.pinned()
		w.kill()
	} else {
		w.failed(res, w.id, 0)
		require.Empty(t, w.settled(left, w.clean), "CLEAN: %s", res)
		w.hostSh(fmt.Sprintf("P="+pinDir+"/%s; while umount $P 2>/dev/null; do :; done; rm -r $P", w.id))
	}
	stop := w.poststop()
	require.Zero(t, stop.code, stop)
	require.Empty(t, w.pins())
	require.Empty(t, diff(canary, w.canary()), "CANARY after poststop")
	w.sameHost(fresh, "HOST after poststop")
}

// TestNetworkPinDirectory has something wrong with the directory of the handles.
func TestNetworkPinDirectory(t *testing.T) {
	beginNet(t)
	for name, script := range map[string]string{
		"link":      "rmdir $D; ln -s $HD $D",
		"file":      "rmdir $D; : >$D",
		"fifo":      "rmdir $D; mkfifo $D",
		"of-a-user": "chown 1000 $D",
		"public":    "chmod 777 $D",
		"read-only": "mount --bind $D $D; mount -o remount,bind,ro $D",
	} {
		t.Run("NET-09/directory-"+name, func(t *testing.T) {
			w := newWorld(t, variant{net: true})
			w.hostSh(bridge + nicIFB)
			w.record(ownsNIC(w))
			var st unix.Stat_t
			require.NoError(t, unix.Lstat(pinDir, &st))
			w.hostSh("D=" + pinDir + "; " + script)
			t.Cleanup(func() { // also what another row would trip over
				_ = unix.Unmount(pinDir, unix.MNT_DETACH)
				if now, err := os.Lstat(pinDir); err != nil || !now.IsDir() {
					_ = os.Remove(pinDir)
					_ = os.Mkdir(pinDir, 0o700)
				}
				_ = os.Lchown(pinDir, 0, 0)
				_ = os.Chmod(pinDir, os.FileMode(st.Mode&0o7777))
			})
			w.start()
			canary, before := w.canary(), w.clean()
			res := w.prestart()
			require.Empty(t, diff(canary, w.canary()), "CANARY: %s", res)
			if res.code != 0 {
				w.failed(res, pinDir, 0)
				require.Empty(t, w.settled(before, w.clean), "CLEAN")
			}
			require.Zero(t, w.poststop().code)
			require.Empty(t, diff(canary, w.canary()), "CANARY after poststop")
			require.Empty(t, w.pins())
			require.Contains(t, hostLinks(t), "nic0")
		})
	}
}

// TestNetworkNamespace has network namespaces that are not the container's alone.
func TestNetworkNamespace(t *testing.T) {
	beginNet(t)
	t.Run("NET-09/host-namespace", func(t *testing.T) {
		w := newWorld(t, variant{})
		w.hostSh(bridge + nicIFB)
		t.Cleanup(func() { dropLinks(t) })
		w.record(nics(veth("c0", "c0h", "10.9.0.2/24"), eth("ceth0", "nic0", "10.10.0.2/24")))
		w.start()
		w.v.net = true // the host's network is of interest, and it is the container's
		before := w.clean()
		w.failed(w.prestart(), "network", 0)
		require.Empty(t, w.settled(before, w.clean), "CLEAN")
		require.Zero(t, w.poststop().code)
		require.Empty(t, w.settled(before, w.clean), "CLEAN")
	})
	t.Run("NET-09/host-namespace-no-record", func(t *testing.T) {
		w := newWorld(t, variant{})
		w.start()
		res := w.prestart()
		require.Zero(t, res.code, res)
		require.Empty(t, w.pins())
		require.Zero(t, w.poststop().code)
	})
	t.Run("NET-09/shared-by-two", func(t *testing.T) {
		w := newWorld(t, variant{net: true})
		w.hostSh(bridge + nicIFB)
		w.record(ownsNIC(w))
		w.start()
		host := w.host(true)
		res := w.prestart()
		require.Zero(t, res.code, res)
		inside := w.inNet()
		// Another container with the same process, and with the same names in its record.
		for _, record := range []any{
			nics(veth("c0", "other", "10.9.0.3/24")), nics(eth("ceth0", "nic0", "10.10.0.3/24")),
			nics(eth("ceth0", "ceth0h", "10.10.0.3/24")),
		} {
			other := newWorld(t, variant{net: true})
			other.record(record)
			other.pid, other.rf = w.pid, w.rf
			other.config = w.config
			other.writeConfig()
			res := other.hook("prestart", run{})
			require.NotZero(t, res.code, res)
			require.Empty(t, diff(inside, w.inNet()), "the first container's interfaces: %s", res)
			require.Zero(t, other.poststop().code)
			require.Empty(t, diff(inside, w.inNet()), "the first container's interfaces, after poststop of the other")
		}
		w.kill()
		require.Zero(t, w.poststop().code)
		w.sameHost(host, "HOST")
	})
	t.Run("NET-09/prefix", func(t *testing.T) {
		w := newWorld(t, variant{net: true})
		short := newWorld(t, variant{net: true})
		short.id = w.id[:12]
		for _, c := range []*world{w, short} {
			c.start()
			res := c.prestart()
			require.Zero(t, res.code, res)
			c.pinned()
		}
		require.Zero(t, short.poststop().code)
		require.Empty(t, short.pins())
		w.pinned()
		require.Zero(t, w.poststop().code)
	})
	t.Run("NET-09/handle-lost", func(t *testing.T) { // somebody unmounts it, and the namespace dies with the container
		w := newWorld(t, variant{net: true})
		w.hostSh(bridge + nicVeth)
		w.links = []string{"c0h"}
		w.record(nics(veth("c0", "c0h", "10.9.0.2/24")))
		w.start()
		host := w.host(true)
		require.Zero(t, w.prestart().code)
		w.hostSh("umount " + pinDir + "/" + w.id)
		w.kill()
		stop := w.poststop()
		require.Zero(t, stop.code, stop)
		w.sameHost(host, "HOST")
	})
}

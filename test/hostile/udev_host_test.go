//go:build linux

package hostile

import (
	"bytes"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// TestRulesLock is UDV-10: another program has the lock and keeps it. All else is taken back and removed all the same.
func TestRulesLock(t *testing.T) {
	beginFull(t)
	locks := map[string]func() *os.File{
		"exclusive": func() *os.File { return hold(t, rulesLock) },
		"read-only": func() *os.File {
			f, err := os.Open(rulesLock)
			require.NoError(t, err)
			require.NoError(t, unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB))
			return f
		},
		"shared": func() *os.File {
			f, err := os.Open(rulesLock)
			require.NoError(t, err)
			require.NoError(t, unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB))
			return f
		},
	}
	for name, take := range locks {
		t.Run("UDV-10/prestart-"+name, func(t *testing.T) {
			w := fullWorld(t, variant{net: true})
			w.start()
			lock := take()
			defer lock.Close()
			before, canary := w.clean(), w.canary()
			how := run{args: []string{"-timeout", "3s"}, limit: 40 * time.Second}
			if name == "exclusive" {
				how.args = nil // the deadline that users get
			}
			res := w.hook("prestart", how)
			w.failed(res, "lock", 30*time.Second)
			require.Greater(t, res.took, time.Second, "it does not wait at all")
			require.Empty(t, w.settled(before, w.clean), "CLEAN: %s", res)
			require.Empty(t, diff(canary, w.canary()), "CANARY")
			require.NoError(t, lock.Close())
			res = w.prestart()
			require.Zero(t, res.code, res)
			fullInside(w)
			require.Zero(t, w.poststop().code)
		})
	}
	t.Run("UDV-10/poststop", func(t *testing.T) {
		w := fullWorld(t, variant{net: true})
		w.start()
		host := w.host(true)
		require.Zero(t, w.prestart().code)
		lock := locks["exclusive"]()
		defer lock.Close()
		w.kill()
		st := w.state()
		st["pid"] = 0
		res := w.hook("poststop", run{args: []string{"-timeout", "3s"}, stdin: asJSON(w, st), limit: 40 * time.Second})
		require.Zero(t, res.code, res)
		require.Less(t, res.took, 30*time.Second)
		require.Contains(t, res.stderr, "remove udev rules")
		// What is left is the rule, and the journal that knows of it.
		left := w.host(true)
		for key := range left {
			if w.ownRule(key) || strings.HasPrefix(key, "/run/syscontainer-tools/hooks") {
				delete(left, key)
			}
		}
		for key := range host {
			if strings.HasPrefix(key, "/run/syscontainer-tools/hooks") {
				delete(host, key)
			}
		}
		require.Empty(t, diff(host, left), "all but the rule is removed: %s", res)
		require.NoError(t, lock.Close())
		require.Zero(t, w.poststop().code)
		sameRules(w)
	})
}

// TestRuleOfGoneDisk is UDV-11: the disk and lsblk(8) are not there any more when the container stops.
func TestRuleOfGoneDisk(t *testing.T) {
	beginRules(t)
	t.Run("UDV-11", func(t *testing.T) {
		number, err := os.ReadFile("/sys/class/zram-control/hot_add")
		require.NoError(t, err)
		name := "zram" + strings.TrimSpace(string(number))
		unplug := func() error { return os.WriteFile("/sys/class/zram-control/hot_remove", bytes.TrimSpace(number), 0) }
		plugged := true
		t.Cleanup(func() {
			if plugged {
				require.NoError(t, unplug())
			}
		})
		d, err := statDisk(name)
		require.NoError(t, err)
		w := newWorld(t, variant{})
		w.record(object{
			"deviceToAdd": []object{d.entry("/dev/sdx"), hostDisk(t).entry("/dev/sdy")},
			"readBps":     []object{d.limit("1000"), hostDisk(t).limit("2000")},
		})
		takeAway(t, "/usr/bin/lsblk")
		w.start()
		host, base := w.host(true), foreignRules(t)
		res := w.prestart()
		require.Zero(t, res.code, res)
		hasRules(w, base, d.rule(w, "/dev/sdx"), hostDisk(t).rule(w, "/dev/sdy"))
		w.hasLimits(d.line("read_bps", "1000"), hostDisk(t).line("read_bps", "2000"))
		w.kill()
		require.NoError(t, unplug())
		plugged = false
		require.NoFileExists(t, "/dev/"+name)
		res = w.poststop()
		require.Zero(t, res.code, res)
		sameRules(w)
		w.sameHost(host, "HOST")
	})
}

// takeAway takes a program of the host away until the end of the test.
func takeAway(t *testing.T, path string) {
	t.Helper()
	require.FileExists(t, path)
	require.NoError(t, os.Rename(path, path+".away"))
	t.Cleanup(func() { require.NoError(t, os.Rename(path+".away", path)) })
}

// udevd makes a socket where udevd has it, so that the hook finds it running.
func udevd(t *testing.T) {
	t.Helper()
	const socket = "/run/udev/control"
	require.NoError(t, os.MkdirAll(filepath.Dir(socket), 0o755))
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: socket, Net: "unixpacket"})
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, l.Close())
		require.NoError(t, os.RemoveAll(filepath.Dir(socket)))
	})
}

// stubUdevadm puts a script in the place of udevadm(8). It notes what it gets in the file that is returned.
func stubUdevadm(t *testing.T, script string) (log string) {
	t.Helper()
	require.FileExists(t, udevTool)
	dir := filepath.Join(base, "stub-udev")
	require.NoError(t, os.Mkdir(dir, 0o755))
	log = dir + "/log"
	text := "#!/bin/sh\n{ echo \"$PWD $*\"; tr '\\0' ' ' </proc/$$/environ; echo; } >>" + log + "\n" + script + "\n"
	require.NoError(t, os.WriteFile(dir+"/udevadm", []byte(text), 0o755))
	require.NoError(t, unix.Mount(dir+"/udevadm", udevTool, "", unix.MS_BIND, ""))
	t.Cleanup(func() {
		require.NoError(t, unix.Unmount(udevTool, unix.MNT_DETACH))
		require.NoError(t, os.RemoveAll(dir))
	})
	return log
}

// ofStub lists the processes that a script in the place of udevadm(8) has started.
func ofStub(t *testing.T) []string {
	t.Helper()
	var found []string
	own, err := os.Readlink("/proc/self/ns/mnt")
	require.NoError(t, err)
	dirs, err := filepath.Glob("/proc/[0-9]*")
	require.NoError(t, err)
	for _, dir := range dirs {
		comm, _ := os.ReadFile(dir + "/comm")
		ns, _ := os.Readlink(dir + "/ns/mnt") // of none that has ended
		if ns == own && slices.Contains([]string{"sleep", "yes", "udevadm"}, strings.TrimSpace(string(comm))) {
			found = append(found, filepath.Base(dir)+" "+string(comm))
		}
	}
	return found
}

// saidUdevadm asserts that the log has the reason.
func saidUdevadm(w *world) {
	w.t.Helper()
	log, err := os.ReadFile(w.logFile)
	require.NoError(w.t, err)
	require.Regexp(w.t, `level=warning msg="udevd could not be told .*udevadm`, string(log))
}

// TestUdevadm is UDV-12: only the host's own udevadm is run, it gets a limited time, and the log tells when it fails: udevd notices
// changed rules by itself, if later.
func TestUdevadm(t *testing.T) {
	beginRules(t)
	udevd(t)
	path := func(w *world) run {
		return run{env: []string{"PATH=" + w.hd + ":/usr/sbin:/usr/bin:/sbin:/bin"}, dir: w.hd, limit: 40 * time.Second}
	}
	fake := hostSh("cp -p $HD/exec $HD/udevadm")
	play := func(id string) {
		runPlainCase(t, "UDV-12/"+id, row{
			want: okIn, record: oneDisk("/dev/sdx"), host: fake, run: path, after: notRun, inside: func(w *world) {
				hasRule("/dev/sdx")(w)
				saidUdevadm(w)
			},
		})
	}
	const call = "/ control --reload --timeout=4\n"
	t.Run("works", func(t *testing.T) {
		log, prestart := stubUdevadm(t, ""), 0
		calls := func() []string {
			b, err := os.ReadFile(log)
			require.NoError(t, err)
			return slices.Collect(strings.Lines(string(b)))
		}
		runPlainCase(t, "UDV-12/first-in-path", row{
			want: okIn, record: oneDisk("/dev/sdx"), host: fake, run: path, inside: func(w *world) {
				hasRule("/dev/sdx")(w)
				prestart = len(calls())
			}, after: notRun,
		})
		lines := calls()
		require.Positive(t, prestart)
		require.Greater(t, len(lines), prestart, "poststop tells it too")
		for i := 0; i < len(lines); i += 2 {
			require.Equal(t, call, lines[i])
			env := strings.Fields(lines[i+1])
			slices.Sort(env)
			require.Equal(t, []string{"LC_ALL=C", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"}, env)
		}
	})
	for name, script := range map[string]string{
		"hangs": "exec sleep 100", "hangs-in-a-child": "sleep 100",
		"ignores-signals": "trap '' TERM INT HUP; sleep 100 & wait; sleep 100",
		"fails":           "echo 'not\nnow' >&2; exit 1", "crashes": "kill -SEGV $$", "talks": "exec yes", "talks-to-stderr": "exec yes >&2",
	} {
		if !full() && (name == "hangs" || name == "hangs-in-a-child" || name == "crashes" || name == "talks") {
			continue // each takes the whole time limit
		}
		t.Run(name, func(t *testing.T) {
			stubUdevadm(t, script)
			play(name)
			require.Empty(t, ofStub(t), "processes are left")
		})
	}
	t.Run("missing", func(t *testing.T) {
		takeAway(t, udevTool)
		play("missing")
	})
	t.Run("untrusted", func(t *testing.T) {
		log := stubUdevadm(t, "")
		require.NoError(t, os.Chmod(filepath.Join(filepath.Dir(log), "udevadm"), 0o777))
		play("untrusted")
	})
	t.Run("poststop-hangs", func(t *testing.T) {
		w := newWorld(t, variant{})
		w.record(oneDisk("/dev/sdx")(w))
		w.start()
		log := stubUdevadm(t, "[ ! -e "+base+"/stub-udev/hang ] || exec sleep 100")
		host := w.host(true)
		res := w.prestart()
		require.Zero(t, res.code, res)
		require.FileExists(t, log)
		require.NoError(t, os.WriteFile(base+"/stub-udev/hang", nil, 0o600))
		w.kill()
		res = w.poststop()
		require.Zero(t, res.code, res)
		saidUdevadm(w)
		require.Less(t, res.took, 10*time.Second)
		sameRules(w)
		require.NoError(t, os.Remove(base+"/stub-udev/hang"))
		require.Zero(t, w.poststop().code)
		w.sameHost(host, "HOST")
	})
}

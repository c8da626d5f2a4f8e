//go:build linux

package hostile

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// watch lists the names that are made, moved and removed in the directory of the rules. The function that it gives ends it.
func watch(t *testing.T) (seen func() []string) {
	t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	require.NoError(t, err)
	kinds := map[uint32]string{
		unix.IN_CREATE: "create", unix.IN_MOVED_FROM: "from", unix.IN_MOVED_TO: "to", unix.IN_DELETE: "delete",
		unix.IN_Q_OVERFLOW: "overflow",
	}
	var mask uint32
	for kind := range kinds {
		mask |= kind
	}
	_, err = unix.InotifyAddWatch(fd, filepath.Dir(rulesFile), mask&^unix.IN_Q_OVERFLOW)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, unix.Close(fd)) })
	return func() []string {
		var events []string
		b := make([]byte, 64<<10)
		for {
			n, err := unix.Read(fd, b)
			if err != nil {
				require.ErrorIs(t, err, unix.EAGAIN)
				return events
			}
			for rest := b[:n]; len(rest) > 0; {
				kind, size := binary.NativeEndian.Uint32(rest[4:]), binary.NativeEndian.Uint32(rest[12:])
				name := string(bytes.TrimRight(rest[unix.SizeofInotifyEvent:unix.SizeofInotifyEvent+size], "\x00"))
				events = append(events, kinds[kind&^unix.IN_ISDIR]+" "+name)
				rest = rest[unix.SizeofInotifyEvent+size:]
			}
		}
	}
}

// noRulesMade asserts that nothing under a name that udev reads was ever unfinished, and gives the number of other names made.
func noRulesMade(t *testing.T, events []string) int {
	t.Helper()
	made := 0
	for _, event := range events {
		kind, name, _ := strings.Cut(event, " ")
		require.NotEqual(t, "overflow", kind)
		if strings.HasSuffix(name, ".rules") {
			require.Equal(t, "to "+filepath.Base(rulesFile), event)
		} else if kind == "create" {
			made++
		}
	}
	return made
}

// TestRulesFull is UDV-07, and CON-09 for /etc: the file cannot be replaced.
func TestRulesFull(t *testing.T) {
	beginRules(t)
	for _, c := range []struct{ id, script, name string }{
		{"UDV-07/full", "! cat /dev/zero >fill 2>/dev/null", unix.ENOSPC.Error()},
		{"UDV-07/one-page", "! cat /dev/zero >fill 2>/dev/null; truncate -s -4096 fill", ""},
		{
			"UDV-07/no-inode", "mount -o remount,nr_inodes=8 .; i=0; while touch $i; do i=$((i+1)); done 2>/dev/null; [ -e 0 ]",
			unix.ENOSPC.Error(),
		},
		{"CON-09/rules-read-only", "mount -o remount,ro .", unix.EROFS.Error()},
	} {
		t.Run(c.id, func(t *testing.T) {
			dir, base := filepath.Dir(rulesFile), foreignRules(t)
			// One page more is what the new file needs, and it does not get it.
			if strings.HasSuffix(c.id, "one-page") {
				base += strings.Repeat("# "+strings.Repeat("x", 253)+"\n", 16)
			}
			w := newWorld(t, variant{})
			w.hostSh("mount -t tmpfs -o size=64k,mode=0755 rules " + dir)
			t.Cleanup(func() { require.NoError(t, unix.Unmount(dir, unix.MNT_DETACH)) })
			writeRules(t, base)
			w.record(devices(zero("/dev/zero"), hostDisk(t).entry("/dev/sdx")))
			w.start()
			w.hostSh("cd " + dir + "; " + c.script)
			canary, before, seen := w.canary(), w.clean(), watch(t)
			w.failed(w.prestart(), c.name, 0)
			require.Equal(t, base, readRules(t))
			noRulesMade(t, seen())
			require.Empty(t, diff(before, w.clean()), "CLEAN")
			require.Empty(t, diff(canary, w.canary()), "CANARY")
			require.Zero(t, w.poststop().code)
			require.Empty(t, diff(before, w.clean()), "CLEAN after poststop")

			// The same with room, which shows that the watch sees a file of another name become the file of rules.
			w.hostSh("cd " + dir + "; mount -o remount,rw,nr_inodes=1k .; find . -type f ! -name '*.rules' -delete")
			seen()
			res := w.prestart()
			require.Zero(t, res.code, res)
			hasRules(w, base, hostDisk(t).rule(w, "/dev/sdx"))
			events := seen()
			require.Positive(t, noRulesMade(t, events))
			require.Contains(t, events, "to "+filepath.Base(rulesFile))

			// A rule that cannot be removed is said, and removed the next time; all else is gone.
			w.hostSh("cd " + dir + "; " + c.script)
			with := readRules(t)
			w.kill()
			res = w.poststop()
			require.Zero(t, res.code, res)
			require.Contains(t, res.stderr, c.name)
			if now := readRules(t); now != base {
				require.NotEmpty(t, res.stderr, "it says nothing of what it leaves")
				require.Equal(t, with, now)
			}
			noRulesMade(t, seen())
			w.hostSh("cd " + dir + "; mount -o remount,rw,nr_inodes=1k .; find . -type f ! -name '*.rules' -delete")
			require.Zero(t, w.poststop().code)
			require.Equal(t, base, readRules(t))
		})
	}
}

// rulesCalls are the system calls of which the replacement is made.
var rulesCalls = []string{
	"openat", "openat2", "write", "pwrite64", "fsync", "fdatasync", "fchmod", "fchmodat", "fchown", "ftruncate", "renameat",
	"renameat2", "unlinkat", "linkat", "flock", "close", "newfstatat", "fstat", "mkdirat",
}

// TestRulesKilled is UDV-08: a prestart and a poststop are killed at each system call around the replacement.
func TestRulesKilled(t *testing.T) {
	beginRules(t)
	for _, stage := range []string{"prestart", "poststop"} {
		points := rulesPoints(t, stage)
		calls := map[string]bool{}
		for _, p := range points {
			calls[p.call] = true
		}
		require.True(t, calls["fsync"] && calls["renameat"] && calls["write"] && calls["flock"], "%v", points)
		step := 1
		if limit := 40; !full() && len(points) > limit {
			step = (len(points) + limit - 1) / limit
		}
		killed := map[string]int{}
		for i, p := range points {
			rare := slices.Contains([]string{"fsync", "renameat", "write", "flock", "unlinkat"}, p.call)
			if !rare && i%step != 0 {
				continue
			}
			t.Run("UDV-08/"+stage+"-"+p.call+"-"+strconv.Itoa(p.n), func(t *testing.T) {
				for range 8 { // another thread may have made the call this time
					if rulesKilledAt(t, stage, p, i%2 == 0) {
						killed[p.call]++
						break
					}
				}
			})
		}
		t.Logf("%d points in %s, runs killed: %v", len(points), stage, killed)
		for _, call := range []string{"fsync", "renameat", "write", "flock"} {
			require.Positive(t, killed[call], "no run was killed at %s: %v", call, killed)
		}
	}
}

// startWithDisk starts a container with a disk, and restores it when a poststop comes next.
func startWithDisk(t *testing.T, stage string) (*world, run) {
	w := newWorld(t, variant{oneCPU: true})
	w.record(oneDisk("/dev/sdx")(w))
	w.start()
	if stage == "prestart" {
		return w, run{limit: 30 * time.Second}
	}
	require.Zero(t, w.prestart().code)
	st := w.state()
	st["pid"] = 0
	return w, run{limit: 30 * time.Second, stdin: asJSON(w, st)}
}

func rulesPoints(t *testing.T, stage string) []point {
	w, how := startWithDisk(t, stage)
	file := w.dir + "/trace"
	how.wrap = []string{"/usr/bin/strace", "-f", "-y", "-o", file, "-e", "trace=" + strings.Join(rulesCalls, ",")}
	res := w.hook(stage, how)
	require.Zero(t, res.code, res)
	require.Zero(t, w.poststop().code)
	b, err := os.ReadFile(file)
	require.NoError(t, err)
	w.remove()
	return tracePoints(t, b, rulesLock, filepath.Base(rulesFile))
}

func rulesKilledAt(t *testing.T, stage string, p point, next bool) bool {
	w, how := startWithDisk(t, stage)
	d, base := hostDisk(t), foreignRules(t)
	how.wrap = p.kill()
	res := w.hook(stage, how)
	now := readRules(t)
	if now != base {
		hasRules(w, base, d.rule(w, "/dev/sdx"))
	}
	entries, err := os.ReadDir(filepath.Dir(rulesFile))
	require.NoError(t, err)
	for _, e := range entries {
		require.True(t, e.Name() == filepath.Base(rulesFile) || !strings.HasSuffix(e.Name(), ".rules"), e.Name())
	}
	if next {
		if stage == "poststop" {
			w.kill()
			w.start()
		}
		again := w.prestart()
		require.Zero(t, again.code, "the next prestart: %s", again)
		hasRule("/dev/sdx")(w)
		entries, err := os.ReadDir(filepath.Dir(rulesFile))
		require.NoError(t, err)
		require.Len(t, entries, 1, "%v", entries)
	}
	w.kill()
	require.Zero(t, w.poststop().code)
	sameRules(w)
	return res.signal == unix.SIGKILL
}

// TestRulesFile is UDV-09: the file, its directory or its lock is nothing that root alone could have put there.
func TestRulesFile(t *testing.T) {
	beginRules(t)
	dir := filepath.Dir(rulesFile)
	saved := "mkdir -p saved; cp -a " + dir + " saved; "
	back := "rm -rf " + dir + "; cp -a saved/rules.d " + filepath.Dir(dir) + "; " + // and the lock itself, not a copy
		"[ ! -e /run/saved ] || { rm -rf " + rulesLock + "; mv /run/saved " + rulesLock + "; }"
	var rows []row
	for name, script := range map[string]string{
		"link":             "rm RULES; ln -s $HD/file RULES",
		"link-to-rules":    "mv RULES $NODES/rules; ln -s $NODES/rules RULES",
		"dangling":         "rm RULES; ln -s $HD/new RULES",
		"fifo":             "rm RULES; mkfifo -m 600 RULES",
		"directory":        "rm RULES; mkdir RULES",
		"char-device":      "rm RULES; mknod -m 600 RULES c 1 5",
		"public":           "chmod 666 RULES",
		"of-a-group":       "chmod 660 RULES",
		"of-a-user":        "chown 1000 RULES",
		"public-of-a-user": "chown 1000 RULES; chmod 666 RULES",
		"parent-public":    "chmod 777 DIR",
		"parent-user":      "chown 1000 DIR",
		"parent-link":      "rm -r DIR; ln -s $HD DIR",
		"parent-file":      "rm -r DIR; : >DIR",
		"lock-link":        "mv LOCK /run/saved; ln -s $HD/file LOCK",
		"lock-dangling":    "mv LOCK /run/saved; ln -s $HD/new LOCK",
		"lock-fifo":        "mv LOCK /run/saved; mkfifo -m 600 LOCK",
		"lock-directory":   "mv LOCK /run/saved; mkdir LOCK",
	} {
		script = strings.NewReplacer("RULES", rulesFile, "DIR", dir, "LOCK", rulesLock).Replace(script)
		rows = append(rows, row{
			id: "UDV-09/" + name, within: 2 * time.Second, name: "udev rules",
			record: func(w *world) any { return devices(zero("/dev/zero"), hostDisk(w.t).entry("/dev/sdx")) },
			host: func(w *world) {
				w.hostSh(saved + script)
				w.t.Cleanup(func() { w.hostSh(back) })
			},
			after: func(w *world) { // a container without a disk does not need the file
				next := newWorld(w.t, variant{})
				next.record(goodRecord(next))
				next.start()
				res := next.prestart()
				require.Zero(w.t, res.code, "a container without a disk: %s", res)
				goodInside(next)
				stop := next.poststop()
				require.Zero(w.t, stop.signal)
				require.Less(w.t, stop.took, 2*time.Second)
				w.hostSh(back)
				require.Zero(w.t, next.poststop().code, stop)
				next.remove()
				w.hostSh(script)
			},
			undo: hostSh(back),
		})
	}
	runPlain(t, rows)
}

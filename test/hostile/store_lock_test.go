//go:build linux

package hostile

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func (w *world) lockFile() string { return w.bundle + "/.device_hook.lock" }

// hold takes the record's lock as the companion tool does.
func hold(t testing.TB, path string) *os.File {
	t.Helper()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	require.NoError(t, err)
	t.Cleanup(func() { f.Close() })
	require.NoError(t, unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB))
	return f
}

// waitsFor waits until the hook has the file open, which is not its own lock yet: it can only wait for it.
func waitsFor(p *process, lock *os.File) {
	p.w.t.Helper()
	want, err := lock.Stat()
	require.NoError(p.w.t, err)
	require.Eventually(p.w.t, func() bool {
		dir := fmt.Sprintf("/proc/%d/fd/", p.cmd.Process.Pid)
		fds, _ := os.ReadDir(dir)
		return slices.ContainsFunc(fds, func(e os.DirEntry) bool {
			st, err := os.Stat(dir + e.Name())
			return err == nil && os.SameFile(st, want)
		})
	}, 5*time.Second, time.Millisecond, "the hook does not come to the lock")
	// Between open and flock is no call that could be seen from here.
	time.Sleep(20 * time.Millisecond)
}

func (p *process) runs() bool {
	select {
	case <-p.ended:
		return false
	default:
		return true
	}
}

// TestRecordChangedMeanwhile is STO-07: another program adds a device while prestart is about to correct one. Both changes
// must be in the record, and the new device is either restored or left to the program that added it.
func TestRecordChangedMeanwhile(t *testing.T) {
	begin(t, true)
	w := newWorld(t, variant{})
	renumbered(w)
	w.start()
	lock := hold(t, w.lockFile())
	p := w.spawn(run{args: []string{"-state", "prestart"}, limit: 30 * time.Second})
	waitsFor(p, lock)
	require.True(t, p.runs())
	rec := w.oldRecord()
	rec["deviceToAdd"] = append(rec["deviceToAdd"].([]object), zero("/dev/b"))
	b, err := json.Marshal(rec)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(w.recordFile()+".tmp", b, 0o600))
	require.NoError(t, os.Rename(w.recordFile()+".tmp", w.recordFile()))
	require.NoError(t, lock.Close())
	res := p.wait()
	require.Zero(t, res.code, res)
	rec["deviceToAdd"].([]object)[0]["Minor"] = 7
	want, err := json.Marshal(rec)
	require.NoError(t, err)
	require.Equal(t, compact(t, string(want)), compact(t, w.readRecord()))
	w.hasNode("/dev/disk", 1, 7, 0o644)
	require.Zero(t, w.poststop().code)
}

// TestRecordLock is STO-09.
func TestRecordLock(t *testing.T) {
	t.Run("STO-09/held", func(t *testing.T) {
		begin(t, true)
		w := newWorld(t, variant{})
		renumbered(w)
		w.start()
		lock := hold(t, w.lockFile())
		before := w.clean()
		for _, how := range []string{"exclusive", "through a read-only descriptor"} {
			res := w.hook("prestart", run{args: []string{"-timeout", "3s"}, limit: 30 * time.Second})
			w.failed(res, "", 30*time.Second)
			require.Greater(t, res.took, time.Second, "it does not wait at all: %s", how)
			require.Empty(t, diff(before, w.clean()), "CLEAN")
			require.NoError(t, lock.Close())
			ro, err := os.Open(w.lockFile())
			require.NoError(t, err)
			require.NoError(t, unix.Flock(int(ro.Fd()), unix.LOCK_SH|unix.LOCK_NB))
			lock = ro
		}
		require.NoError(t, lock.Close())
		res := w.prestart()
		require.Zero(t, res.code, res)
		require.Zero(t, w.poststop().code)
	})
	t.Run("STO-09/replaced", func(t *testing.T) {
		begin(t, true)
		w := newWorld(t, variant{})
		renumbered(w)
		w.start()
		first := hold(t, w.lockFile())
		p := w.spawn(run{args: []string{"-state", "prestart"}, limit: 30 * time.Second})
		waitsFor(p, first)
		require.NoError(t, os.Remove(w.lockFile()))
		second := hold(t, w.lockFile())
		old := w.readRecord()
		require.NoError(t, first.Close())
		// Who got the first file must see that it is not the lock any more, and wait for the second.
		require.Never(t, func() bool { return !p.runs() || w.readRecord() != old }, time.Second, 20*time.Millisecond,
			"two owners of one lock")
		require.NoError(t, second.Close())
		res := p.wait()
		require.Zero(t, res.code, res)
		w.numbersAre(1, 7)
		require.Zero(t, w.poststop().code)
	})
	rows := []row{}
	for name, script := range map[string]string{
		"link":      "ln -s $HD/file $BUNDLE/.device_hook.lock",
		"dangling":  "ln -s $HD/new $BUNDLE/.device_hook.lock",
		"fifo":      "mkfifo -m 600 $BUNDLE/.device_hook.lock",
		"directory": "mkdir $BUNDLE/.device_hook.lock",
	} {
		rows = append(rows, row{id: "STO-09/" + name, within: 10 * time.Second, host: func(w *world) {
			renumbered(w)
			w.hostSh(script)
		}})
	}
	runPlain(t, rows)
}

// saveCalls are the system calls that a save can be made of.
var saveCalls = []string{
	"openat", "openat2", "write", "pwrite64", "fsync", "fdatasync", "fchmod", "fchmodat", "fchown", "fchownat", "ftruncate",
	"renameat", "renameat2", "rename", "unlinkat", "linkat", "flock", "close",
}

// point is the n-th call of a name in a thread; that is what strace can stop.
type point struct {
	call string
	n    int
}

// savePoints runs a prestart that saves, and lists the calls from the first that names the record or its lock to the last.
func savePoints(t *testing.T) []point {
	w := newWorld(t, variant{oneCPU: true})
	renumbered(w)
	w.start()
	file := w.dir + "/trace"
	res := w.hook("prestart", run{
		wrap:  []string{"/usr/bin/strace", "-f", "-y", "-o", file, "-e", "trace=" + strings.Join(saveCalls, ",")},
		limit: 30 * time.Second,
	})
	require.Zero(t, res.code, res)
	w.numbersAre(1, 7)
	require.Zero(t, w.poststop().code)
	b, err := os.ReadFile(file)
	require.NoError(t, err)
	w.remove()

	line := regexp.MustCompile(`^(\d+) +(?:<\.\.\. )?(\w+)(\(| resumed)`)
	seen := map[string]int{}
	var points []point
	first, last := -1, -1
	for l := range bytes.SplitSeq(b, []byte("\n")) {
		m := line.FindSubmatch(l)
		if m == nil || string(m[3]) != "(" {
			continue
		}
		key := string(m[1]) + " " + string(m[2])
		seen[key]++
		p := point{string(m[2]), seen[key]}
		points = append(points, p)
		if bytes.Contains(l, []byte("device_hook")) {
			if first < 0 {
				first = len(points) - 1
			}
			last = len(points) - 1
		}
	}
	require.GreaterOrEqual(t, first, 0, "the trace shows no save:\n%s", b)
	var unique []point
	for _, p := range points[first : last+1] {
		if !slices.Contains(unique, p) {
			unique = append(unique, p)
		}
	}
	return unique
}

// TestSaveKilled is STO-06: prestart is killed at each system call of the save. The record is the old or the new one, and the
// next poststop or prestart puts everything right.
func TestSaveKilled(t *testing.T) {
	begin(t, true)
	points := savePoints(t)
	calls := map[string]bool{}
	for _, p := range points {
		calls[p.call] = true
	}
	require.True(t, calls["fsync"] || calls["fdatasync"], "a save without fsync: %v", points)
	require.True(t, calls["renameat"] || calls["renameat2"] || calls["rename"], "a save without rename: %v", points)
	step := 1
	if limit := 60; !full() && len(points) > limit {
		step = (len(points) + limit - 1) / limit
	}
	killed := 0
	for i, p := range points {
		rare := slices.Contains([]string{"fsync", "fdatasync", "renameat", "renameat2", "rename", "unlinkat"}, p.call)
		if !rare && i%step != 0 {
			continue
		}
		t.Run("STO-06/"+p.call+"-"+strconv.Itoa(p.n), func(t *testing.T) {
			if killedAt(t, p, i%2 == 0) {
				killed++
			}
		})
	}
	require.Positive(t, killed, "no run was killed")
}

func killedAt(t *testing.T, p point, next bool) bool {
	w := newWorld(t, variant{oneCPU: true})
	renumbered(w)
	old := compact(t, w.readRecord())
	w.start()
	host := w.host(true)
	res := w.hook("prestart", run{limit: 30 * time.Second, wrap: []string{
		"/usr/bin/strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=" + p.call,
		"-e", fmt.Sprintf("inject=%s:signal=KILL:when=%d", p.call, p.n),
	}})
	saved := compact(t, w.readRecord())
	changed := strings.Replace(old, `"Minor":5`, `"Minor":7`, 1)
	require.Contains(t, []string{old, changed}, saved, "neither the old nor the new record")
	if next {
		again := w.prestart()
		require.Zero(t, again.code, "the next prestart: %s", again)
		w.numbersAre(1, 7)
		w.hasNode("/dev/disk", 1, 7, 0o644)
		w.hasText("/guest/marker", textOfD)
	}
	w.kill()
	require.Zero(t, w.poststop().code)
	require.Empty(t, diff(host, w.host(true)), "HOST after poststop")
	if !next {
		w.start()
		again := w.prestart()
		require.Zero(t, again.code, "a start after poststop: %s", again)
		w.numbersAre(1, 7)
		w.kill()
		require.Zero(t, w.poststop().code)
	}
	entries, err := os.ReadDir(w.bundle)
	require.NoError(t, err)
	for _, e := range entries {
		require.Contains(t, []string{"config.json", "device_hook.json", ".device_hook.lock"}, e.Name(), "a temporary file is left")
	}
	return res.signal == unix.SIGKILL
}

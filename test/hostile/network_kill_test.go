//go:build linux

package hostile

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// changeCalls are the system calls by which something changes, and by which the hook notes it.
var changeCalls = []string{
	"sendto", "sendmsg", "mount", "move_mount", "open_tree", "umount2", "unshare", "setns", "mkdirat", "unlinkat", "write", "socket",
	"ioctl", "openat", "fchmod", "fchown", "ftruncate", "mknodat", "fchownat", "fchmodat", "renameat", "flock", "fsync", "clone",
}

// fullRecord is a record with all there is.
func fullRecord(w *world) any {
	d := hostDisk(w.t)
	record := netRecord(w).(object)
	record["deviceToAdd"] = []object{zero("/dev/sub/zero"), d.entry("/dev/sdx")}
	record["bindToAdd"] = []string{w.src + "/d:/mnt/d:rw,rslave", w.src + "/f:/mnt/f:ro"}
	for i, list := range limitLists[:4] {
		record[list] = []object{d.limit(strconv.Itoa(1000 + i))}
	}
	return record
}

// fullWorld is a container with such a record, with sysctls, and with a limit that the runtime has set.
func fullWorld(t *testing.T, v variant) *world {
	w := newWorld(t, v)
	w.hostSh(netHost)
	w.linux()["sysctl"] = map[string]string{"net.ipv4.ip_unprivileged_port_start": "77", "net.ipv4.conf.c0.rp_filter": "2"}
	w.writeConfig()
	w.limit("write_bps", "5000")
	w.record(fullRecord(w))
	return w
}

func fullInside(w *world) {
	w.t.Helper()
	netInside(w)
	d := hostDisk(w.t)
	w.hasNode("/dev/sub/zero", 1, 5, 0o666)
	hasRule("/dev/sdx")(w)
	w.hasText("/mnt/d/marker", "marker of the source\n")
	w.hasText("/mnt/f", "content of the source\n")
	w.hasLimits(d.line("read_iops", "1000"), d.line("write_iops", "1001"), d.line("read_bps", "1002"), d.line("write_bps", "1003"))
	if w.v.user { // for others it is the runtime's work
		require.Equal(w.t, "77\n2\n", w.in("sh", "cd /proc/sys/net/ipv4; cat ip_unprivileged_port_start conf/c0/rp_filter"))
	}
}

// beginFull is begin for containers with such a record.
func beginFull(t *testing.T) {
	t.Helper()
	prepareRules(t)
	beginNet(t)
	w := fullWorld(t, variant{net: true, user: true})
	w.start()
	host := w.host(true)
	res := w.prestart()
	require.Zero(t, res.code, "a good record: %s", res)
	fullInside(w)
	require.Zero(t, w.poststop().code)
	w.sameHost(host, "HOST")
	w.remove()
}

// changePoints runs a prestart and a poststop, and lists where either can be killed.
func changePoints(t *testing.T, stage string) []point {
	w := fullWorld(t, variant{net: true, oneCPU: true, user: true})
	w.start()
	file := w.dir + "/trace"
	tracer := []string{"/usr/bin/strace", "-f", "-o", file, "-e", "trace=" + strings.Join(changeCalls, ",")}
	traced := run{wrap: tracer, limit: 30 * time.Second}
	if stage == "poststop" {
		require.Zero(t, w.prestart().code)
		st := w.state()
		st["pid"] = 0
		traced.stdin = asJSON(w, st)
	}
	res := w.hook(stage, traced)
	require.Zero(t, res.code, res)
	require.Zero(t, w.poststop().code)
	b, err := os.ReadFile(file)
	require.NoError(t, err)
	w.remove()
	return tracePoints(t, b)
}

// TestKilled is CON-01, and NET-10: SIGKILL at system calls that change something, evenly spread over the run. Whatever comes
// next, poststop or another prestart, finds all; interfaces come home with name and MAC address.
func TestKilled(t *testing.T) {
	beginFull(t)
	for _, stage := range []string{"prestart", "poststop"} {
		points := changePoints(t, stage)
		step := 1
		if limit := 60; !full() && len(points) > limit {
			step = (len(points) + limit - 1) / limit
		}
		// Another part of the points each time, and all of them before long.
		first, killed := rand.IntN(step), 0
		t.Logf("%d points in %s, each %d-th from %d", len(points), stage, step, first)
		for i := first; i < len(points); i += step {
			t.Run("CON-01/"+stage+"-"+points[i].call+"-"+strconv.Itoa(points[i].n), func(t *testing.T) {
				if killedFull(t, stage, i/step, run{limit: 30 * time.Second, wrap: points[i].kill()}, 0) {
					killed++
				}
			})
		}
		t.Logf("%d runs of %s were killed", killed, stage)
		require.Positive(t, killed, "no run was killed")
	}
}

// TestKilledAnytime is the same without a tracer, which slows some things down and others not.
func TestKilledAnytime(t *testing.T) {
	beginFull(t)
	for _, stage := range []string{"prestart", "poststop"} {
		killed := 0
		for i := range scaled(30, 600) {
			t.Run(fmt.Sprintf("CON-01/%s-at-random-%d", stage, i), func(t *testing.T) {
				if killedFull(t, stage, i, run{}, time.Microsecond+rand.N(100*time.Millisecond)) {
					killed++
				}
			})
		}
		t.Logf("%d runs of %s were killed", killed, stage)
		require.Positive(t, killed, "no run was killed")
	}
}

// killedFull kills one run. What comes after it is one of: poststop of the dead or the living container, another prestart of the
// same container, or of a new one.
func killedFull(t *testing.T, stage string, i int, how run, after time.Duration) bool {
	w := fullWorld(t, variant{net: true, oneCPU: len(how.wrap) > 0, user: i%3 != 0})
	w.start()
	host := w.host(true)
	if stage == "poststop" {
		res := w.prestart()
		require.Zero(t, res.code, res)
		st := w.state()
		st["pid"] = 0
		how.stdin = asJSON(w, st)
	}
	how.args = []string{"-state", stage}
	p := w.spawn(how)
	if after > 0 {
		time.Sleep(after)
		_ = p.cmd.Process.Signal(syscall.SIGKILL)
	}
	res := p.wait()
	switch i % 4 {
	case 1:
		w.kill()
	case 2:
		w.again(stage)
	case 3:
		w.kill()
		w.start()
		w.again("prestart")
	}
	stop := w.poststop()
	require.Zero(t, stop.code, stop)
	w.sameHost(host, "HOST after "+stop.String())
	return res.signal == unix.SIGKILL
}

// again starts the killed container's hook once more, which cleans up and restores all.
func (w *world) again(stage string) {
	w.t.Helper()
	if stage == "poststop" {
		require.Zero(w.t, w.poststop().code)
		return
	}
	res := w.prestart()
	require.Zero(w.t, res.code, "the next prestart: %s", res)
	fullInside(w)
}

// TestNetworkSignals is CON-06 for interfaces: a signal at any time means take back and fail.
func TestNetworkSignals(t *testing.T) {
	beginNet(t)
	signals := []syscall.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP}
	interrupted := 0
	for i := range scaled(30, 300) {
		t.Run(fmt.Sprintf("CON-06/network-%d", i), func(t *testing.T) {
			w := newWorld(t, variant{net: true, user: i%3 == 1})
			w.hostSh(netHost)
			w.record(netRecord(w))
			w.start()
			before, host := w.clean(), w.host(true)
			p := w.spawn(run{args: []string{"-state", "prestart"}})
			time.Sleep(rand.N(100 * time.Millisecond))
			_ = p.cmd.Process.Signal(signals[i%len(signals)])
			res := p.wait()
			if res.code == 0 {
				netInside(w)
			} else {
				require.True(t, res.signal == 0 || slices.Contains(signals, res.signal), res)
				require.Empty(t, w.settled(before, w.clean), "CLEAN: %s", res)
				if res.signal == 0 {
					interrupted++
				}
			}
			w.kill()
			require.Zero(t, w.poststop().code)
			w.sameHost(host, "HOST after poststop")
		})
	}
	t.Logf("%d runs were interrupted", interrupted)
	require.Positive(t, interrupted, "no signal came in time")
}

// TestNetworkInitKilled is CON-04 for interfaces: the container ends while the hook works on it.
func TestNetworkInitKilled(t *testing.T) {
	beginNet(t)
	for i := range scaled(20, 300) {
		t.Run(fmt.Sprintf("CON-04/network-%d", i), func(t *testing.T) {
			w := newWorld(t, variant{net: true, user: i%3 == 1})
			w.hostSh(netHost)
			w.record(netRecord(w))
			w.start()
			host := w.host(true)
			p := w.spawn(run{args: []string{"-state", "prestart"}})
			time.Sleep(rand.N(60 * time.Millisecond))
			w.kill()
			res := p.wait()
			require.Zero(t, res.signal, res)
			if res.code != 0 {
				w.failed(res, "", 0)
				if len(w.settled(host, func() snapshot { return w.host(true) })) > 0 {
					t.Logf("left to poststop: %s", res)
				}
			}
			require.Zero(t, w.poststop().code)
			w.sameHost(host, "HOST after poststop")
		})
	}
}

// TestNetworkStages is CON-03 for interfaces.
func TestNetworkStages(t *testing.T) {
	beginNet(t)
	for _, v := range netVariants()[:2] {
		v.net = true
		t.Run("CON-03/network-twice-"+v.name, func(t *testing.T) {
			w := newWorld(t, v)
			w.hostSh(netHost)
			w.record(netRecord(w))
			w.start()
			host, before := w.host(true), w.clean()
			for range 2 {
				res := w.poststop() // without a prestart
				require.Zero(t, res.code, res)
				require.Empty(t, w.settled(before, w.clean), "CLEAN")
			}
			res := w.prestart()
			require.Zero(t, res.code, res)
			between := w.clean()
			res = w.prestart()
			require.Zero(t, res.code, "a second prestart for the same running container: %s", res)
			require.Empty(t, w.settled(between, w.clean), "the second prestart changed something")
			netInside(w)
			w.pinned()
			for range 2 {
				res := w.poststop()
				require.Zero(t, res.code, res)
				w.sameHost(host, "HOST")
			}
		})
		t.Run("CON-03/network-without-a-stop-"+v.name, func(t *testing.T) {
			w := newWorld(t, v)
			w.hostSh(netHost)
			w.record(netRecord(w))
			w.start()
			host := w.host(true)
			for range 3 {
				res := w.prestart()
				require.Zero(t, res.code, "a start after the last one was not stopped: %s", res)
				netInside(w)
				w.pinned()
				w.kill()
				w.start()
			}
			require.Zero(t, w.poststop().code)
			w.sameHost(host, "HOST")
		})
	}
	for i := range scaled(6, 60) {
		t.Run(fmt.Sprintf("CON-03/network-at-once-%d", i), func(t *testing.T) { netAtOnce(t) })
	}
}

// netAtOnce starts two prestarts and two poststops of one id together.
func netAtOnce(t *testing.T) {
	w := newWorld(t, variant{net: true})
	w.hostSh(netHost)
	w.record(netRecord(w))
	w.start()
	host := w.host(true)
	stages := []string{"prestart", "poststop", "prestart", "poststop"}
	rand.Shuffle(len(stages), func(a, b int) { stages[a], stages[b] = stages[b], stages[a] })
	var procs []*process
	for _, s := range stages {
		procs = append(procs, w.spawn(run{args: []string{"-state", s}, limit: 30 * time.Second}))
	}
	for i, p := range procs {
		res := p.wait()
		require.Zero(t, res.signal, res)
		if stages[i] == "poststop" {
			require.Zero(t, res.code, res)
		}
	}
	w.kill()
	require.Zero(t, w.poststop().code)
	w.sameHost(host, fmt.Sprintf("HOST, stages %v", stages))
}

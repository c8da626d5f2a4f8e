//go:build linux

package bench

import (
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// maxPeak is the memory that a run of the hook may use: a host may start hundreds of containers at a time.
const maxPeak = 16 << 20

// processRound runs the hook for a container without a record: its first prestart, which users wait for, the second one that
// some hook specifications cause, and the poststop.
func processRound(tb testing.TB, specSize int) func(m *meter) {
	tb.Helper()
	c := newContainer(tb, specSize)
	return func(m *meter) {
		c.start()
		m.inTurn(
			func() { c.floor(m) },
			func() { c.hook(m, "prestart", "prestart") },
		)
		if m.check {
			require.Len(tb, mounts(tb, strconv.Itoa(c.pid), " "+c.rootfs+"/.sharedpath "), 1)
		}
		c.hook(m, "again", "prestart")
		c.stop()
		c.hook(m, "poststop", "poststop")
		if m.check {
			require.NoDirExists(tb, "/.sharedpath/master/"+c.id)
		}
	}
}

// recordRound runs the hook for a container with a record, beside the empty program and the bare system calls.
func recordRound(tb testing.TB, nDevices, nBinds int) func(m *meter) {
	tb.Helper()
	c, bare := newRecorded(tb, nDevices, nBinds)
	return func(m *meter) {
		m.inTurn(
			func() { c.floor(m) },
			func() { bare(m) },
			func() {
				c.start()
				c.hook(m, "prestart", "prestart")
				c.hook(m, "again", "prestart")
				c.stop()
				c.hook(m, "poststop", "poststop")
				if nDevices > 0 {
					c.resetCgroup()
				}
			},
		)
	}
}

// newRecorded makes a container whose record has this many entries, and the bare way to restore as many.
func newRecorded(tb testing.TB, nDevices, nBinds int) (*container, func(*meter)) {
	tb.Helper()
	c := newContainer(tb, 4<<10)
	record := make(map[string]any)
	bare := func(*meter) {}
	if nDevices > 0 {
		d := newDevices(tb, nDevices)
		c.makeCgroup()
		record["deviceToAdd"] = d.entries()
		bare = func(m *meter) { d.measure(m, "bare", d.bare) }
	}
	if nBinds > 0 {
		b := newBinds(tb, nBinds)
		record["bindToAdd"] = b.entries()
		bare = func(m *meter) { b.measure(m, "bare", b.bare) }
	}
	c.writeRecord(record)
	return c, bare
}

// TestPeakMemory limits what the process uses at its most.
func TestPeakMemory(t *testing.T) {
	begin(t)
	c := newContainer(t, 4<<10)
	t.Logf("a program that does nothing: %d KiB", peak(t, c, programs.floor, c.specPath())>>10)
	for name, n := range map[string][2]int{"no record": {0, 0}, "128 devices": {128, 0}, "64 binds": {0, 64}} {
		t.Run(name, func(t *testing.T) {
			c, _ := newRecorded(t, n[0], n[1])
			c.start()
			for _, state := range []string{"prestart", "poststop"} {
				if state == "poststop" {
					c.stop()
				}
				used := peak(t, c, programs.hook, "-state", state)
				t.Logf("%s: %d KiB", state, used>>10)
				require.Less(t, used, int64(maxPeak), state)
			}
		})
	}
}

// peak runs a program that gets the container's state and gives its peak memory in bytes.
func peak(tb testing.TB, c *container, args ...string) int64 {
	tb.Helper()
	cmd := c.command(programs.aid, append([]string{"peak"}, args...)...)
	defer cmd.Stdin.(*os.File).Close()
	out, err := cmd.Output()
	require.NoError(tb, c.explain(err))
	kib, err := strconv.ParseInt(strings.TrimSpace(string(out)), 10, 64)
	require.NoError(tb, err)
	return kib << 10
}

// tool runs one of the system's programs.
func tool(args ...string) error {
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stderr = os.Stderr
	return cmd.Run()
}

//go:build linux

// Package bench compares the hook, within one run on one machine, with the least that could do the same: a program that does
// nothing, and bare system calls to the same end. Run as tests it goes through each comparison once, makes sure that both sides
// come to the same end, and limits the memory of the process; times are for `make bench` alone.
//
// It needs root and the cgroup v1 devices hierarchy.
package bench

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"isula.org/syscontainer-hooks/internal/testutil"
	"isula.org/syscontainer-hooks/test/harness"
)

const (
	// base is a tmpfs for all that the benchmarks make.
	base        = "/srv/bench"
	devicesRoot = "/sys/fs/cgroup/devices"
	module      = "isula.org/syscontainer-hooks"
)

func TestMain(m *testing.M) {
	unix.Umask(0) // as in the program
	os.Exit(testutil.Main(m))
}

// programs are what is run, all built in the same way.
var programs = struct{ hook, floor, aid string }{base + "/bin/syscontainer-hooks", base + "/bin/floor", base + "/bin/aid"}

var prepare = sync.OnceValue(func() error {
	if err := os.MkdirAll(base, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("bench", base, "tmpfs", 0, "mode=0755"); err != nil {
		return fmt.Errorf("mount %s: %w", base, err)
	}
	return errors.Join(
		harness.GoBuild("", programs.hook, module+"/cmd/syscontainer-hooks", "CGO_ENABLED=0"),
		harness.GoBuild("", programs.floor, module+"/test/bench/floor", "CGO_ENABLED=0"),
		harness.GoBuild("", programs.aid, module+"/test/bench/aid", "CGO_ENABLED=0"))
})

// begin is the first call of everything here.
func begin(tb testing.TB) {
	tb.Helper()
	testutil.RequireRoot(tb)
	if _, err := os.Stat(filepath.Join(devicesRoot, "devices.allow")); err != nil {
		harness.Skip(tb, "needs the cgroup v1 devices hierarchy")
	}
	require.NoError(tb, prepare())
}

// comparison is one thing measured in several ways, which all happen in each round.
type comparison struct {
	name   string
	base   string // the way that the others are compared with
	rounds int    // at the least
	open   func(tb testing.TB) func(m *meter)
}

var comparisons = []comparison{
	{"process/spec=4KiB", "floor", 100, func(tb testing.TB) func(*meter) { return processRound(tb, 4<<10) }},
	{"process/spec=64KiB", "floor", 50, func(tb testing.TB) func(*meter) { return processRound(tb, 64<<10) }},
	{"devices=32", "bare", 50, func(tb testing.TB) func(*meter) { return devicesRound(tb, 32) }},
	{"devices=128", "bare", 50, func(tb testing.TB) func(*meter) { return devicesRound(tb, 128) }},
	{"devices=512", "bare", 25, func(tb testing.TB) func(*meter) { return devicesRound(tb, 512) }},
	{"binds=64", "bare", 25, func(tb testing.TB) func(*meter) { return bindsRound(tb, 64) }},
	{"limits=64", "bare", 50, func(tb testing.TB) func(*meter) { return limitsRound(tb, 64) }},
	{"limits/removal=64", "bare", 50, func(tb testing.TB) func(*meter) { return limitsRemovalRound(tb, 64) }},
	{"rules=5000", "bare", 50, func(tb testing.TB) func(*meter) { return rulesRound(tb, 5000) }},
	{"veths=64", "batch", 5, func(tb testing.TB) func(*meter) { return vethsRound(tb, 64) }},
	{"removal=64", "single", 3, func(tb testing.TB) func(*meter) { return removalRound(tb, 64) }},
	{"process/devices=128", "floor+bare", 50, func(tb testing.TB) func(*meter) { return recordRound(tb, 128, 0) }},
	{"process/binds=64", "floor+bare", 25, func(tb testing.TB) func(*meter) { return recordRound(tb, 0, 64) }},
	{"tools/devices=128", "hook", 3, func(tb testing.TB) func(*meter) { return toolDevicesRound(tb, 128) }},
	{"tools/binds=64", "hook", 3, func(tb testing.TB) func(*meter) { return toolBindsRound(tb, 64) }},
}

// BenchmarkRatio reports for each way what it takes (µs) and how many times that of the base (ratio), both by the median.
func BenchmarkRatio(b *testing.B) {
	for _, c := range comparisons {
		b.Run(c.name, func(b *testing.B) {
			begin(b)
			m := &meter{tb: b}
			round := c.open(b)
			for b.Loop() {
				m.round(round)
			}
			for m.rounds < c.rounds {
				m.round(round)
			}
			m.report(b, c.base)
		})
	}
}

// TestRatio goes through one round of each, and a second one on what the first has left.
func TestRatio(t *testing.T) {
	for _, c := range comparisons {
		t.Run(c.name, func(t *testing.T) {
			begin(t)
			m := &meter{tb: t, check: true}
			round := c.open(t)
			m.round(round)
			m.round(round)
			require.NotZero(t, m.median(c.base))
		})
	}
}

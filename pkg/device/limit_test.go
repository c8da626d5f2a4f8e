//go:build linux

package device_test

import (
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"isula.org/syscontainer-hooks/internal/testutil"
	"isula.org/syscontainer-hooks/pkg/device"
)

func TestLimits(t *testing.T) {
	testutil.RequireRoot(t)
	c, a, b := newIOCgroup(t), newDisk(t), newDisk(t)
	limits := []device.Limit{
		a.limit(device.ReadBPS, 1<<40), a.limit(device.ReadIOPS, 1), a.limit(device.WriteIOPS, math.MaxUint32-1),
		b.limit(device.WriteBPS, math.MaxUint64-1), b.limit(device.ReadBPS, 1), b.limit(device.ReadIOPS, 0),
	}
	changes := c.plan(append(limits, limits[0])...)
	require.Len(t, changes, 5, "one stands twice, and one is none and none is there")
	c.has()
	require.NoError(t, c.Set(changes))
	c.has(limits[:5]...)
	line := func(d *disk, value uint64) string { return fmt.Sprintf("%d:%d %d\n", d.major, d.minor, value) }
	require.Equal(t, line(a, 1), c.content("blkio.throttle.read_iops_device"))
	require.Equal(t, line(a, math.MaxUint32-1), c.content("blkio.throttle.write_iops_device"))
	require.Equal(t, line(b, 1)+line(a, 1<<40), c.content("blkio.throttle.read_bps_device"))
	require.Equal(t, line(b, math.MaxUint64-1), c.content("blkio.throttle.write_bps_device"))
	require.NoError(t, c.Set(changes), "again")
	require.Empty(t, c.plan(limits...), "all hold")

	more := c.plan(a.limit(device.ReadBPS, 5), b.limit(device.ReadBPS, 0), a.limit(device.WriteBPS, 6))
	require.Equal(t, []device.LimitChange{
		{Limit: a.limit(device.ReadBPS, 5), Before: 1 << 40},
		{Limit: b.limit(device.ReadBPS, 0), Before: 1},
		{Limit: a.limit(device.WriteBPS, 6)},
	}, more)
	require.NoError(t, c.Set(more))
	c.has(a.limit(device.ReadBPS, 5), limits[1], limits[2], limits[3], a.limit(device.WriteBPS, 6))
	for range 2 {
		require.NoError(t, c.Reset(more))
		c.has(limits[:5]...)
	}
	for range 2 {
		require.NoError(t, c.Reset(changes))
		c.has()
	}
}

// A limit of 0 by the kernel's cutting of 2^32 lets nothing pass. It is not the same as none.
func TestClearBlockingLimit(t *testing.T) {
	testutil.RequireRoot(t)
	c, d := newIOCgroup(t), newDisk(t)
	file := "blkio.throttle.read_iops_device"
	require.NoError(t, os.WriteFile(filepath.Join(c.path, file), fmt.Appendf(nil, "%d:%d %d", d.major, d.minor, 1<<32), 0))
	require.Equal(t, fmt.Sprintf("%d:%d 0\n", d.major, d.minor), c.content(file))
	changes := c.plan(d.limit(device.ReadIOPS, 0))
	require.Len(t, changes, 1)
	require.NoError(t, c.Set(changes))
	require.Empty(t, c.content(file))
}

func TestPlanRefusesLimits(t *testing.T) {
	testutil.RequireRoot(t)
	c, d := newIOCgroup(t), newDisk(t)
	major, minor := d.partition()
	other := func(major, minor uint32, value uint64) device.Limit {
		return device.Limit{Kind: device.ReadBPS, Major: major, Minor: minor, Value: value}
	}
	wide := "want 1 to 4294967294, or 0 for no limit"
	for name, test := range map[string]struct {
		limit device.Limit
		want  string
	}{
		"read operations":   {d.limit(device.ReadIOPS, 1<<32), "readIops 4294967296 of disk " + d.String() + ": " + wide},
		"none in 32 bits":   {d.limit(device.ReadIOPS, math.MaxUint32), wide},
		"write operations":  {d.limit(device.WriteIOPS, math.MaxUint64), wide},
		"none in 64 bits":   {d.limit(device.ReadBPS, math.MaxUint64), "want 1 to 18446744073709551614"},
		"write bytes":       {d.limit(device.WriteBPS, math.MaxUint64), "want 1 to 18446744073709551614"},
		"too light":         {d.limit(device.Weight, 9), "want 10 to 1000"},
		"too heavy":         {d.limit(device.Weight, 1001), "want 10 to 1000"},
		"no such kind":      {d.limit("readBPS", 10), `unknown kind of I/O limit`},
		"also another":      {d.limit(device.WriteBPS, 11), "it is also to be 10"},
		"also none":         {d.limit(device.WriteBPS, 0), "it is also to be 10"},
		"partition":         {other(major, minor, 10), fmt.Sprintf("it is a partition; limit the whole disk, %d:%d", d.major, d.minor)},
		"none for one":      {other(major, minor, 0), "it is a partition"},
		"char device":       {other(5, 1, 10), "it is a char device"},
		"missing disk":      {other(259, 1<<20-1, 10), "disk unknown (259:1048575): the host has no such disk"},
		"impossible number": {other(math.MaxUint32, math.MaxUint32, 10), "no such disk"},
		"unfit scheduler": {d.limit(device.Weight, 10), "blkioWeight 10 of disk " + d.String() + ": its I/O scheduler is none, " +
			"which knows no weights; choose bfq first: echo bfq > /sys/block/" + d.name + "/queue/scheduler"},
	} {
		t.Run(name, func(t *testing.T) {
			d.choose("none")
			_, err := c.Plan([]device.Limit{d.limit(device.WriteBPS, 10), test.limit})
			require.ErrorContains(t, err, test.want)
			c.has()
		})
	}
}

func TestHostLimit(t *testing.T) {
	t.Parallel()
	limit, err := (&device.Host{Path: "/dev/sda", Type: device.Block, Major: 8, Minor: 16}).Limit(device.ReadBPS, 5)
	require.NoError(t, err)
	require.Equal(t, device.Limit{Kind: device.ReadBPS, Major: 8, Minor: 16, Value: 5}, limit)
	_, err = (&device.Host{Path: "/dev/null", Type: device.Char, Major: 1, Minor: 3}).Limit(device.ReadBPS, 5)
	require.ErrorContains(t, err, "/dev/null is no block device")
}

func TestWeight(t *testing.T) {
	testutil.RequireRoot(t)
	c, d := newIOCgroup(t), newDisk(t)
	const file = "blkio.bfq.weight_device"
	d.choose("bfq")
	require.Empty(t, c.plan(d.limit(device.Weight, 0)))
	first := c.plan(d.limit(device.Weight, 1000))
	require.Equal(t, []device.LimitChange{{Limit: d.limit(device.Weight, 1000)}}, first)
	require.NoError(t, c.Set(first))
	require.Equal(t, fmt.Sprintf("default 100\n%d:%d 1000\n", d.major, d.minor), c.content(file))
	second := c.plan(d.limit(device.Weight, 10))
	require.NoError(t, c.Set(second))
	c.has(d.limit(device.Weight, 10))
	require.NoError(t, c.Reset(second))
	c.has(d.limit(device.Weight, 1000))
	for range 2 {
		require.NoError(t, c.Reset(first))
		c.has()
	}
	require.NoError(t, c.Set(second))
	none := c.plan(d.limit(device.Weight, 0))
	for range 2 {
		require.NoError(t, c.Set(none))
		c.has()
	}

	// Another scheduler knows nothing of weights, and forgets them.
	require.NoError(t, c.Set(first))
	d.choose("mq-deadline")
	c.has()
	require.NoError(t, c.Set(none))
	require.NoError(t, c.Reset(first))
	err := c.Set(first)
	require.ErrorIs(t, err, unix.EOPNOTSUPP)
	require.ErrorContains(t, err, "blkioWeight 1000 of disk "+d.String()+": its I/O scheduler is mq-deadline")
	require.ErrorContains(t, c.Reset(second), "its I/O scheduler is mq-deadline")
}

// Whichever write the kernel refuses, Reset takes back what came before it.
func TestSetFails(t *testing.T) {
	testutil.RequireRoot(t)
	c, a, b := newIOCgroup(t), newDisk(t), newDisk(t)
	b.choose("bfq")
	before := []device.Limit{a.limit(device.ReadIOPS, 7), b.limit(device.WriteBPS, 8), b.limit(device.Weight, 20)}
	require.NoError(t, c.Set(c.plan(before...)))
	changes := c.plan(a.limit(device.ReadIOPS, 100), b.limit(device.ReadIOPS, 101), a.limit(device.WriteIOPS, 102),
		a.limit(device.ReadBPS, 103), b.limit(device.ReadBPS, 104), b.limit(device.WriteBPS, 0), b.limit(device.Weight, 500))
	require.Len(t, changes, 7)
	for k := range changes {
		failing := slices.Clone(changes)
		refused := device.LimitChange{Limit: device.Limit{Kind: changes[k].Kind, Major: 259, Minor: 1<<20 - 1, Value: 50}}
		failing = slices.Insert(failing, k, refused)
		err := c.Set(failing)
		require.ErrorIs(t, err, unix.ENODEV)
		require.ErrorContains(t, err, fmt.Sprintf("set I/O limit %s 50 of disk unknown (259:1048575)", refused.Kind))
		now, err := c.Limits()
		require.NoError(t, err)
		for i, change := range changes {
			require.Equal(t, i < k && change.Value != 0, slices.Contains(now, change.Limit), "refused %d, limit %d", k, i)
		}
		for range 2 {
			require.NoError(t, c.Reset(failing))
			c.has(before...)
		}
	}
	bad := append(slices.Clone(changes), device.LimitChange{Limit: a.limit(device.WriteBPS, math.MaxUint64)})
	require.ErrorContains(t, c.Set(bad), "want 1 to")
	require.ErrorContains(t, c.Set(append(bad[:7], device.LimitChange{Limit: a.limit("x", 1)})), "unknown kind")
	c.has(before...)
}

// Reset goes on after an error.
func TestResetGoesOn(t *testing.T) {
	testutil.RequireRoot(t)
	c, a, b := newIOCgroup(t), newDisk(t), newDisk(t)
	changes := c.plan(a.limit(device.ReadIOPS, 5), b.limit(device.ReadIOPS, 6), a.limit(device.WriteBPS, 7))
	require.NoError(t, c.Set(changes))
	changes[0].Before, changes[2].Before = 1<<33, math.MaxUint64 // what no kernel has
	err := c.Reset(changes)
	require.ErrorContains(t, err, "readIops 8589934592 of disk "+a.String()+": the kernel has 0 afterwards")
	require.ErrorContains(t, err, "writeBps 18446744073709551615 of disk "+a.String()+": the kernel has none afterwards")
	c.has(device.Limit{Kind: device.ReadIOPS, Major: a.major, Minor: a.minor})
}

// Limits go with their disk, and with their cgroup.
func TestResetOfWhatIsGone(t *testing.T) {
	testutil.RequireRoot(t)
	c, gone, stays := newIOCgroup(t), newDisk(t), newDisk(t)
	require.NoError(t, c.Set(c.plan(gone.limit(device.ReadBPS, 7), stays.limit(device.ReadBPS, 8))))
	changes := c.plan(gone.limit(device.ReadBPS, 10), gone.limit(device.WriteIOPS, 11), stays.limit(device.ReadBPS, 12))
	require.NoError(t, c.Set(changes))
	gone.remove()
	_, err := c.Plan([]device.Limit{gone.limit(device.ReadBPS, 10)})
	require.ErrorContains(t, err, "no such disk")
	for range 2 {
		require.NoError(t, c.Reset(changes))
		c.has(stays.limit(device.ReadBPS, 8))
	}
	require.NoError(t, os.Remove(c.path))
	require.NoError(t, c.Reset(changes))
	_, err = c.Limits()
	require.ErrorIs(t, err, os.ErrNotExist)
	require.ErrorIs(t, c.Set(changes), os.ErrNotExist)
	require.NoError(t, os.Mkdir(c.path, 0o755)) // for the end of the test
}

func TestOpenIOCgroupRefuses(t *testing.T) {
	testutil.RequireRoot(t)
	plain, v2 := t.TempDir(), t.TempDir()
	require.NoError(t, unix.Mount("cgroup2", v2, "cgroup2", 0, ""))
	t.Cleanup(func() { require.NoError(t, unix.Unmount(v2, unix.MNT_DETACH)) })
	open := func(path string) error {
		dir, err := os.OpenFile(path, unix.O_PATH|unix.O_DIRECTORY, 0)
		require.NoError(t, err)
		defer dir.Close()
		_, err = device.OpenIOCgroup(dir)
		return err
	}
	require.ErrorContains(t, open(plain), "no cgroup")
	require.ErrorIs(t, open(v2), device.ErrCgroupV2)
	require.NoError(t, open("/sys/fs/cgroup/blkio"))
}

// What is limited takes the time that it should, and no more once the limit is gone.
func TestLimitEffect(t *testing.T) {
	testutil.RequireRoot(t)
	read, write := []string{"of=/dev/null", "iflag=direct", "if="}, []string{"if=/dev/zero", "oflag=direct", "conv=notrunc", "of="}
	for _, test := range []struct {
		kind   device.LimitKind
		value  uint64
		args   []string
		blocks []string // take one second
	}{
		{device.ReadBPS, 8 << 20, read, []string{"bs=256k", "count=32"}},
		{device.WriteBPS, 8 << 20, write, []string{"bs=256k", "count=32"}},
		{device.ReadIOPS, 64, read, []string{"bs=4k", "count=64"}},
		{device.WriteIOPS, 64, write, []string{"bs=4k", "count=64"}},
	} {
		t.Run(string(test.kind), func(t *testing.T) {
			c, d := newIOCgroup(t), newDisk(t)
			args := append(slices.Clone(test.args), test.blocks...)
			args[len(test.args)-1] += d.path
			const fast = 300 * time.Millisecond
			require.Less(t, c.run(fast, args...), fast)
			changes := c.plan(d.limit(test.kind, test.value))
			require.NoError(t, c.Set(changes))
			require.InDelta(t, 1, c.run(1250*time.Millisecond, args...).Seconds(), 0.25)
			require.NoError(t, c.Reset(changes))
			require.Less(t, c.run(fast, args...), fast)
		})
	}
}

// run runs dd(1) in the cgroup and tells how long it takes. What else happens on the machine can make it slower, never faster:
// so up to three times, until it is within expected.
func (c *ioCgroup) run(expected time.Duration, args ...string) (took time.Duration) {
	c.t.Helper()
	const script = `echo $$ >"$0/cgroup.procs" && exec dd status=none "$@"`
	for range 3 {
		start := time.Now()
		out, err := exec.Command("/bin/sh", append([]string{"-c", script, c.path}, args...)...).CombinedOutput()
		took = time.Since(start)
		require.NoError(c.t, err, string(out))
		if took <= expected {
			break
		}
	}
	c.t.Logf("dd took %s", took)
	return took
}

//go:build linux

package bench

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"isula.org/syscontainer-hooks/pkg/device"
	"isula.org/syscontainer-hooks/test/harness"
)

const ioRoot = "/sys/fs/cgroup/blkio"

// throttleFiles are the files of the limits that every disk can have.
var throttleFiles = map[device.LimitKind]string{
	device.ReadIOPS:  "blkio.throttle.read_iops_device",
	device.WriteIOPS: "blkio.throttle.write_iops_device",
	device.ReadBPS:   "blkio.throttle.read_bps_device",
	device.WriteBPS:  "blkio.throttle.write_bps_device",
}

// limits are disks, and a cgroup that limits I/O on them.
type limits struct {
	tb     testing.TB
	cgroup string
	list   []device.Limit       // by kind
	set    []device.LimitChange // what the hook has set
	wanted string               // what all ways come to, once one of them has
}

func newLimits(tb testing.TB, n int) *limits {
	tb.Helper()
	if _, err := os.Stat(ioRoot); err != nil {
		harness.Skip(tb, "needs the cgroup v1 blkio hierarchy")
	}
	l := &limits{tb: tb, cgroup: filepath.Join(ioRoot, "bench-"+strconv.Itoa(os.Getpid()))}
	disks := make([]device.Limit, n/len(throttleFiles))
	for i := range disks {
		disks[i] = newLoop(tb)
	}
	for _, kind := range []device.LimitKind{device.ReadIOPS, device.WriteIOPS, device.ReadBPS, device.WriteBPS} {
		for i, limit := range disks {
			limit.Kind, limit.Value = kind, uint64(1<<20+i)
			l.list = append(l.list, limit)
		}
	}
	// The first limit in a disk's life has the kernel wait for its queue to come to rest.
	l.inCgroup(func() { require.NoError(tb, l.bare()) })
	return l
}

// newLoop makes a loop device and gives its numbers.
func newLoop(tb testing.TB) device.Limit {
	tb.Helper()
	host, err := device.Lookup(harness.NewLoop(tb, "", 1<<20))
	require.NoError(tb, err)
	return device.Limit{Major: host.Major, Minor: host.Minor}
}

// inCgroup calls f while the cgroup is there. A container's cgroup is new at each start.
func (l *limits) inCgroup(f func()) {
	l.tb.Helper()
	require.NoError(l.tb, os.Mkdir(l.cgroup, 0o755))
	defer func() { require.NoError(l.tb, os.Remove(l.cgroup)) }()
	f()
}

// limitsRound sets the limits through package device and with bare system calls.
func limitsRound(tb testing.TB, n int) func(m *meter) {
	tb.Helper()
	l := newLimits(tb, n)
	way := func(m *meter, name string, set func() error) func() {
		return func() {
			l.inCgroup(func() {
				m.time(name, set)
				l.check(m, name)
			})
		}
	}
	return func(m *meter) {
		m.inTurn(way(m, "bare", l.bare), way(m, "once", l.once), way(m, "hook", l.hook))
	}
}

// limitsRemovalRound takes them away again.
func limitsRemovalRound(tb testing.TB, n int) func(m *meter) {
	tb.Helper()
	l := newLimits(tb, n)
	way := func(m *meter, name string, remove func() error) func() {
		return func() {
			l.inCgroup(func() {
				require.NoError(tb, l.hook())
				m.time(name, remove)
				if m.check {
					require.Empty(tb, l.result(), name)
				}
			})
		}
	}
	return func(m *meter) {
		m.inTurn(way(m, "bare", l.bareRemoval), way(m, "hook", l.hookRemoval))
	}
}

// check compares what a way has come to.
func (l *limits) check(m *meter, name string) {
	l.tb.Helper()
	if !m.check {
		return
	}
	if l.wanted == "" {
		l.wanted = l.result()
		require.Equal(l.tb, len(l.list), strings.Count(l.wanted, "\n"))
	}
	require.Equal(l.tb, l.wanted, l.result(), name)
}

// hook is the way of the hook.
func (l *limits) hook() error {
	return l.withGroup(func(group *device.IOCgroup) error {
		changes, err := group.Plan(l.list)
		if err != nil {
			return err
		}
		l.set = changes
		return group.Set(changes)
	})
}

func (l *limits) hookRemoval() error {
	return l.withGroup(func(group *device.IOCgroup) error { return group.Reset(l.set) })
}

func (l *limits) withGroup(f func(*device.IOCgroup) error) error {
	dir, err := os.OpenFile(l.cgroup, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer dir.Close()
	group, err := device.OpenIOCgroup(dir)
	if err != nil {
		return err
	}
	return f(group)
}

// bare is the way of runtimes, each limit by itself, without any check.
func (l *limits) bare() error {
	for _, limit := range l.list {
		if err := l.write(limit.Kind, limit); err != nil {
			return err
		}
	}
	return nil
}

func (l *limits) bareRemoval() error {
	for _, limit := range l.list {
		limit.Value = 0
		if err := l.write(limit.Kind, limit); err != nil {
			return err
		}
	}
	return nil
}

// once is the least that can be: each file is opened only once.
func (l *limits) once() error {
	for limits := range slices.Chunk(l.list, len(l.list)/len(throttleFiles)) {
		if err := l.write(limits[0].Kind, limits...); err != nil {
			return err
		}
	}
	return nil
}

// write opens the file of the kind and writes limits to it.
func (l *limits) write(kind device.LimitKind, limits ...device.Limit) error {
	fd, err := unix.Open(l.cgroup+"/"+throttleFiles[kind], unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	for _, limit := range limits {
		if _, err := unix.Write(fd, fmt.Appendf(nil, "%d:%d %d", limit.Major, limit.Minor, limit.Value)); err != nil {
			return err
		}
	}
	return unix.Close(fd)
}

// result is what the cgroup has.
func (l *limits) result() string {
	l.tb.Helper()
	var all strings.Builder
	for _, kind := range slices.Sorted(maps.Keys(throttleFiles)) {
		text, err := os.ReadFile(l.cgroup + "/" + throttleFiles[kind])
		require.NoError(l.tb, err)
		all.Write(text)
	}
	return all.String()
}

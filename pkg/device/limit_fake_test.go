//go:build linux

package device

import (
	"bytes"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestParseLimits(t *testing.T) {
	t.Parallel()
	for text, want := range map[string][]Limit{
		"":                        {},
		"8:0 1":                   {{Weight, 8, 0, 1}},
		"default 100\n8:16 300\n": {{Weight, 8, 16, 300}},
		"259:1048575 18446744073709551614\n7:0\t0\n": {{Weight, 259, 1<<20 - 1, math.MaxUint64 - 1}, {Weight, 7, 0, 0}},
	} {
		got, err := parseLimits(Weight, []byte(text))
		require.NoError(t, err, text)
		require.Equal(t, want, got, text)
	}
	for _, text := range []string{
		"8:0", "8 1", "8:0 max", "8:0 -1", "8:0 18446744073709551616", "4294967296:0 1", "8:4294967296 1", "8:0:0 1", ":0 1", "8: 1",
		"8:0 1 2", "8:0 1\n\n", "x", "\x00",
	} {
		_, err := parseLimits(Weight, []byte(text))
		require.ErrorContains(t, err, "entry ", text)
	}
	_, err := parseLimits(ReadBPS, []byte("default 100\n"))
	require.Error(t, err)
}

// What is read and written again reads the same.
func FuzzParseLimits(f *testing.F) {
	f.Add("default 100\n8:0 300\n")
	f.Add("259:1048575 18446744073709551614\n7:0 0\n")
	f.Fuzz(func(t *testing.T, text string) {
		for _, kind := range []LimitKind{ReadBPS, Weight} {
			limits, err := parseLimits(kind, []byte(text))
			if err != nil {
				continue
			}
			var lines []byte
			for _, limit := range limits {
				lines = append(lines, limit.line(cfqWeights)...)
			}
			again, err := parseLimits(kind, lines)
			require.NoError(t, err)
			require.Equal(t, limits, again)
			require.LessOrEqual(t, len(limits), bytes.Count([]byte(text), []byte("\n"))+1)
		}
	})
}

// fakeIOCgroup has files that just keep what is written, and a sysfs with a disk, a partition and a char device.
func fakeIOCgroup(t *testing.T, scheduler string, files ...string) *IOCgroup {
	t.Helper()
	dir, sys := t.TempDir(), t.TempDir()
	for _, name := range files {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), nil, 0o600))
	}
	for _, path := range []string{"dev/block", "dev/char", "devices/pci/block/sda/queue", "devices/pci/block/sda/sda1/partition"} {
		require.NoError(t, os.MkdirAll(filepath.Join(sys, path), 0o755))
	}
	require.NoError(t, os.WriteFile(sys+"/devices/pci/block/sda/dev", []byte("8:0\n"), 0o600))
	require.NoError(t, os.WriteFile(sys+"/devices/pci/block/sda/queue/scheduler", []byte(scheduler), 0o600))
	for link, target := range map[string]string{
		"block/8:0": "pci/block/sda", "block/8:1": "pci/block/sda/sda1", "char/1:3": "virtual/mem/null",
	} {
		require.NoError(t, os.MkdirAll(filepath.Join(sys, "devices", target), 0o755))
		require.NoError(t, os.Symlink("../../devices/"+target, filepath.Join(sys, "dev", link)))
	}
	f, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	require.NoError(t, err)
	t.Cleanup(func() { f.Close() })
	return &IOCgroup{f, sys}
}

func TestDisksRefused(t *testing.T) {
	t.Parallel()
	c := fakeIOCgroup(t, "none\n")
	for disk, want := range map[diskID]string{
		{8, 1}: "readBps 5 of disk sda1 (8:1): it is a partition; limit the whole disk, 8:0",
		{1, 3}: "it is a char device",
		{8, 2}: "the host has no such disk",
	} {
		_, err := c.Plan([]Limit{{ReadBPS, disk.major, disk.minor, 5}})
		require.ErrorContains(t, err, want)
	}
	c.sys += "/missing"
	_, err := c.Plan([]Limit{{ReadBPS, 8, 0, 5}})
	require.ErrorIs(t, err, fs.ErrNotExist)
}

func TestSchedulers(t *testing.T) {
	t.Parallel()
	const bfq, cfq = bfqWeights, cfqWeights
	for name, test := range map[string]struct {
		scheduler string
		files     []string
		want      string // part of the error
	}{
		"fits bfq":      {"none [bfq]\n", []string{bfq}, ""},
		"fits cfq":      {"noop [cfq] deadline\n", []string{cfq}, ""},
		"bfq first":     {"[bfq]\n", []string{cfq, bfq}, ""},
		"unfit":         {"[none] bfq\n", []string{bfq}, "is none, which knows no weights; choose bfq first: echo bfq >"},
		"unfit for cfq": {"noop [deadline] cfq\n", []string{cfq}, "echo cfq > /sys/block/sda/queue/scheduler"},
		"no file yet":   {"[mq-deadline] none\n", nil, "echo bfq > /sys/block/sda/queue/scheduler"}, // it loads the module
		"no file":       {"[bfq] none\n", nil, "the kernel does not have blkioWeight"},
		"no choice":     {"none\n", []string{bfq}, "it has no I/O scheduler, so that it can have no weight"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := fakeIOCgroup(t, test.scheduler, test.files...)
			changes, err := c.Plan([]Limit{{Weight, 8, 0, 500}})
			if test.want != "" {
				require.ErrorContains(t, err, "I/O limit blkioWeight 500 of disk sda (8:0): ")
				require.ErrorContains(t, err, test.want)
				return
			}
			require.NoError(t, err)
			require.NoError(t, c.Set(changes))
			limits, err := c.Limits()
			require.ErrorIs(t, err, fs.ErrNotExist, "no throttling")
			require.Empty(t, limits)
		})
	}
}

// What the kernel has afterwards counts, not that it took the write.
func TestReadBack(t *testing.T) {
	t.Parallel()
	c := fakeIOCgroup(t, "[cfq]\n", "blkio.throttle.read_bps_device", cfqWeights)
	change := LimitChange{Limit: Limit{ReadBPS, 8, 0, 300}}
	require.NoError(t, c.Set([]LimitChange{change}))
	change.Before = 200
	require.NoError(t, c.Reset([]LimitChange{change}))
	limits, err := c.read(ReadBPS)
	require.NoError(t, err)
	require.Equal(t, []Limit{{ReadBPS, 8, 0, 200}}, limits)
	other := change
	other.Value = 400
	require.ErrorContains(t, c.Set([]LimitChange{change, other}), "readBps 300 of disk sda (8:0): the kernel has 400 afterwards")

	require.NoError(t, os.Remove(c.dir.Name()+"/"+cfqWeights))
	require.NoError(t, os.Symlink("/dev/null", c.dir.Name()+"/"+cfqWeights))
	require.ErrorIs(t, c.Set([]LimitChange{{Limit: Limit{Weight, 8, 0, 300}}}), unix.ELOOP)
	require.ErrorIs(t, c.Set([]LimitChange{{Limit: Limit{WriteBPS, 8, 0, 300}}}), fs.ErrNotExist)
	require.NoFileExists(t, c.dir.Name()+"/blkio.throttle.write_bps_device", "nothing is created")
}

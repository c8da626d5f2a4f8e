//go:build linux

package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"isula.org/syscontainer-hooks/test/harness"
)

// members are those of a record, for what type record does not have.
type members map[string]any

func (m members) String() string {
	text, err := json.Marshal(m)
	if err != nil {
		panic(err) // strings and numbers only
	}
	return string(text)
}

// limit is an entry of one of a record's lists of I/O limits.
type limit struct {
	Major uint32 `json:"major"`
	Minor uint32 `json:"minor"`
	Path  string `json:"path"`
	Value string `json:"value"`
}

// disk is a loop device of the test's own that the container has, with one limit.
type disk struct {
	list, file string // in the record, in the cgroup
	value      int    // of the limit, about a second's worth of what is measured
	how        string // read or write
	block      int    // bytes
	count      int
	unit       int // how many of what is limited a block is

	host, path string // of the node
	number     string
}

const (
	diskSize = 8 << 20
	throttle = "blkio.throttle."

	large, small = 64 << 10, 4 << 10 // blocks
)

// limitKinds are the limits that show in the time that something takes.
var limitKinds = []disk{
	{list: "readBps", file: throttle + "read_bps_device", value: 4 << 20, how: "read", block: large, count: 64, unit: large},
	{list: "writeBps", file: throttle + "write_bps_device", value: 4 << 20, how: "write", block: large, count: 64, unit: large},
	{list: "readIops", file: throttle + "read_iops_device", value: 100, how: "read", block: small, count: 100, unit: 1},
	{list: "writeIops", file: throttle + "write_iops_device", value: 100, how: "write", block: small, count: 100, unit: 1},
}

// newDisks makes a disk for each of these limits.
func newDisks(t *testing.T, kinds []disk) []disk {
	t.Helper()
	if err := harness.LoopDevices(); err != nil {
		harness.Skip(t, err.Error())
	}
	var disks []disk
	for _, d := range kinds {
		d.host, d.path = harness.NewLoop(t, "", diskSize), "/dev/t"+d.list
		d.number = numberOf(t, d.host)
		withScheduler(t, d.host, "none") // whatever the device's last user has left
		disks = append(disks, d)
	}
	return disks
}

func numberOf(t *testing.T, node string) string {
	t.Helper()
	var st unix.Stat_t
	require.NoError(t, unix.Stat(node, &st))
	return fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
}

// devices and limits are the record of the disks. The numbers are those of before a reboot.
func devices(disks []disk) members {
	var entries []entry
	for _, d := range disks {
		entries = append(entries, entry{
			Type: "b", Major: 8, Minor: 77, PathOnHost: d.host, PathInContainer: d.path, CgroupPermissions: "rw",
		})
	}
	return members{"deviceToAdd": entries}
}

func limits(disks []disk) members {
	record := devices(disks)
	for _, d := range disks {
		record[d.list] = []limit{{8, 77, d.host, strconv.Itoa(d.value)}}
	}
	return record
}

// rates measures the disks in the container, all at once.
func rates(t *testing.T, c *harness.Container, disks []disk) []float64 {
	t.Helper()
	results := make([]harness.Result, len(disks))
	var done sync.WaitGroup
	for i, d := range disks {
		done.Go(func() { results[i] = c.TryExec("direct", d.how, d.path, strconv.Itoa(d.block), strconv.Itoa(d.count)) })
	}
	done.Wait()
	measured := make([]float64, len(disks))
	for i, d := range disks {
		require.NoError(t, results[i].Err(), d.list)
		took, err := strconv.Atoi(strings.TrimSpace(results[i].Stdout))
		require.NoError(t, err)
		measured[i] = float64(d.count*3/4*d.unit) / float64(took) * 1e6 // the first quarter is not in the time
	}
	return measured
}

// checkLimitFiles expects no other limit in the container's cgroup.
func checkLimitFiles(t *testing.T, c *harness.Container, disks []disk) {
	t.Helper()
	for _, d := range disks {
		require.Equal(t, []string{fmt.Sprintf("%s %d", d.number, d.value)}, c.CgroupFile("blkio", d.file), d.list)
	}
}

// TestLimits: a disk is slower by what the record says, after each start.
func TestLimits(t *testing.T) {
	each(t, oneStage, func(t *testing.T, cfg harness.Config) {
		disks := newDisks(t, limitKinds)
		c := harness.New(t, cfg)
		before := c.Left()
		c.WriteRecord(devices(disks).String())
		c.Start()
		for _, d := range disks {
			require.Empty(t, c.CgroupFile("blkio", d.file))
		}
		free := rates(t, c, disks)
		c.Stop()
		require.Equal(t, before, c.Left())

		c.WriteRecord(limits(disks).String())
		for range 2 {
			c.Start()
			checkLimitFiles(t, c, disks)
			checkRates(t, c, disks, free)
			c.Stop()
			require.Equal(t, before, c.Left())
		}
	})
}

// checkRates expects the rates of the limits. One that is lower for once is the machine's, which may be busy.
func checkRates(t *testing.T, c *harness.Container, disks []disk, free []float64) {
	t.Helper()
	const tries = 5
	for try := 1; ; try++ {
		var slow []string
		for i, rate := range rates(t, c, disks) {
			d := disks[i]
			t.Logf("%s %d: %.0f, without a limit %.0f", d.list, d.value, rate, free[i])
			require.Less(t, rate, 1.25*float64(d.value), d.list)
			require.Greater(t, free[i], 4*rate, d.list)
			if rate < 0.75*float64(d.value) {
				slow = append(slow, d.list)
			}
		}
		if slow == nil {
			return
		}
		require.Less(t, try, tries, "always too slow: %v", slow)
	}
}

// withScheduler chooses the disk's I/O scheduler, and skips the test where the kernel does not have it.
func withScheduler(t *testing.T, host, name string) {
	t.Helper()
	file := "/sys/block/" + filepath.Base(host) + "/queue/scheduler"
	list, err := os.ReadFile(file)
	require.NoError(t, err)
	_, rest, _ := strings.Cut(string(list), "[")
	own, _, _ := strings.Cut(rest, "]")
	if err := os.WriteFile(file, []byte(name), 0); err != nil {
		harness.Skip(t, "needs the I/O scheduler "+name+": "+err.Error())
	}
	t.Cleanup(func() { require.NoError(t, os.WriteFile(file, []byte(own), 0)) })
}

// TestWeight: a weight is set where the disk's scheduler knows weights, and where not, the container does not start.
func TestWeight(t *testing.T) {
	each(t, oneStage, func(t *testing.T, cfg harness.Config) {
		disks := newDisks(t, []disk{{list: "blkioWeight", value: 300}})
		c := harness.New(t, cfg)
		before := c.Left()
		c.WriteRecord(limits(disks).String())
		withScheduler(t, disks[0].host, "none")
		refusedStart(t, c, cfg, disks[0].number, "scheduler", "bfq")
		require.Equal(t, before, c.Left())

		withScheduler(t, disks[0].host, "bfq")
		for range 2 {
			c.Start()
			require.Equal(t, []string{"default 100", disks[0].number + " 300"}, c.CgroupFile("blkio", "blkio.bfq.weight_device"))
			c.Stop()
			require.Equal(t, before, c.Left())
		}
	})
}

// refusedStart expects that the container does not start, and that the hook says so with its id and these words.
func refusedStart(t *testing.T, c *harness.Container, cfg harness.Config, words ...string) {
	t.Helper()
	started := c.TryStart()
	require.NotZero(t, started.Code)
	logged(t, c, append(words, c.ID)...)
	if cfg.Runtime.Name == "runc" { // crun drops what a hook prints
		for _, word := range words {
			require.Contains(t, started.Stderr, word)
		}
	}
}

// renumbered has members that only a newer version knows. LINK is a path that leads to another disk after each reboot.
const renumbered = `{
	"future": {"list": [1, {"deep": null}], "text": "\u00e9"},
	"deviceToAdd": [
		{"Type": "b", "Minor": MINOR, "Major": MAJOR, "PathOnHost": "LINK", "PathInContainer": "/dev/tlink",
			"CgroupPermissions": "rw", "Parent": "", "since": "2031"},
		{"Type": "c", "Minor": 5, "Major": 1, "PathOnHost": "/dev/zero", "PathInContainer": "/dev/tzero",
			"CgroupPermissions": "r", "Parent": "", "since": "2032"}
	],
	"readIops": [{"major": MAJOR, "minor": MINOR, "path": "LINK", "value": "1001", "since": 2033}],
	"writeIops": [{"major": MAJOR, "minor": MINOR, "path": "LINK", "value": "1002"}],
	"readBps": [
		{"major": 7, "minor": OTHER, "path": "/dev/loopOTHER", "value": "1003"},
		{"major": MAJOR, "minor": MINOR, "path": "LINK", "value": "1004"}
	],
	"writeBps": [{"major": MAJOR, "minor": MINOR, "path": "LINK", "value": "1005"}]
}`

// TestRenumbered: the record has the numbers of an earlier boot. After a start it has those of now, and all
// else in it is as it was.
func TestRenumbered(t *testing.T) {
	each(t, allStages, func(t *testing.T, cfg harness.Config) {
		disks := newDisks(t, make([]disk, 3))
		other := strings.TrimPrefix(disks[2].number, "7:")
		link := filepath.Join(harness.TempDir(t), "by-id")
		record := func(number string) string {
			major, minor, _ := strings.Cut(number, ":")
			return strings.NewReplacer("LINK", link, "MAJOR", major, "MINOR", minor, "OTHER", other).Replace(renumbered)
		}
		c := harness.New(t, cfg)
		before := c.Left()
		c.WriteRecord(record("8:77"))
		for _, d := range disks[:2] {
			_ = os.Remove(link)
			require.NoError(t, os.Symlink(d.host, link))
			c.Start()
			saved, err := os.ReadFile(c.Record())
			require.NoError(t, err)
			require.JSONEq(t, record(d.number), string(saved))
			require.Contains(t, c.AllowedDevices(), "b "+d.number+" rw")
			require.Equal(t, "b "+d.number, strings.Join(strings.Fields(c.Exec("stat", "/dev/tlink"))[:2], " "))
			for file, want := range map[string][]string{
				"read_iops": {d.number + " 1001"}, "write_iops": {d.number + " 1002"}, "write_bps": {d.number + " 1005"},
				"read_bps": {disks[2].number + " 1003", d.number + " 1004"},
			} {
				require.ElementsMatch(t, want, c.CgroupFile("blkio", throttle+file+"_device"), file)
			}
			c.Stop()
			require.Equal(t, before, c.Left())
		}
	})
}

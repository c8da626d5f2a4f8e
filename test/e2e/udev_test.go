//go:build linux

package e2e

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"isula.org/syscontainer-hooks/test/harness"
)

const (
	wholeDisk = "/dev/zram0"    // the one kind of disk that needs no hardware
	diskPath  = "/dev/disk-7_a" // of its node in the container

	// udevRule is the line of that disk for a container whose id begins with this SHORTID.
	udevRule = `KERNEL=="zram0*",ACTION=="add|remove", ENV{DEVTYPE}=="partition", SUBSYSTEM=="block", ` +
		`RUN{program}+="/lib/udev/syscontainer-tools_wrapper $env{ACTION} SHORTID $name /dev/disk-7_a zram0", ` +
		`DEVPATH=="*/zram0/*"` + "\n"

	rulesHead = "## written by somebody\n##\n\n"

	// othersRules are lines that are nobody's, of syscontainer-tools, and of a container whose id looks alike. The last one has
	// no end.
	othersRules = `KERNEL=="zram0*",ACTION=="add|remove", ENV{DEVTYPE}=="partition", SUBSYSTEM=="block", ` +
		`RUN{program}+="/lib/udev/syscontainer-tools_wrapper $env{ACTION} 0badcafe $name /dev/disk-7_a zram0"` + "\n" +
		"# note\r\n\tKERNEL==\"sd?\", \\\n  NAME=\"%k\xff\"\n\n" +
		`KERNEL=="sda*",ACTION=="add|remove", ENV{DEVTYPE}=="partition", SUBSYSTEM=="block", ` +
		`RUN{program}+="/lib/udev/syscontainer-tools_wrapper $env{ACTION} hooktest $name /dev/disk-7_a sda"` + "\n" +
		`KERNEL=="sdz*"`
)

// withRules gives the test's host a rules file, "" for none, to the end of the test.
func withRules(t *testing.T, text string) {
	t.Helper()
	dir := filepath.Dir(harness.RulesFile)
	require.NoError(t, os.MkdirAll(dir, 0o755))
	require.NoFileExists(t, harness.RulesFile)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(harness.RulesFile)) })
	if text != "" {
		require.NoError(t, os.WriteFile(harness.RulesFile, []byte(text), 0o600))
	}
}

func rules(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(harness.RulesFile)
	require.NoError(t, err)
	return string(text)
}

// ruledDisk is the record of the disk, with a loop device and a char device, which get no rule.
func ruledDisk(t *testing.T) members {
	t.Helper()
	requireDisk(t)
	return members{"deviceToAdd": []entry{
		{Type: "b", Major: 8, Minor: 77, PathOnHost: wholeDisk, PathInContainer: diskPath, CgroupPermissions: "r"},
		{Type: "b", Major: 8, Minor: 78, PathOnHost: harness.LoopDevice(t, ""), PathInContainer: "/dev/tloop", CgroupPermissions: "r"},
		{Type: "c", Major: 1, Minor: 5, PathOnHost: "/dev/zero", PathInContainer: "/dev/tzero", CgroupPermissions: "r"},
	}}
}

func requireDisk(t *testing.T) {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(wholeDisk, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFBLK {
		harness.Skip(t, fmt.Sprintf("needs the disk %s: %v", wholeDisk, err))
	}
}

// fullID is as engines make them: 64 digits, of which a rule has 8.
func fullID() (id, short string) {
	short = fmt.Sprintf("%08x", os.Getpid())
	return short + strings.Repeat("0123456789abcd", 4), short
}

// TestRules: a start writes the rule of the disk into the file, a stop takes it out, and whatever else is in there stays.
func TestRules(t *testing.T) {
	for _, file := range []struct{ name, before, head, rest string }{
		{"rules of others", rulesHead + othersRules, rulesHead, othersRules},
		{"only others", othersRules, "", othersRules},
		{"no file", "", "", ""},
	} {
		t.Run(file.name, func(t *testing.T) {
			each(t, allStages, func(t *testing.T, cfg harness.Config) {
				withRules(t, file.before)
				id, short := fullID()
				cfg.ID = id
				c := harness.New(t, cfg)
				before := c.Left()
				c.Start()
				c.Stop()
				require.Equal(t, before, c.Left())

				c.WriteRecord(ruledDisk(t).String())
				want := file.head + strings.ReplaceAll(udevRule, "SHORTID", short) + file.rest
				for range 2 {
					c.Start()
					if file.before == "" {
						require.Equal(t, []string{strings.TrimSuffix(want, "\n")}, harness.UdevRules(t))
						require.True(t, strings.HasPrefix(rules(t), "##"), rules(t))
					} else {
						require.Equal(t, want, rules(t))
					}
					require.Equal(t, harness.Result{}, c.RunHook("prestart", c.State("running", c.Pid)), "a second time")
					require.Equal(t, 1, strings.Count(rules(t), short), "each rule once")
					c.Stop()
					require.Equal(t, before, c.Left())
					if file.before != "" {
						require.Equal(t, file.before, rules(t))
					}
				}
			})
		})
	}
}

// TestNoRules: without a whole disk there is no rule, and no file for it.
func TestNoRules(t *testing.T) {
	each(t, oneStage, func(t *testing.T, cfg harness.Config) {
		withRules(t, "")
		c := harness.New(t, cfg)
		r := newResources(t, c.RootID())
		c.WriteRecord(r.record.String())
		c.Start()
		r.checkNodes(t, c)
		require.NoFileExists(t, harness.RulesFile)
		c.Stop()
		require.NoFileExists(t, harness.RulesFile)
	})
}

// TestRulesOfLostDisk: the rules of a container go at its stop, also those that were added while it ran, and when
// its record is gone.
func TestRulesOfLostDisk(t *testing.T) {
	each(t, oneStage, func(t *testing.T, cfg harness.Config) {
		withRules(t, rulesHead+othersRules)
		id, short := fullID()
		cfg.ID = id
		c := harness.New(t, cfg)
		c.WriteRecord(ruledDisk(t).String())
		c.Start()
		added := strings.ReplaceAll(strings.ReplaceAll(udevRule, "SHORTID", short), "zram0", "sdq")
		require.NoError(t, os.WriteFile(harness.RulesFile, []byte(rules(t)+"\n"+added), 0o600))
		require.NoError(t, os.Remove(c.Record()))
		c.Stop()
		require.Equal(t, rulesHead+othersRules+"\n", rules(t))
	})
}

// TestReload: udevd is told of each change of the rules, where it runs, and of nothing else.
func TestReload(t *testing.T) {
	const told = "/run/rules-told"
	each(t, oneStage, func(t *testing.T, cfg harness.Config) {
		withRules(t, "")
		udevadm := harness.FakeProgram(t, "udevadm", "cat "+harness.RulesFile+" >"+told)
		t.Cleanup(func() { require.NoError(t, os.RemoveAll(told)) })
		// reloaded expects that udevd is told, and how often it then reads a rule of the container.
		reloaded := func(c *harness.Container, rules int) {
			calls := udevadm.Calls()
			require.Equal(t, []string{"control --reload --timeout=4"}, slices.Compact(calls))
			text, err := os.ReadFile(told)
			require.NoError(t, err)
			require.Equal(t, rules, strings.Count(string(text), c.ID))
		}
		c := harness.New(t, cfg)
		c.WriteRecord(ruledDisk(t).String())
		c.Start()
		c.Stop()
		require.Empty(t, udevadm.Calls(), "there is no udevd")

		runUdevd(t)
		c.Start()
		reloaded(c, 1)
		require.Equal(t, harness.Result{}, c.RunHook("prestart", c.State("running", c.Pid)))
		require.Empty(t, udevadm.Calls(), "nothing changes")
		c.Stop()
		reloaded(c, 0)

		c.WriteRecord(`{}`)
		c.Start()
		c.Stop()
		require.Empty(t, udevadm.Calls(), "nothing changes")
	})
}

// runUdevd makes what programs know a running udevd by.
func runUdevd(t *testing.T) {
	t.Helper()
	require.NoError(t, os.MkdirAll("/run/udev", 0o755))
	t.Cleanup(func() { require.NoError(t, os.RemoveAll("/run/udev")) })
	socket, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: "/run/udev/control", Net: "unixpacket"})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, socket.Close()) })
}

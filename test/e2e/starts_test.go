//go:build linux

package e2e

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"isula.org/syscontainer-hooks/internal/testutil"
	"isula.org/syscontainer-hooks/test/harness"
)

// starters are as many as start and stop at once.
const starters = 50

// hooksAtOnce runs the hook for all of these containers at the same time, each at its stage.
func hooksAtOnce(t *testing.T, hook string, stages map[*testutil.Container]string) time.Duration {
	t.Helper()
	var done sync.WaitGroup
	begin := time.Now()
	for c, stage := range stages {
		done.Go(func() {
			got := harness.Command(c.State(), hook, "-state", stage, "-log", filepath.Join(c.Bundle, "log"))
			if got != (harness.Result{}) {
				t.Errorf("%s of %s: %+v", stage, c.ID, got)
			}
		})
	}
	done.Wait()
	require.False(t, t.Failed())
	return time.Since(begin)
}

// ruleOf is the rule of the container, whose id is not one that is cut.
func ruleOf(c *testutil.Container) string {
	return strings.TrimSuffix(strings.ReplaceAll(udevRule, "SHORTID", c.ID), "\n")
}

// writeOwnRule is a live add or remove of syscontainer-tools: it takes the lock and writes into the file that is there.
func writeOwnRule(line string) error {
	lock, err := os.OpenFile("/run/syscontainer-tools/udevd_config_locker", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return err
	}
	text, err := os.ReadFile(harness.RulesFile)
	if err != nil {
		return err
	}
	without, there := strings.CutSuffix(string(text), line)
	if there {
		return os.WriteFile(harness.RulesFile, []byte(without), 0o600)
	}
	return os.WriteFile(harness.RulesFile, append(text, line...), 0o600)
}

// writeOwnRules does that until it is stopped, and then the file is without the rule.
func writeOwnRules(t *testing.T) (stop func()) {
	t.Helper()
	const line = "\n# of syscontainer-tools\n"
	end, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		var err error
		for n := 0; ; n++ {
			err = errors.Join(err, writeOwnRule(line))
			select {
			case <-end:
				if n%2 == 0 {
					err = errors.Join(err, writeOwnRule(line))
				}
				ended <- err
				return
			case <-time.After(2 * time.Millisecond):
			}
		}
	}()
	return func() {
		close(end)
		require.NoError(t, <-ended)
	}
}

// TestStartsAtOnce: no rule is lost or left when containers start and stop at the same time, and the other program
// writes into the file too.
func TestStartsAtOnce(t *testing.T) {
	testutil.RequireRoot(t)
	requireDisk(t)
	if !harness.V1Devices() {
		harness.Skip(t, "needs the devices controller of cgroup v1")
	}
	tools, err := harness.BuiltTools()
	require.NoError(t, err)
	udevadm := harness.FakeProgram(t, "udevadm", "exit 0")
	runUdevd(t)
	withRules(t, rulesHead+othersRules)
	require.NoError(t, os.MkdirAll("/run/syscontainer-tools", 0o755))
	record := members{"deviceToAdd": []entry{
		{Type: "b", Major: 8, Minor: 77, PathOnHost: wholeDisk, PathInContainer: diskPath, CgroupPermissions: "r"},
	}}.String()
	all := make([]*testutil.Container, starters)
	for i := range all {
		all[i] = testutil.NewContainer(t, i%2 == 1)
		require.NoError(t, os.WriteFile(filepath.Join(all[i].Bundle, "device_hook.json"), []byte(record), 0o600))
	}
	others := harness.UdevRules(t)
	running := map[*testutil.Container]bool{}
	// round starts those of the containers, and stops those.
	round := func(name string, start, stop []*testutil.Container) {
		stages := map[*testutil.Container]string{}
		for _, c := range stop {
			stages[c], running[c] = "poststop", false
		}
		for _, c := range start {
			stages[c], running[c] = "prestart", true
		}
		stopWriting := writeOwnRules(t)
		took := hooksAtOnce(t, tools.Hook, stages)
		stopWriting()
		want := slices.Clone(others)
		for _, c := range all {
			if running[c] {
				want = append(want, ruleOf(c))
			}
		}
		require.ElementsMatch(t, want, harness.UdevRules(t), name)
		require.True(t, strings.HasPrefix(rules(t), rulesHead), name)
		require.True(t, strings.HasSuffix(rules(t), othersRules), name)
		require.GreaterOrEqual(t, len(udevadm.Calls()), len(stages), name)
		t.Logf("%s: %s", name, took)
	}
	half := len(all) / 2
	round("all start", all, nil)
	round("all stop", nil, all)
	require.Equal(t, rulesHead+othersRules, rules(t))
	round("one half starts", all[:half], nil)
	round("one half starts, the other stops", all[half:], all[:half])
	round("and back", all[:half], all[half:])
	round("the last stop", nil, all[:half])
	require.Equal(t, rulesHead+othersRules, rules(t))
	for _, pattern := range []string{"/run/syscontainer-tools/*/test-*", "/.sharedpath/*/test-*"} {
		left, err := filepath.Glob(pattern)
		require.NoError(t, err)
		require.Empty(t, left)
	}
}

//go:build linux

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"isula.org/syscontainer-hooks/test/harness"
)

// running is all that a second prestart could change.
type running struct {
	mounts, hostMounts string   // as the kernel prints them: with the numbers that a new mount gets
	inodes             []string // of nodes and mount points
	allowed            []string
	record, journal    string
}

func observe(t *testing.T, c *harness.Container, r *resources) running {
	t.Helper()
	read := func(path string) string {
		text, err := os.ReadFile(path)
		require.NoError(t, err)
		return string(text)
	}
	o := running{
		mounts:     read(fmt.Sprintf("/proc/%d/mountinfo", c.Pid)),
		hostMounts: read("/proc/thread-self/mountinfo"),
		allowed:    c.AllowedDevices(),
		record:     read(c.Record()),
		journal:    read("/run/syscontainer-tools/hooks/" + c.ID),
	}
	paths := []string{c.Record()}
	for _, d := range r.record.DeviceToAdd {
		paths = append(paths, c.HostPath(d.PathInContainer))
	}
	for _, b := range r.record.BindToAdd {
		paths = append(paths, c.HostPath(strings.Split(b, ":")[1]))
	}
	for _, path := range paths {
		var st unix.Stat_t
		require.NoError(t, unix.Lstat(path, &st))
		o.inodes = append(o.inodes, fmt.Sprintf("%s %d:%d %o %d %d", path, st.Dev, st.Ino, st.Mode, st.Uid, st.Ctim.Nano()))
	}
	return o
}

// TestSecondPrestart: prestart is also called for a container that already has everything, as under poststart.
func TestSecondPrestart(t *testing.T) {
	each(t, oneStage, func(t *testing.T, cfg harness.Config) {
		c := harness.New(t, cfg)
		r := newResources(t, c.RootID())
		c.WriteRecord(r.record.String())
		before := c.Left()
		c.Start()
		want := observe(t, c, r)
		for _, stage := range []string{"prestart", "createRuntime", "poststart", "prestart"} {
			require.Equal(t, harness.Result{}, c.RunHook(stage, c.State("running", c.Pid)), stage)
			require.Equal(t, want, observe(t, c, r), stage)
		}
		r.check(t, c)
		c.Stop()
		require.Equal(t, before, c.Left())
		require.Equal(t, harness.Result{}, c.RunHook("poststop", c.State("stopped", -1)), "poststop may be called again")
		require.Equal(t, before, c.Left())
	})
}

// TestPoststopNeverRan: the next start works from what the last one left, and nothing stacks up.
func TestPoststopNeverRan(t *testing.T) {
	each(t, oneStage, func(t *testing.T, cfg harness.Config) {
		cfg.NoPoststop = true
		c := harness.New(t, cfg)
		r := newResources(t, c.RootID())
		before := c.Left()
		c.WriteRecord(r.record.String())
		var transfer []string
		for i := range 3 {
			c.Start()
			r.check(t, c)
			mounts := transferMounts(t, c)
			if i == 0 {
				transfer = mounts
			}
			require.Equal(t, transfer, mounts)
			c.Stop()
		}
		require.Equal(t, harness.Result{}, c.RunHook("poststop", c.State("stopped", -1)))
		require.Equal(t, before, c.Left())
	})
}

// transferMounts are the container's mount points in the transfer directories, one for each mount.
func transferMounts(t *testing.T, c *harness.Container) []string {
	t.Helper()
	var points []string
	for _, m := range harness.HostMounts(t) {
		if strings.HasPrefix(m.Point, "/.sharedpath/") && strings.Contains(m.Point, c.ID) {
			points = append(points, m.Point)
		}
	}
	require.NotEmpty(t, points)
	slices.Sort(points)
	return points
}

// TestPoststopKilled: poststop is killed after a while that grows with each round, so it is hit at different steps.
func TestPoststopKilled(t *testing.T) {
	each(t, oneStage, func(t *testing.T, cfg harness.Config) {
		cfg.NoPoststop = true
		c := harness.New(t, cfg)
		r := newResources(t, c.RootID())
		before := c.Left()
		c.WriteRecord(r.record.String())
		for round := range 8 {
			c.Start()
			r.checkContent(t, c)
			r.checkMounts(t, c)
			c.Stop()
			kill(t, c.HookArgs("poststop"), c.State("stopped", -1), round)
		}
		c.Start()
		r.check(t, c)
		c.Stop()
		require.Equal(t, harness.Result{}, c.RunHook("poststop", c.State("stopped", -1)))
		require.Equal(t, before, c.Left())
	})
}

// kill runs a hook and kills it after this many milliseconds.
func kill(t *testing.T, args []string, state string, after int) {
	t.Helper()
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdin = strings.NewReader(state)
	require.NoError(t, cmd.Start())
	time.Sleep(time.Duration(after) * time.Millisecond)
	require.NoError(t, cmd.Process.Kill())
	err := cmd.Wait() // killed, or just done
	var exit *exec.ExitError
	if err != nil {
		require.ErrorAs(t, err, &exit)
		require.Equal(t, -1, exit.ExitCode(), "neither killed nor done: %v", err)
	}
}

// TestRunningContainer: the hook runs after pivot_root, as lxc 5 calls it, with the state that lcr gives it.
func TestRunningContainer(t *testing.T) {
	each(t, noStage, func(t *testing.T, cfg harness.Config) {
		c := harness.New(t, cfg)
		r := newResources(t, c.RootID())
		c.WriteRecord(r.record.String())
		before := c.Left()
		state := func(pid int) string {
			return fmt.Sprintf(`{"ociVersion":"","id":"%s","pid":%d,"root":"%s","bundle":"%s"}`, c.ID, pid, c.Rootfs, c.Bundle)
		}
		for range 2 {
			c.Start()
			require.Empty(t, harness.At(c.Mounts(), "/.sharedpath"))
			require.Equal(t, harness.Result{}, c.RunHook("prestart", state(c.Pid)))
			r.check(t, c)
			r.checkLiveAdd(t, c)
			want := observe(t, c, r)
			require.Equal(t, harness.Result{}, c.RunHook("prestart", state(c.Pid)))
			require.Equal(t, want, observe(t, c, r))
			c.Stop()
			require.Equal(t, harness.Result{}, c.RunHook("poststop", state(-1)))
			require.Equal(t, before, c.Left())
		}
	})
}

// TestPoststopWhileRunning: poststop may come when the container's processes still have its mounts.
func TestPoststopWhileRunning(t *testing.T) {
	each(t, oneStage, func(t *testing.T, cfg harness.Config) {
		c := harness.New(t, cfg)
		r := newResources(t, c.RootID())
		c.WriteRecord(r.record.String())
		before := c.Left()
		c.Start()
		require.Equal(t, harness.Result{}, c.RunHook("poststop", c.State("stopped", -1)))
		c.Stop()
		require.Equal(t, before, c.Left())
	})
}

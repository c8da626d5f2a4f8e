//go:build linux

package e2e

import (
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"isula.org/syscontainer-hooks/internal/testutil"
	"isula.org/syscontainer-hooks/test/harness"
)

// TestNetworkRestart: a container that never had a record, the same with interfaces and routes, and two restarts.
func TestNetworkRestart(t *testing.T) {
	testutil.StartOVS(t)
	each(t, allStages, func(t *testing.T, cfg harness.Config) {
		n := newNetwork(t, "veth", true)
		c := harness.New(t, withNetwork(cfg))
		before := n.trace(t, c)

		c.Start()
		checkPin(t, c)
		require.Equal(t, []string{"lo"}, linkNames(c.Links()))
		c.Stop()
		require.Equal(t, before, n.trace(t, c))

		c.WriteRecord(n.record.String())
		for range 3 {
			c.Start()
			n.check(t, c)
			c.Stop()
			require.Equal(t, before, n.trace(t, c))
		}
	})
}

// TestNetworkSecondPrestart: prestart is also called for a container that already has everything, as under poststart.
func TestNetworkSecondPrestart(t *testing.T) {
	testutil.StartOVS(t)
	each(t, oneStage, func(t *testing.T, cfg harness.Config) {
		n := newNetwork(t, "veth", true)
		c := harness.New(t, withNetwork(cfg))
		c.WriteRecord(n.record.String())
		before := n.trace(t, c)
		c.Start()
		inside, host := c.Links(), harness.HostLinks(t)
		for _, stage := range []string{"prestart", "createRuntime", "poststart"} {
			require.Equal(t, harness.Result{}, c.RunHook(stage, c.State("running", c.Pid)), stage)
			require.Equal(t, inside, c.Links(), stage)
			require.Equal(t, host, harness.HostLinks(t), stage)
		}
		n.check(t, c)
		c.Stop()
		require.Equal(t, before, n.trace(t, c))
		require.Equal(t, harness.Result{}, c.RunHook("poststop", c.State("stopped", -1)), "poststop may be called again")
		require.Equal(t, before, n.trace(t, c))
	})
}

// TestNetworkHookKilled: prestart and then poststop are killed after a while that grows with each round. Nothing is stranded,
// and the next start puts things right.
func TestNetworkHookKilled(t *testing.T) {
	testutil.StartOVS(t)
	each(t, noStage, func(t *testing.T, cfg harness.Config) {
		n := newNetwork(t, "veth", true)
		c := harness.New(t, withNetwork(cfg))
		before := n.trace(t, c)
		c.WriteRecord(n.record.String())
		for round := range 10 {
			c.Start()
			kill(t, c.HookArgs("prestart"), c.State("creating", c.Pid), 15*round)
			c.Stop()
			kill(t, c.HookArgs("poststop"), c.State("stopped", -1), 10*round)
		}
		c.Start()
		require.Equal(t, harness.Result{}, c.RunHook("prestart", c.State("creating", c.Pid)))
		n.check(t, c)
		c.Stop()
		require.Equal(t, harness.Result{}, c.RunHook("poststop", c.State("stopped", -1)))
		require.Equal(t, before, n.trace(t, c))
	})
}

// TestNetworkRunningContainer: the hook runs after pivot_root, as lxc 5 calls it.
func TestNetworkRunningContainer(t *testing.T) {
	testutil.StartOVS(t)
	each(t, noStage, func(t *testing.T, cfg harness.Config) {
		n := newNetwork(t, "macvlan", true)
		c := harness.New(t, withNetwork(cfg))
		c.WriteRecord(n.record.String())
		before := n.trace(t, c)
		for range 2 {
			c.Start()
			require.Equal(t, harness.Result{}, c.RunHook("prestart", c.State("running", c.Pid)))
			n.check(t, c)
			c.Stop()
			require.Equal(t, harness.Result{}, c.RunHook("poststop", c.State("stopped", -1)))
			require.Equal(t, before, n.trace(t, c))
		}
	})
}

// TestNetworkOfHost: a container may have the host's network namespace. There is nothing to pin then, and nothing to add.
func TestNetworkOfHost(t *testing.T) {
	each(t, oneStage, func(t *testing.T, cfg harness.Config) {
		n := newNetwork(t, "veth", false)
		cfg = inHostNetwork(cfg)
		c := harness.New(t, cfg)
		before := n.trace(t, c)
		c.Start()
		require.ErrorIs(t, unix.Access(pinOf(c), unix.F_OK), unix.ENOENT)
		checkBase(t, c)
		c.Stop()
		require.Equal(t, before, n.trace(t, c))

		c.WriteRecord(n.record.String())
		started := c.TryStart()
		require.NotZero(t, started.Code)
		logged(t, c, c.ID, "network namespace of the host")
		require.Equal(t, before, n.trace(t, c))
	})
}

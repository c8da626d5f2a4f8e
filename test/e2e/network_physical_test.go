//go:build linux

package e2e

import (
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"

	"isula.org/syscontainer-hooks/test/harness"
	"isula.org/syscontainer-hooks/test/payload/nettool"
)

// eachKind calls the test for each kind of interface that can be moved.
func eachKind(t *testing.T, stages []string, test func(t *testing.T, cfg harness.Config, n *network)) {
	for _, kind := range []string{"veth", "macvlan", "ifb"} {
		t.Run(kind, func(t *testing.T) {
			each(t, stages, func(t *testing.T, cfg harness.Config) {
				test(t, withNetwork(cfg), newNetwork(t, kind, false))
			})
		})
	}
}

// TestPhysicalComesHome whatever the container has done to it and put in its place.
func TestPhysicalComesHome(t *testing.T) {
	eachKind(t, oneStage, func(t *testing.T, cfg harness.Config, n *network) {
		c := harness.New(t, cfg)
		before := n.trace(t, c)
		c.WriteRecord(n.record.String())
		for _, acts := range [][][]string{
			{{"rename", "ext0", "mine0"}},
			{{"add", "veth", physical}, {"add", "ifb", linuxBridge}},
			{{"rename", "ext0", "mine0"}, {"add", "veth", "ext0"}},
			{{"rename", "ext0", "mine0"}, {"add", "veth", "ext0"}, {"mac", "ext0", physicalMAC}},
			{{"rename", "ext0", physical}, {"add", "veth", "ext0"}},
			{{"rename", "eth0", "ext1"}, {"mac", "ext1", physicalMAC}, {"mac", "eth1", "02:00:00:92:00:02"}},
			{{"alias", "ext0", "evil"}, {"altname", "ext0", linuxBridge}, {"mtu", "ext0", "900"}},
			{{"rename", "eth0", "eth9"}, {"rename", "ext0", "eth0"}, {"rename", "eth9", "ext0"}},
		} {
			c.Start()
			n.checkLinks(t, c)
			for _, act := range acts {
				c.Exec(act...)
			}
			c.Stop()
			require.Equal(t, before, n.trace(t, c), acts)
		}
	})
}

// TestPhysicalAfterDeath: the container is killed, poststop never comes, and the next start has the interface again.
func TestPhysicalAfterDeath(t *testing.T) {
	eachKind(t, oneStage, func(t *testing.T, cfg harness.Config, n *network) {
		cfg.NoPoststop = true
		c := harness.New(t, cfg)
		before := n.trace(t, c)
		c.WriteRecord(n.record.String())
		c.Start()
		for _, acts := range [][]string{{"mtu", "ext0", "900"}, {"rename", "ext0", "mine0"}} {
			n.check(t, c)
			c.Exec(acts...)
			c.Forget() // with SIGKILL
			c.Start()
		}
		n.check(t, c)
		c.Forget()
		require.Equal(t, harness.Result{}, c.RunHook("poststop", c.State("stopped", -1)))
		require.Equal(t, before, n.trace(t, c))
	})
}

// TestPhysicalNameTaken: while the container had it, the interface's name on the host has become another's.
func TestPhysicalNameTaken(t *testing.T) {
	eachKind(t, oneStage, func(t *testing.T, cfg harness.Config, n *network) {
		c := harness.New(t, cfg)
		before := n.trace(t, c)
		c.WriteRecord(n.record.String())
		c.Start()
		require.NoError(t, nettool.Add("bridge", physical))
		other := hostLink(t, physical)
		c.Stop() // and that is no error
		logged(t, c, physical)
		require.Equal(t, other, hostLink(t, physical))

		var home []nettool.Link
		for _, link := range harness.HostLinks(t) {
			if link.MAC == physicalMAC {
				home = append(home, link)
			}
		}
		require.Len(t, home, 1, "the interface is on the host")
		require.Equal(t, []any{n.kind, 1450, false}, []any{home[0].Kind, home[0].MTU, home[0].Up}, "down until it has its name")

		// What an operator does: after that all is as it was.
		require.NoError(t, nettool.Change(physical, netlink.LinkDel))
		require.NoError(t, nettool.Rename(home[0].Name, physical))
		require.Equal(t, harness.Result{}, c.RunHook("poststop", c.State("stopped", -1)))
		after := n.trace(t, c)
		forgetNames(before.Links)
		forgetNames(after.Links)
		require.Equal(t, before, after)
		c.Start()
		n.check(t, c)
		c.Stop()
	})
}

// TestPhysicalVanished: the interface is unplugged while the container has it, and the rest is removed all the same.
func TestPhysicalVanished(t *testing.T) {
	each(t, oneStage, func(t *testing.T, cfg harness.Config) {
		n := newNetwork(t, "veth", false)
		c := harness.New(t, withNetwork(cfg))
		before := n.trace(t, c)
		c.WriteRecord(n.record.String())
		c.Start()
		require.NoError(t, nettool.Change(upstream, netlink.LinkDel)) // and with it the other end
		require.Empty(t, findLink(c.Links(), "ext0").Name)
		c.Stop()
		gone := func(link nettool.Link) bool { return link.Name == physical || link.Name == upstream }
		before.Links = slices.DeleteFunc(before.Links, gone)
		before.Routes = slices.DeleteFunc(before.Routes, func(line string) bool { return strings.Contains(line, upstream) })
		require.Equal(t, before, n.trace(t, c))
	})
}

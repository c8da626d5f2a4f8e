//go:build linux

package e2e

import (
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"isula.org/syscontainer-hooks/internal/testutil"
	"isula.org/syscontainer-hooks/test/harness"
	"isula.org/syscontainer-hooks/test/payload/nettool"
)

// failingNetworks are records that cannot be restored, and what the message says besides the container. What is wrong is in the
// second interface or behind, so that there is something before it.
var failingNetworks = []struct {
	name   string
	change func(r *record)
	says   []string
}{
	{"no such bridge", second(func(i *nic) { i.Bridge = "hooknone0" }), []string{"eth1", "hooknone0", "exist"}},
	{"not a bridge", second(func(i *nic) { i.Bridge = "hookifb0" }), []string{"eth1", "hookifb0", "no bridge"}},
	{"address", second(func(i *nic) { i.IP = "10.90.0.3" }), []string{"networkInterfaces[1]", "10.90.0.3"}},
	{"address taken by another", second(func(i *nic) { i.IP = "10.90.0.2/24" }), []string{"eth1", "address"}},
	{"mac", second(func(i *nic) { i.MAC = "01:00:5e:00:00:01" }), []string{"eth1", "01:00:5e:00:00:01"}},
	{"mtu", second(func(i *nic) { i.MTU = 67 }), []string{"networkInterfaces[1]", "67"}},
	{"name on the host", second(func(i *nic) { i.HostNicName = "hookifb0" }), []string{"eth1", "hookifb0", "exists"}},
	{"name on the host, alternative", second(func(i *nic) { i.HostNicName = "hookalt1" }), []string{"eth1", "hookalt1", "exists"}},
	{"name in the container", second(func(i *nic) { i.CtrNicName = "taken0" }), []string{"taken0", "exists"}},
	{"name of two", second(func(i *nic) { i.CtrNicName = "eth0" }), []string{"eth0"}},
	{"no such interface of the host", third(func(i *nic) { i.HostNicName = "hooknone0" }), []string{"ext0", "hooknone0"}},
	{"default route's", third(func(i *nic) { i.HostNicName = "hookdef0" }), []string{"ext0", "hookdef0", "default route"}},
	{"bridge port", third(func(i *nic) { i.HostNicName = "hookport0" }), []string{"ext0", "hookport0", "bridge"}},
	{"gateway out of reach", func(r *record) {
		r.NetworkRoute = append(r.NetworkRoute, route{Dest: "203.0.114.0/24", Gw: "172.31.0.1", Dev: "eth0"})
	}, []string{"203.0.114.0/24", "172.31.0.1", "unreachable"}},
	{"two default routes", func(r *record) {
		r.NetworkRoute = append(r.NetworkRoute, route{Dest: "default", Gw: "10.91.0.1"})
	}, []string{"default"}},
}

func second(change func(*nic)) func(*record) {
	return func(r *record) { change(&r.NetworkInterfaces[1]) }
}

func third(change func(*nic)) func(*record) {
	return func(r *record) { change(&r.NetworkInterfaces[2]) }
}

// addObstacles makes what the failing records run into.
func addObstacles(t *testing.T) {
	t.Helper()
	for _, name := range []string{"hookifb0", "hookdef0", "hookport0"} {
		addHostLink(t, "ifb", name)
	}
	require.NoError(t, nettool.Change("hookifb0", func(link netlink.Link) error { return netlink.LinkAddAltName(link, "hookalt1") }))
	require.NoError(t, nettool.AddAddress("hookdef0", "10.93.0.2/24"))
	require.NoError(t, nettool.Change("hookdef0", func(link netlink.Link) error {
		return netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: []byte{10, 93, 0, 1}})
	}))
	bridge, err := netlink.LinkByName(linuxBridge)
	require.NoError(t, err)
	require.NoError(t, nettool.Change("hookport0", func(link netlink.Link) error { return netlink.LinkSetMaster(link, bridge) }))
}

// TestNetworkFailure: exit status 1, one line on stderr, and links, addresses, routes, namespaces and ports as before.
func TestNetworkFailure(t *testing.T) {
	testutil.StartOVS(t)
	each(t, noStage, func(t *testing.T, cfg harness.Config) {
		n := newNetwork(t, "veth", true)
		addObstacles(t)
		c := harness.New(t, withNetwork(cfg))
		c.Start()
		c.Exec("add", "ifb", "taken0")
		type state struct {
			trace
			host, inside []nettool.Link // with their numbers
			routes       string
		}
		look := func() state {
			return state{n.trace(t, c), harness.HostLinks(t), c.Links(), c.Exec("routes")}
		}
		before := look()
		for _, f := range failingNetworks {
			r := record{NetworkInterfaces: slices.Clone(n.record.NetworkInterfaces), NetworkRoute: slices.Clone(n.record.NetworkRoute)}
			f.change(&r)
			c.WriteRecord(r.String())
			got := c.RunHook("prestart", c.State("running", c.Pid))
			require.Equal(t, 1, got.Code, "%s: %+v", f.name, got)
			require.Empty(t, got.Stdout, f.name)
			require.Equal(t, 1, strings.Count(got.Stderr, "\n"), "%s: %s", f.name, got.Stderr)
			for _, word := range append([]string{c.ID}, f.says...) {
				require.Contains(t, got.Stderr, word, f.name)
			}
			require.Equal(t, before, look(), f.name)
			require.Equal(t, harness.Result{}, c.RunHook("poststop", c.State("stopped", -1)), f.name)
			require.Equal(t, before, look(), f.name)
		}
		c.Stop()
		require.ErrorIs(t, unix.Access(pinOf(c), unix.F_OK), unix.ENOENT)
	})
}

// TestNetworkFailedStart: the container does not start, leaves nothing, and starts when the record is put right.
func TestNetworkFailedStart(t *testing.T) {
	testutil.StartOVS(t)
	each(t, oneStage, func(t *testing.T, cfg harness.Config) {
		n := newNetwork(t, "veth", true)
		c := harness.New(t, withNetwork(cfg))
		before := n.trace(t, c)
		wrong := n.record
		wrong.NetworkRoute = append(slices.Clone(wrong.NetworkRoute), route{Dest: "203.0.114.0/24", Gw: "172.31.0.1"})
		for range 2 {
			c.WriteRecord(wrong.String())
			require.NotZero(t, c.TryStart().Code)
			logged(t, c, c.ID, "203.0.114.0/24")
			require.Equal(t, before, n.trace(t, c))
			c.WriteRecord(n.record.String())
			c.Start()
			n.check(t, c)
			c.Stop()
			require.Equal(t, before, n.trace(t, c))
		}
	})
}

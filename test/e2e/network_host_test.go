//go:build linux

package e2e

import (
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"

	"isula.org/syscontainer-hooks/internal/testutil"
	"isula.org/syscontainer-hooks/test/harness"
	"isula.org/syscontainer-hooks/test/payload/nettool"
)

// nic and route are entries of the record, with the members in the order in which syscontainer-tools writes them.
type nic struct {
	IP          string `json:"Ip"`
	MAC         string `json:"Mac"`
	MTU         int    `json:"Mtu"`
	Qlen        int    `json:"Qlen"`
	Type        string `json:"Type"`
	Bridge      string `json:"Bridge"`
	HostNicName string `json:"HostNicName"`
	CtrNicName  string `json:"CtrNicName"`
}

type route struct {
	Dest string `json:"dest"`
	Src  string `json:"src"`
	Gw   string `json:"gw"`
	Dev  string `json:"dev"`
}

// Names and addresses of the host's network.
const (
	linuxBridge = "hookbr0"
	ovsBridge   = "hookovs0"
	upstream    = "hookup0"  // what the physical interface is linked to
	physical    = "hookphy0" // the interface that moves into a container
	physicalMAC = "02:00:00:00:ee:01"
)

// behind are addresses of the host that a container reaches only by its routes: the one for all else, IPv4, IPv6, and through
// the physical interface.
var behind = []string{"198.18.0.1", "192.0.2.1", "2001:db8:5::1", "203.0.113.1"}

// network is the host's: a Linux bridge, an Open vSwitch one, an interface to give away; and the record for a container that
// has something of each.
type network struct {
	kind   string // of the physical interface
	ovs    bool
	record record
}

// newNetwork makes it on the test's host. The Open vSwitch bridge is there when the test has the switch running.
func newNetwork(t *testing.T, kind string, ovs bool) *network {
	t.Helper()
	n := &network{kind: kind, ovs: ovs}
	addHostLink(t, "bridge", linuxBridge)
	addresses := map[string][]string{linuxBridge: {"10.90.0.1/24", "fd90::1/64"}}
	if ovs {
		testutil.AddOVSBridge(t, ovsBridge)
		testutil.OVS(t, "set", "Bridge", ovsBridge, "other_config:hwaddr=\"02:00:00:00:0b:0b\"") // else it is that of a port
		require.NoError(t, nettool.Change(ovsBridge, netlink.LinkSetUp))
		addresses[ovsBridge] = []string{"10.91.0.1/24", "fd91::1/64"}
	}
	addPhysical(t, kind)
	if kind != "ifb" { // which drops all that it is to send
		addresses[upstream] = []string{"10.92.0.1/24"}
	}
	for name, list := range addresses {
		for _, address := range list {
			require.NoError(t, nettool.AddAddress(name, address))
		}
	}
	for _, address := range behind {
		a := netip.MustParseAddr(address)
		require.NoError(t, nettool.AddAddress("lo", netip.PrefixFrom(a, a.BitLen()).String()))
		t.Cleanup(func() {
			require.NoError(t, nettool.Change("lo", func(lo netlink.Link) error {
				return netlink.AddrDel(lo, &netlink.Addr{IPNet: netlink.NewIPNet(a.AsSlice())})
			}))
		})
	}
	n.record = n.newRecord()
	return n
}

func (n *network) newRecord() record {
	r := record{
		NetworkInterfaces: []nic{
			{"10.90.0.2/24", "02:00:00:90:00:02", 1400, 500, "veth", linuxBridge, "hookv0", "eth0"},
			{"fd90::2/64", "", 1500, 1000, "", linuxBridge, "", "eth1"},
			{"10.92.0.2/24", "02:00:00:92:00:02", 1300, 700, "eth", "", physical, "ext0"},
		},
		NetworkRoute: []route{
			{Gw: "10.90.0.1"},
			{Dest: "192.0.2.0/24", Gw: "10.90.0.1", Dev: "eth0"},
			{Dest: "198.51.100.0/24", Dev: "gone0"}, // its interface was removed from the record, the route was not
			{Dest: "2001:db8:5::/48", Gw: "fd90::1", Dev: "eth1"},
			{Dest: "203.0.113.0/24", Src: "10.92.0.2", Gw: "10.92.0.1", Dev: "ext0"},
		},
	}
	if n.kind == "ifb" { // whose address stays as it was made
		r.NetworkInterfaces[2].MAC = ""
	}
	if n.ovs {
		r.NetworkInterfaces = append(
			r.NetworkInterfaces,
			nic{"10.91.0.2/24", "02:00:00:91:00:02", 1500, 1000, "veth", ovsBridge, "hookv2", "eth2"},
			nic{"fd91::2/64", "", 1500, 1000, "veth", ovsBridge, "", "eth3"},
		)
	}
	return r
}

// addPhysical makes the interface that moves, with all that it has to have again when it is back. What real hardware there is
// belongs to the machine; these are as good, since the hook asks no interface for its driver.
func addPhysical(t *testing.T, kind string) {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.TxQLen = physical, 1450, 900
	attrs.HardwareAddr = net.HardwareAddr{2, 0, 0, 0, 0xee, 1}
	var link netlink.Link
	switch kind {
	case "veth":
		link = &netlink.Veth{LinkAttrs: attrs, PeerName: upstream}
	case "ifb":
		link = &netlink.Ifb{LinkAttrs: attrs}
	case "macvlan":
		addHostLink(t, "ifb", "hooklow0")
		lower, err := netlink.LinkByName("hooklow0")
		require.NoError(t, err)
		attrs.ParentIndex = lower.Attrs().Index
		link = &netlink.Macvlan{LinkAttrs: attrs, Mode: netlink.MACVLAN_MODE_BRIDGE}
		other := netlink.NewLinkAttrs()
		other.Name, other.ParentIndex = upstream, attrs.ParentIndex
		require.NoError(t, nettool.AddLink(&netlink.Macvlan{LinkAttrs: other, Mode: netlink.MACVLAN_MODE_BRIDGE}))
		removeAtEnd(t, upstream)
	}
	require.NoError(t, nettool.AddLink(link))
	removeAtEnd(t, physical)
	if kind == "veth" {
		require.NoError(t, nettool.Change(upstream, netlink.LinkSetUp))
	}
	require.NoError(t, nettool.Change(physical, func(link netlink.Link) error { return netlink.LinkSetAlias(link, "the uplink") }))
	require.NoError(t, nettool.Change(physical, func(link netlink.Link) error { return netlink.LinkAddAltName(link, "hookalt0") }))
}

func addHostLink(t *testing.T, kind, name string) {
	t.Helper()
	require.NoError(t, nettool.Add(kind, name))
	removeAtEnd(t, name)
}

// removeAtEnd removes the interface at the end of the test, if it is there.
func removeAtEnd(t *testing.T, name string) {
	t.Helper()
	t.Cleanup(func() {
		if findLink(harness.HostLinks(t), name).Name != "" {
			require.NoError(t, nettool.Change(name, netlink.LinkDel))
		}
	})
}

// trace is what a container leaves on the host, and in the switch's database.
type trace struct {
	harness.Left
	ports []string
}

func (n *network) trace(t *testing.T, c *harness.Container) trace {
	t.Helper()
	return trace{Left: c.Left(), ports: n.ports(t)}
}

func (n *network) ports(t *testing.T) []string {
	t.Helper()
	if !n.ovs {
		return nil
	}
	return strings.Fields(testutil.OVS(t, "list-ports", ovsBridge) + testutil.OVS(t, "--columns=name", "--bare", "list", "Port"))
}

// hostLink is the host's interface of this name.
func hostLink(t *testing.T, name string) nettool.Link {
	t.Helper()
	link := findLink(harness.HostLinks(t), name)
	require.NotEmpty(t, link.Name, "no interface %s on the host", name)
	return link
}

func findLink(links []nettool.Link, name string) nettool.Link {
	for _, link := range links {
		if link.Name == name {
			return link
		}
	}
	return nettool.Link{}
}

//go:build linux

package network

import (
	"errors"
	"fmt"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"isula.org/syscontainer-hooks/internal/testutil"
)

// standIns make interfaces that can be given to a container, all of them called p0.
var standIns = map[string][]string{
	"ifb": {"ip link add p0 address 02:00:00:00:01:01 type ifb"},
	"macvlan": {
		"ip link add low0 type veth peer name low1", "ip link set low0 up", "ip link set low1 up",
		"ip link add p0 address 02:00:00:00:01:01 link low0 type macvlan mode bridge",
	},
	"veth": {"ip link add p0 address 02:00:00:00:01:01 type veth peer name low1", "ip link set low1 up"},
}

// newPhysical makes one that has everything an interface can have.
func newPhysical(t *testing.T, kind string) {
	t.Helper()
	testutil.RequireRoot(t)
	t.Cleanup(func() {
		handle, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		require.NoError(t, err)
		defer handle.Close()
		for _, name := range []string{"p0", "low0", "low1"} {
			if link, err := linkNamed(handle, name); err == nil && link != nil {
				err := handle.LinkDel(link)
				if !errors.Is(err, unix.ENODEV) { // a veth end may just be going with the namespace of the other
					require.NoError(t, err)
				}
			}
		}
		all, err := handle.LinkList()
		require.NoError(t, err)
		require.Len(t, all, 1, "left on the host: %v", links(t, handle))
		_, err = os.Lstat(transitDir + "/c1")
		require.ErrorIs(t, err, os.ErrNotExist)
	})
	hostLines(t, standIns[kind]...)
	hostLines(t, "ip link set p0 mtu 1400 txqueuelen 77 alias uplink group 9", "ip link property add dev p0 altname uplink0",
		"ip link set p0 up", "ip addr add 192.0.2.9/24 dev p0")
}

func hostLines(t *testing.T, lines ...string) {
	t.Helper()
	for _, line := range lines {
		host(t, "/bin/sh", "-ec", line)
	}
}

func insideLines(t *testing.T, n *Network, lines ...string) {
	t.Helper()
	for _, line := range lines {
		inside(t, n, "/bin/sh", "-ec", line)
	}
}

var physical = Interface{
	Kind: Physical, Name: "c0", HostName: "p0", MTU: 1300, QueueLen: 55, Address: "10.1.0.2/24",
}

func planned(t *testing.T, n *Network) []Attachment {
	t.Helper()
	attachments, err := n.Plan(t.Context(), []Interface{physical})
	require.NoError(t, err)
	return attachments
}

func attached(t *testing.T, n *Network) []Attachment {
	t.Helper()
	attachments := planned(t, n)
	require.NoError(t, n.Attach(t.Context(), attachments))
	require.NotZero(t, attachments[0].Index)
	return attachments
}

// facts is all that an interface is, but for its index.
func facts(t *testing.T, handle *netlink.Handle, name string) string {
	t.Helper()
	link, err := linkNamed(handle, name)
	require.NoError(t, err)
	if link == nil {
		return ""
	}
	a := link.Attrs()
	return fmt.Sprintf("%s %s %s mtu %d qlen %d flags %#x alias %q altnames %v group %d lower %d master %d promisc %d",
		a.Name, link.Type(), a.HardwareAddr, a.MTU, a.TxQLen, a.RawFlags&(settableFlags|unix.IFF_UP), a.Alias, a.AltNames,
		a.Group, lowerOf(link), a.MasterIndex, a.Promisc) + fmt.Sprint(" limits ", limitsOf(link))
}

func requireHome(t *testing.T, n *Network, before string) {
	t.Helper()
	require.Equal(t, before, facts(t, n.host, "p0"))
	require.NotContains(t, host(t, "/sbin/ip", "addr", "show", "dev", "p0"), "10.1.0.")
	require.NotContains(t, host(t, "/sbin/tc", "qdisc", "show", "dev", "p0"), "tbf")
	require.NotContains(t, host(t, "/sbin/tc", "qdisc", "show", "dev", "p0"), "clsact")
	require.NotRegexp(t, "protodown|DORMANT", host(t, "/sbin/ip", "-d", "link", "show", "dev", "p0"))
	_, err := os.Lstat(transitDir + "/c1")
	require.ErrorIs(t, err, os.ErrNotExist)
}

// What a container may do to its interface; whatever it is, the interface comes home as what it was, and nothing else does.
var abuses = map[string][]string{
	"nothing": {},
	"renamed": {"ip link set c0 down name x"},
	"renamed and replaced by an equal": {
		"ip link set c0 down name x", "ip link add c0 type ifb", "ip link add p0 address 02:00:00:00:01:01 type ifb",
	},
	"renamed and replaced by a veth": {
		"ip link set c0 down name x", "ip link add c0 address 02:00:00:00:01:01 type veth peer name p0",
		"ip link set p0 address 02:00:00:00:02:02",
	},
	"renamed and replaced by a macvlan": {
		"ip link set c0 down name x", "ip link add low2 type veth peer name low3",
		"ip link add c0 link low2 address 02:00:00:00:01:01 type macvlan",
		"ip link add p0 link low2 address 02:00:00:00:02:02 type macvlan",
	},
	"renamed and replaced by a tap": {
		"ip link set c0 down name x", "ip tuntap add c0 mode tap", "ip link set c0 address 02:00:00:00:01:01",
		"ip tuntap add p0 mode tun",
	},
	"alias and alternative names": {
		"ip link set c0 alias 'x$(id)'",
		"ip link property add dev c0 altname br0 altname a-name-that-is-longer-than-others altname p0",
	},
	"changed": {
		"ip link set c0 address 02:00:00:00:09:09 || ip link show type ifb | grep c0", "ip link set c0 mtu 900 txqueuelen 9 group 3",
		"ip link set c0 promisc on allmulticast on multicast off",
		"ip link set c0 arp on", "ip link set c0 arp off", "ip addr add 10.1.0.9/24 dev c0",
	},
	"queueing": {
		"tc qdisc add dev c0 root tbf rate 1mbit burst 10kb latency 50ms", "tc qdisc add dev c0 clsact",
	},
	"limits": {
		"ip link set c0 gso_max_size 2000 gso_max_segs 1", "ip link set c0 gro_max_size 2000", "ip link set c0 mode dormant",
		"ip link set c0 protodown on protodown_reason 3 on || ip link show c0",
	},
	"in a bridge":    {"ip link add name br1 type bridge", "ip link set c0 master br1"},
	"with an upper":  {"ip link add name up1 link c0 type macvlan", "ip link set up1 up"},
	"renamed to lo":  {"ip link set lo down name l", "ip link set c0 down name lo"},
	"also called lo": {"ip link set lo down name l", "ip link property add dev c0 altname lo"},
}

func TestPhysicalComesHome(t *testing.T) {
	for kind := range standIns {
		for abuse, lines := range abuses {
			t.Run(kind+"/"+abuse, func(t *testing.T) {
				newPhysical(t, kind)
				n := newNetwork(t, "c1")
				before := facts(t, n.host, "p0")
				i, mac := physical, "02:00:00:00:01:01"
				if kind != "ifb" { // cannot change it
					mac = "02:00:00:00:02:02"
					i.MAC = mac
				}
				attachments, err := n.Plan(t.Context(), []Interface{i})
				require.NoError(t, err)
				require.NoError(t, n.Attach(t.Context(), attachments))
				require.Empty(t, facts(t, n.host, "p0"))
				got := facts(t, n.inside, "c0")
				require.Contains(t, got, "c0 "+kind+" "+mac+" mtu 1300 qlen 55 flags")
				require.Contains(t, got, `alias "" altnames [] group 0`)
				require.Contains(t, inside(t, n, "/sbin/ip", "-o", "addr", "show", "dev", "c0"), "10.1.0.2/24")
				require.Contains(t, inside(t, n, "/sbin/ip", "-o", "link", "show", "dev", "c0"), ",UP")
				insideLines(t, n, lines...)
				planted := len(links(t, n.inside)) - 1
				require.NoError(t, n.Detach(t.Context(), attachments))
				requireHome(t, n, before)
				if abuse == "with an upper" && kind != "macvlan" { // which passes it on to what it sits on itself
					planted--
				}
				require.Len(t, links(t, n.inside), planted)
				require.NoError(t, n.Detach(t.Context(), attachments)) // again
				requireHome(t, n, before)
			})
		}
	}
}

// An IPv6 address is usable at once.
func TestPhysicalIPv6(t *testing.T) {
	newPhysical(t, "veth")
	n := newNetwork(t, "c1")
	six := physical
	six.Address = "2001:db8::2/64"
	attachments, err := n.Plan(t.Context(), []Interface{six})
	require.NoError(t, err)
	require.NoError(t, n.Attach(t.Context(), attachments))
	require.NotContains(t, inside(t, n, "/sbin/ip", "-6", "-o", "addr", "show", "scope", "global"), "tentative")
	require.NoError(t, n.Detach(t.Context(), attachments))
}

func TestPhysicalRefused(t *testing.T) {
	for name, row := range map[string]struct {
		lines []string
		name  string
		want  string
	}{
		"missing":          {nil, "nic9", "the host has no interface nic9"},
		"alternative name": {nil, "uplink0", "uplink0 is an alternative name of the host's interface p0"},
		"default route":    {[]string{"ip route add default via 192.0.2.1"}, "p0", "the host's default route goes through p0"},
		"default route of another table": {
			[]string{"ip route add default via 192.0.2.1 table 7000"}, "p0", "the host's default route goes through p0",
		},
		"one of several default routes": {
			[]string{"ip addr add 198.51.100.1/24 dev low1", "ip route add default nexthop via 198.51.100.9 nexthop via 192.0.2.1"},
			"p0", "the host's default route goes through p0",
		},
		"next hop object": {
			[]string{"ip nexthop add id 1 via 192.0.2.1 dev p0", "ip route add default nhid 1"},
			"p0", "the host's default route goes through p0",
		},
		"ipv6 default route": {
			[]string{"ip -6 addr add 2001:db8::1/64 dev p0 nodad", "ip -6 route add default via 2001:db8::9"},
			"p0", "the host's default route goes through p0",
		},
		"one of several ipv6 default routes": {
			[]string{
				"ip -6 addr add 2001:db8::1/64 dev p0 nodad", "ip -6 addr add 2001:db8:1::1/64 dev low1 nodad",
				"ip -6 route add default nexthop via 2001:db8:1::9 nexthop via 2001:db8::9",
			}, "p0", "the host's default route goes through p0",
		},
		"bridge port": {
			[]string{"ip link add name br1 type bridge", "ip link set p0 master br1"},
			"p0", "p0 belongs to the bridge br1; remove it from there first",
		},
		"bridge": {[]string{"ip link add name br1 type bridge"}, "br1", "br1 is a bridge, which cannot be moved"},
		"lower":  {[]string{"ip link add name mv1 link p0 type macvlan"}, "p0", "the host's macvlan mv1 sits on p0; remove it first"},
	} {
		t.Run(name, func(t *testing.T) {
			newPhysical(t, "veth")
			t.Cleanup(func() { host(t, "/bin/sh", "-c", "ip link del br1; ip link del mv1; true") })
			hostLines(t, row.lines...)
			n := newNetwork(t, "c1")
			before := links(t, n.host)
			i := physical
			i.HostName = row.name
			_, err := n.Plan(t.Context(), []Interface{i})
			require.ErrorContains(t, err, "interface c0 (eth): "+row.want)
			require.Equal(t, before, links(t, n.host))
		})
	}
	loopback := &netlink.Device{LinkAttrs: netlink.LinkAttrs{Name: "l", RawFlags: unix.IFF_LOOPBACK}}
	require.ErrorContains(t, refuseType(loopback), "l is the loopback interface")
}

// A name that is taken in the container only after the plan: the interface is never there under another one.
func TestPhysicalNameTaken(t *testing.T) {
	for name, line := range map[string]string{
		"link": "ip link add c0 type ifb", "alternative name": "ip link property add dev lo altname c0",
	} {
		t.Run(name, func(t *testing.T) {
			newPhysical(t, "macvlan")
			n := newNetwork(t, "c1")
			before := facts(t, n.host, "p0")
			attachments := planned(t, n)
			insideLines(t, n, line)
			there := links(t, n.inside)
			err := n.Attach(t.Context(), attachments)
			require.ErrorIs(t, err, ErrExist)
			require.ErrorContains(t, err, "attach interface c0 (eth): move it to the container: c0: ")
			require.Equal(t, there, links(t, n.inside))
			require.NoError(t, n.Detach(t.Context(), attachments))
			requireHome(t, n, before)
			_, err = n.Plan(t.Context(), []Interface{physical})
			require.ErrorIs(t, err, ErrExist)
		})
	}
}

func TestPhysicalNameTakenAtHome(t *testing.T) {
	for name, lines := range map[string][2]string{
		"link":             {"ip link add p0 type ifb", "ip link del p0"},
		"alternative name": {"ip link property add dev low1 altname p0", "ip link property del dev low1 altname p0"},
	} {
		t.Run(name, func(t *testing.T) {
			newPhysical(t, "veth")
			n := newNetwork(t, "c1")
			before := facts(t, n.host, "p0")
			attachments := attached(t, n)
			hostLines(t, lines[0])
			for range 2 {
				err := n.Detach(t.Context(), attachments)
				require.ErrorIs(t, err, ErrExist)
				require.ErrorIs(t, err, ErrUnsettled)
				require.Regexp(t, `^bring home interface c0 \(eth\): .*on the host, p0: .*: it came home as p0-[0-9a-f]{4}; `, err.Error())
				require.Len(t, links(t, n.inside), 1)
			}
			hostLines(t, lines[1])
			require.NoError(t, n.Detach(t.Context(), attachments))
			requireHome(t, n, before)
		})
	}
}

// The container has removed the interface, and another one has its index.
func TestPhysicalVanished(t *testing.T) {
	newPhysical(t, "macvlan")
	n := newNetwork(t, "c1")
	attachments := attached(t, n)
	index := fmt.Sprint(attachments[0].Index)
	insideLines(t, n, "ip link del c0", "ip link add p0 index "+index+" address 02:00:00:00:01:01 type veth peer name c0",
		"ip link add low0 type veth peer name low1", "ip link set low0 address 02:00:00:00:01:01")
	there := links(t, n.inside)
	require.NoError(t, n.Detach(t.Context(), attachments))
	require.Equal(t, there, links(t, n.inside))
	insideLines(t, n, "ip link del p0", "ip link add c0 index "+index+" link low0 address 02:00:00:00:01:01 type macvlan")
	require.NoError(t, n.Detach(t.Context(), attachments))
	require.Contains(t, facts(t, n.inside, "c0"), "macvlan")
	require.Empty(t, facts(t, n.host, "p0"))
}

// What has no lower interface is told by its type.
func TestPhysicalVanishedDummy(t *testing.T) {
	newPhysical(t, "ifb")
	n := newNetwork(t, "c1")
	attachments := attached(t, n)
	insideLines(t, n, "ip link del c0",
		fmt.Sprintf("ip link add c0 index %d address 02:00:00:00:01:01 type bridge", attachments[0].Index))
	there := links(t, n.inside)
	require.NoError(t, n.Detach(t.Context(), attachments))
	attachments[0].Index = 0
	require.NoError(t, n.Detach(t.Context(), attachments))
	require.Equal(t, there, links(t, n.inside))
	require.Empty(t, facts(t, n.host, "p0"))
}

// The other end was moved away meanwhile.
func TestPhysicalPeerMoved(t *testing.T) {
	newPhysical(t, "veth")
	n, other := newNetwork(t, "c1"), newNetwork(t, "c2")
	attachments := attached(t, n)
	peer, err := linkNamed(n.host, "low1")
	require.NoError(t, err)
	require.NoError(t, n.host.LinkSetNsFd(peer, int(other.ns.Fd())))
	require.NoError(t, n.Detach(t.Context(), attachments))
	require.Contains(t, facts(t, n.host, "p0"), "veth 02:00:00:00:01:01 mtu 1400")
}

// An index that was not noted is no reason to leave the interface, and not one to take another.
func TestPhysicalIndexLost(t *testing.T) {
	for kind := range standIns {
		t.Run(kind, func(t *testing.T) {
			newPhysical(t, kind)
			n := newNetwork(t, "c1")
			before := facts(t, n.host, "p0")
			attachments := attached(t, n)
			attachments[0].Index = 0
			insideLines(t, n, "ip link add p0 address 02:00:00:00:01:01 type veth peer name q0", "ip link add q1 type ifb")
			require.NoError(t, n.Detach(t.Context(), attachments))
			requireHome(t, n, before)
			require.Len(t, links(t, n.inside), 4)
		})
	}
}

func TestPhysicalWithoutContainer(t *testing.T) {
	newPhysical(t, "macvlan")
	n := newNetwork(t, "c1")
	before := facts(t, n.host, "p0")
	attachments := planned(t, n)
	insideLines(t, n, "ip link add c0 type ifb")
	require.ErrorIs(t, n.Attach(t.Context(), attachments), ErrExist) // it is in transit now
	gone, err := Open("c1", nil)
	require.NoError(t, err)
	defer gone.Close()
	require.NoError(t, gone.Detach(t.Context(), attachments))
	requireHome(t, gone, before)
	hostLines(t, "ip link del p0")
	require.NoError(t, gone.Detach(t.Context(), attachments)) // it has gone with its namespace
}

// A macvlan keeps its connection, there and back.
func TestPhysicalTraffic(t *testing.T) {
	newPhysical(t, "macvlan")
	n, far := newNetwork(t, "c1"), newNetwork(t, "c2")
	peer, err := linkNamed(n.host, "low1")
	require.NoError(t, err)
	require.NoError(t, n.host.LinkSetNsFd(peer, int(far.ns.Fd())))
	insideLines(t, far, "ip addr add 10.1.0.1/24 dev low1", "ip link set low1 up")
	attachments := attached(t, n)
	insideLines(t, n, "ping -q -c 1 -w 10 10.1.0.1")
	require.NoError(t, n.Detach(t.Context(), attachments))
	hostLines(t, "ip addr add 10.1.0.3/24 dev p0", "ping -q -c 1 -w 10 10.1.0.1")
}

// A container that still runs does what it can to keep the interface: lo is the name that every namespace has.
func TestPhysicalRenamedMeanwhile(t *testing.T) {
	for range 10 {
		t.Run("", func(t *testing.T) {
			newPhysical(t, "veth")
			n := newNetwork(t, "c1")
			before := facts(t, n.host, "p0")
			attachments := attached(t, n)
			insideLines(t, n, "ip link set lo down name l")
			enemy, err := Open("c1", n.ns)
			require.NoError(t, err)
			defer enemy.Close()
			link := linkOf(attachments[0].Index)
			end := make(chan struct{})
			go func() {
				defer close(end)
				for err := error(nil); !errors.Is(err, unix.ENODEV); {
					_ = enemy.inside.LinkSetName(link, "lo")
					_ = enemy.inside.LinkSetUp(link)
					_ = enemy.inside.LinkSetName(link, "x")
					err = enemy.inside.LinkAddAltName(link, "lo")
				}
			}()
			require.NoError(t, n.Detach(t.Context(), attachments))
			<-end
			requireHome(t, n, before)
		})
	}
}

// Another program has brought the interface home, and the host uses it: it is not what it was, and is not to be.
func TestPhysicalUsedAtHome(t *testing.T) {
	newPhysical(t, "veth")
	n := newNetwork(t, "c1")
	attachments := attached(t, n)
	require.NoError(t, n.Detach(t.Context(), attachments))
	hostLines(t, "ip link set p0 down", "ip link set p0 address 02:00:00:00:05:05 mtu 1450 alias wan up",
		"ip addr add 203.0.113.2/24 dev p0", "ip addr add 2001:db8::2/64 dev p0 nodad",
		"ip route add default via 203.0.113.1", "ip -6 route add default via 2001:db8::1")
	link, err := linkNamed(n.host, "p0")
	require.NoError(t, err)
	program := xdpProgram(t)
	defer unix.Close(program)
	attachXDP(t, n.hostPlace(), link.Attrs().Index, program)
	show := func() string { return host(t, "/bin/sh", "-ec", "ip addr show dev p0; ip route; ip -6 route") }
	before := show()
	require.NoError(t, n.Detach(t.Context(), attachments))
	require.Equal(t, before, show())
	hostLines(t, "ip link set p0 down") // and this is one that a killed process has not set up yet
	require.NoError(t, n.Detach(t.Context(), attachments))
	require.Contains(t, facts(t, n.host, "p0"), "02:00:00:00:01:01 mtu 1400")
}

// It has its index again when that is free. The one in transit is for nobody to see.
func TestPhysicalIndex(t *testing.T) {
	for name, taken := range map[string]bool{"free": false, "taken": true} {
		t.Run(name, func(t *testing.T) {
			newPhysical(t, "ifb")
			n := newNetwork(t, "c1")
			attachments := attached(t, n)
			require.Less(t, attachments[0].Index, transitIndexes)
			was := attachments[0].Original.Index
			if taken {
				hostLines(t, fmt.Sprintf("ip link add low0 index %d type ifb", was))
			}
			require.NoError(t, n.Detach(t.Context(), attachments))
			link, err := linkNamed(n.host, "p0")
			require.NoError(t, err)
			require.Equal(t, taken, link.Attrs().Index != was)
			require.Less(t, link.Attrs().Index, transitIndexes)
		})
	}
}

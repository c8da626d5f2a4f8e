//go:build linux

package network

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
)

// What another program has moved in.
func TestFindPhysical(t *testing.T) {
	for name, row := range map[string]struct {
		kind  string
		lines []string
		want  string // its name in the container, "" for not found
	}{
		"macvlan":         {"macvlan", nil, "c0"},
		"macvlan renamed": {"macvlan", []string{"ip link set c0 name x"}, "x"},
		"macvlan and planted": {
			"macvlan", []string{"ip link set c0 name x", "ip link add c0 type ifb", "ip link add c1 type veth peer name c2"}, "x",
		},
		"ifb":          {"ifb", nil, ""},
		"veth":         {"veth", nil, "c0"},
		"veth renamed": {"veth", []string{"ip link set c0 name x"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			newPhysical(t, row.kind)
			n := newNetwork(t, "c1")
			before := facts(t, n.host, "p0")
			link, err := linkNamed(n.host, "p0")
			require.NoError(t, err)
			require.NoError(t, n.host.LinkSetName(link, "c0"))
			require.NoError(t, n.host.LinkSetNsFd(link, int(n.ns.Fd())))
			insideLines(t, n, row.lines...)
			a, err := n.findPhysical(physical)
			require.NoError(t, err)
			if row.want == "" {
				require.Nil(t, a)
				return
			}
			require.NotNil(t, a)
			moved, err := linkNamed(n.inside, row.want)
			require.NoError(t, err)
			require.Equal(t, moved.Attrs().Index, a.Index)
			none, err := n.findPhysical(physical, *a)
			require.NoError(t, err)
			require.Nil(t, none)
			require.NoError(t, n.Detach(t.Context(), []Attachment{*a}))
			got := facts(t, n.host, "p0")
			require.Equal(t, strings.Fields(before)[:7], strings.Fields(got)[:7])
			require.Contains(t, got, "altnames []")
		})
	}
}

// Hardware cannot be had in a namespace of the test's own; that it is told from all else can be tested.
func TestPhysicalHardware(t *testing.T) {
	mac := []byte{2, 0, 0, 0, 0, 7}
	card := func() *netlink.Device {
		return &netlink.Device{LinkAttrs: netlink.LinkAttrs{
			Index: 7, Name: "e0", EncapType: "ether", HardwareAddr: mac, PermHWAddr: mac, NetNsID: -1,
			ParentDev: "0000:00:03.0", ParentDevBus: "pci",
		}}
	}
	o := originalOf(card())
	require.True(t, o.isHardware())
	require.True(t, o.vanished())
	require.True(t, isFromHost(card(), -1))
	moved := card()
	moved.Index, moved.Name, moved.HardwareAddr, moved.MTU = 3, "dev3", []byte{2, 0, 0, 0, 0, 9}, 900
	require.True(t, o.fits(moved))
	for _, other := range []func(*netlink.Device) netlink.Link{
		func(d *netlink.Device) netlink.Link { d.PermHWAddr = []byte{2, 0, 0, 0, 0, 9}; return d },
		func(d *netlink.Device) netlink.Link { d.PermHWAddr = nil; return d },
		func(d *netlink.Device) netlink.Link { d.ParentDev = "0000:00:04.0"; return d },
		func(d *netlink.Device) netlink.Link { d.ParentIndex = 2; return d },
		func(d *netlink.Device) netlink.Link { return &netlink.Dummy{LinkAttrs: d.LinkAttrs} },
		func(d *netlink.Device) netlink.Link { return &netlink.Veth{LinkAttrs: d.LinkAttrs} },
	} {
		require.False(t, o.fits(other(card())))
	}
	vlan := func(id int) netlink.Link {
		return &netlink.Vlan{LinkAttrs: netlink.LinkAttrs{Index: 9, ParentIndex: 2, HardwareAddr: mac, NetNsID: -1}, VlanId: id}
	}
	require.True(t, originalOf(vlan(5)).fits(vlan(5)))
	require.False(t, originalOf(vlan(5)).fits(vlan(6)))
}

// Hardware that is in no namespace to be seen has not gone as long as the machine has it.
func TestPhysicalHidden(t *testing.T) {
	n := newNetwork(t, "c1")
	var device string
	for _, bus := range []string{"virtio", "pci"} {
		names, _ := os.ReadDir("/sys/bus/" + bus + "/devices")
		if i := slices.IndexFunc(names, func(e os.DirEntry) bool {
			return !(&Original{Device: bus + "/" + e.Name()}).vanished()
		}); i >= 0 {
			device = bus + "/" + names[i].Name()
		}
	}
	if device == "" {
		t.Skip("this machine has no network hardware")
	}
	a := Attachment{Interface: physical, Original: &Original{Type: "device", Device: device, PermanentMAC: "02:00:00:00:00:07"}}
	err := n.Detach(t.Context(), []Attachment{a})
	require.ErrorIs(t, err, ErrElsewhere)
	require.ErrorContains(t, err, device+" is neither in the container nor on the host")
	a.Original.Device = "pci/none"
	require.NoError(t, n.Detach(t.Context(), []Attachment{a}))
}

// What it sits on, or its other end, is neither on the host nor in the container. The host has another interface of that index.
func TestPhysicalLowerElsewhere(t *testing.T) {
	for kind, line := range map[string]string{
		"veth":    "ip link add low1 index %d type veth peer name p0 index 100 address 02:00:00:00:01:01",
		"macvlan": "ip link add low1 index %d type ifb; ip link add p0 index 100 address 02:00:00:00:01:01 link low1 type macvlan",
	} {
		t.Run(kind, func(t *testing.T) {
			n, router := newNetwork(t, "c1"), newNetwork(t, "c2")
			t.Cleanup(func() { host(t, "/bin/sh", "-c", "ip link del other0; ip link del p0; true") })
			hostLines(t, "ip link add other0 type ifb")
			other, err := linkNamed(n.host, "other0")
			require.NoError(t, err)
			insideLines(t, router, fmt.Sprintf(line, other.Attrs().Index))
			require.NoError(t, router.inside.LinkSetNsFd(linkOf(100), int(n.hostNS.Fd())))
			before := facts(t, n.host, "p0")
			for _, index := range []int{100, 0} {
				attachments := attached(t, n)
				if index == 0 { // it was not noted
					attachments[0].Index = 0
				}
				insideLines(t, n, "ip link set c0 down name x", "ip link add c0 address 02:00:00:00:01:01 type veth peer name p0")
				require.NoError(t, n.Detach(t.Context(), attachments))
				requireHome(t, n, before)
				require.Len(t, links(t, n.inside), 3)
				insideLines(t, n, "ip link del c0")
			}
		})
	}
}

// The other end is in the container, which could make such an interface itself.
func TestPhysicalPeerInside(t *testing.T) {
	newPhysical(t, "veth")
	n := newNetwork(t, "c1")
	peer, err := linkNamed(n.host, "low1")
	require.NoError(t, err)
	require.NoError(t, n.host.LinkSetNsFd(peer, int(n.ns.Fd())))
	_, err = n.Plan(t.Context(), []Interface{physical})
	require.ErrorContains(t, err, "interface c0 (eth): p0 is connected to interface ")
}

// A MAC can be written in several ways.
func TestPhysicalSpelledMAC(t *testing.T) {
	for _, mac := range []string{"02-00-00-00-00-AA", "0200.0000.00aa", "02:00:00:00:00:AA"} {
		t.Run(mac, func(t *testing.T) {
			newPhysical(t, "macvlan")
			n := newNetwork(t, "c1")
			before := facts(t, n.host, "p0")
			i := physical
			i.MAC = mac
			attachments, err := n.Plan(t.Context(), []Interface{i})
			require.NoError(t, err)
			require.NoError(t, n.Attach(t.Context(), attachments))
			attachments[0].Index = 0
			require.NoError(t, n.Detach(t.Context(), attachments))
			requireHome(t, n, before)
		})
	}
}

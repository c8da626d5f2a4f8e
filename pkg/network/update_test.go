//go:build linux

package network

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"isula.org/syscontainer-hooks/internal/testutil"
)

func lines(s string) []string { return strings.Split(strings.TrimSuffix(s, "\n"), "\n") }

func TestList(t *testing.T) {
	n := newNetwork(t, "c")
	newBridge(t, "vbr")
	a := veth("ceth0", "heth0", "10.9.0.2/24")
	a.Bridge, a.MAC = "vbr", "02:00:00:00:00:09"
	attached := attach(t, n, a, veth("ceth1", "heth1", "fd00:9::2/64"))
	// The other end of own0 has the very index that an interface of the host has.
	inside(t, n, "/bin/sh", "-ec", fmt.Sprintf("ip link add name own0 type veth peer name own1 index %d", attached[0].HostIndex))
	inside(t, n, "/bin/sh", "-ec", `ip link add name ceth2 mtu 1300 type ifb
		ip addr add 10.8.0.1/24 dev own0; ip link set ceth0 name renamed; ip addr add 10.9.0.3/24 dev renamed`)
	listed, err := n.List()
	require.NoError(t, err)
	require.Len(t, listed, 5)
	byName := make(map[string]Attachment)
	for _, l := range listed {
		byName[l.Name] = l
	}
	want := attached[0]
	want.Name = "renamed"
	require.Equal(t, want, byName["renamed"])
	want = attached[1]
	want.MAC = byName["ceth1"].MAC // the kernel's choice
	require.Equal(t, want, byName["ceth1"])
	require.Equal(t, Physical, byName["ceth2"].Kind)
	require.Equal(t, 1300, byName["ceth2"].MTU)
	for _, own := range []string{"own0", "own1"} {
		require.Equal(t, Physical, byName[own].Kind)
		require.Zero(t, byName[own].HostName+byName[own].Bridge)
	}
	require.Equal(t, "10.8.0.1/24", byName["own0"].Address)
	require.NoError(t, n.Detach(t.Context(), attached))
}

// state is what Update may change.
func state(t testing.TB, n *Network) []Attachment {
	t.Helper()
	listed, err := n.List()
	require.NoError(t, err)
	for i := range listed {
		if listed[i].Kind == Veth {
			link, err := linkAt(n.host, listed[i].HostIndex)
			require.NoError(t, err)
			require.Equal(t, listed[i].MTU, link.Attrs().MTU)
			require.Equal(t, listed[i].QueueLen, link.Attrs().TxQLen)
		}
	}
	return listed
}

// eachPromotion runs a test with each of what the kernel can do with secondary addresses.
func eachPromotion(t *testing.T, test func(t *testing.T, n *Network)) {
	for _, promote := range []string{"0", "1"} {
		t.Run("promote_secondaries "+promote, func(t *testing.T) {
			n := newNetwork(t, "c")
			inside(t, n, "/bin/sh", "-ec", "echo "+promote+" >/proc/sys/net/ipv4/conf/all/promote_secondaries")
			inside(t, n, "/bin/sh", "-ec", "echo "+promote+" >/proc/sys/net/ipv4/conf/default/promote_secondaries")
			test(t, n)
		})
	}
}

func TestUpdate(t *testing.T) { eachPromotion(t, testUpdate) }

func testUpdate(t *testing.T, n *Network) {
	newBridge(t, "vbr0")
	newBridge(t, "vbr1")
	i := veth("ceth0", "heth0", "10.9.0.2/24")
	i.Bridge, i.MAC = "vbr0", "02:00:00:00:00:09"
	attached := attach(t, n, i)
	inside(t, n, "/bin/sh", "-ec", `ip addr add 10.9.0.7/24 dev ceth0; ip addr add fd00::7/64 dev ceth0 nodad
		ip route add default via 10.9.0.1; ip route add 10.1.0.0/16 via 10.9.0.1 metric 7; ip route add fd01::/64 via fd00::1`)

	for _, change := range []Change{
		{},
		{MTU: new(1300)},
		{QueueLen: new(77)},
		{MAC: new("02:00:00:00:00:0a")},
		{Address: new("10.9.0.3/24")}, // of the same network
		{Address: new("10.9.0.3/16")},
		{Address: new("10.9.0.4/32")},
		{Address: new("10.8.0.4/24")},
		{Address: new("10.9.0.5/24")},
		{Bridge: new("vbr1")},
		{Bridge: new("")},
		{Bridge: new("vbr0")},
		{
			MTU: new(1350), QueueLen: new(88), MAC: new("02:00:00:00:00:0b"), Address: new("10.9.0.6/24"), Bridge: new("vbr1"),
		},
	} {
		want, err := change.apply(i)
		require.NoError(t, err)
		updated, err := n.Update(t.Context(), i, change)
		require.NoError(t, err)
		require.Equal(t, want, updated)
		listed := state(t, n)
		addresses := inside(t, n, "/sbin/ip", "-o", "addr", "show", "ceth0", "scope", "global")
		for _, address := range []string{want.Address, "10.9.0.7/24", "fd00::7/64"} {
			require.Contains(t, addresses, " "+address+" ")
		}
		require.Equal(t, 3, len(lines(addresses)), addresses)
		if want.Address == "10.9.0.2/24" || want.Address == "10.9.0.3/24" {
			require.Equal(t, want.Address, listed[0].Address, "before the secondary one, as the old one was")
		}
		listed[0].Address = want.Address
		require.Equal(t, want, listed[0].Interface)

		again, err := n.Update(t.Context(), i, change)
		require.NoError(t, err, "by the old record")
		require.Equal(t, want, again)
		again, err = n.Update(t.Context(), updated, change)
		require.NoError(t, err)
		require.Equal(t, want, again)
		require.Equal(t, addresses, inside(t, n, "/sbin/ip", "-o", "addr", "show", "ceth0", "scope", "global"))
		for _, kept := range []string{
			"default via 10.9.0.1 dev ceth0", "10.1.0.0/16 via 10.9.0.1 dev ceth0 metric 7", "fd01::/64 via fd00::1",
		} {
			require.Contains(t, table(t, n), kept, "%+v", want)
		}
		i = updated
	}
	i, err := n.Update(t.Context(), i, Change{Address: new("fd09::1/64")})
	require.NoError(t, err)
	i, err = n.Update(t.Context(), i, Change{Address: new("fd09::1/48")})
	require.NoError(t, err)
	addresses := inside(t, n, "/sbin/ip", "-o", "addr", "show", "ceth0", "scope", "global")
	require.Contains(t, addresses, " "+i.Address+" ")
	require.Len(t, lines(addresses), 3)
	require.NoError(t, n.Detach(t.Context(), attached))
}

func TestUpdateRefuses(t *testing.T) {
	n := newNetwork(t, "c")
	newBridge(t, "vbr")
	i := veth("ceth0", "heth0", "10.9.0.2/24")
	attached := attach(t, n, i)
	host(t, "/sbin/ip", "link", "add", "name", "other", "type", "ifb")
	t.Cleanup(func() { host(t, "/sbin/ip", "link", "del", "other") })
	inside(t, n, "/bin/sh", "-ec", `ip link property add dev ceth0 altname alternative
		ip link add name own0 type veth peer name own1`)
	before, routes := state(t, n), table(t, n)
	named := func(name, hostName string) Interface { return veth(name, hostName, i.Address) }
	for want, test := range map[string]struct {
		i      Interface
		change Change
	}{
		"mtu 67":                           {i, Change{MTU: new(67)}},
		"queue length -1":                  {i, Change{QueueLen: new(-1), MTU: new(1300)}},
		"mac: none":                        {i, Change{MAC: new("")}},
		"not the address of one interface": {i, Change{MAC: new("01:00:00:00:00:00")}},
		`address ""`:                       {i, Change{Address: new("")}},
		`address "10.0.0.1"`:               {i, Change{Address: new("10.0.0.1"), MTU: new(1300)}},
		`interface name "-t"`:              {i, Change{Bridge: new("-t")}},
		"bridge none ":                     {i, Change{Bridge: new("none"), MTU: new(1300)}},
		"other is no bridge":               {i, Change{Bridge: new("other"), MTU: new(1300)}},
		"no such interface":                {named("ceth7", "heth0"), Change{MTU: new(1300)}},
		"(veth): the container has no":     {named("alternative", "heth0"), Change{MTU: new(1300)}},
		"its other end on the host is":     {named("ceth0", "heth7"), Change{MTU: new(1300)}},
		"no veth with its other end":       {named("own0", ""), Change{MTU: new(1300)}},
		"cannot be in a bridge": {
			Interface{Kind: Physical, Name: "own0", MTU: 1500}, Change{Bridge: new("vbr")},
		},
	} {
		_, err := n.Update(t.Context(), test.i, test.change)
		require.ErrorContains(t, err, want)
		require.ErrorContains(t, err, "update interface "+test.i.Name)
	}
	require.Equal(t, before, state(t, n))
	require.Equal(t, routes, table(t, n))
	require.NoError(t, n.Detach(t.Context(), attached))
}

func TestUpdatePhysical(t *testing.T) {
	n := newNetwork(t, "c")
	inside(t, n, "/bin/sh", "-ec", "ip link add name ceth0 type ifb; ip link set ceth0 up")
	listed, err := n.List()
	require.NoError(t, err)
	updated, err := n.Update(t.Context(), listed[0].Interface, Change{MTU: new(1300), QueueLen: new(9), Address: new("10.9.0.2/24")})
	require.NoError(t, err)
	require.Equal(t, updated, state(t, n)[0].Interface)
}

// With a small MTU the kernel would take all IPv6 addresses away, and say nothing.
func TestUpdateKeepsIPv6(t *testing.T) {
	n := newNetwork(t, "c")
	attached := attach(t, n, veth("ceth0", "heth0", "10.9.0.2/24"), veth("ceth1", "heth1", "fd00:9::2/64"),
		veth("ceth2", "heth2", "10.9.0.3/24"), veth("ceth3", "heth3", "10.9.0.4/24"))
	inside(t, n, "/sbin/ip", "addr", "add", "fd00::7/64", "dev", "ceth0", "nodad")
	host(t, "/sbin/ip", "addr", "add", "fd00::8/64", "dev", "heth2", "nodad")
	before := state(t, n)
	addresses := func() string {
		return inside(t, n, "/sbin/ip", "-o", "-6", "addr") + host(t, "/sbin/ip", "-o", "-6", "addr", "show", "heth2")
	}
	wanted := addresses()
	for index, want := range []string{
		"mtu 1279: ceth0 has the IPv6 address fd00::7/64, which needs 1280 or more",
		"mtu 1279: an IPv6 address needs 1280 or more",
		"mtu 1279: heth2 has the IPv6 address fd00::8/64, which needs 1280 or more",
	} {
		_, err := n.Update(t.Context(), attached[index].Interface, Change{QueueLen: new(77), MTU: new(1279)})
		require.ErrorContains(t, err, want)
		require.Equal(t, before, state(t, n))
		require.Equal(t, wanted, addresses())
	}
	for index, mtu := range []int{1280, 1280, 1280, 1279} {
		_, err := n.Update(t.Context(), attached[index].Interface, Change{MTU: &mtu})
		require.NoError(t, err)
		require.Equal(t, mtu, state(t, n)[index].MTU)
	}
	require.NoError(t, n.Detach(t.Context(), attached))
}

// What was changed is put back when a later part fails.
func TestUpdatePutsBack(t *testing.T) { eachPromotion(t, testUpdatePutsBack) }

func testUpdatePutsBack(t *testing.T, n *Network) {
	newBridge(t, "vbr0")
	newBridge(t, "vbr1")
	i := veth("ceth0", "heth0", "10.9.0.2/24")
	i.Bridge = "vbr0"
	attached := attach(t, n, i)
	inside(t, n, "/bin/sh", "-ec", `ip addr add 10.9.0.7/24 dev ceth0; ip route add default via 10.9.0.1
		ip link add name noipv6 type ifb`)
	before, routes := state(t, n), table(t, n)
	fails := func(change Change, want string) {
		t.Helper()
		change.MTU, change.QueueLen, change.MAC = new(1300), new(77), new("02:00:00:00:00:0a")
		_, err := n.Update(t.Context(), i, change)
		require.ErrorContains(t, err, want)
		require.NotContains(t, err.Error(), "put back")
		require.Equal(t, before, state(t, n))
		require.ElementsMatch(t, lines(routes), lines(table(t, n)))
	}
	// The address is refused.
	inside(t, n, "/bin/sh", "-ec", "echo 1 >/proc/sys/net/ipv6/conf/ceth0/disable_ipv6")
	before, routes = state(t, n), table(t, n)
	fails(Change{Address: new("fd00::3/64"), Bridge: new("vbr1")}, "set address fd00::3/64: add address fd00::3/64: IPv6 is disabled")
	// A macvlan sits on the host's end: no bridge takes it.
	updated, err := n.Update(t.Context(), i, Change{Bridge: new("")})
	require.NoError(t, err)
	i = updated
	host(t, "/sbin/ip", "link", "add", "link", "heth0", "name", "mv", "type", "macvlan")
	before = state(t, n)
	fails(Change{Address: new("10.9.0.3/24"), Bridge: new("vbr1")}, `set bridge "vbr1"`)
	require.NoError(t, n.Detach(t.Context(), attached))
}

func TestUpdateOVS(t *testing.T) {
	n := newNetwork(t, "c")
	testutil.StartOVS(t)
	testutil.AddOVSBridge(t, "obr0")
	testutil.AddOVSBridge(t, "obr1")
	newBridge(t, "vbr")
	i, other := veth("ceth0", "heth0", "10.9.0.2/24"), veth("ceth1", "heth1", "10.9.0.3/24")
	i.Bridge, other.Bridge = "obr0", "obr0"
	attached := attach(t, n, i, other)
	ports := func(bridge string) string { return host(t, "/usr/bin/ovs-vsctl", "list-ports", bridge) }
	require.Equal(t, "heth0\nheth1\n", ports("obr0"))
	t.Run("fails", func(t *testing.T) {
		program := t.TempDir() + "/ovs-vsctl"
		host(t, "/bin/cp", "/usr/bin/ovs-vsctl", program)
		stub(t, `case "$*" in *"add-port obr1"*) exit 1;; esac; exec `+program+` "$@"`)
		before := state(t, n)
		_, err := n.Update(t.Context(), i, Change{Bridge: new("obr1"), MTU: new(1300)})
		require.ErrorContains(t, err, `set bridge "obr1"`)
		require.Equal(t, before, state(t, n))
		require.Equal(t, "heth0\nheth1\n", ports("obr0"))
	})
	for _, step := range []struct{ bridge, obr0, obr1, linux string }{
		{"obr1", "heth1\n", "heth0\n", ""},
		{"vbr", "heth1\n", "", "vbr"},
		{"obr0", "heth0\nheth1\n", "", ""},
		{"", "heth1\n", "", ""},
		{"obr1", "heth1\n", "heth0\n", ""},
	} {
		updated, err := n.Update(t.Context(), i, Change{Bridge: &step.bridge})
		require.NoError(t, err, step.bridge)
		for range 2 {
			require.Equal(t, step.obr0, ports("obr0"))
			require.Equal(t, step.obr1, ports("obr1"))
			require.Equal(t, step.linux, state(t, n)[0].Bridge)
			_, err = n.Update(t.Context(), updated, Change{Bridge: &step.bridge})
			require.NoError(t, err, step.bridge)
		}
		i = updated
	}
	for index := range attached {
		attached[index].Bridge = []string{"obr1", "obr0"}[index]
	}
	require.NoError(t, n.Detach(t.Context(), attached))
	require.Empty(t, ports("obr0")+ports("obr1"))
}

//go:build linux

package network

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func veth(name, hostName, address string) Interface {
	return Interface{Kind: Veth, Name: name, HostName: hostName, MTU: 1400, QueueLen: 500, Address: address}
}

func attach(t testing.TB, n *Network, interfaces ...Interface) []Attachment {
	t.Helper()
	attachments, err := n.Plan(t.Context(), interfaces)
	require.NoError(t, err)
	require.NoError(t, n.Attach(t.Context(), attachments))
	return attachments
}

func TestVeth(t *testing.T) {
	n := newNetwork(t, "c")
	newBridge(t, "vbr")
	before, beforeInside := links(t, n.host), links(t, n.inside)
	a := veth("ceth0", "heth0", "10.9.0.2/24")
	a.Bridge, a.MAC = "vbr", "02:00:00:00:00:09"
	b := veth("ceth1", "", "fd00:9::2/64")
	attachments := attach(t, n, a, b)

	require.Equal(t, "ceth1-", attachments[1].HostName[:6])
	for _, a := range attachments {
		link, err := linkNamed(n.host, a.HostName)
		require.NoError(t, err)
		require.Equal(t, a.HostIndex, link.Attrs().Index)
		end, err := linkNamed(n.inside, a.Name)
		require.NoError(t, err)
		require.Equal(t, a.Index, end.Attrs().Index)
		for _, attrs := range []string{
			fmt.Sprint(link.Attrs().MTU, link.Attrs().TxQLen, link.Attrs().RawFlags&unix.IFF_UP),
			fmt.Sprint(end.Attrs().MTU, end.Attrs().TxQLen, end.Attrs().RawFlags&unix.IFF_UP),
		} {
			require.Equal(t, "1400 500 1", attrs)
		}
	}
	require.Contains(t, host(t, "/sbin/ip", "link", "show", "heth0"), "master vbr")
	require.Contains(t, inside(t, n, "/sbin/ip", "link", "show", "ceth0"), "02:00:00:00:00:09")
	require.Contains(t, inside(t, n, "/sbin/ip", "addr", "show", "ceth0"), "inet 10.9.0.2/24 brd 10.9.0.255 scope global ceth0")
	require.Contains(t, inside(t, n, "/sbin/ip", "addr", "show", "ceth1"), "inet6 fd00:9::2/64 scope global nodad")

	made := links(t, n.inside)
	require.NoError(t, n.Detach(t.Context(), attachments))
	require.NoError(t, n.Detach(t.Context(), attachments), "again")
	require.Equal(t, before, links(t, n.host))
	require.Equal(t, beforeInside, links(t, n.inside))

	attachments = attach(t, n, a, b)
	require.Equal(t, made, links(t, n.inside), "with the same addresses")
	require.NoError(t, n.Detach(t.Context(), attachments))
}

func TestOffloads(t *testing.T) {
	n := newNetwork(t, "c")
	attachments := attach(t, n, veth("ceth0", "heth0", "10.9.0.2/24"))
	host(t, "/sbin/ethtool", "-K", "heth0", "tx", "off", "sg", "off", "tso", "off")
	require.NoError(t, switchOnOffloads(n.hostSocket, "heth0"))
	features := host(t, "/sbin/ethtool", "-k", "heth0")
	for _, on := range []string{"tx-checksumming: on", "scatter-gather: on", "tcp-segmentation-offload: on"} {
		require.Contains(t, features, on)
	}
	require.ErrorIs(t, switchOnOffloads(n.insideSocket, "heth0"), unix.ENODEV, "in the other namespace")
	require.NoError(t, n.Detach(t.Context(), attachments))
}

func TestPlanRefuses(t *testing.T) {
	n := newNetwork(t, "c")
	host(t, "/sbin/ip", "link", "add", "taken", "type", "bridge")
	t.Cleanup(func() { host(t, "/sbin/ip", "link", "del", "taken") })
	host(t, "/sbin/ip", "link", "property", "add", "dev", "taken", "altname", "another")
	inside(t, n, "/sbin/ip", "link", "property", "add", "dev", "lo", "altname", "ceth9")
	before, beforeInside := links(t, n.host), links(t, n.inside)
	good := veth("ceth0", "heth0", "10.9.0.2/24")
	with := func(change func(*Interface)) Interface {
		i := good
		i.Name, i.HostName, i.Address = "ceth1", "heth1", "10.9.0.3/24"
		change(&i)
		return i
	}
	tests := map[string]Interface{
		"kind":                        with(func(i *Interface) { i.Kind = "bond" }),
		"no name in the container":    with(func(i *Interface) { i.Name = "" }),
		"no name on the host":         with(func(i *Interface) { i.Kind, i.HostName = Physical, "" }),
		`name "veth%d"`:               with(func(i *Interface) { i.Name = "veth%d" }),
		`name "-x"`:                   with(func(i *Interface) { i.HostName = "-x" }),
		`name "lo"`:                   with(func(i *Interface) { i.Name = "lo" }),
		`name "0123456789abcdef"`:     with(func(i *Interface) { i.HostName = "0123456789abcdef" }),
		"mtu 67":                      with(func(i *Interface) { i.MTU = 67 }),
		"queue length -1":             with(func(i *Interface) { i.QueueLen = -1 }),
		"not the address of one":      with(func(i *Interface) { i.MAC = "01:00:00:00:00:01" }),
		"want six bytes":              with(func(i *Interface) { i.MAC = "02:00" }),
		"prefix length":               with(func(i *Interface) { i.Address = "10.9.0.3" }),
		"address 0.0.0.0/0":           with(func(i *Interface) { i.Address = "0.0.0.0/0" }),
		"address ff02::1/64":          with(func(i *Interface) { i.Address = "ff02::1/64" }),
		"same name in the container":  with(func(i *Interface) { i.Name = "ceth0" }),
		"same name on the host":       with(func(i *Interface) { i.HostName = "heth0" }),
		"same address":                with(func(i *Interface) { i.Address = "10.9.0.2/8" }),
		"taken: an interface of this": with(func(i *Interface) { i.HostName = "taken" }),
		"alternative name of taken":   with(func(i *Interface) { i.HostName = "another" }),
		"in the container: ceth9":     with(func(i *Interface) { i.Name = "ceth9" }),
		"nobridge":                    with(func(i *Interface) { i.Bridge = "nobridge" }),
		"lo is no bridge":             with(func(i *Interface) { i.Bridge = "heth2" }),
	}
	delete(tests, "lo is no bridge")
	for want, bad := range tests {
		_, err := n.Plan(t.Context(), []Interface{good, bad})
		require.ErrorContains(t, err, want)
	}
	many := make([]Interface, maxInterfaces+1)
	_, err := n.Plan(t.Context(), many)
	require.ErrorContains(t, err, "128 are the limit")
	require.Equal(t, before, links(t, n.host))
	require.Equal(t, beforeInside, links(t, n.inside))
}

// A name that gets taken between plan and attach is an error that leaves nothing behind.
func TestAttachTaken(t *testing.T) {
	n := newNetwork(t, "c")
	attachments, err := n.Plan(t.Context(), []Interface{veth("ceth0", "heth0", "10.9.0.2/24"), veth("ceth1", "heth1", "10.9.0.3/24")})
	require.NoError(t, err)
	inside(t, n, "/sbin/ip", "link", "add", "ceth1", "type", "bridge")
	before := links(t, n.host)
	require.ErrorIs(t, n.Attach(t.Context(), attachments), unix.EEXIST)
	require.NoError(t, n.Detach(t.Context(), attachments))
	require.Equal(t, before, links(t, n.host))
	require.Contains(t, inside(t, n, "/sbin/ip", "link"), "ceth1")
}

// Detach leaves alone what merely has the name, and finds what was renamed or not noted.
func TestDetachProof(t *testing.T) {
	n := newNetwork(t, "c")
	attachments := attach(t, n, veth("ceth0", "heth0", "10.9.0.2/24"), veth("ceth1", "heth1", "10.9.0.3/24"), veth("ceth2", "heth2", "10.9.0.4/24"))
	host(t, "/sbin/ip", "link", "del", "heth0")
	host(t, "/sbin/ip", "link", "add", "heth0", "type", "veth", "peer", "name", "other")
	t.Cleanup(func() { host(t, "/sbin/ip", "link", "del", "heth0") })
	inside(t, n, "/bin/sh", "-c", "ip link set ceth1 down && ip link set ceth1 name renamed")
	attachments[2].HostIndex, attachments[2].Index = 0, 0 // killed before they were noted
	unnoted := attachments[0]
	unnoted.HostIndex = 0
	require.NoError(t, n.Detach(t.Context(), append(attachments, unnoted)))
	now := strings.Join(links(t, n.host), "\n")
	require.Contains(t, now, "heth0 veth")
	require.NotContains(t, now, "heth1")
	require.NotContains(t, now, "heth2")
}

// Find takes what another program has attached live for the container's by where its other end is.
func TestFindVeth(t *testing.T) {
	n, other := newNetwork(t, "c"), newNetwork(t, "d")
	ours := attach(t, n, veth("ceth0", "heth0", "10.9.0.2/24"))
	theirs := attach(t, other, veth("ceth0", "heth1", "10.9.0.2/24"))
	t.Cleanup(func() { require.NoError(t, other.Detach(t.Context(), theirs)) })
	anonymous := veth("ceth0", "", "10.9.0.2/24")
	for name, tt := range map[string]struct {
		i     Interface
		found bool
	}{
		"ours":              {veth("ceth0", "heth0", "10.9.0.2/24"), true},
		"without host name": {anonymous, true},
		"of another":        {veth("ceth0", "heth1", "10.9.0.2/24"), false},
		"not there":         {veth("ceth0", "heth9", "10.9.0.2/24"), false},
	} {
		found, err := n.Find(t.Context(), []Interface{tt.i})
		require.NoError(t, err, name)
		require.Len(t, found, map[bool]int{true: 1, false: 0}[tt.found], name)
		if tt.found {
			require.Equal(t, ours[0].HostIndex, found[0].HostIndex, name)
			require.Equal(t, "heth0", found[0].HostName, name)
		}
	}
	require.NoError(t, n.Detach(t.Context(), ours))
}

// One by one and as a group end the same, and a group takes nothing else along.
func TestDetachMany(t *testing.T) {
	n := newNetwork(t, "c")
	before := links(t, n.host)
	var interfaces []Interface
	for i := range 20 {
		interfaces = append(interfaces, veth(fmt.Sprintf("ceth%d", i), "", fmt.Sprintf("10.9.0.%d/24", i+1)))
	}
	attachments := attach(t, n, interfaces...)
	require.NoError(t, n.Detach(t.Context(), attachments[:1]))
	require.NoError(t, n.Detach(t.Context(), attachments[1:10]))
	require.Len(t, links(t, n.host), len(before)+10)
	require.NoError(t, n.Detach(t.Context(), slices.Clone(attachments)))
	require.Equal(t, before, links(t, n.host))
}

func TestOpenRefuses(t *testing.T) {
	n := newNetwork(t, "c")
	_, err := Open("c", n.hostNS)
	require.True(t, errors.Is(err, ErrHostNamespace), err)
	file := newNamespaceOf(t, "/proc/self/ns/mnt")
	_, err = Open("c", file)
	require.ErrorContains(t, err, "no network namespace")
}

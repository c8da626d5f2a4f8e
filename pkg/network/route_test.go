//go:build linux

package network

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
)

// routable gives a container two interfaces with addresses.
func routable(t testing.TB, n *Network) *Network {
	t.Helper()
	inside(t, n, "/bin/sh", "-ec", `ip link set lo up
		ip link add eth0 type veth peer name peer0; ip link add eth1 type veth peer name peer1
		for i in 0 1; do ip link set peer$i up; ip link set eth$i up
		ip addr add 10.0.$i.2/24 dev eth$i; ip addr add fd00:$i::2/64 dev eth$i nodad; done
		ip link property add dev eth0 altname alternative`)
	return n
}

// table is what ip-route(8) says about the container's main table.
func table(t testing.TB, n *Network) string {
	t.Helper()
	return inside(t, n, "/sbin/ip", "-4", "route", "show") + inside(t, n, "/sbin/ip", "-6", "route", "show")
}

func TestRouteCheck(t *testing.T) {
	t.Parallel()
	for _, r := range []Route{
		{Gateway: "10.0.0.1"},
		{Dest: "default", Device: "eth0"},
		{Dest: "0.0.0.0/0", Gateway: "fe80::1", Device: "eth0"},
		{Dest: "::/0", Device: "eth0"},
		{Dest: "10.1.0.0/16", Gateway: "fd00::1"},
		{Dest: "fd01::1/64", Gateway: "fd00::1", Src: "fd00::2"},
		{Dest: "10.1.2.3/32", Device: "lo"},
	} {
		require.NoError(t, r.Check(), r.String())
	}
	for want, r := range map[string]Route{
		"no src, no gateway and no device":          {Dest: "10.1.0.0/16"},
		"src alone":                                 {Dest: "10.1.0.0/16", Src: "10.0.0.2"},
		`gateway "garbage"`:                         {Gateway: "garbage"},
		`gateway "10.0.0.1/24"`:                     {Gateway: "10.0.0.1/24"},
		`gateway "fe80::1%eth0"`:                    {Gateway: "fe80::1%eth0", Device: "eth0"},
		"gateway 0.0.0.0: not":                      {Gateway: "0.0.0.0"},
		"gateway ff02::1: not":                      {Gateway: "ff02::1", Device: "eth0"},
		"gateway fe80::1 is link-local":             {Gateway: "fe80::1"},
		"gateway ::ffff:1.2.3.4: not":               {Gateway: "::ffff:1.2.3.4"},
		`src "1.2.3"`:                               {Src: "1.2.3", Device: "eth0"},
		"src 255.255.255.255: not":                  {Src: "255.255.255.255", Device: "eth0"},
		`dest "1.2.3.4": want`:                      {Dest: "1.2.3.4", Device: "eth0"},
		`dest "any": want`:                          {Dest: "any", Device: "eth0"},
		`dest "10.0.0.0/33": want`:                  {Dest: "10.0.0.0/33", Device: "eth0"},
		`dest "::ffff:1.2.3.0/120": want`:           {Dest: "::ffff:1.2.3.0/120", Device: "eth0"},
		"want 10.1.0.0/16":                          {Dest: "10.1.0.1/16", Device: "eth0"},
		"src fd00::1 is not of the family":          {Dest: "10.1.0.0/16", Src: "fd00::1", Device: "eth0"},
		"src 10.0.0.2 is not of the family":         {Src: "10.0.0.2", Dest: "fd01::/64", Gateway: "fd00::1"},
		"gateway 10.0.0.1 is an IPv4 one":           {Dest: "fd01::/64", Gateway: "10.0.0.1"},
		"gateway 10.0.0.9 is an IPv4 one":           {Src: "fd00::1", Gateway: "10.0.0.9"},
		`interface name "-x"`:                       {Device: "-x"},
		`interface name "veth%d"`:                   {Device: "veth%d"},
		`interface name "0123456789abcdef"`:         {Device: "0123456789abcdef"},
		"interface name \"eth0\\nlo\"":              {Device: "eth0\nlo"},
		fmt.Sprintf("gateway %.60q", long(200)):     {Gateway: long(200)},
		fmt.Sprintf("dest %.60q", "\x1b"+long(200)): {Dest: "\x1b" + long(200), Device: "eth0"},
	} {
		require.ErrorContains(t, r.Check(), want)
	}
}

func long(n int) string { return strings.Repeat("x", n) }

func TestRouteString(t *testing.T) {
	t.Parallel()
	require.Equal(t, "default via 10.0.0.1 dev eth0 src 10.0.0.2",
		Route{Src: "10.0.0.2", Gateway: "10.0.0.1", Device: "eth0"}.String())
	require.Equal(t, `"a\nb" dev "`+long(60)+`"`, Route{Dest: "a\nb", Device: long(200)}.String())
}

// The same as ip-route(8) makes of it, one by one: the whole tables are compared.
func TestRoutesAsIPRoute(t *testing.T) {
	n, twin := routable(t, newNetwork(t, "c")), routable(t, newNetwork(t, "twin"))
	require.Equal(t, table(t, twin), table(t, n))
	empty := table(t, n)
	var all []Route
	for command, r := range map[string]Route{
		"10.1.0.0/16 dev eth0":                           {Dest: "10.1.0.0/16", Device: "eth0"},
		"10.2.0.0/16 via 10.0.0.1":                       {Dest: "10.2.0.0/16", Gateway: "10.0.0.1"},
		"10.3.0.0/16 via 10.0.1.1 dev eth1 src 10.0.0.2": {Dest: "10.3.0.0/16", Gateway: "10.0.1.1", Device: "eth1", Src: "10.0.0.2"},
		"10.4.4.4/32 dev eth1 src 10.0.1.2":              {Dest: "10.4.4.4/32", Device: "eth1", Src: "10.0.1.2"},
		"10.5.0.0/16 via inet6 fe80::1 dev eth0":         {Dest: "10.5.0.0/16", Gateway: "fe80::1", Device: "eth0"},
		"10.6.0.0/16 via inet6 fd00:1::1":                {Dest: "10.6.0.0/16", Gateway: "fd00:1::1"},
		"10.7.0.0/16 dev lo":                             {Dest: "10.7.0.0/16", Device: "lo"},
		"10.8.0.0/16 via inet6 fe80::1 dev eth0 src 10.0.0.2": {
			Dest: "10.8.0.0/16", Gateway: "fe80::1", Device: "eth0", Src: "10.0.0.2",
		},
		"default via 10.0.0.1":                         {Gateway: "10.0.0.1"},
		"default via fe80::1 dev eth1":                 {Dest: "default", Gateway: "fe80::1", Device: "eth1"},
		"fd01::/64 dev eth0":                           {Dest: "fd01::/64", Device: "eth0"},
		"fd02::9/64 dev eth0":                          {Dest: "fd02::9/64", Device: "eth0"},
		"fd03::/64 via fd00:0::1":                      {Dest: "fd03::/64", Gateway: "fd00::1"},
		"fd04::/64 via fe80::1 dev eth1 src fd00:1::2": {Dest: "fd04::/64", Gateway: "fe80::1", Device: "eth1", Src: "fd00:1::2"},
		"fd05::5/128 dev eth1":                         {Dest: "fd05::5/128", Device: "eth1"},
		"fd00:0::/64 dev eth0":                         {Dest: "fd00:0::/64", Device: "eth0"}, // the kernel's has another metric
	} {
		inside(t, twin, append([]string{"/sbin/ip", "route", "add"}, strings.Fields(command)...)...)
		require.NoError(t, n.AddRoutes([]Route{r}), command)
		require.Equal(t, table(t, twin), table(t, n), command)
		all = append(all, r)
	}
	full := table(t, n)
	require.NoError(t, n.AddRoutes(all), "again")
	require.Equal(t, full, table(t, n))
	toAdd, skipped, err := n.PlanRoutes(all, nil)
	require.NoError(t, err)
	require.Empty(t, toAdd)
	require.Empty(t, skipped)

	listed, err := n.Routes()
	require.NoError(t, err)
	require.Len(t, listed, len(all))
	require.NoError(t, n.DeleteRoutes(listed))
	require.Equal(t, empty, table(t, n))
	require.NoError(t, n.AddRoutes(listed), "what is listed can be added")
	require.Equal(t, full, table(t, n))
	require.NoError(t, n.DeleteRoutes(all))
	require.NoError(t, n.DeleteRoutes(all), "again")
	require.Equal(t, empty, table(t, n))
}

func TestRoutesDefaultPerFamily(t *testing.T) {
	n := routable(t, newNetwork(t, "c"))
	want := []Route{
		{Dest: "0.0.0.0/0", Gateway: "fe80::1", Device: "eth0"}, // default would be the IPv6 one
		{Dest: "::/0", Device: "eth1"},
	}
	require.NoError(t, n.AddRoutes(want))
	listed, err := n.Routes()
	require.NoError(t, err)
	require.Equal(t, want, listed)
	others := []Route{{Dest: "0.0.0.0/0", Device: "eth0"}, {Gateway: "fe80::1", Device: "eth0"}}
	require.NoError(t, n.DeleteRoutes(others))
	listed, err = n.Routes()
	require.NoError(t, err)
	require.Equal(t, want, listed)
}

func TestAddRoutesTakesBack(t *testing.T) {
	n := routable(t, newNetwork(t, "c"))
	there := Route{Dest: "10.1.0.0/16", Device: "eth0"}
	require.NoError(t, n.AddRoutes([]Route{there}))
	inside(t, n, "/sbin/ip", "route", "add", "blackhole", "10.9.0.0/16")
	before := table(t, n)
	good := []Route{there, {Gateway: "10.0.0.1"}, {Dest: "fd01::/64", Gateway: "fd00::1"}}
	for want, bad := range map[string]Route{
		"is there an address of its network": {Dest: "10.2.0.0/16", Gateway: "192.168.0.1"},
		"can not be a local address":         {Dest: "fd02::/64", Gateway: "fd00::2"},
		"prefsrc":                            {Dest: "10.2.0.0/16", Device: "eth0", Src: "192.168.0.1"},
		"no such interface":                  {Dest: "10.2.0.0/16", Device: "eth7"},
		"alternative name of eth0":           {Dest: "10.2.0.0/16", Device: "alternative"},
		"another route":                      {Dest: "10.1.0.0/16", Device: "eth1"},
		"another route to this":              {Dest: "10.9.0.0/16", Device: "eth1"},
		"route fd01::/64 dev eth0: the":      {Dest: "fd01::/64", Device: "eth0"},
		"route default via garbage: gatew":   {Gateway: "garbage"},
	} {
		err := n.AddRoutes(append(slices.Clone(good), bad))
		require.ErrorContains(t, err, want, bad.String())
		require.ErrorContains(t, err, "add route "+bad.String())
		require.Equal(t, before, table(t, n), want)
	}
	inside(t, n, "/sbin/ip", "link", "set", "eth1", "down")
	require.ErrorContains(t, n.AddRoutes([]Route{{Dest: "10.2.0.0/16", Device: "eth1"}}), "has to be up")
}

func TestPlanRoutes(t *testing.T) {
	n := routable(t, newNetwork(t, "c"))
	inside(t, n, "/bin/sh", "-ec", `ip route add 10.1.0.0/16 dev eth0; ip route add 10.2.0.0/16 dev eth0 metric 3
		ip route add 10.2.0.0/16 dev eth0 tos 4`)
	before := table(t, n)
	coming := []Attachment{{Interface: Interface{Name: "eth2"}}}
	routes := []Route{
		{Dest: "10.3.0.0/16", Device: "eth2"},
		{Dest: "10.1.0.0/16", Device: "eth0"},
		{Device: "gone"}, // and so no second default route
		{Gateway: "10.0.0.1"},
		{Dest: "10.2.0.0/16", Device: "eth1"},
		{Gateway: "fd00::1"},
		{Dest: "10.0.0.0/24", Device: "eth0"}, // comes with the address
	}
	toAdd, skipped, err := n.PlanRoutes(routes, coming)
	require.NoError(t, err)
	require.Equal(t, []Route{routes[0], routes[3], routes[4], routes[5]}, toAdd)
	require.Equal(t, []Route{routes[2]}, skipped)

	for want, bad := range map[string][]Route{
		"another one has the same dest":      {{Gateway: "10.0.0.1"}, {Dest: "default", Device: "eth0"}},
		"default dev eth1: another one":      {{Dest: "0.0.0.0/0", Gateway: "10.0.0.1"}, {Device: "eth1"}},
		"fd02::2/64 dev eth0: another one":   {{Dest: "fd02::1/64", Device: "eth0"}, {Dest: "fd02::2/64", Device: "eth0"}},
		"alternative name of eth0":           {{Device: "alternative"}},
		"another route to this destination":  {{Dest: "10.1.0.0/16", Device: "eth1"}},
		"10.1.0.0/16 dev eth2: the contai":   {{Dest: "10.1.0.0/16", Device: "eth2"}},
		"10.0.0.0/24 dev eth1: the contai":   {{Dest: "10.0.0.0/24", Device: "eth1"}},
		`dest "1.2.3.4": want an IP address`: {{Gateway: "10.0.0.1"}, {Dest: "1.2.3.4", Device: "gone"}},
	} {
		_, _, err := n.PlanRoutes(bad, coming)
		require.ErrorContains(t, err, want)
	}
	require.Equal(t, before, table(t, n))
}

func TestDeleteRoutesLeavesOthers(t *testing.T) {
	n := routable(t, newNetwork(t, "c"))
	inside(t, n, "/bin/sh", "-ec", `ip route add 10.1.0.0/16 dev eth0; ip route add 10.2.0.0/16 dev eth0 metric 5
		ip route add default nexthop via 10.0.0.1 nexthop via 10.0.1.1; ip route add 10.3.0.0/16 dev eth0 table 7
		ip route add 10.4.0.0/16 dev eth0 proto static`)
	before := table(t, n)
	require.NoError(t, n.DeleteRoutes([]Route{
		{Dest: "10.1.0.0/16", Device: "eth1"},
		{Dest: "10.1.0.0/16", Device: "eth0", Src: "10.0.0.2"},
		{Dest: "10.1.0.0/16", Gateway: "10.0.0.1"},
		{Dest: "10.1.0.0/16", Device: "alternative0"},
		{Dest: "10.2.0.0/16", Device: "eth0"},
		{Dest: "10.3.0.0/16", Device: "eth0"},
		{Gateway: "10.0.0.1"},
		{Dest: "10.0.0.0/24", Device: "eth0"}, // the kernel's own
		{Dest: "10.9.0.0/24", Device: "gone"},
	}))
	require.Equal(t, before, table(t, n))
	err := n.DeleteRoutes([]Route{{Dest: "10.4.0.0/16", Device: "eth0"}, {Gateway: "x"}})
	require.ErrorContains(t, err, "delete route default via x")
	require.NotContains(t, table(t, n), "10.4.0.0/16", "the other one all the same")
	require.Contains(t, inside(t, n, "/sbin/ip", "route", "show", "table", "7"), "10.3.0.0/16")
}

// A container that changes its routes all the time does not disturb, nor is it taken for empty.
func TestRoutesWhileTheyChange(t *testing.T) {
	n := routable(t, newNetwork(t, "c"))
	inside(t, n, "/bin/sh", "-ec", "for i in $(seq 0 250); do echo route add 10.100.$i.0/24 dev eth1; done | ip -batch -")
	wanted := Route{Dest: "10.1.0.0/16", Device: "eth0"}
	require.NoError(t, n.AddRoutes([]Route{wanted}))
	stop, done := make(chan struct{}), make(chan struct{})
	other, err := Open("other", n.ns)
	require.NoError(t, err)
	t.Cleanup(other.Close)
	go func() {
		defer close(done)
		churn := []Route{{Dest: "10.200.0.0/16", Device: "eth1"}}
		for {
			select {
			case <-stop:
				return
			default:
			}
			if other.AddRoutes(churn) != nil || other.DeleteRoutes(churn) != nil {
				return
			}
		}
	}()
	for range 50 {
		toAdd, _, err := n.PlanRoutes([]Route{wanted}, nil)
		require.NoError(t, err)
		require.Empty(t, toAdd)
	}
	close(stop)
	<-done
}

func TestRoutesWithoutNamespace(t *testing.T) {
	n, err := Open("c", nil)
	require.NoError(t, err)
	t.Cleanup(n.Close)
	routes := []Route{{Gateway: "10.0.0.1"}, {Device: "eth0"}}
	require.NoError(t, n.DeleteRoutes(routes))
	require.ErrorIs(t, n.AddRoutes(routes[:1]), errNoNamespace)
	require.ErrorIs(t, n.AddRoutes(routes[1:]), errNoNamespace)
	_, _, err = n.PlanRoutes(routes[:1], nil)
	require.ErrorIs(t, err, errNoNamespace)
	_, err = n.Routes()
	require.ErrorIs(t, err, errNoNamespace)
	_, err = n.List()
	require.ErrorIs(t, err, errNoNamespace)
	_, err = n.Update(t.Context(), veth("ceth0", "heth0", "10.9.0.2/24"), Change{})
	require.ErrorIs(t, err, errNoNamespace)
}

func TestDump(t *testing.T) {
	t.Parallel()
	calls := 0
	result, err := dump(func() (int, error) {
		if calls++; calls < 5 {
			return 0, netlink.ErrDumpInterrupted
		}
		return 7, nil
	})
	require.NoError(t, err)
	require.Equal(t, 7, result)
	_, err = dump(func() (int, error) { return 0, netlink.ErrDumpInterrupted })
	require.ErrorIs(t, err, netlink.ErrDumpInterrupted)
	calls = 0
	_, err = dump(func() (int, error) { calls++; return 0, errNoDevice })
	require.ErrorIs(t, err, errNoDevice)
	require.Equal(t, 1, calls)
}

func FuzzRoute(f *testing.F) {
	f.Add("10.1.0.0/16", "10.0.0.2", "10.0.0.1", "eth0")
	f.Add("default", "", "fe80::1", "eth0")
	f.Add("::/0", "fd00::1", "", "lo")
	f.Fuzz(func(t *testing.T, dest, src, gateway, device string) {
		r := Route{Dest: dest, Src: src, Gateway: gateway, Device: device}
		if strings.ContainsAny(r.String(), "\n\x1b\x00") {
			t.Fatalf("%q is no message", r.String())
		}
		p, err := r.parse()
		if err != nil {
			return
		}
		again, err := Route{Dest: p.dest.String(), Src: src, Gateway: gateway, Device: device}.parse()
		if err != nil || again != p {
			t.Fatalf("%v came back as %v: %v", p, again, err)
		}
	})
}

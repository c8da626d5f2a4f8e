//go:build linux

package e2e

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"isula.org/syscontainer-hooks/test/harness"
	"isula.org/syscontainer-hooks/test/payload/nettool"
)

const (
	echoPort  = "7777" // of the container's init
	echoBytes = 1 << 20
)

// withNetwork makes the container's init an echo server, and lets it change its network.
func withNetwork(cfg harness.Config) harness.Config {
	cfg.Spec = func(spec *specs.Spec) {
		spec.Process.Args = []string{"/payload", "init", ":" + echoPort}
		caps := slices.Concat(spec.Process.Capabilities.Bounding, []string{"CAP_NET_ADMIN"})
		spec.Process.Capabilities = &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps}
	}
	return cfg
}

// check looks at everything in the record from inside the container and from the host. It can be repeated.
func (n *network) check(t *testing.T, c *harness.Container) {
	t.Helper()
	n.checkLinks(t, c)
	n.checkRoutes(t, c)
	n.checkTraffic(t, c)
	checkPin(t, c)
	log, err := os.ReadFile(c.Log)
	require.NoError(t, err)
	warned := slices.ContainsFunc(strings.Split(string(log), "\n"), func(line string) bool {
		return strings.Contains(line, "warning") && strings.Contains(line, "gone0") && strings.Contains(line, "198.51.100.0/24")
	})
	require.True(t, warned, "a warning about the route of an interface that is gone:\n%s", log)
}

func (n *network) checkLinks(t *testing.T, c *harness.Container) {
	t.Helper()
	links := c.Links()
	names := []string{"lo"}
	for _, want := range n.record.NetworkInterfaces {
		names = append(names, want.CtrNicName)
		got := findLink(links, want.CtrNicName)
		kind := "veth"
		if want.Type == "eth" {
			kind = n.kind
		}
		if want.MAC == "" {
			require.Regexp(t, "^([0-9a-f]{2}:){5}[0-9a-f]{2}$", got.MAC)
			want.MAC = got.MAC
		}
		require.Equal(t, nettool.Link{
			Name: want.CtrNicName, Kind: kind, MAC: want.MAC, MTU: want.MTU, QueueLen: want.Qlen, Up: true,
			Addresses: []string{want.IP}, Index: got.Index, Peer: got.Peer,
		}, got)
		if want.Type != "eth" {
			checkOffloads(t, c.Exec("offloads", want.CtrNicName))
			n.checkHostEnd(t, want, got.Peer)
		}
	}
	slices.Sort(names)
	require.Equal(t, names, linkNames(links))
	require.Empty(t, findLink(harness.HostLinks(t), physical).Name, "the interface is the container's now")
}

func linkNames(links []nettool.Link) []string {
	var names []string
	for _, link := range links {
		names = append(names, link.Name)
	}
	return names
}

// checkHostEnd looks at the interface of the host that has this number.
func (n *network) checkHostEnd(t *testing.T, want nic, index int) {
	t.Helper()
	links := harness.HostLinks(t)
	i := slices.IndexFunc(links, func(l nettool.Link) bool { return l.Index == index })
	require.NotEqual(t, -1, i, "%s has no other end on the host", want.CtrNicName)
	got := links[i]
	if want.HostNicName == "" {
		want.HostNicName = got.Name
	}
	master := want.Bridge
	if want.Bridge == ovsBridge {
		require.Contains(t, n.ports(t), got.Name)
		master = ""
	}
	require.Equal(t, nettool.Link{
		Name: want.HostNicName, Kind: "veth", MAC: got.MAC, MTU: want.MTU, QueueLen: want.Qlen, Up: true, Master: master,
		Index: index, Peer: got.Peer,
	}, got)
	on, err := nettool.Offloads(got.Name)
	require.NoError(t, err)
	checkOffloads(t, strings.Join(on, "\n"))
}

func checkOffloads(t *testing.T, on string) {
	t.Helper()
	require.Equal(t, "tx-checksumming\nscatter-gather\ntcp-segmentation-offload", on)
}

// checkRoutes expects those of the record, and those that come with an address.
func (n *network) checkRoutes(t *testing.T, c *harness.Container) {
	t.Helper()
	var want []string
	for _, i := range n.record.NetworkInterfaces {
		prefix := netip.MustParsePrefix(i.IP)
		line := fmt.Sprintf("%s dev %s", prefix.Masked(), i.CtrNicName)
		if prefix.Addr().Is4() {
			line += fmt.Sprint(" src ", prefix.Addr())
		}
		want = append(want, line)
	}
	for _, r := range n.record.NetworkRoute {
		if r.Dev == "gone0" {
			continue
		}
		if r.Dest == "" {
			r.Dest, r.Dev = "0.0.0.0/0", "eth0"
		}
		line := fmt.Sprintf("%s via %s dev %s", r.Dest, r.Gw, r.Dev)
		if r.Src != "" {
			line += " src " + r.Src
		}
		want = append(want, line)
	}
	slices.Sort(want)
	require.Equal(t, want, strings.Split(c.Exec("routes"), "\n"))
}

// checkTraffic sends more over TCP than one segment holds, both ways, over each interface and each route.
func (n *network) checkTraffic(t *testing.T, c *harness.Container) {
	t.Helper()
	// Where the record leaves the MAC to the kernel, the container had another one on its last run.
	require.NoError(t, nettool.ForgetNeighbours())
	listener, err := net.Listen("tcp", ":0")
	require.NoError(t, err)
	defer listener.Close()
	go nettool.Serve(listener)
	_, port, err := net.SplitHostPort(listener.Addr().String())
	require.NoError(t, err)
	toHost := func(address string) {
		t.Helper()
		c.Exec("echo", net.JoinHostPort(address, port), fmt.Sprint(echoBytes))
	}
	for _, i := range n.record.NetworkInterfaces {
		if i.Type == "eth" && n.kind == "ifb" {
			continue
		}
		prefix := netip.MustParsePrefix(i.IP)
		require.NoError(t, nettool.Echo(net.JoinHostPort(prefix.Addr().String(), echoPort), echoBytes), i.CtrNicName)
		toHost(prefix.Masked().Addr().Next().String())
	}
	for _, address := range behind {
		if n.kind != "ifb" || !strings.HasPrefix(address, "203.") {
			toHost(address)
		}
	}
}

func pinOf(c *harness.Container) string { return "/run/syscontainer-tools/netns/" + c.ID }

// checkPin: the handle of the container's network namespace is a bind mount of it, and the only one.
func checkPin(t *testing.T, c *harness.Container) {
	t.Helper()
	at := harness.At(harness.HostMounts(t), pinOf(c))
	require.Len(t, at, 1)
	require.Equal(t, "nsfs", at[0].Type)
	var pin, own unix.Stat_t
	require.NoError(t, unix.Stat(pinOf(c), &pin))
	require.NoError(t, unix.Stat(fmt.Sprintf("/proc/%d/ns/net", c.Pid), &own))
	require.Equal(t, []uint64{own.Dev, own.Ino}, []uint64{pin.Dev, pin.Ino})
	require.Equal(t, fmt.Sprintf("net:[%d]", own.Ino), at[0].Root)
}

//go:build linux

package bench

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"isula.org/syscontainer-hooks/pkg/network"
)

const bridgeName = "benchbr"

// veths are interfaces that a container is to have, in a bridge of the host.
type veths struct {
	*container
	network    *network.Network
	ns         *os.File
	interfaces []network.Interface
	wanted     string // what all ways come to, once one of them has
}

func newVeths(tb testing.TB, n int) *veths {
	tb.Helper()
	v := &veths{container: newContainer(tb, 0)}
	makeBridge(tb)
	v.start()
	v.ns = v.open("ns/net", os.O_RDONLY)
	var err error
	v.network, err = network.Open(v.id, v.ns)
	require.NoError(tb, err)
	tb.Cleanup(v.network.Close)
	// Under this name ip(8) finds the namespace.
	require.NoError(tb, os.MkdirAll("/run/netns", 0o755))
	named := "/run/netns/" + v.id
	require.NoError(tb, os.WriteFile(named, nil, 0o600))
	require.NoError(tb, unix.Mount(fmt.Sprintf("/proc/self/fd/%d", v.ns.Fd()), named, "", unix.MS_BIND, ""))
	tb.Cleanup(func() { require.NoError(tb, unix.Unmount(named, unix.MNT_DETACH)) })
	for i := range n {
		v.interfaces = append(v.interfaces, network.Interface{
			Kind: network.Veth, Name: fmt.Sprintf("eth%d", i+1), HostName: fmt.Sprintf("b%03d-%04x", i, v.pid&0xffff), Bridge: bridgeName,
			MAC: fmt.Sprintf("02:00:00:00:01:%02x", i), MTU: 1400, QueueLen: 500, Address: fmt.Sprintf("10.77.0.%d/16", i+1),
		})
	}
	return v
}

func makeBridge(tb testing.TB) {
	tb.Helper()
	if _, err := netlink.LinkByName(bridgeName); err == nil {
		return
	}
	mac, err := net.ParseMAC("02:00:00:00:00:fe")
	require.NoError(tb, err)
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: bridgeName, HardwareAddr: mac}}
	require.NoError(tb, netlink.LinkAdd(bridge))
	require.NoError(tb, netlink.LinkSetUp(bridge))
}

// vethsRound makes the interfaces through package network, with the shortest sequence of commands that ip(8) has for it, and the
// way of programs that make a pair on the host, move one end and rename it there.
func vethsRound(tb testing.TB, n int) func(m *meter) {
	tb.Helper()
	v := newVeths(tb, n)
	return func(m *meter) {
		m.inTurn(
			func() { v.measure(m, "batch", v.batch) },
			func() { v.measure(m, "hook", v.attach) },
			func() { v.measure(m, "move", v.move) },
		)
	}
}

// removalRound removes the interfaces in one go and one by one.
func removalRound(tb testing.TB, n int) func(m *meter) {
	tb.Helper()
	v := newVeths(tb, n)
	return func(m *meter) {
		m.inTurn(
			func() { v.measureRemoval(m, "single", func([]network.Attachment) error { return v.single() }) },
			func() {
				v.measureRemoval(m, "hook", func(attached []network.Attachment) error {
					return v.network.Detach(context.Background(), attached)
				})
			},
		)
	}
}

func (v *veths) measure(m *meter, name string, way func() error) {
	v.tb.Helper()
	planned, err := v.network.Plan(context.Background(), v.interfaces)
	require.NoError(v.tb, err)
	m.time(name, way)
	if m.check {
		v.compare(name)
	}
	require.NoError(v.tb, v.network.Detach(context.Background(), planned))
}

func (v *veths) measureRemoval(m *meter, name string, way func([]network.Attachment) error) {
	v.tb.Helper()
	planned, err := v.network.Plan(context.Background(), v.interfaces)
	require.NoError(v.tb, err)
	require.NoError(v.tb, v.network.Attach(context.Background(), planned))
	m.time(name, func() error { return way(planned) })
	_, err = v.network.Plan(context.Background(), v.interfaces) // all names are free again
	require.NoError(v.tb, err)
}

// changing is what of ip(8)'s output differs from one making to the next: indexes, the host end's address, and the link-local
// address while it is being tried.
var changing = regexp.MustCompile(`(?m)^\d+: |@if\d+|link-netns(id)? \S+|link/ether \S+|inet6 fe80.*|(valid_lft|preferred_lft).*|state \S+|alias .*`)

// compare looks at the interfaces on both sides, and at the addresses.
func (v *veths) compare(name string) {
	v.tb.Helper()
	var got strings.Builder
	for _, args := range [][]string{{"-o", "link"}, {"-n", v.id, "-o", "link"}, {"-n", v.id, "-o", "addr"}} {
		out, err := exec.Command("/sbin/ip", args...).Output()
		require.NoError(v.tb, err)
		for line := range strings.Lines(string(out)) {
			if strings.Contains(line, "eth") || strings.Contains(line, "b0") {
				got.WriteString(changing.ReplaceAllString(line, ""))
			}
		}
	}
	require.Greater(v.tb, strings.Count(got.String(), "\n"), 3*len(v.interfaces)-1)
	if v.wanted == "" {
		v.wanted = got.String()
	}
	require.Equal(v.tb, v.wanted, got.String(), name)
}

// attach is the way of the hook.
func (v *veths) attach() error {
	planned, err := v.network.Plan(context.Background(), v.interfaces)
	if err != nil {
		return err
	}
	return v.network.Attach(context.Background(), planned)
}

// batch runs ip(8) once on each side. The container's end cannot be up before its other end is there, so it takes another command.
func (v *veths) batch() error {
	var host, inside bytes.Buffer
	for _, i := range v.interfaces {
		fmt.Fprintf(&host, "link add %s mtu %d txqueuelen %d master %s up type veth peer name %s address %s mtu %d txqueuelen %d netns %s\n",
			i.HostName, i.MTU, i.QueueLen, i.Bridge, i.Name, i.MAC, i.MTU, i.QueueLen, v.id)
		fmt.Fprintf(&inside, "addr add %s brd + dev %s\nlink set %s up\n", i.Address, i.Name, i.Name)
	}
	for _, batch := range []struct {
		args  []string
		input *bytes.Buffer
	}{{[]string{"-batch", "-"}, &host}, {[]string{"-n", v.id, "-batch", "-"}, &inside}} {
		cmd := exec.Command("/sbin/ip", batch.args...)
		cmd.Stdin = batch.input
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
	}
	return nil
}

// single removes each host end by a message of its own.
func (v *veths) single() error {
	for _, i := range v.interfaces {
		link, err := netlink.LinkByName(i.HostName)
		if err == nil {
			err = netlink.LinkDel(link)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// move is the way of programs that know only one namespace at a time: make, move, rename, one property after the other.
func (v *veths) move() error {
	bridge, err := netlink.LinkByName(bridgeName)
	if err != nil {
		return err
	}
	for n, i := range v.interfaces {
		temporary := fmt.Sprintf("tmp%d", n)
		err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: i.HostName, TxQLen: -1}, PeerName: temporary, PeerTxQLen: -1})
		if err != nil {
			return err
		}
		host, err := netlink.LinkByName(i.HostName)
		if err != nil {
			return err
		}
		peer, err := netlink.LinkByName(temporary)
		if err != nil {
			return err
		}
		for _, call := range []func() error{
			func() error { return netlink.LinkSetMTU(host, i.MTU) },
			func() error { return netlink.LinkSetTxQLen(host, i.QueueLen) },
			func() error { return netlink.LinkSetMaster(host, bridge) },
			func() error { return netlink.LinkSetUp(host) },
			func() error { return netlink.LinkSetNsFd(peer, int(v.ns.Fd())) },
			func() error { return v.inside(func() error { return configure(temporary, i) }) },
		} {
			if err := call(); err != nil {
				return err
			}
		}
	}
	return nil
}

// inside calls f on a thread that is in the container's namespace.
func (v *veths) inside(f func() error) error {
	runtime.LockOSThread()
	home, err := netns.Get()
	if err != nil {
		return err
	}
	defer home.Close()
	if err := netns.Set(netns.NsHandle(v.ns.Fd())); err != nil {
		return err
	}
	err = f()
	if err := netns.Set(home); err != nil {
		return err // and the thread stays locked
	}
	runtime.UnlockOSThread()
	return err
}

func configure(temporary string, i network.Interface) error {
	link, err := netlink.LinkByName(temporary)
	if err != nil {
		return err
	}
	mac, err := net.ParseMAC(i.MAC)
	if err != nil {
		return err
	}
	address, err := netlink.ParseAddr(i.Address)
	if err != nil {
		return err
	}
	for _, call := range []func() error{
		func() error { return netlink.LinkSetName(link, i.Name) },
		func() error { return netlink.LinkSetHardwareAddr(link, mac) },
		func() error { return netlink.LinkSetMTU(link, i.MTU) },
		func() error { return netlink.LinkSetTxQLen(link, i.QueueLen) },
		func() error { return netlink.AddrAdd(link, address) },
		func() error { return netlink.LinkSetUp(link) },
	} {
		if err := call(); err != nil {
			return err
		}
	}
	return nil
}

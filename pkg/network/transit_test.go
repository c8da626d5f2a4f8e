//go:build linux

package network

import (
	"fmt"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// What a crash has left in place of the transit namespace's pin does not matter; what has an interface in it is kept.
func TestTransitLeftOvers(t *testing.T) {
	file := transitDir + "/c1"
	for name, plant := range map[string]func(t *testing.T, n *Network){
		"pin":  func(t *testing.T, n *Network) { require.NoError(t, pinNamespace(transitDir, "c1", n.ns)) },
		"file": func(t *testing.T, _ *Network) { require.NoError(t, os.WriteFile(file, nil, 0o600)) },
		"link": func(t *testing.T, _ *Network) { require.NoError(t, os.Symlink("/etc/hostname", file)) },
		"dir":  func(t *testing.T, _ *Network) { require.NoError(t, os.Mkdir(file, 0o755)) },
		"fifo": func(t *testing.T, _ *Network) { require.NoError(t, unix.Mkfifo(file, 0o600)) },
		"pin twice": func(t *testing.T, _ *Network) {
			ns := newNamespace(t)
			require.NoError(t, pinNamespace(transitDir, "c1", ns))
			f, err := os.Open(transitDir)
			require.NoError(t, err)
			defer f.Close()
			require.NoError(t, unix.Mount(fmt.Sprintf("/proc/self/fd/%d", ns.Fd()), file, "", unix.MS_BIND, ""))
		},
	} {
		t.Run(name, func(t *testing.T) {
			newPhysical(t, "ifb")
			n := newNetwork(t, "c1")
			before := facts(t, n.host, "p0")
			require.NoError(t, os.MkdirAll(transitDir, 0o700))
			plant(t, newNetwork(t, "c9"))
			attachments := attached(t, n)
			require.NoError(t, n.Detach(t.Context(), attachments))
			requireHome(t, n, before)
		})
	}
}

func TestTransitKept(t *testing.T) {
	newPhysical(t, "ifb")
	n := newNetwork(t, "c1")
	transit, err := n.makeTransit()
	require.NoError(t, err)
	link, err := linkNamed(n.host, "p0")
	require.NoError(t, err)
	index, err := transit.receive(n.hostPlace(), link.Attrs().Index, 0)
	require.NoError(t, err)
	require.NoError(t, n.leaveTransit(transit))
	again, err := n.openTransit()
	require.NoError(t, err)
	require.NotNil(t, again)
	require.NoError(t, again.handle.LinkDel(linkOf(index)))
	require.NoError(t, n.leaveTransit(again))
	gone, err := n.openTransit()
	require.NoError(t, err)
	require.Nil(t, gone)
	require.True(t, isBorn(&netlink.Sittun{LinkAttrs: netlink.LinkAttrs{Name: "sit0"}}))
	require.False(t, isBorn(&netlink.Ifb{LinkAttrs: netlink.LinkAttrs{Name: "sit0"}}))
}

// A process was killed between giving an interface a free name and moving it to the host.
func TestTransitFreeHomeName(t *testing.T) {
	newPhysical(t, "ifb")
	n := newNetwork(t, "c1")
	before := facts(t, n.host, "p0")
	attachments := attached(t, n)
	transit, err := n.makeTransit()
	require.NoError(t, err)
	link, err := n.findInside(attachments[0])
	require.NoError(t, err)
	index, err := n.takeOut(attachments[0], link, transit)
	require.NoError(t, err)
	require.NoError(t, transit.handle.LinkSetName(linkOf(index), freeHomePrefix("p0")+"ab12"))
	require.NoError(t, n.leaveTransit(transit))
	require.NoError(t, n.Detach(t.Context(), attachments))
	requireHome(t, n, before)
}

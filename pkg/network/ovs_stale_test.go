//go:build linux

package network

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"isula.org/syscontainer-hooks/internal/testutil"
)

// The switch keeps its ports over a power cut, which takes their interfaces and all that the hook has written down.
func TestOVSPortStale(t *testing.T) {
	n := newNetwork(t, "c.1")
	testutil.StartOVS(t)
	testutil.AddOVSBridge(t, "ovsbr0")
	testutil.AddOVSBridge(t, "ovsbr1")
	args := []string{"--no-wait", "add-port", "ovsbr0", "live"}
	for _, name := range []string{"own", "moved"} { // one stays in its bridge, the other one is to change to ovsbr0
		args = append(args, "--", "add-port", map[string]string{"own": "ovsbr0", "moved": "ovsbr1"}[name], name,
			"--", "set", "Port", name, findTagged+"=c.1", "tag=7")
	}
	args = append(args, "--", "add-port", "ovsbr0", "tunnel", "--", "set", "Interface", "tunnel", "type=vxlan", "options:remote_ip=1.2.3.4")
	testutil.OVS(t, args...)
	var interfaces []Interface
	for index, name := range []string{"live", "own", "moved"} {
		i := veth("ceth"+name, name, fmt.Sprintf("10.9.0.%d/24", index+2))
		i.Bridge = "ovsbr0"
		interfaces = append(interfaces, i)
	}
	attachments := attach(t, n, interfaces...)
	require.Equal(t, "live\nmoved\nown\ntunnel\n", testutil.OVS(t, "list-ports", "ovsbr0"))
	require.Empty(t, testutil.OVS(t, "list-ports", "ovsbr1"))
	require.Len(t, strings.Fields(testutil.OVS(t, "--bare", "--columns=name", "find", "Port", findTagged+"=c.1", "tag=[]")), 3)
	require.NoError(t, n.Detach(t.Context(), attachments))

	// What only has no interface of the kernel's is in use.
	tunnel := veth("ceth0", "tunnel", "10.9.0.2/24")
	tunnel.Bridge = "ovsbr0"
	_, err := n.Plan(t.Context(), []Interface{tunnel})
	require.ErrorContains(t, err, "port tunnel exists in Open vSwitch and belongs to another program")
	found, err := n.Find(t.Context(), []Interface{tunnel})
	require.NoError(t, err)
	require.NoError(t, n.Detach(t.Context(), found))
	require.Equal(t, "tunnel\n", testutil.OVS(t, "list-ports", "ovsbr0"))
}

// A port of an interface that lives is somebody else's.
func TestOVSPortInUse(t *testing.T) {
	n := newNetwork(t, "c.1")
	testutil.StartOVS(t)
	testutil.AddOVSBridge(t, "ovsbr0")
	newPair(t, n, "heth0", "10.9.0.1/24")
	testutil.OVS(t, "add-port", "ovsbr0", "heth0")
	i := veth("ceth1", "heth0", "10.9.0.2/24")
	i.Bridge = "ovsbr0"
	_, err := n.Plan(t.Context(), []Interface{i})
	require.ErrorIs(t, err, ErrExist)
	listed, err := n.List()
	require.NoError(t, err)
	_, err = n.Update(t.Context(), listed[0].Interface, Change{Address: new("10.9.0.1/24"), Bridge: &i.Bridge})
	require.ErrorContains(t, err, "port heth0 exists in Open vSwitch and belongs to another program")
	require.Equal(t, "heth0\n", testutil.OVS(t, "list-ports", "ovsbr0"))
}

// A clean-up asks for each interface; a switch that hangs does not cost it the time limit for each.
func TestOVSFindAsksOnce(t *testing.T) {
	n := newNetwork(t, "c.1")
	calls := filepath.Join(t.TempDir(), "calls")
	stub(t, "echo $1 >>"+calls+"\ncase $4 in down) echo down >&2; exit 1;; esac")
	var interfaces []Interface
	for _, bridge := range []string{"ovsbr0", "ovsbr0", "down", "down"} {
		i := veth("ceth0", "heth0", "10.9.0.2/24")
		i.Bridge = bridge
		interfaces = append(interfaces, i)
	}
	for range 2 {
		found, err := n.Find(shortly(t), interfaces)
		require.Len(t, found, 2)
		require.ErrorContains(t, err, "exit status 1: down")
	}
	text, err := os.ReadFile(calls)
	require.NoError(t, err)
	require.Equal(t, "--timeout=1\n--timeout=1\n", string(text))
}

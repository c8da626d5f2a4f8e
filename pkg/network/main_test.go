//go:build linux

package network

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"isula.org/syscontainer-hooks/internal/testutil"
	"isula.org/syscontainer-hooks/internal/thread"
)

func TestMain(m *testing.M) {
	if job := os.Getenv(killedEnv); job != "" {
		os.Exit(runToBeKilled(job))
	}
	os.Exit(testutil.Main(m))
}

// newNamespace makes a network namespace that goes with its handle.
func newNamespace(t testing.TB) (ns *os.File) {
	t.Helper()
	require.NoError(t, thread.Own(func() (err error) {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		ns, err = os.Open("/proc/thread-self/ns/net")
		return err
	}))
	t.Cleanup(func() { ns.Close() })
	return ns
}

// newNetwork opens the network of a container that has a namespace and nothing in it but lo.
func newNetwork(t testing.TB, id string) *Network {
	t.Helper()
	testutil.RequireRoot(t)
	n, err := Open(id, newNamespace(t))
	require.NoError(t, err)
	t.Cleanup(n.Close)
	return n
}

// inside runs a program in the container's network namespace and gives what it prints.
func inside(t testing.TB, n *Network, args ...string) string {
	t.Helper()
	cmd := exec.Command("/usr/bin/nsenter", append([]string{"--net=/proc/self/fd/3"}, args...)...)
	cmd.ExtraFiles = []*os.File{n.ns}
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	return string(out)
}

// host runs a program beside the test and gives what it prints.
func host(t testing.TB, args ...string) string {
	t.Helper()
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	require.NoError(t, err, "%s", out)
	return string(out)
}

// newBridge makes a Linux bridge on the host that is up.
func newBridge(t testing.TB, name string) {
	t.Helper()
	host(t, "/sbin/ip", "link", "add", name, "address", "02:00:00:00:00:fe", "up", "type", "bridge") // else it takes its ports'
	t.Cleanup(func() { host(t, "/sbin/ip", "link", "del", name) })
}

// links is what a handle's namespace has, one line each without what changes by itself.
func links(t testing.TB, handle *netlink.Handle) []string {
	t.Helper()
	all, err := handle.LinkList()
	require.NoError(t, err)
	var lines []string
	for _, link := range all {
		a := link.Attrs()
		lines = append(lines, strings.Join([]string{
			a.Name, link.Type(), a.HardwareAddr.String(), a.Alias, strings.Join(a.AltNames, ","), (a.Flags & 1).String(),
		}, " "))
	}
	return lines
}

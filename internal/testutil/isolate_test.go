//go:build linux

package testutil

import (
	"net"
	"os"
	"os/exec"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestMain(m *testing.M) { os.Exit(Main(m)) }

func TestOwnRoot(t *testing.T) {
	RequireRoot(t)
	require.NoError(t, os.Mkdir("/.sharedpath", 0o700))
	out, err := exec.Command("/bin/cat", "/proc/self/mountinfo").CombinedOutput()
	require.NoError(t, err)
	require.Contains(t, string(out), " / / rw,relatime shared:")
}

func TestOwnNetwork(t *testing.T) {
	RequireRoot(t)
	interfaces, err := net.Interfaces()
	require.NoError(t, err)
	require.Len(t, interfaces, 1)
	require.Equal(t, net.FlagUp|net.FlagLoopback|net.FlagRunning, interfaces[0].Flags)
	entries, err := os.ReadDir("/sys/class/net")
	require.NoError(t, err)
	require.Len(t, entries, 1)
	require.Equal(t, "lo", entries[0].Name())
}

//go:build linux

package testutil

import (
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

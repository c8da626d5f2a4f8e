//go:build linux

package device

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"isula.org/syscontainer-hooks/internal/testutil"
)

// The label is that of the device, also behind a link.
func TestLabel(t *testing.T) {
	testutil.RequireRoot(t)
	dir := t.TempDir()
	node, link := filepath.Join(dir, "node"), filepath.Join(dir, "link")
	require.NoError(t, unix.Mknod(node, unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))))
	require.NoError(t, os.Symlink(node, link))
	require.NoError(t, unix.Setxattr(node, "security.selinux", []byte("system_u:object_r:null_device_t:s0\x00"), 0))
	for _, path := range []string{node, link} {
		got, err := label(path)
		require.NoError(t, err)
		require.Equal(t, "system_u:object_r:null_device_t:s0", got)
	}
}

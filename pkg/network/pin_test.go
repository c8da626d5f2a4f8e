//go:build linux

package network

import (
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"isula.org/syscontainer-hooks/internal/testutil"
)

func newNamespaceOf(t testing.TB, path string) *os.File {
	t.Helper()
	f, err := os.Open(path)
	require.NoError(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

func TestPin(t *testing.T) {
	testutil.RequireRoot(t)
	path := filepath.Join(PinDir, "c")
	ns, older := newNamespace(t), newNamespace(t)
	require.NoError(t, os.MkdirAll(PinDir, 0o700))
	before := testutil.Mounts(t, "self")
	leftovers := map[string]func() error{
		"nothing": func() error { return nil },
		"file":    func() error { return os.WriteFile(path, []byte("x"), 0o600) },
		"pin":     func() error { return Pin("c", older) },
		"two pins": func() error {
			if err := Pin("c", older); err != nil {
				return err
			}
			return unix.Mount(path, path, "", unix.MS_BIND, "")
		},
		"link":      func() error { return os.Symlink("/etc/hostname", path) },
		"directory": func() error { return os.Mkdir(path, 0o700) },
		"fifo":      func() error { return unix.Mkfifo(path, 0o600) },
	}
	for name, leave := range leftovers {
		require.NoError(t, leave(), name)
		if name != "pin" && name != "two pins" {
			_, err := OpenPin("c")
			require.ErrorIs(t, err, fs.ErrNotExist, name)
		}
		require.NoError(t, Pin("c", ns), name)
		pinned, err := OpenPin("c")
		require.NoError(t, err, name)
		same, err := sameFile(pinned, ns)
		require.NoError(t, err, name)
		require.True(t, same, name)
		pinned.Close()
		require.Len(t, testutil.Mounts(t, "self"), len(before)+1, name)
		require.NoError(t, Unpin("c"), name)
		require.NoError(t, Unpin("c"), "%s, again", name)
		require.Equal(t, before, testutil.Mounts(t, "self"), name)
		require.NoFileExists(t, path, name)
	}
	for _, id := range []string{"", ".", "..", "a/b"} {
		require.ErrorContains(t, Pin(id, ns), "no file name")
		require.ErrorContains(t, Unpin(id), "no file name")
	}
}

// What is in the namespace lives as long as the pin.
func TestPinKeepsNamespace(t *testing.T) {
	testutil.RequireRoot(t)
	ns := newNamespace(t)
	n, err := Open("k", ns)
	require.NoError(t, err)
	attachments := attach(t, n, veth("ceth0", "keth0", "10.9.0.2/24"))
	require.NoError(t, Pin("k", ns))
	n.Close()
	ns.Close()

	pinned, err := OpenPin("k")
	require.NoError(t, err)
	defer pinned.Close()
	n, err = Open("k", pinned)
	require.NoError(t, err)
	defer n.Close()
	link, err := linkNamed(n.inside, "ceth0")
	require.NoError(t, err)
	require.NotNil(t, link)
	require.NoError(t, n.Detach(t.Context(), attachments))
	require.NoError(t, Unpin("k"))
}

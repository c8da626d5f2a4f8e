//go:build linux

package hostpath

import (
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"isula.org/syscontainer-hooks/internal/atroot"
	"isula.org/syscontainer-hooks/internal/testutil"
)

func TestMain(m *testing.M) { os.Exit(testutil.Main(m)) }

// trustedDir is not below the temporary directory, where everybody can put links.
func trustedDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/srv", "test") //nolint:usetesting // not below the temporary directory
	require.NoError(t, err)
	require.NoError(t, os.Chmod(dir, 0o755))
	return dir
}

func ino(t *testing.T, path string) uint64 {
	t.Helper()
	var stat unix.Stat_t
	require.NoError(t, unix.Stat(path, &stat))
	return stat.Ino
}

func TestOpen(t *testing.T) {
	testutil.RequireRoot(t)
	dir := trustedDir(t)
	require.NoError(t, os.MkdirAll(dir+"/real/sub", 0o755))
	require.NoError(t, os.MkdirAll(dir+"/user", 0o777))
	require.NoError(t, os.Chown(dir+"/user", 1000, 1000))
	for link, target := range map[string]string{
		"absolute": dir + "/real", "relative": "real/sub", "up": "real/../real", "chain": "absolute/sub",
		"loop": "loop", "user/link": "../real", "stdin": "/dev/stdin", "proc": "/proc/self/root/dev/null",
	} {
		require.NoError(t, os.Symlink(target, filepath.Join(dir, link)))
	}
	for path, want := range map[string]string{
		"real": "real", "real/": "real", "absolute": "real", "relative": "real/sub", "up": "real", "chain": "real/sub",
		"absolute/sub": "real/sub", "user": "user",
	} {
		f, err := Open(dir + "/" + path)
		require.NoError(t, err, path)
		stat, err := atroot.Stat(f)
		require.NoError(t, err)
		require.Equal(t, ino(t, filepath.Join(dir, want)), stat.Ino, path)
		f.Close()
	}
	for path, want := range map[string]error{
		"loop": unix.ELOOP, "user/link": ErrLink, "stdin": ErrLink, "proc": nil, "missing": fs.ErrNotExist,
		"real/file/x": fs.ErrNotExist,
	} {
		_, err := Open(dir + "/" + path)
		require.Error(t, err, path)
		if want != nil {
			require.ErrorIs(t, err, want, path)
		}
	}
	f, err := Open("/dev/fd")
	require.Error(t, err, "a link into procfs: %v", f)
}

func TestMkdirAll(t *testing.T) {
	testutil.RequireRoot(t)
	dir := trustedDir(t)
	require.NoError(t, os.Symlink("/etc", dir+"/link"))
	f, made, err := MkdirAll(dir+"/a/b/", atroot.Owner{UID: 1000, GID: 1001})
	require.NoError(t, err)
	f.Close()
	require.Equal(t, []string{dir + "/a", dir + "/a/b"}, made)
	var stat unix.Stat_t
	require.NoError(t, unix.Stat(dir+"/a/b", &stat))
	require.Equal(t, []uint32{unix.S_IFDIR | 0o755, 1000, 1001}, []uint32{stat.Mode, stat.Uid, stat.Gid})

	f, made, err = MkdirAll(dir+"/a/b", atroot.Owner{})
	require.NoError(t, err)
	f.Close()
	require.Empty(t, made)

	_, made, err = MkdirAll(dir+"/link/new", atroot.Owner{})
	require.ErrorIs(t, err, unix.ELOOP)
	require.Empty(t, made)
}

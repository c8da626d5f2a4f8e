//go:build linux

package atroot

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"isula.org/syscontainer-hooks/internal/testutil"
)

func TestMain(m *testing.M) { os.Exit(testutil.Main(m)) }

func openRoot(t *testing.T) *os.File {
	t.Helper()
	f, err := os.OpenFile(t.TempDir(), unix.O_PATH|unix.O_DIRECTORY, 0)
	require.NoError(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

func TestCheckPath(t *testing.T) {
	t.Parallel()
	for _, path := range []string{"/", "/a", "/a b/ü", "/" + strings.Repeat("x", 255), `/a\040,b`} {
		require.NoError(t, CheckPath(path), path)
	}
	for _, path := range []string{
		"", "a", ".", "/.", "/a/", "/a//b", "/a/../b", "/..", "/a\x00b", "/a\nb", "/a\tb", "/a\x7fb",
		"/" + strings.Repeat("x", 256), strings.Repeat("/a", 2048),
	} {
		require.Error(t, CheckPath(path), path)
	}
}

// Links lead to where they would lead inside the root, whatever the host has there.
func TestOpenStaysInRoot(t *testing.T) {
	t.Parallel()
	root := openRoot(t)
	require.NoError(t, os.MkdirAll(root.Name()+"/etc/real", 0o755))
	for link, target := range map[string]string{
		"absolute": "/etc", "up": "../../../../../../etc", "loop": "loop", "dangling": "/usr", "magic": "/proc/self/root",
	} {
		require.NoError(t, os.Symlink(target, filepath.Join(root.Name(), link)))
	}
	for _, path := range []string{"/absolute/real", "/up/real", "/../../etc/real"} {
		f, err := Open(root, path, unix.O_DIRECTORY)
		require.NoError(t, err, path)
		f.Close()
	}
	for path, want := range map[string]error{
		"/loop": unix.ELOOP, "/dangling": unix.ENOENT, "/absolute/passwd": unix.ENOENT, "/magic": unix.ENOENT,
	} {
		_, err := Open(root, path, 0)
		require.ErrorIs(t, err, want, path)
	}
	_, err := OpenName(root, "../etc")
	require.Error(t, err)
}

func TestLocateAndMakeParent(t *testing.T) {
	t.Parallel()
	root := openRoot(t)
	require.NoError(t, os.MkdirAll(root.Name()+"/a/b", 0o755))
	require.NoError(t, os.Symlink("/a", root.Name()+"/link"))
	require.NoError(t, os.Symlink("/nowhere", root.Name()+"/dangling"))
	owner := Owner{os.Geteuid(), os.Getegid()}

	place, err := Locate(root, "/link/b/c/d/name")
	require.NoError(t, err)
	require.Equal(t, []string{"c", "d"}, place.Missing)
	require.Equal(t, []string{"/link/b/c", "/link/b/c/d"}, place.Made("/link/b/c/d/name"))
	parent, err := place.MakeParent(owner)
	require.NoError(t, err)
	parent.Close()
	place.Anchor.Close()
	require.DirExists(t, root.Name()+"/a/b/c/d")

	// A dangling link is in the way; it is not followed to make something at its end.
	place, err = Locate(root, "/dangling/x")
	require.NoError(t, err)
	_, err = place.MakeParent(owner)
	require.Error(t, err)
	place.Anchor.Close()
	require.NoDirExists(t, root.Name()+"/nowhere")

	on, err := FileSystemOf(root, root)
	require.NoError(t, err)
	require.Equal(t, FileSystem{Root: true}, on)
	made := []string{"/link/b/c", "/link/b/c/d"}
	require.NoError(t, RemoveDirs(root, made, FileSystem{Dev: 1}), "another file system")
	require.DirExists(t, root.Name()+"/a/b/c/d")
	require.NoError(t, os.WriteFile(root.Name()+"/a/b/c/keep", nil, 0o600))
	require.NoError(t, RemoveDirs(root, made, on))
	require.NoDirExists(t, root.Name()+"/a/b/c/d")
	require.FileExists(t, root.Name()+"/a/b/c/keep", "a directory that is no longer empty stays")
	require.NoError(t, os.Remove(root.Name()+"/a/b/c/keep"))
	require.NoError(t, RemoveDirs(root, made, on))
	require.NoError(t, RemoveDirs(root, made, on))
	require.NoDirExists(t, root.Name()+"/a/b/c")
}

// Modes are exact whatever the umask; what is there already keeps its own.
func TestModes(t *testing.T) {
	root := openRoot(t)
	owner := Owner{os.Geteuid(), os.Getegid()}
	for i, umask := range []int{0, 0o777} {
		old := unix.Umask(umask)
		name := string(rune('a' + i))
		dir, err := Mkdir(root, name, owner)
		require.NoError(t, err)
		dir.Close()
		require.NoError(t, CreateFile(root, "f"+name, owner, 0o644))
		unix.Umask(old)
		info, err := os.Stat(filepath.Join(root.Name(), name))
		require.NoError(t, err)
		require.Equal(t, os.FileMode(0o755), info.Mode().Perm())
		info, err = os.Stat(filepath.Join(root.Name(), "f"+name))
		require.NoError(t, err)
		require.Equal(t, os.FileMode(0o644), info.Mode().Perm())
	}
	require.NoError(t, os.Chmod(root.Name()+"/a", 0o700))
	dir, err := Mkdir(root, "a", owner)
	require.NoError(t, err)
	dir.Close()
	info, err := os.Stat(root.Name() + "/a")
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o700), info.Mode().Perm())
	require.ErrorIs(t, CreateFile(root, "fa", owner, 0o644), unix.EEXIST)
}

func TestCheckFileSystem(t *testing.T) {
	t.Parallel()
	for path, ok := range map[string]bool{"/proc": false, "/sys": false, os.TempDir(): true} {
		f, err := os.OpenFile(path, unix.O_PATH, 0)
		require.NoError(t, err)
		_, err = CheckFileSystem(f)
		require.Equal(t, ok, err == nil, path)
		f.Close()
	}
}

// On a file system that was mounted inside a user namespace the host's root can make nothing; its owner can.
func TestUserNamespaceFileSystem(t *testing.T) {
	testutil.RequireRoot(t)
	c := testutil.NewContainer(t, true)
	dev, err := os.OpenFile(c.Path("/dev"), unix.O_PATH|unix.O_DIRECTORY, 0)
	require.NoError(t, err)
	defer dev.Close()
	require.ErrorIs(t, unix.Mkdirat(int(dev.Fd()), "x", 0o755), unix.EOVERFLOW)
	owner := Owner{testutil.MapBase, testutil.MapBase}
	dir, err := Mkdir(dev, "sub", owner)
	require.NoError(t, err)
	defer dir.Close()
	require.NoError(t, CreateFile(dir, "file", owner, 0o600))
	for _, path := range []string{"/dev/sub", "/dev/sub/file"} {
		var stat unix.Stat_t
		require.NoError(t, unix.Lstat(c.Path(path), &stat))
		require.EqualValues(t, testutil.MapBase, stat.Uid)
	}
	// This thread is root again.
	require.NoError(t, os.WriteFile(filepath.Join(t.TempDir(), "f"), nil, 0o600))
	out, err := exec.Command("/usr/bin/id", "-u").Output()
	require.NoError(t, err)
	require.Equal(t, "0\n", string(out))
}

//go:build linux

package bind_test

import (
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"isula.org/syscontainer-hooks/internal/testutil"
	"isula.org/syscontainer-hooks/pkg/bind"
)

func TestMain(m *testing.M) { os.Exit(testutil.Main(m)) }

// shared is a container with its base attached, and a host directory with things to share.
type shared struct {
	*testutil.Container
	t        testing.TB
	c        bind.Container
	transfer *bind.Transfer
	src      string
}

func newShared(t testing.TB, userns bool) *shared {
	t.Helper()
	testutil.RequireRoot(t)
	s := &shared{Container: testutil.NewContainer(t, userns), t: t, src: t.TempDir()}
	require.NoError(t, os.Mkdir(s.src+"/dir", 0o755))
	require.NoError(t, os.WriteFile(s.src+"/dir/hello", []byte("hello"), 0o644))
	require.NoError(t, os.WriteFile(s.src+"/file", []byte("file"), 0o644))
	s.open()
	var err error
	s.transfer, err = bind.NewTransfer(s.ID)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.transfer.Remove()) })
	require.NoError(t, s.transfer.Prepare(t.Context()))
	require.NoError(t, s.transfer.AttachBase(s.c))
	return s
}

func (s *shared) open() {
	s.t.Helper()
	root, err := os.OpenFile(s.Path("/"), unix.O_PATH|unix.O_DIRECTORY, 0)
	require.NoError(s.t, err)
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/mnt", s.Pid))
	require.NoError(s.t, err)
	s.t.Cleanup(func() { root.Close(); ns.Close() })
	s.c = bind.Container{Root: root, MountNS: ns, UID: s.RootID(), GID: s.RootID()}
}

func (s *shared) spec(source, target string) bind.Spec {
	return bind.Spec{Source: filepath.Join(s.src, source), Target: target, Propagation: bind.RSlave}
}

// mountsAt gives the container's mounts at the path, as Mounts describes them without the mount point.
func (s *shared) mountsAt(path string) []string {
	s.t.Helper()
	var found []string
	for _, line := range testutil.Mounts(s.t, fmt.Sprint(s.Pid)) {
		if rest, ok := strings.CutPrefix(line, filepath.Join(s.Root, path)+" "); ok {
			found = append(found, rest)
		}
	}
	return found
}

func each(t *testing.T, test func(t *testing.T, s *shared)) {
	testutil.RequireRoot(t)
	for _, userns := range []bool{false, true} {
		t.Run(fmt.Sprintf("userns %t", userns), func(t *testing.T) { test(t, newShared(t, userns)) })
	}
}

func TestAttachAndDetach(t *testing.T) {
	each(t, func(t *testing.T, s *shared) {
		ro := s.spec("file", "/etc/new/f")
		ro.ReadOnly = true
		private := s.spec("dir", "/mnt/d")
		private.Propagation = bind.RPrivate
		again := private
		again.Target = "/dev/d" // on a tmpfs that the container has mounted
		specs := []bind.Spec{ro, private, again, s.spec("made/here", "/mnt/made")}
		before := testutil.Tree(t, s.Path("/"), s.Path("/dev"), s.src)
		attachments, err := s.transfer.Plan(s.c, specs)
		require.NoError(t, err)
		require.NoError(t, s.c.MakeSources(attachments))
		require.NoError(t, s.transfer.Attach(s.c, attachments))

		require.Contains(t, s.mountsAt("/etc/new/f")[0], " ro,")
		require.Contains(t, s.mountsAt("/etc/new/f")[0], "[master]")
		require.Contains(t, s.mountsAt("/mnt/d")[0], " rw,")
		require.Contains(t, s.mountsAt("/mnt/d")[0], "[]")
		data, err := os.ReadFile(s.Path("/dev/d/hello"))
		require.NoError(t, err)
		require.Equal(t, "hello", string(data))
		require.ErrorIs(t, os.WriteFile(s.Path("/etc/new/f"), nil, 0), unix.EROFS)
		for path, mode := range map[string]uint32{"/etc/new": unix.S_IFDIR | 0o755, "/.sharedpath": unix.S_IFDIR | 0o755} {
			var stat unix.Stat_t
			require.NoError(t, unix.Stat(filepath.Join(s.Root, path), &stat))
			require.Equal(t, []uint32{mode, uint32(s.RootID())}, []uint32{stat.Mode, stat.Uid}, path)
		}
		var stat unix.Stat_t
		require.NoError(t, unix.Stat(s.src+"/made/here", &stat))
		require.EqualValues(t, s.RootID(), stat.Uid)

		// Once more changes nothing.
		mounts := testutil.Mounts(t, fmt.Sprint(s.Pid))
		attachments2, err := s.transfer.Plan(s.c, specs)
		require.NoError(t, err)
		require.NoError(t, s.transfer.Attach(s.c, attachments2))
		require.Equal(t, mounts, testutil.Mounts(t, fmt.Sprint(s.Pid)))

		for range 2 {
			require.NoError(t, s.c.Detach(attachments))
			require.NoError(t, bind.RemoveSources(attachments))
			require.Equal(t, before, testutil.Tree(t, s.Path("/"), s.Path("/dev"), s.src))
			require.Empty(t, s.mountsAt("/mnt/d"))
		}
	})
}

// The host side is as other programs expect it, and goes away with everything that hangs on it.
func TestTransferLayout(t *testing.T) {
	each(t, func(t *testing.T, s *shared) {
		require.NoError(t, s.transfer.Prepare(t.Context()), "again")
		base, err := s.transfer.PlanBase(s.c)
		require.NoError(t, err)
		require.Nil(t, base, "it is attached")
		spec := s.spec("dir", "/mnt/d")
		attachments, err := s.transfer.Plan(s.c, []bind.Spec{spec})
		require.NoError(t, err)
		require.NoError(t, s.transfer.Attach(s.c, attachments))
		sum := fmt.Sprintf("%x", sha(spec.Source))
		for _, dir := range []string{"/.sharedpath/master/", "/.sharedpath/midpath/"} {
			require.FileExists(t, dir+s.ID+"/"+sum+"/hello")
		}
		require.FileExists(t, s.Path("/.sharedpath/"+sum+"/hello"))

		// A mount below the shared directory, and one stacked on an entry.
		require.NoError(t, os.Mkdir(spec.Source+"/sub", 0o755))
		require.NoError(t, unix.Mount("later", spec.Source+"/sub", "tmpfs", 0, ""))
		require.NoError(t, os.WriteFile(spec.Source+"/sub/later", nil, 0o600))
		require.FileExists(t, s.Path("/mnt/d/sub/later"), "rslave")
		require.NoError(t, unix.Mount(s.src, "/.sharedpath/master/"+s.ID+"/"+sum, "", unix.MS_BIND, ""))
		s.Stop()
		for range 2 {
			require.NoError(t, s.transfer.Remove())
			require.NoDirExists(t, "/.sharedpath/master/"+s.ID)
			require.NoDirExists(t, "/.sharedpath/midpath/"+s.ID)
		}
		require.FileExists(t, spec.Source+"/sub/later")
		require.FileExists(t, spec.Source+"/hello")
		for _, line := range testutil.Mounts(t, "self") {
			require.NotContains(t, line, s.ID)
		}
		require.NoError(t, unix.Unmount(spec.Source+"/sub", 0))
	})
}

// The first shared path of many containers at once: one tmpfs.
func TestPrepareAtOnce(t *testing.T) {
	testutil.RequireRoot(t)
	_ = unix.Unmount("/.sharedpath/master", unix.MNT_DETACH)
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			transfer, err := bind.NewTransfer(fmt.Sprintf("once-%d", i))
			if err == nil {
				err = transfer.Prepare(context.Background())
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	count := 0
	for _, line := range testutil.Mounts(t, "self") {
		if strings.HasPrefix(line, "/.sharedpath/master ") {
			count++
			require.Contains(t, line, "[shared] tmpfs")
		}
	}
	require.Equal(t, 1, count)
	for i := range 50 {
		require.DirExists(t, fmt.Sprintf("/.sharedpath/master/once-%d", i))
		transfer, err := bind.NewTransfer(fmt.Sprintf("once-%d", i))
		require.NoError(t, err)
		require.NoError(t, transfer.Remove())
	}
}

// What is wrong with the tmpfs is put right or refused, never used as it is.
func TestPrepareChecksMaster(t *testing.T) {
	testutil.RequireRoot(t)
	transfer, err := bind.NewTransfer("checks")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, transfer.Remove()) })
	const master = "/.sharedpath/master"
	require.NoError(t, transfer.Prepare(t.Context()))
	require.NoError(t, unix.Mount("", master, "", unix.MS_PRIVATE, ""))
	require.NoError(t, transfer.Prepare(t.Context()))
	found := false
	for _, line := range testutil.Mounts(t, "self") {
		found = found || strings.HasPrefix(line, master+" ") && strings.Contains(line, "[shared]")
	}
	require.True(t, found, "made shared again")

	require.NoError(t, unix.Mount("other", master, "tmpfs", 0, "uid=1000"))
	require.ErrorContains(t, transfer.Prepare(t.Context()), "owner 1000")
	require.NoError(t, unix.Unmount(master, 0))
	require.NoError(t, unix.Mount("other", master, "proc", 0, ""))
	require.ErrorContains(t, transfer.Prepare(t.Context()), "where a tmpfs should be")
	require.NoError(t, unix.Unmount(master, 0))
	require.NoError(t, transfer.Prepare(t.Context()))
}

// A path inside another shared path: the outer one is attached first, both contents are visible.
func TestNested(t *testing.T) {
	each(t, func(t *testing.T, s *shared) {
		before := testutil.Tree(t, s.src, s.Root)
		attachments, err := s.transfer.Plan(s.c, []bind.Spec{
			s.spec("file", "/mnt/a/b/f"), s.spec("inner", "/mnt/a/b/c"), s.spec("dir", "/mnt/a/b"), s.spec("dir", "/mnt/a-b"),
		})
		require.NoError(t, err)
		require.NoError(t, s.c.MakeSources(attachments))
		require.NoError(t, s.transfer.Attach(s.c, attachments))
		for _, path := range []string{"/mnt/a/b/hello", "/mnt/a/b/f", "/mnt/a/b/c", "/mnt/a-b/hello"} {
			_, err := os.Stat(s.Path(path))
			require.NoError(t, err)
		}
		require.Len(t, s.mountsAt("/mnt/a/b/c"), 1)
		require.NoError(t, s.c.Detach(attachments))
		require.NoError(t, bind.RemoveSources(attachments))
		require.Equal(t, before, testutil.Tree(t, s.src, s.Root))
	})
}

func TestPlanRefuses(t *testing.T) {
	each(t, func(t *testing.T, s *shared) {
		require.NoError(t, os.Symlink("/etc", s.Root+"/link"))
		require.NoError(t, os.Symlink("/proc/self/root", s.Root+"/magic"))
		require.NoError(t, unix.Mkfifo(s.Root+"/fifo", 0o600))
		require.NoError(t, os.WriteFile(s.Root+"/afile", nil, 0o600))
		require.NoError(t, os.Symlink("/etc", s.src+"/link"))
		require.NoError(t, os.Chmod(s.src, 0o777)) // others could have put the link there
		for _, target := range []string{
			"/", "/.", "/proc", "/proc/self/attr", "/sys/fs/cgroup", "/dev", "/.sharedpath", "/.sharedpath/x", "relative", "",
			"/a/../b", "/a\nb", "/link", "/fifo", "/afile", "/afile/x",
		} {
			_, err := s.transfer.Plan(s.c, []bind.Spec{s.spec("dir", target)})
			require.Error(t, err, target)
		}
		_, err := s.transfer.Plan(s.c, []bind.Spec{s.spec("file", "/etc")})
		require.ErrorIs(t, err, bind.ErrOccupied)
		for _, source := range []string{"/dev/zero", s.src + "/link", "relative", "/x/../y"} {
			_, err := s.transfer.Plan(s.c, []bind.Spec{{Source: source, Target: "/mnt/x", Propagation: bind.RSlave}})
			require.Error(t, err, source)
		}
		ro := s.spec("dir", "/mnt/y")
		ro.ReadOnly = true
		for _, specs := range [][]bind.Spec{
			{s.spec("dir", "/mnt/x"), s.spec("file", "/mnt/x/")},
			{s.spec("dir", "/mnt/x"), ro},
			{{Source: "/etc", Target: "/mnt/x", Propagation: "shared"}},
		} {
			_, err := s.transfer.Plan(s.c, specs)
			require.Error(t, err)
		}
	})
}

// What the image put at the place of the transfer directory is never taken for it.
func TestPlantedBase(t *testing.T) {
	testutil.RequireRoot(t)
	c := testutil.NewContainer(t, false)
	s := &shared{Container: c, t: t, src: t.TempDir()}
	s.open()
	transfer, err := bind.NewTransfer(c.ID)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, transfer.Remove()) })
	require.NoError(t, transfer.Prepare(t.Context()))
	planted := c.Root + "/.sharedpath"
	for name, plant := range map[string]func() error{
		"link": func() error { return os.Symlink("/etc", planted) },
		"file": func() error { return os.WriteFile(planted, nil, 0o600) },
		"fifo": func() error { return unix.Mkfifo(planted, 0o600) },
	} {
		require.NoError(t, plant())
		_, err := transfer.PlanBase(s.c)
		require.ErrorIs(t, err, bind.ErrOccupied, name)
		require.Error(t, transfer.AttachBase(s.c), name)
		require.NoError(t, os.Remove(planted))
	}
	require.NoError(t, os.MkdirAll(fmt.Sprintf("%s/%x", planted, sha(s.src)), 0o755))
	attachments, err := transfer.Plan(s.c, []bind.Spec{{Source: s.src, Target: "/mnt/x", Propagation: bind.RSlave}})
	require.NoError(t, err)
	require.ErrorIs(t, transfer.Attach(s.c, attachments), bind.ErrOccupied, "the base is not attached")
	require.Empty(t, s.mountsAt("/mnt/x"))
}

func sha(s string) [sha256.Size]byte { return sha256.Sum256([]byte(s)) }

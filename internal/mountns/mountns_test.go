//go:build linux

package mountns

import (
	"errors"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"isula.org/syscontainer-hooks/internal/testutil"
)

func TestMain(m *testing.M) { os.Exit(testutil.Main(m)) }

func currentNS(t testing.TB) uint64 {
	var stat unix.Stat_t
	if err := unix.Stat("/proc/thread-self/ns/mnt", &stat); err != nil {
		t.Error(err)
	}
	return stat.Ino
}

// privateNS gives a mount namespace that nothing runs in.
func privateNS(t *testing.T) (ns *os.File) {
	require.NoError(t, DoPrivate(func() (err error) {
		ns, err = os.Open("/proc/thread-self/ns/mnt")
		return err
	}))
	t.Cleanup(func() { ns.Close() })
	return ns
}

// eachWay runs a test with a thread of its own for each Do, and in a settled process.
func eachWay(t *testing.T, test func(t *testing.T)) {
	testutil.RequireRoot(t)
	t.Run("own thread", test)
	t.Run("settled", func(t *testing.T) {
		Settle()
		defer settled.Store(false)
		test(t)
	})
}

func TestDoMovesNobodyElse(t *testing.T) { eachWay(t, testDoMovesNobodyElse) }

func testDoMovesNobodyElse(t *testing.T) {
	host := currentNS(t)
	ns := privateNS(t)

	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			err := Do(ns, func() error {
				if currentNS(t) == host {
					return errors.New("still in the namespace of the host")
				}
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	// A thread ends a little later than the function that it was for.
	require.Eventually(t, func() bool { return allThreadsIn(t, host) }, 5*time.Second, time.Millisecond)
}

func allThreadsIn(t *testing.T, ns uint64) bool {
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Error(err)
	}
	for _, task := range tasks {
		var stat unix.Stat_t
		if unix.Stat("/proc/self/task/"+task.Name()+"/ns/mnt", &stat) == nil && stat.Ino != ns {
			return false
		}
	}
	return true
}

func TestDoReportsError(t *testing.T) {
	eachWay(t, func(t *testing.T) {
		ns, err := os.Open("/proc/self/ns/net")
		require.NoError(t, err)
		defer ns.Close()
		require.ErrorIs(t, Do(ns, func() error { return nil }), unix.EINVAL)
		require.ErrorIs(t, Do(privateNS(t), func() error { return os.ErrClosed }), os.ErrClosed)
		require.ErrorIs(t, DoPrivate(func() error { return os.ErrClosed }), os.ErrClosed)
	})
}

// A settled process that is in a chroot, as on a host that is one itself, is still in it afterwards, also after a panic.
func TestSettledComesBackToChroot(t *testing.T) {
	testutil.RequireRoot(t)
	Settle()
	defer settled.Store(false)
	ns, dir := privateNS(t), t.TempDir()
	require.NoError(t, os.Mkdir(dir+"/proc", 0o755))
	require.NoError(t, unix.Mount("/proc", dir+"/proc", "", unix.MS_BIND|unix.MS_REC, ""))
	defer func() { require.NoError(t, unix.Unmount(dir+"/proc", unix.MNT_DETACH)) }()
	var before, inside, after unix.Stat_t
	var names []string
	err := onOwnThread(func() error {
		if err := errors.Join(unix.Chroot(dir), unix.Chdir("/"), unix.Stat(".", &before)); err != nil {
			return err
		}
		func() {
			defer func() { _ = recover() }()
			_ = Do(ns, func() error {
				_ = unix.Stat("/", &inside)
				panic("fault")
			})
		}()
		if err := errors.Join(unix.Stat("/", &after), unix.Stat(".", &after)); err != nil {
			return err
		}
		entries, err := os.ReadDir("/")
		for _, e := range entries {
			names = append(names, e.Name())
		}
		return err
	})
	require.NoError(t, err)
	require.Equal(t, before.Ino, after.Ino)
	require.NotEqual(t, before.Ino, inside.Ino)
	require.Equal(t, []string{"proc"}, names)
}

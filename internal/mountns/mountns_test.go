//go:build linux

package mountns

import (
	"errors"
	"os"
	"sync"
	"testing"

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

func TestDoMovesNobodyElse(t *testing.T) {
	testutil.RequireRoot(t)
	host := currentNS(t)
	var ns *os.File
	require.NoError(t, DoPrivate(func() (err error) {
		ns, err = os.Open("/proc/thread-self/ns/mnt")
		return err
	}))
	defer ns.Close()

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
	tasks, err := os.ReadDir("/proc/self/task")
	require.NoError(t, err)
	for _, task := range tasks {
		var stat unix.Stat_t
		if err := unix.Stat("/proc/self/task/"+task.Name()+"/ns/mnt", &stat); errors.Is(err, unix.ENOENT) {
			continue // a thread that has just ended
		}
		require.Equal(t, host, stat.Ino, "thread %s stays in the other namespace", task.Name())
	}
}

func TestDoReportsError(t *testing.T) {
	testutil.RequireRoot(t)
	ns, err := os.Open("/proc/self/ns/net")
	require.NoError(t, err)
	defer ns.Close()
	require.ErrorIs(t, Do(ns, func() error { return nil }), unix.EINVAL)
	require.ErrorIs(t, DoPrivate(func() error { return os.ErrClosed }), os.ErrClosed)
}

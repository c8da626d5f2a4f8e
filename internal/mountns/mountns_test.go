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
	testutil.RequireRoot(t)
	ns, err := os.Open("/proc/self/ns/net")
	require.NoError(t, err)
	defer ns.Close()
	require.ErrorIs(t, Do(ns, func() error { return nil }), unix.EINVAL)
	require.ErrorIs(t, DoPrivate(func() error { return os.ErrClosed }), os.ErrClosed)
}

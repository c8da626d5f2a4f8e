//go:build linux

package atomicfile

import (
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func openTemp(t *testing.T) *os.File {
	t.Helper()
	path := t.TempDir()
	require.NoError(t, os.Chmod(path, 0o750))
	dir, err := OpenDir(path)
	require.NoError(t, err)
	t.Cleanup(func() { dir.Close() })
	return dir
}

func TestOpenDirRefuses(t *testing.T) {
	t.Parallel()
	dir := openTemp(t)
	require.NoError(t, os.Symlink(dir.Name(), dir.Name()+"/link"))
	require.NoError(t, os.WriteFile(dir.Name()+"/file", nil, 0o600))
	for _, name := range []string{"link", "file", "missing"} {
		_, err := OpenDir(dir.Name() + "/" + name)
		require.Error(t, err, name)
	}
	require.NoError(t, os.Chmod(dir.Name(), 0o777))
	_, err := OpenDir(dir.Name())
	require.ErrorIs(t, err, ErrUntrusted)
}

func TestRead(t *testing.T) {
	t.Parallel()
	dir := openTemp(t)
	file := filepath.Join(dir.Name(), "f")
	_, err := Read(dir, "f", 10)
	require.ErrorIs(t, err, fs.ErrNotExist)

	require.NoError(t, os.WriteFile(file, []byte("0123456789"), 0o600))
	data, err := Read(dir, "f", 10)
	require.NoError(t, err)
	require.Equal(t, "0123456789", string(data))
	_, err = Read(dir, "f", 9)
	require.ErrorContains(t, err, "limit")

	require.NoError(t, os.Chmod(file, 0o666))
	_, err = Read(dir, "f", 10)
	require.ErrorIs(t, err, ErrUntrusted)

	require.NoError(t, os.Symlink("f", filepath.Join(dir.Name(), "link")))
	_, err = Read(dir, "link", 10)
	require.ErrorIs(t, err, unix.ELOOP)

	require.NoError(t, unix.Mkfifo(filepath.Join(dir.Name(), "fifo"), 0o600))
	_, err = Read(dir, "fifo", 10)
	require.ErrorIs(t, err, ErrUntrusted)
}

func TestReplace(t *testing.T) {
	t.Parallel()
	dir := openTemp(t)
	file := filepath.Join(dir.Name(), "f")
	require.NoError(t, os.WriteFile(filepath.Join(dir.Name(), ".f.tmp"), []byte("left by a killed writer"), 0o600))
	for _, content := range []string{"one", "", "two"} {
		require.NoError(t, Replace(dir, "f", []byte(content), 0o600))
		got, err := os.ReadFile(file)
		require.NoError(t, err)
		require.Equal(t, content, string(got))
	}
	entries, err := os.ReadDir(dir.Name())
	require.NoError(t, err)
	require.Len(t, entries, 1)

	// What cannot be replaced stays, and no temporary file beside it.
	require.NoError(t, os.Mkdir(filepath.Join(dir.Name(), "d"), 0o700))
	require.Error(t, Replace(dir, "d", []byte("x"), 0o600))
	entries, err = os.ReadDir(dir.Name())
	require.NoError(t, err)
	require.Len(t, entries, 2)
}

func TestLockExcludes(t *testing.T) {
	t.Parallel()
	dir := openTemp(t)
	var wg sync.WaitGroup
	inside := make(chan struct{}, 1)
	for range 8 {
		wg.Go(func() {
			held, err := Lock(t.Context(), dir, "lock")
			if err != nil {
				t.Error(err)
				return
			}
			select {
			case inside <- struct{}{}:
			default:
				t.Error("two owners of one lock")
			}
			time.Sleep(time.Millisecond)
			<-inside
			held.Close()
		})
	}
	wg.Wait()
}

func TestLockDeadline(t *testing.T) {
	t.Parallel()
	dir := openTemp(t)
	held, err := Lock(t.Context(), dir, "lock")
	require.NoError(t, err)
	defer held.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	_, err = Lock(ctx, dir, "lock")
	require.ErrorIs(t, err, context.DeadlineExceeded)
}

// A waiter whose file was removed and made anew meanwhile must end on the new file.
func TestLockReplacedFile(t *testing.T) {
	t.Parallel()
	dir := openTemp(t)
	first, err := Lock(t.Context(), dir, "lock")
	require.NoError(t, err)
	got := make(chan *os.File)
	go func() {
		f, err := Lock(t.Context(), dir, "lock")
		if err != nil {
			t.Error(err)
		}
		got <- f
	}()
	time.Sleep(20 * time.Millisecond) // the waiter has the old file open by now; if not, the test still holds
	require.NoError(t, os.Remove(dir.Name()+"/lock"))
	second, err := Lock(t.Context(), dir, "lock")
	require.NoError(t, err)
	first.Close()
	select {
	case <-got:
		t.Fatal("two owners of one lock")
	case <-time.After(50 * time.Millisecond):
	}
	second.Close()
	(<-got).Close()
}

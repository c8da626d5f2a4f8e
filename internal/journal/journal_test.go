//go:build linux

package journal

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

type entry struct {
	N int `json:"n"`
}

func open(t *testing.T, dir string) *Journal[entry] {
	t.Helper()
	j, err := Open[entry](t.Context(), dir, "c1")
	require.NoError(t, err)
	return j
}

func TestJournal(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "run", "hooks")
	j := open(t, dir)
	require.Empty(t, j.Entries)
	require.NoError(t, j.Append(entry{1}))
	require.NoError(t, j.Append(entry{2}))
	require.NoError(t, j.Close())

	j = open(t, dir)
	require.Equal(t, []entry{{1}, {2}}, j.Entries)
	require.NoError(t, j.Clear())
	require.NoError(t, j.Append(entry{3}))
	require.NoError(t, j.Close())

	j = open(t, dir)
	require.Equal(t, []entry{{3}}, j.Entries)
	require.NoError(t, j.Remove())
	require.NoError(t, j.Remove())
	require.NoError(t, j.Close())
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Empty(t, entries)
}

// A killed run may have torn its last line; the next entry goes behind the last whole one.
func TestTornLine(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "hooks")
	require.NoError(t, os.Mkdir(dir, 0o700))
	require.NoError(t, os.WriteFile(dir+"/c1", []byte("{\"n\":1}\n{\"n\":2"), 0o600))
	j := open(t, dir)
	require.Equal(t, []entry{{1}}, j.Entries)
	require.NoError(t, j.Append(entry{3}))
	require.NoError(t, j.Close())
	j = open(t, dir)
	require.Equal(t, []entry{{1}, {3}}, j.Entries)
	require.NoError(t, j.Close())
}

func TestDamagedLine(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "hooks")
	require.NoError(t, os.Mkdir(dir, 0o700))
	require.NoError(t, os.WriteFile(dir+"/c1", []byte("{\"n\":1}\nnonsense\n{\"n\":2}\n"), 0o600))
	j := open(t, dir)
	require.Equal(t, []entry{{1}, {2}}, j.Entries)
	require.NoError(t, j.Close())
}

// The journal is the lock: a second run waits, and gets a new journal when the first one removes it.
func TestExcludes(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "hooks")
	first := open(t, dir)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	_, err := Open[entry](ctx, dir, "c1")
	require.ErrorIs(t, err, context.DeadlineExceeded)

	second := make(chan *Journal[entry])
	go func() {
		j, err := Open[entry](t.Context(), dir, "c1")
		if err != nil {
			t.Error(err)
		}
		second <- j
	}()
	time.Sleep(10 * time.Millisecond)
	require.NoError(t, first.Append(entry{1}))
	require.NoError(t, first.Remove())
	require.NoError(t, first.Close())
	j := <-second
	require.Empty(t, j.Entries)
	require.NoError(t, j.Append(entry{2}))
	require.FileExists(t, dir+"/c1")
	require.NoError(t, j.Close())
}

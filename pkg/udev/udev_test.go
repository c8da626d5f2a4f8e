//go:build linux

package udev

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"isula.org/syscontainer-hooks/internal/atomicfile"
)

func TestSet(t *testing.T) {
	emptyHost(t)
	id := longID("1f2e3d4c")
	rule := Rule{"sdb", "/dev/sdx", id}
	before, err := Set(t.Context(), id, []Rule{rule})
	require.NoError(t, err)
	require.Empty(t, before)
	require.Equal(t, header+fullLine+"\n", readRules(t))
	var stat unix.Stat_t
	require.NoError(t, unix.Stat(RulesFile, &stat))
	require.Equal(t, uint32(unix.S_IFREG|0o600), stat.Mode)

	// Nothing changes, nothing is written.
	before, err = Set(t.Context(), id, []Rule{rule})
	require.NoError(t, err)
	require.Equal(t, []Rule{{"sdb", "/dev/sdx", "1f2e3d4c"}}, before)
	var again unix.Stat_t
	require.NoError(t, unix.Stat(RulesFile, &again))
	require.Equal(t, stat, again)

	// What the other program has made of it is put right, and put back by the caller.
	writeRules(t, plainLine+"\nforeign\n")
	before, err = Set(t.Context(), id, []Rule{{"sdc", "/dev/sdy", id}})
	require.NoError(t, err)
	require.Equal(t, []Rule{{"sdb", "/dev/sdx", "1f2e3d4c"}}, before)
	_, err = Set(t.Context(), id, before)
	require.NoError(t, err)
	require.Equal(t, fullLine+"\nforeign\n", readRules(t))

	// A path that is refused is not given back, and does not stop the removal.
	writeRules(t, strings.Replace(plainLine, "/dev/sdx", "/dev/$env{X}", 1)+"\n"+fullLine+"\n"+fullLine)
	before, err = Set(t.Context(), id, nil)
	require.NoError(t, err)
	require.Equal(t, []Rule{{"sdb", "/dev/sdx", "1f2e3d4c"}}, before)
	require.Empty(t, readRules(t))
}

func TestHeaderStays(t *testing.T) {
	emptyHost(t)
	_, err := Set(t.Context(), "c1", []Rule{{"sdb", "/dev/sdx", "c1"}})
	require.NoError(t, err)
	_, err = Set(t.Context(), "c1", nil)
	require.NoError(t, err)
	require.Equal(t, header, readRules(t))
	require.Regexp(t, "^##.*\n##.*\n\n$", header)
}

func TestNothingMadeForNothing(t *testing.T) {
	emptyHost(t)
	for range 2 {
		before, err := Set(t.Context(), "c1", nil)
		require.NoError(t, err)
		require.Empty(t, before)
		require.NoError(t, Remove(t.Context(), Rule{"sdb", "/dev/sdx", "c1"}))
		require.NoError(t, Remove(t.Context()))
		require.NoError(t, Add(t.Context()))
		rules, err := List(t.Context())
		require.NoError(t, err)
		require.Empty(t, rules)
		require.NoFileExists(t, RulesFile)
		require.NoDirExists(t, filepath.Dir(LockFile))
		require.NoError(t, os.MkdirAll(filepath.Dir(RulesFile), 0o755)) // now with a directory
	}
}

func TestAddRemoveList(t *testing.T) {
	emptyHost(t)
	id := longID("1f2e3d4c")
	b, c, other := Rule{"sdb", "/dev/sdx", id}, Rule{"sdc", "/dev/sdx", id}, Rule{"sdb", "/dev/sdx", "other"}
	for range 2 {
		require.NoError(t, Add(t.Context(), b, other, b))
		require.Equal(t, header+fullLine+"\n"+other.String()+"\n", readRules(t))
	}
	for range 2 {
		require.NoError(t, Add(t.Context(), c))
		rules, err := List(t.Context())
		require.NoError(t, err)
		b.ID, c.ID = "1f2e3d4c", "1f2e3d4c"
		require.Equal(t, []Rule{c, b, other}, rules)
	}
	for range 2 {
		require.NoError(t, Remove(t.Context(), b, Rule{"sdb", "/dev/sdy", id}))
		require.Equal(t, header+c.String()+"\n"+other.String()+"\n", readRules(t))
	}
}

func TestSetRefuses(t *testing.T) {
	emptyHost(t)
	good := Rule{"sdb", "/dev/sdx", "c1"}
	for _, rules := range [][]Rule{
		{{"sdb", "/dev/sdx\n" + fullLine, "c1"}},
		{good, {"sdb", "/dev/sdx", "c2"}},
		{good, {"sdb", "/dev/sdx", longID("c1")}},
		{{"sd*", "/dev/sdx", "c1"}},
	} {
		_, err := Set(t.Context(), "c1", rules)
		require.Error(t, err)
	}
	_, err := Set(t.Context(), "c1 ", nil)
	require.Error(t, err)
	require.Error(t, Add(t.Context(), good, Rule{"sdb", "x", "c1"}))
	require.NoFileExists(t, RulesFile)
}

// What others can have made is neither read nor replaced.
func TestUntrusted(t *testing.T) {
	for name, prepare := range map[string]func(t *testing.T){
		"link to file": func(t *testing.T) {
			require.NoError(t, os.Symlink("/etc/hostname", RulesFile))
		},
		"fifo": func(t *testing.T) {
			require.NoError(t, unix.Mkfifo(RulesFile, 0o600))
		},
		"writable": func(t *testing.T) {
			writeRules(t, header)
			require.NoError(t, os.Chmod(RulesFile, 0o666))
		},
		"of a user": func(t *testing.T) {
			writeRules(t, header)
			require.NoError(t, os.Chown(RulesFile, 1000, 1000))
		},
		"directory": func(t *testing.T) {
			require.NoError(t, os.Mkdir(RulesFile, 0o700))
		},
		"too large": func(t *testing.T) {
			writeRules(t, "")
			require.NoError(t, os.Truncate(RulesFile, 100<<20))
		},
		"directory of a user": func(t *testing.T) {
			require.NoError(t, os.Chown(filepath.Dir(RulesFile), 1000, 1000))
		},
		"linked directory": func(t *testing.T) {
			require.NoError(t, os.Remove(filepath.Dir(RulesFile)))
			require.NoError(t, os.Symlink("/tmp", filepath.Dir(RulesFile)))
		},
		"lock is a link": func(t *testing.T) {
			require.NoError(t, os.MkdirAll(filepath.Dir(LockFile), 0o700))
			require.NoError(t, os.Symlink("/etc/hostname", LockFile))
		},
	} {
		t.Run(name, func(t *testing.T) {
			emptyHost(t)
			require.NoError(t, os.MkdirAll(filepath.Dir(RulesFile), 0o755))
			prepare(t)
			var before, after unix.Stat_t
			existed := unix.Lstat(RulesFile, &before) == nil
			canary, err := os.ReadFile("/etc/hostname")
			require.NoError(t, err)
			_, err = Set(t.Context(), "c1", []Rule{{"sdb", "/dev/sdx", "c1"}})
			require.Error(t, err)
			require.Contains(t, err.Error(), "udev rules")
			if existed {
				require.NoError(t, unix.Lstat(RulesFile, &after))
				require.Equal(t, before.Ino, after.Ino)
				require.Equal(t, before.Mtim, after.Mtim)
			}
			now, err := os.ReadFile("/etc/hostname")
			require.NoError(t, err)
			require.Equal(t, canary, now)
		})
	}
}

func TestGrowsTooLarge(t *testing.T) {
	emptyHost(t)
	writeRules(t, strings.Repeat("x", maxSize))
	_, err := Set(t.Context(), "c1", []Rule{{"sdb", "/dev/sdx", "c1"}})
	require.ErrorContains(t, err, "larger than")
	_, err = Set(t.Context(), "c1", nil)
	require.NoError(t, err)
}

// On a full file system the old file stays.
func TestFull(t *testing.T) {
	emptyHost(t)
	dir := filepath.Dir(RulesFile)
	require.NoError(t, os.MkdirAll(dir, 0o755))
	require.NoError(t, unix.Mount("full", dir, "tmpfs", 0, "size=64k,mode=0755"))
	t.Cleanup(func() { require.NoError(t, unix.Unmount(dir, unix.MNT_DETACH)) })
	content := strings.Repeat("# x\n", 10<<10)
	writeRules(t, content)
	_, err := Set(t.Context(), "c1", []Rule{{"sdb", "/dev/sdx", "c1"}})
	require.ErrorIs(t, err, unix.ENOSPC)
	require.Equal(t, content, readRules(t))
	requireOnlyRules(t)
}

func requireOnlyRules(t *testing.T) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Dir(RulesFile))
	require.NoError(t, err)
	for _, e := range entries {
		require.Equal(t, filepath.Base(RulesFile), e.Name())
	}
}

func TestLockHeld(t *testing.T) {
	emptyHost(t)
	writeRules(t, header)
	require.NoError(t, os.MkdirAll(filepath.Dir(LockFile), 0o700))
	require.NoError(t, os.WriteFile(LockFile, nil, 0o600))
	other, err := os.Open(LockFile) // to read is enough
	require.NoError(t, err)
	defer other.Close()
	require.NoError(t, unix.Flock(int(other.Fd()), unix.LOCK_EX))
	for _, rules := range [][]Rule{{{"sdb", "/dev/sdx", "c1"}}, nil} {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		_, err = Set(ctx, "c1", rules)
		cancel()
		require.ErrorIs(t, err, context.DeadlineExceeded)
	}
	require.Equal(t, header, readRules(t))
}

// rewriteV09 is what version 0.9 of syscontainer-tools does to the file, with a change of no rule of ours.
func rewriteV09(ctx context.Context, dir *os.File) error {
	lock, err := atomicfile.Lock(ctx, dir, filepath.Base(LockFile))
	if err != nil {
		return err
	}
	defer lock.Close()
	content, err := os.ReadFile(RulesFile)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(RulesFile, os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteString(header)
	for line := range strings.Lines(string(content)) {
		if r, ok := parseV09(line); ok && err == nil {
			_, err = f.WriteString(r.String() + "\n")
		}
	}
	return err
}

// Containers that start and stop at once, while the other program rewrites the file, lose no rule.
func TestConcurrent(t *testing.T) {
	emptyHost(t)
	const containers = 50
	ids := make([]string, 2*containers)
	for i := range ids {
		ids[i] = longID(fmt.Sprintf("%08x", 0xabc00000+i))
	}
	writeRules(t, header)
	lockDir, err := atomicfile.MakeDir(filepath.Dir(LockFile))
	require.NoError(t, err)
	defer lockDir.Close()
	var rewriting, working sync.WaitGroup
	done := make(chan struct{})
	rewrites := 0
	rewriting.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
				if err := rewriteV09(t.Context(), lockDir); err != nil {
					t.Error(err)
				}
				rewrites++
			}
		}
	})
	for i, id := range ids {
		working.Go(func() {
			rules := []Rule{{"sdb", "/dev/sdx", id}, {"sdc", "/dev/sdy", id}}
			for _, rules := range [][]Rule{rules[:1], nil, rules} {
				if _, err := Set(t.Context(), id, rules); err != nil {
					t.Error(err)
				}
			}
			if i%2 == 1 {
				if err := Remove(t.Context(), rules[1]); err != nil {
					t.Error(err)
				}
			}
		})
	}
	working.Wait()
	close(done)
	rewriting.Wait()
	require.Positive(t, rewrites)
	var want []Rule
	for i, id := range ids {
		want = append(want, Rule{"sdb", "/dev/sdx", id[:8]})
		if i%2 == 0 {
			want = append(want, Rule{"sdc", "/dev/sdy", id[:8]})
		}
	}
	got, err := List(t.Context())
	require.NoError(t, err)
	require.ElementsMatch(t, want, got)
	require.Contains(t, readRules(t), header)
}

// What Set gives tells whether there is anything to take back.
func TestBefore(t *testing.T) {
	emptyHost(t)
	rule := Rule{"sdb", "/dev/sdx", "c1"}
	before, err := Set(t.Context(), "c1", nil)
	require.NoError(t, err)
	require.Nil(t, before, "there is no file")
	before, err = Set(t.Context(), "c1", []Rule{rule})
	require.NoError(t, err)
	require.Equal(t, []Rule{}, before)
	require.NoError(t, os.Chmod(RulesFile, 0o666))
	before, err = Set(t.Context(), "c1", nil)
	require.ErrorIs(t, err, atomicfile.ErrUntrusted)
	require.Nil(t, before)
	require.NoError(t, os.Chmod(RulesFile, 0o600))
	before, err = Set(t.Context(), "c1", nil)
	require.NoError(t, err)
	require.Equal(t, []Rule{rule}, before)
}

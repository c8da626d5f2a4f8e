//go:build linux

package command

import (
	"context"
	"errors"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"isula.org/syscontainer-hooks/internal/testutil"
)

func TestMain(m *testing.M) { os.Exit(testutil.Main(m)) }

const tool = "/usr/local/bin/command-test"

func install(t *testing.T, script string, mode os.FileMode) {
	t.Helper()
	require.NoError(t, os.WriteFile(tool, []byte("#!/bin/sh\n"+script+"\n"), 0o600))
	require.NoError(t, os.Chmod(tool, mode))
	t.Cleanup(func() { require.NoError(t, os.Remove(tool)) })
}

func run(t *testing.T, args ...string) (string, string, error) {
	t.Helper()
	return Run(t.Context(), 5*time.Second, "command-test", args...)
}

// A program gets nothing but its arguments.
func TestSurroundings(t *testing.T) {
	testutil.RequireRoot(t)
	install(t, `echo "$PWD $# $2"; env | sort; readlink /proc/self/fd/0; ls /proc/self/fd >/dev/null; echo a b >&2; echo c >&2`, 0o755)
	t.Setenv("LD_PRELOAD", "/nowhere")
	t.Setenv("SECRET", "1")
	stdout, stderr, err := run(t, "-x", "$HOME *")
	require.NoError(t, err)
	require.Equal(t, "/ 2 $HOME *\nLC_ALL=C\nPATH=/usr/sbin:/usr/bin:/sbin:/bin\nPWD=/\n/dev/null\n", stdout)
	require.Equal(t, "a b c", stderr)
}

func TestFailure(t *testing.T) {
	testutil.RequireRoot(t)
	install(t, "echo some\necho ' a\n  b' >&2; exit 3", 0o755)
	stdout, _, err := run(t)
	require.EqualError(t, err, "run "+tool+": exit status 3: a b")
	require.Equal(t, "some\n", stdout)
	failed, ok := errors.AsType[*Error](err)
	require.True(t, ok)
	require.Equal(t, 3, failed.Status.ExitStatus())
}

func TestSignal(t *testing.T) {
	testutil.RequireRoot(t)
	install(t, "kill -USR1 $$", 0o755)
	_, _, err := run(t)
	require.EqualError(t, err, "run "+tool+": signal: user defined signal 1")
}

func TestOutputIsLimited(t *testing.T) {
	testutil.RequireRoot(t)
	install(t, "head -c 3000000 /dev/zero; head -c 3000000 /dev/zero | tr '\\0' x >&2", 0o755)
	stdout, stderr, err := run(t)
	require.ErrorContains(t, err, "more than")
	require.Len(t, stdout, maxOutput)
	require.Equal(t, strings.Repeat("x", 300), stderr)
}

// What hangs is killed, with its children, also those that keep the output open.
func TestTimeLimit(t *testing.T) {
	testutil.RequireRoot(t)
	install(t, "sleep 100 & echo $!; exec sleep 100", 0o755)
	start := time.Now()
	stdout, _, err := Run(t.Context(), 100*time.Millisecond, "command-test")
	require.ErrorIs(t, err, ErrTimeout)
	require.Less(t, time.Since(start), 3*time.Second)
	child := strings.TrimSpace(stdout)
	require.Eventually(t, func() bool {
		stat, err := os.ReadFile("/proc/" + child + "/stat")
		return errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ESRCH) || strings.Contains(string(stat), ") Z ")
	}, 2*time.Second, 10*time.Millisecond)

	reason := errors.New("reason")
	ctx, cancel := context.WithCancelCause(t.Context())
	time.AfterFunc(100*time.Millisecond, func() { cancel(reason) })
	_, _, err = Run(ctx, time.Minute, "command-test")
	require.ErrorIs(t, err, reason)
}

func TestUntrusted(t *testing.T) {
	testutil.RequireRoot(t)
	_, _, err := run(t)
	require.ErrorIs(t, err, ErrNotFound)
	install(t, "exit 0", 0o777)
	_, _, err = run(t)
	require.ErrorContains(t, err, "nobody else can write")
	require.NoError(t, os.Chmod(tool, 0o755))
	require.NoError(t, os.Chown(tool, 1000, 0))
	_, _, err = run(t)
	require.ErrorContains(t, err, "nobody else can write")
}

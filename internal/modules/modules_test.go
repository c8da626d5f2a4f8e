//go:build linux

package modules

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"isula.org/syscontainer-hooks/internal/command"
	"isula.org/syscontainer-hooks/internal/testutil"
)

func TestMain(m *testing.M) { os.Exit(testutil.Main(m)) }

func TestFromEnv(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		env  string // entries with blanks in between
		want []string
	}{
		{"", nil},
		{"PATH=/bin kernel_modules=a XKERNEL_MODULES=a KERNEL_MODULES2=b KERNEL_MODULES", nil},
		{"KERNEL_MODULES=", nil},
		{"A=b KERNEL_MODULES=a", []string{"a"}},
		{"KERNEL_MODULES=a,b-c,_D,9 Z=", []string{"a", "b-c", "_D", "9"}},
		{"KERNEL_MODULES=a,a", []string{"a", "a"}},
		{"KERNEL_MODULES=" + strings.Repeat("x", 64), []string{strings.Repeat("x", 64)}},
	} {
		got, err := FromEnv(strings.Fields(test.env))
		require.NoError(t, err, test.env)
		require.Equal(t, test.want, got, test.env)
	}
	for _, value := range []string{
		"a,,b", ",", "a,", ",a", "-d", "-d,rootfs,evil", "a,-r", "--", "a b", " a", "a\n", "a\x00", "a/b", "../a", "a.ko", "é", "a=b",
		"*", "a;b", strings.Repeat("x", 65), "a" + strings.Repeat(",a", maxNames),
	} {
		_, err := FromEnv([]string{"KERNEL_MODULES=" + value})
		require.ErrorContains(t, err, "KERNEL_MODULES", "%q", value)
		require.Less(t, len(err.Error()), 500)
	}
	for _, second := range []string{"KERNEL_MODULES=", "KERNEL_MODULES=b"} {
		_, err := FromEnv([]string{"KERNEL_MODULES=a", "A=b", second})
		require.ErrorContains(t, err, "twice")
	}
}

func FuzzFromEnv(f *testing.F) {
	f.Add("KERNEL_MODULES=a,b-c\nA=b")
	f.Add("KERNEL_MODULES=-d,rootfs,evil")
	f.Add("KERNEL_MODULES=\nKERNEL_MODULES=x")
	name := regexp.MustCompile(`\A[A-Za-z0-9_][A-Za-z0-9_-]{0,63}\z`)
	f.Fuzz(func(t *testing.T, text string) {
		env := strings.Split(text, "\n")
		got, err := FromEnv(env)
		if err != nil {
			require.Empty(t, got)
			return
		}
		for _, g := range got {
			require.Regexp(t, name, g)
		}
		var values []string
		for _, entry := range env {
			if value, ok := strings.CutPrefix(entry, "KERNEL_MODULES="); ok {
				values = append(values, value)
			}
		}
		require.LessOrEqual(t, len(values), 1)
		require.Equal(t, strings.Join(values, ""), strings.Join(got, ","))
	})
}

func TestParseAllowed(t *testing.T) {
	t.Parallel()
	got, err := parseAllowed("# all of these\n\na\n  b-c\t# why\n\n_d\r\ne")
	require.NoError(t, err)
	require.Equal(t, []string{"a", "b_c", "_d", "e"}, got)
	_, err = parseAllowed("a\n#\nb c\n")
	require.ErrorContains(t, err, "modules.allow, line 3")
}

func TestCheckAllowed(t *testing.T) {
	testutil.RequireRoot(t)
	const file = allowDir + "/" + allowFile
	require.NoError(t, CheckAllowed(nil))
	require.NoError(t, CheckAllowed([]string{"a"}), "no list")
	require.NoError(t, os.Mkdir(allowDir, 0o755))
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(allowDir)) })
	require.NoError(t, CheckAllowed([]string{"a"}), "no list")

	require.NoError(t, os.WriteFile(file, []byte("a\nb-c\nd_e\n"), 0o600))
	require.NoError(t, CheckAllowed([]string{"a", "b_c", "b-c", "d-e"}))
	for _, names := range [][]string{{"evil"}, {"a", "evil"}} {
		err := CheckAllowed(names)
		require.ErrorContains(t, err, "module evil is not allowed")
		require.ErrorContains(t, err, file)
	}
	require.Error(t, CheckAllowed([]string{"A"}))
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	require.Error(t, CheckAllowed([]string{"a"}), "an empty list allows none")
}

// A list that somebody else may have written allows nothing, nor does the lack of one in a directory of theirs.
func TestCheckAllowedUntrusted(t *testing.T) {
	testutil.RequireRoot(t)
	const file = allowDir + "/" + allowFile
	elsewhere := filepath.Join(t.TempDir(), "list")
	require.NoError(t, os.WriteFile(elsewhere, []byte("a\n"), 0o600))
	for name, change := range map[string]func() error{
		"writable":           func() error { return os.Chmod(file, 0o666) },
		"of a user":          func() error { return os.Chown(file, 1000, 0) },
		"link":               func() error { return errors.Join(os.Remove(file), os.Symlink(elsewhere, file)) },
		"dangling link":      func() error { return errors.Join(os.Remove(file), os.Symlink("/nowhere", file)) },
		"directory":          func() error { return errors.Join(os.Remove(file), os.Mkdir(file, 0o755)) },
		"FIFO":               func() error { return errors.Join(os.Remove(file), unix.Mkfifo(file, 0o600)) },
		"too large":          func() error { return os.Truncate(file, maxAllow+1) },
		"directory writable": func() error { return errors.Join(os.Remove(file), os.Chmod(allowDir, 0o777)) },
		"directory of user":  func() error { return errors.Join(os.Remove(file), os.Chown(allowDir, 1000, 0)) },
		"directory link": func() error {
			return errors.Join(os.RemoveAll(allowDir), os.Symlink(filepath.Dir(elsewhere), allowDir))
		},
		"directory is file": func() error { return errors.Join(os.RemoveAll(allowDir), os.WriteFile(allowDir, nil, 0o600)) },
	} {
		t.Run(name, func(t *testing.T) {
			require.NoError(t, os.Mkdir(allowDir, 0o755))
			t.Cleanup(func() { require.NoError(t, os.RemoveAll(allowDir)) })
			require.NoError(t, os.WriteFile(file, []byte("a\n"), 0o600))
			require.NoError(t, CheckAllowed([]string{"a"}))
			require.NoError(t, change())
			err := CheckAllowed([]string{"a"})
			require.ErrorContains(t, err, "kernel modules a")
			require.ErrorContains(t, err, allowDir)
		})
	}
}

// fakeHost gives the test a sysfs and a list of built-in modules of its own, and a modprobe that runs script.
func fakeHost(t *testing.T, script string) {
	t.Helper()
	testutil.RequireRoot(t)
	require.True(t, testutil.Isolated())
	require.NoError(t, unix.Mount("test", "/sys/module", "tmpfs", 0, ""))
	t.Cleanup(func() { require.NoError(t, unix.Unmount("/sys/module", unix.MNT_DETACH)) })
	for module, state := range map[string]string{
		"with_state": "live\n", "coming": "coming\n", "going": "going\n", "built_in": "", "odd": "?",
	} {
		require.NoError(t, os.Mkdir("/sys/module/"+module, 0o755))
		if state != "" {
			require.NoError(t, os.WriteFile("/sys/module/"+module+"/initstate", []byte(state), 0o400))
		}
	}
	var name unix.Utsname
	require.NoError(t, unix.Uname(&name))
	dir := "/lib/modules/" + unix.ByteSliceToString(name.Release[:])
	require.NoError(t, os.MkdirAll(dir, 0o755))
	const builtin = "kernel/fs/small-builtin.ko\nkernel/drivers/net/other.ko\n\nmodules.txt\n"
	require.NoError(t, os.WriteFile(dir+"/modules.builtin", []byte(builtin), 0o600))
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })

	const modprobe = "/usr/sbin/modprobe"
	kmod, err := os.Readlink(modprobe) // the machine's own, if it has one
	require.NoError(t, errors.Join(os.RemoveAll(modprobe), os.WriteFile(modprobe, []byte("#!/bin/sh\n"+script+"\n"), 0o600)))
	require.NoError(t, os.Chmod(modprobe, 0o755))
	t.Cleanup(func() {
		require.NoError(t, os.RemoveAll(modprobe))
		if err == nil {
			require.NoError(t, os.Symlink(kmod, modprobe))
		}
	})
}

func TestLoad(t *testing.T) {
	const log = "/run/modprobe.log"
	fakeHost(t, `printf '[%s]' "$@" >>`+log+`; echo >>`+log+`; env | grep -v ^PWD= | sort >>`+log+`; pwd >>`+log)
	t.Setenv("SECRET", "1")
	t.Chdir(t.TempDir())
	for _, test := range []struct{ names, args string }{
		{"", ""},
		{"with-state built_in built-in small_builtin other with_state", ""},
		{"a", "[-a][--][a]"},
		{"b-c b_c a other b-c", "[-a][--][b-c][a]"},
		{"coming going odd with_state", "[-a][--][coming][going][odd]"},
		{"modules modules_txt small", "[-a][--][modules][modules_txt][small]"},
	} {
		require.NoError(t, Load(t.Context(), strings.Fields(test.names)), test.names)
		text, err := os.ReadFile(log)
		if test.args == "" {
			require.ErrorIs(t, err, os.ErrNotExist, "%s: %s", test.names, text)
			continue
		}
		require.NoError(t, err)
		require.NoError(t, os.Remove(log))
		lines := strings.Split(strings.TrimSpace(string(text)), "\n")
		require.Equal(t, []string{test.args, "LC_ALL=C", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "/"}, lines)
	}
}

func TestLoadFails(t *testing.T) {
	fakeHost(t, "echo 'modprobe: FATAL: Module a not found' >&2; exit 1")
	err := Load(t.Context(), []string{"a", "b", "other"})
	const want = "load kernel modules a, b: run /usr/sbin/modprobe: exit status 1: modprobe: FATAL: Module a not found"
	require.EqualError(t, err, want)

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, Load(ctx, []string{"a"}), context.Canceled)

	require.NoError(t, os.Remove("/usr/sbin/modprobe"))
	err = Load(t.Context(), []string{"a", "b"})
	require.ErrorIs(t, err, command.ErrNotFound)
	require.ErrorContains(t, err, "load kernel modules a, b")
	require.NoError(t, Load(t.Context(), []string{"other"}), "nothing to do")

	many := make([]string, maxNames)
	for i := range many {
		many[i] = strings.Repeat("x", 60) + string(rune('0'+i/10%10)) + string(rune('0'+i%10))
	}
	require.ErrorContains(t, Load(t.Context(), many), " and 80 more")
}

// Without the list modprobe decides.
func TestNoBuiltinList(t *testing.T) {
	fakeHost(t, "exit 0")
	require.NoError(t, os.RemoveAll("/lib/modules"))
	wanted, err := notLoaded([]string{"other", "built_in"})
	require.NoError(t, err)
	require.Equal(t, []string{"other"}, wanted)
}

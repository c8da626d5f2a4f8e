//go:build linux

package main

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"isula.org/syscontainer-hooks/internal/testutil"
)

// A prestart that fails on top of one that was killed keeps what that one has written down, and the next poststop or prestart
// puts all right.
func TestFailAfterKill(t *testing.T) {
	eachUserNS(t, func(t *testing.T, userns bool) {
		s := newScene(t, userns)
		warm(t)
		restored, after := s.startAndStop()
		steps := append(stepNames((&restoration{}).removeSteps()), "clean up after an earlier run", "plan", "allow devices")
		for _, name := range steps {
			for _, next := range []string{"prestart", "poststop"} {
				note := name + ", then " + next
				s.occupy()
				s.Start()
				require.Equal(t, -1, s.hook("kill after:make device nodes", "prestart").code, note)
				require.Equal(t, exitFailed, s.hook("fail before:"+name, "prestart").code, note)
				if next == "prestart" {
					require.Equal(t, result{}, s.hook("", "prestart"), note)
					require.Equal(t, restored, s.restored(), note)
				}
				require.Equal(t, result{}, s.hook("", "poststop"), note)
				s.Stop()
				require.Equal(t, next == "poststop", s.vacate(), note)
				require.Equal(t, after, s.host(), note)
			}
		}
	})
}

// What is left below the transfer directories goes at poststop, whatever else is broken.
func TestPoststopGoesOn(t *testing.T) {
	for name, spoil := range map[string]func(s *scene){
		"damaged journal": func(s *scene) {
			require.NoError(s.t, os.WriteFile(filepath.Join(journalDir, s.ID), []byte("nonsense\n"), 0o600))
		},
		"root is a link now": func(s *scene) {
			require.NoError(s.t, os.Rename(s.Root, s.Root+".moved"))
			require.NoError(s.t, os.Symlink("/proc/self/root", s.Root))
			s.t.Cleanup(func() {
				require.NoError(s.t, os.Remove(s.Root))
				require.NoError(s.t, os.Rename(s.Root+".moved", s.Root))
			})
		},
		"no log": func(s *scene) { s.log = "/nowhere/log" },
	} {
		t.Run(name, func(t *testing.T) {
			s := newScene(t, false)
			require.Equal(t, result{}, s.hook("", "prestart"))
			s.Stop()
			spoil(s)
			require.Equal(t, exitOK, s.hook("", "poststop").code)
			for _, line := range testutil.Mounts(t, "self") {
				require.NotContains(t, line, s.ID)
			}
			require.NoDirExists(t, "/.sharedpath/master/"+s.ID)
		})
	}
}

// Two containers share a directory that is missing: what one of them made is not removed because the other had planned to.
func TestSourceOfAnother(t *testing.T) {
	a, b := newScene(t, false), newScene(t, false)
	source := t.TempDir() + "/missing"
	for _, s := range []*scene{a, b} {
		record := fmt.Sprintf(`{"bindToAdd":["%s:/mnt/d:rw"]}`, source)
		require.NoError(t, os.WriteFile(filepath.Join(s.Bundle, "device_hook.json"), []byte(record), 0o600))
	}
	require.Equal(t, -1, b.hook("kill before:make host directories", "prestart").code)
	require.Equal(t, result{}, a.hook("", "prestart"))
	require.Equal(t, result{}, b.hook("", "poststop"))
	require.NoError(t, os.WriteFile(a.Path("/mnt/d/new"), nil, 0o600))
	require.FileExists(t, source+"/new")
	require.Equal(t, result{}, a.hook("", "poststop"))
}

// A link of the image leads a device's path into a shared path: nothing is made on the host.
func TestDeviceBehindLink(t *testing.T) {
	s := newScene(t, false)
	warm(t)
	require.NoError(t, os.Symlink("/mnt/d", s.Root+"/lnk"))
	record := fmt.Sprintf(`{"bindToAdd":["%s/d:/mnt/d:rw"],"deviceToAdd":[{"Type":"c","Minor":5,"Major":1,"PathOnHost":"/dev/zero",`+
		`"PathInContainer":"/lnk/zero","CgroupPermissions":"rwm","Parent":""}]}`, s.source)
	require.NoError(t, os.Mkdir(s.Root+"/mnt/d", 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(s.Bundle, "device_hook.json"), []byte(record), 0o600))
	before := s.host()
	got := s.hook("", "prestart")
	require.Equal(t, exitFailed, got.code)
	require.Contains(t, got.stderr, "/lnk/zero")
	require.Equal(t, before, s.host())
}

// A container with the id of one that runs is refused, and the one that runs keeps what it has.
func TestSameIDTwice(t *testing.T) {
	s := newScene(t, false)
	require.Equal(t, result{}, s.hook("", "prestart"))
	inside := s.inside()
	other := testutil.NewContainer(t, false)
	state := strings.Replace(other.State(), other.ID, s.ID, 1)
	got := hook(t, "", state, "-state", "prestart")
	require.Equal(t, exitFailed, got.code)
	require.Contains(t, got.stderr, fmt.Sprintf("running, as process %d", s.Pid))
	require.Equal(t, inside, s.inside())
	require.Equal(t, result{}, s.hook("", "poststop"))
}

// A syslog daemon that does not read its socket holds nobody up.
func TestSyslog(t *testing.T) {
	testutil.RequireRoot(t)
	const path = "/var/run/log" // /dev is the machine's own
	for _, other := range []string{"/dev/log", "/var/run/syslog"} {
		if _, err := os.Stat(other); err == nil {
			t.Skip("this machine has a syslog daemon at ", other)
		}
	}
	daemon, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path})
	require.NoError(t, err)
	defer func() { _ = os.Remove(path) }()
	s := newScene(t, false)
	require.Equal(t, result{}, hook(t, "", s.State(), "-state", "prestart"))
	buf := make([]byte, 4096)
	require.NoError(t, daemon.SetReadDeadline(time.Now().Add(5*time.Second)))
	for _, severity := range []string{"28", "30"} { // a route that is skipped, and what is restored
		n, err := daemon.Read(buf)
		require.NoError(t, err)
		require.Regexp(t, `^<`+severity+`>\w+ +\d+ [0-9:]+ hook \[\d+\]: .*container=`+s.ID, string(buf[:n]))
	}
	require.Equal(t, result{}, s.hook("", "poststop"))

	fill, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path})
	require.NoError(t, err)
	defer fill.Close()
	for { // until the queue is full
		require.NoError(t, fill.SetWriteDeadline(time.Now().Add(20*time.Millisecond)))
		if _, err := fill.Write([]byte("x")); err != nil {
			break
		}
	}
	start := time.Now()
	require.Equal(t, result{}, hook(t, "", s.State(), "-state", "prestart"))
	require.Less(t, time.Since(start), 5*time.Second)
	require.Equal(t, result{}, s.hook("", "poststop"))
}

// A container that can write its part of the transfer layout puts something there; it is removed all the same.
func TestPlantedInTransfer(t *testing.T) {
	s := newScene(t, false)
	require.Equal(t, result{}, s.hook("", "prestart"))
	require.NoError(t, os.MkdirAll("/.sharedpath/master/"+s.ID+"/x/y/z", 0o755))
	require.NoError(t, os.Symlink("/etc", "/.sharedpath/master/"+s.ID+"/x/link"))
	require.NoError(t, unix.Mkfifo("/.sharedpath/master/"+s.ID+"/x/y/fifo", 0o600))
	s.Stop()
	require.Equal(t, result{}, s.hook("", "poststop"))
	require.NoDirExists(t, "/.sharedpath/master/"+s.ID)
	require.FileExists(t, "/etc/passwd")
}

// Standard input that never ends, with a deadline far away.
func TestStdinTimeout(t *testing.T) {
	t.Parallel()
	testutil.RequireRoot(t)
	cmd := hookCommand(t, "", "", "-state", "prestart", "-log", filepath.Join(t.TempDir(), "log"))
	r, w, err := os.Pipe()
	require.NoError(t, err)
	defer r.Close()
	defer w.Close()
	cmd.Stdin = r
	start := time.Now()
	require.Error(t, cmd.Run())
	require.Equal(t, exitFailed, cmd.ProcessState.ExitCode())
	require.Less(t, time.Since(start), 10*time.Second)
}

func TestUsage(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		code int
		args []string
	}{
		{exitUsage, nil},
		{exitUsage, []string{"-state", "prestrat"}},
		{exitUsage, []string{"-state", "prestart", "operand"}},
		{exitUsage, []string{"-state", "prestart", "-state", "poststop"}},
		{exitUsage, []string{"-state", "prestart", "-timeout", "0s"}},
		{exitUsage, []string{"-state", "prestart", "-record-dir", "x"}},
		{exitUsage, []string{"-state", "prestart", "-with-relabel"}},
		{exitUsage, []string{"-no-such-flag"}},
		{exitOK, []string{"--state=poststart"}},
		{exitOK, []string{"-state", "poststart", "-with-relabel"}},
		{exitOK, []string{"-version"}},
		{exitOK, []string{"-h"}},
		{exitOK, []string{"-state", "poststop"}}, // and the state is missing
		{exitFailed, []string{"-state", "prestart"}},
	} {
		got := hook(t, "", "", test.args...)
		require.Equal(t, test.code, got.code, "%v: %s", test.args, got.stderr)
	}
}

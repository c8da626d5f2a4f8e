//go:build linux

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"isula.org/syscontainer-hooks/pkg/udev"
)

// What the snapshots of the fault tests compare is really there.
func TestDiskAndSysctls(t *testing.T) {
	eachUserNS(t, func(t *testing.T, userns bool) {
		s := newScene(t, userns)
		before := s.sysctls()
		require.Equal(t, result{}, s.hook("", "prestart"))
		major, minor := diskNumbers(t)
		require.Equal(t, []string{
			fmt.Sprintf("blkio.throttle.read_bps_device %d:%d 3000\n", major, minor),
			fmt.Sprintf("blkio.throttle.read_iops_device %d:%d 1000\n", major, minor),
			fmt.Sprintf("blkio.throttle.write_bps_device %d:%d 4000\n", major, minor),
			fmt.Sprintf("blkio.throttle.write_iops_device %d:%d 2000\n", major, minor),
		}, s.limits())
		require.Contains(t, readRules(t), udev.Rule{Disk: filepath.Base(disk), Path: "/dev/sdx", ID: s.ID}.String()+"\n")
		after := []string{"kernel.shmmni = 1234", "net.ipv4.conf.eth0.rp_filter = 2", "net.ipv4.ip_forward = 1"}
		require.NotSubset(t, before, after)
		if userns {
			require.Equal(t, after, s.sysctls())
		} else {
			require.NotContains(t, s.sysctls(), after[0])
		}
		require.Equal(t, result{}, s.hook("", "poststop"))
		require.NotContains(t, readRules(t), s.ID)
		require.Equal(t, make([]string, 4), afterNames(s.limits()))
	})
}

func readRules(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(udev.RulesFile)
	require.NoError(t, err)
	return string(text)
}

// afterNames cuts the names of the files off.
func afterNames(limits []string) []string {
	values := make([]string, len(limits))
	for i, limit := range limits {
		_, values[i], _ = strings.Cut(limit, " ")
	}
	return values
}

// Rules that the container had already, whoever wrote them, are there again after a start that failed.
func TestRulesOfBefore(t *testing.T) {
	s := newScene(t, false)
	warm(t)
	require.NoError(t, udev.Add(t.Context(), udev.Rule{Disk: "sdq", Path: "/dev/sdq", ID: s.ID}))
	before := readRules(t)
	require.Equal(t, exitFailed, s.hook("fail after:write udev rules", "prestart").code)
	require.Equal(t, before, readRules(t))
	require.Equal(t, result{}, s.hook("", "prestart"))
	require.NotContains(t, readRules(t), "/dev/sdq")
	require.Equal(t, result{}, s.hook("", "poststop"))
}

// Entries of disks whose numbers have changed are corrected in all lists, and only there.
func TestLimitNumbersAreSaved(t *testing.T) {
	s := newScene(t, false)
	path := filepath.Join(s.Bundle, "device_hook.json")
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	major, minor := diskNumbers(t)
	right := fmt.Sprintf(`"major":%d,"minor":%d,`, major, minor)
	require.Contains(t, string(text), right)
	wrong := strings.ReplaceAll(string(text), right, `"major":8,"minor":99,"later":{"x":1},`)
	require.NoError(t, os.WriteFile(path, []byte(wrong), 0o600))
	require.Equal(t, result{}, s.hook("", "prestart"))
	saved, err := os.ReadFile(path)
	require.NoError(t, err)
	require.NotContains(t, string(saved), `"minor":99`)
	require.Equal(t, 4, strings.Count(string(saved), right))
	require.Equal(t, 4, strings.Count(string(saved), `"later":{"x":1}`))
	require.Equal(t, result{}, s.hook("", "poststop"))
}

// Rules of an earlier time go though the container has no disk any more: the disk's name may be another one's by now.
func TestRulesOfNoDisk(t *testing.T) {
	s := newScene(t, false)
	require.NoError(t, udev.Add(t.Context(), udev.Rule{Disk: "sdq", Path: "/dev/sdq", ID: s.ID}))
	require.NoError(t, os.Remove(filepath.Join(s.Bundle, "device_hook.json")))
	require.Equal(t, result{}, s.hook("", "prestart"))
	require.NotContains(t, readRules(t), s.ID)
	require.Equal(t, result{}, s.hook("", "poststop"))
}

// Others hold the lock of the rules, or have made them untrusted: a container without a disk starts, stops and starts again, and
// what a container with a disk leaves is removed but for the rules.
func TestForeignRulesTrouble(t *testing.T) {
	trouble := map[string]func(t *testing.T){
		"others can write the file": func(t *testing.T) {
			require.NoError(t, os.Chmod(udev.RulesFile, 0o666))
			t.Cleanup(func() { require.NoError(t, os.Chmod(udev.RulesFile, 0o600)) })
		},
		"lock is held": func(t *testing.T) {
			lock, err := os.OpenFile(udev.LockFile, os.O_RDWR, 0)
			require.NoError(t, err)
			require.NoError(t, unix.Flock(int(lock.Fd()), unix.LOCK_EX))
			t.Cleanup(func() { lock.Close() })
		},
	}
	for name, begin := range trouble {
		t.Run(name, func(t *testing.T) {
			warm(t)
			withDisk, without := newScene(t, false), newScene(t, false)
			require.NoError(t, os.Remove(filepath.Join(without.Bundle, "device_hook.json")))
			require.Equal(t, result{}, without.hook("", "prestart"))
			require.Equal(t, result{}, withDisk.hook("", "prestart"))
			t.Run("", func(t *testing.T) {
				begin(t)
				without.Stop()
				require.Contains(t, stopped(t, without), "remove udev rules: ")
				without.Start()
				require.Equal(t, result{}, without.hook("", "prestart"))
				withDisk.Stop()
				require.Contains(t, stopped(t, withDisk), "remove udev rules: ")
				require.NoFileExists(t, filepath.Join(journalDir, withDisk.ID))
				require.NotContains(t, strings.Join(showNetwork(t), ""), "link-netnsid")
				withDisk.Start()
				got := withDisk.hook("", "prestart")
				require.Equal(t, exitFailed, got.code)
				require.Contains(t, got.stderr, "write udev rules: ")
				require.NoFileExists(t, filepath.Join(journalDir, withDisk.ID))
			})
			require.Contains(t, readRules(t), withDisk.ID)
			require.Equal(t, result{}, withDisk.hook("", "prestart"))
			require.Equal(t, result{}, withDisk.hook("", "poststop"))
			require.NotContains(t, readRules(t), withDisk.ID)
		})
	}
}

// stopped gives what a poststop says that ends as all of them do.
func stopped(t *testing.T, s *scene) string {
	t.Helper()
	got := s.hook("", "poststop")
	require.Equal(t, exitOK, got.code)
	return got.stderr
}

// A node that no driver has behind it is restored, and gets no rule.
func TestNodeWithoutDriver(t *testing.T) {
	s := newScene(t, false)
	node := filepath.Join(s.source, "node")
	require.NoError(t, unix.Mknod(node, unix.S_IFBLK|0o600, int(unix.Mkdev(7, 4321))))
	record := fmt.Sprintf(`{"deviceToAdd":[{"Type":"b","Minor":4321,"Major":7,"PathOnHost":%q,"PathInContainer":"/dev/late",`+
		`"CgroupPermissions":"r","Parent":""}]}`, node)
	require.NoError(t, os.WriteFile(filepath.Join(s.Bundle, "device_hook.json"), []byte(record), 0o600))
	require.Equal(t, result{}, s.hook("", "prestart"))
	require.Equal(t, result{}, s.hook("", "poststop"))
}

// A kernel that has no timer to give is no reason to do nothing.
func TestWithoutKernelTimer(t *testing.T) {
	s := newScene(t, false)
	cmd := hookCommand(t, "", s.State(), "-log", s.log, "-state", "prestart")
	self, err := os.Executable()
	require.NoError(t, err)
	cmd.Path, cmd.Args = "/usr/bin/prlimit", append([]string{"prlimit", "--sigpending=0", self}, cmd.Args[1:]...)
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Contains(t, readRules(t), s.ID)
	require.Equal(t, result{}, s.hook("", "poststop"))
}

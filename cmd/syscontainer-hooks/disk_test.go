//go:build linux

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

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

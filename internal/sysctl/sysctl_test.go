//go:build linux

package sysctl

import (
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"isula.org/syscontainer-hooks/internal/testutil"
)

func TestMain(m *testing.M) { os.Exit(testutil.Main(m)) }

func TestParse(t *testing.T) {
	t.Parallel()
	settings, err := Parse(map[string]string{
		"net.ipv4.conf.a0.forwarding":            "0",
		"net/ipv4/conf/eth0.100/forwarding":      "0",
		"net.ipv4.conf.eth0/200.forwarding":      "1",
		"net.ipv4.conf.default.forwarding":       "1",
		"net.ipv4.conf.all.forwarding":           "1",
		"net.ipv4.ip_forward":                    "1",
		"net.nf_conntrack_max":                   "1",
		"kernel.shmmax":                          "1",
		"kernel/shm_rmid_forced":                 "1",
		"kernel.msgmax":                          "1",
		"kernel.sem":                             "1\t2 3 4",
		"fs.mqueue.msg_max":                      "1",
		"net.ipv4.ip_local_reserved_ports":       "",
		"net.core." + strings.Repeat("x", 255-9): strings.Repeat("y", maxValue),
	})
	require.NoError(t, err)
	keys := make([]string, 0, len(settings))
	for _, s := range settings {
		keys = append(keys, s.Key)
	}
	require.Equal(t, []string{
		"fs.mqueue.msg_max", "kernel.msgmax", "kernel.sem", "kernel/shm_rmid_forced", "kernel.shmmax",
		"net.core." + strings.Repeat("x", 255-9), "net.ipv4.ip_forward", "net.ipv4.ip_local_reserved_ports", "net.nf_conntrack_max",
		"net.ipv4.conf.all.forwarding", "net.ipv4.conf.default.forwarding", "net.ipv4.conf.a0.forwarding",
		"net/ipv4/conf/eth0.100/forwarding", "net.ipv4.conf.eth0/200.forwarding",
	}, keys)
	require.Equal(t, Setting{Key: "kernel.sem", Value: "1\t2 3 4"}, settings[2])
	settings, err = Parse(nil)
	require.NoError(t, err)
	require.Empty(t, settings)
}

func TestParseRefuses(t *testing.T) {
	t.Parallel()
	for _, key := range []string{
		"kernel.core_pattern", "kernel.modprobe", "kernel.hostname", "kernel.domainname", "kernel.pid_max", "kernel.semx",
		"kernel.sem_next_id", "kernel.auto_msgmni", "kernel.ns_last_pid", "kernel.shm.x", "kernel", "vm.drop_caches", "vm.net.x",
		"fs.file-max", "fs.mqueue", "fs.mqueue.a.b", "fs.binfmt_misc.register", "user.max_user_namespaces", "sunrpc.x", "net", "netx.a",
		"kernel.keys.shmmax", "Net.ipv4.x", "dev.net.x", "kernel.Shmmax", "net.netfilter.nf_hooks_lwtunnel",
	} {
		_, err := Parse(map[string]string{key: "1"})
		require.ErrorContains(t, err, "namespaced", key)
		require.ErrorContains(t, err, key)
	}
	for _, key := range []string{
		"", ".", "/", "net.", "net/", "kernel.", "/net/ipv4/x", ".net.ipv4", "net..x", "net//x", "net/./x", "net/../kernel/modprobe",
		"net.ipv4./.x", "net/ipv4/../../kernel/x", "net.ipv4.//.//.kernel.x", "net.ipv4.conf.all.x\n", "net.ipv4.x\x00", "net.\x7f",
		"net/ipv4/conf/", "net." + strings.Repeat("x", 252), strings.Repeat("net.x", 1<<20), "net/ipv4/..", "net.ipv4.//",
	} {
		_, err := Parse(map[string]string{key: "1"})
		require.Error(t, err, "%.300q", key)
		require.Less(t, len(err.Error()), 1500)
	}
	for _, value := range []string{"1\n", "\n", "a\x00", "1\n2", strings.Repeat("1", maxValue+1)} {
		_, err := Parse(map[string]string{"net.ipv4.ip_forward": value})
		require.ErrorContains(t, err, "net.ipv4.ip_forward")
	}
	for _, value := range []string{"1", "2"} {
		_, err := Parse(map[string]string{"net.ipv4.ip_forward": "1", "net/ipv4/ip_forward": value})
		require.ErrorContains(t, err, "as well")
	}
}

// What is taken is a path that leads nowhere but into a part of procfs that is the container's.
func FuzzParse(f *testing.F) {
	f.Add("net.ipv4.conf.eth0/100.forwarding", "1", "kernel.sem", "1 2 3 4")
	f.Add("net/ipv4/../../kernel/x", "1", "fs.mqueue.msg_max", "")
	f.Add("net.ipv4.conf.all.x\n", "1\n", "net//x", "\x00")
	f.Fuzz(func(t *testing.T, key1, value1, key2, value2 string) {
		given := map[string]string{key1: value1, key2: value2}
		settings, err := Parse(given)
		if err != nil {
			require.Empty(t, settings)
			return
		}
		require.Len(t, settings, len(given))
		again, err := Parse(given)
		require.NoError(t, err)
		require.Equal(t, settings, again)
		for _, s := range settings {
			require.Equal(t, given[s.Key], s.Value)
			require.NotContains(t, s.Value, "\n")
			path, err := pathOf(s.Key)
			require.NoError(t, err)
			require.Regexp(t, `^(net/.+|fs/mqueue/[^/]+|kernel/(shm[^/]*|msg[^/]*|sem))$`, path)
			require.NotRegexp(t, `(^|/)(\.{0,2})(/|$)`, path)
			same, err := pathOf(path)
			require.NoError(t, err)
			require.Equal(t, path, same, "a path is a key too, the same one")
		}
	})
}

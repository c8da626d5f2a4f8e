//go:build linux

package hostile

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// goodSysctls are of each kind that a container can have, with values that are nobody's default.
var goodSysctls = map[string]string{
	"net.ipv4.ip_forward":               "1",
	"net/ipv4/ip_local_port_range":      "20000 30000",
	"net.ipv4.ip_local_reserved_ports":  "21000-21003",
	"net.core.somaxconn":                "1234",
	"net.ipv6.conf.all.forwarding":      "1",
	"net.ipv6.conf.default.autoconf":    "0",
	"net.unix.max_dgram_qlen":           "77",
	"kernel.shmmax":                     "123456789",
	"kernel.shm_rmid_forced":            "1",
	"kernel.msgmax":                     "9000",
	"kernel.sem":                        "300 40000 50 200",
	"fs.mqueue.msg_max":                 "11",
	"net.ipv4.conf.lo.accept_redirects": "0",
}

// badSysctls are not the container's, or no keys.
var badSysctls = map[string]string{
	"kernel.core_pattern": "|/x", "kernel.modprobe": "/x", "kernel/core_pattern": "|/x", "kernel.hostname": "x",
	"kernel.domainname": "x", "kernel.hotplug": "/x", "kernel.panic": "1", "kernel.sysrq": "1",
	"kernel.auto_msgmni": "0", "kernel.semaphore": "1", "kernel.shm.x": "1", "vm.drop_caches": "1",
	"vm.overcommit_memory": "1", "fs.suid_dumpable": "2", "fs.mqueue": "1", "fs.mqueue.a.b": "1", "dev.x": "1",
	"fs.binfmt_misc.register": ":x:M::x::/x:", "user.max_user_namespaces": "1", "net.netfilter.nf_hooks_lwtunnel": "1",
	"net": "1", "": "1", "net/ipv4/../../kernel/core_pattern": "|/x", "net.ipv4.//.//.kernel.core_pattern": "|/x",
	"net//ipv4/ip_forward": "1", "../sys/net/ipv4/ip_forward": "1", "/net/ipv4/ip_forward": "1",
	"/proc/sys/net/ipv4/ip_forward": "1", "net/./ipv4/ip_forward": "1", "net.ipv4.conf.all.x\n": "1",
	"net.ipv4.ip_forward\x00": "1", "net.ipv4.ip_forward\n": "1", "net..ipv4": "1",
	"net." + strings.Repeat("a", 1<<20): "1", "net.ipv4": "1", "net.ipv4.ip_forward.x": "1", "net.ipv4.nothing": "1",
	"net.ipv4.conf.nothere.forwarding": "1", "kernel.shmnothing": "1", "net.core.rmem_max": "99999",
	"net.ipv4.tcp_available_congestion_control": "reno",
	// Good keys, bad values.
	"net.core.somaxconn": "1\n2", "net.unix.max_dgram_qlen": "1\x00", "kernel.msgmax": "x",
	"kernel.sem": strings.Repeat("1", 4096), "net.ipv4.ip_local_port_range": "5 4",
	"kernel.shmmax": strings.Repeat("9 ", 1<<20), "fs.mqueue.msg_max": "-1",
}

// hostSysctls reads what the rows try to change, where the test is.
func hostSysctls(tb testing.TB) snapshot {
	tb.Helper()
	return sysctlValues(tb, os.ReadFile)
}

// inSysctls reads the same in the container's namespaces.
func (w *world) inSysctls() snapshot {
	w.t.Helper()
	return sysctlValues(w.t, func(path string) ([]byte, error) {
		return exec.Command("/usr/bin/nsenter", fmt.Sprintf("--target=%d", w.pid), "--net", "--ipc", "--", "/bin/cat", path).Output()
	})
}

func sysctlValues(tb testing.TB, read func(path string) ([]byte, error)) snapshot {
	tb.Helper()
	keys := slices.Collect(maps.Keys(goodSysctls))
	keys = append(keys, "kernel.core_pattern", "kernel.modprobe", "kernel.hostname", "kernel.domainname", "kernel.panic",
		"kernel.sysrq", "vm.overcommit_memory", "fs.suid_dumpable", "user.max_user_namespaces", "net.netfilter.nf_hooks_lwtunnel",
		"net.core.rmem_max", "fs.mqueue.queues_max", "net.ipv4.tcp_fin_timeout")
	all := snapshot{}
	for _, key := range keys {
		data, err := read("/proc/sys/" + strings.ReplaceAll(key, ".", "/"))
		all["sysctl "+key] = strings.Join(strings.Fields(string(data)), " ")
		if err != nil {
			all["sysctl "+key] = err.Error()
		}
	}
	return all
}

// hasSysctls checks that the container has these values, and else those of before.
func (w *world) hasSysctls(before snapshot, values map[string]string) {
	w.t.Helper()
	want := maps.Clone(before)
	for key, value := range values {
		want["sysctl "+key] = value
	}
	require.Empty(w.t, diff(want, w.inSysctls()))
}

// ownIPC replaces the container's first process with one that has in addition an IPC namespace, and one of its user namespace.
func (w *world) ownIPC() {
	w.t.Helper()
	own, err := os.Readlink("/proc/thread-self/ns/ipc")
	require.NoError(w.t, err)
	out := w.in("sh", "unshare --ipc sleep 600 </dev/null >/dev/null 2>&1 & echo $!")
	pid, err := strconv.Atoi(strings.TrimSpace(out))
	require.NoError(w.t, err)
	w.t.Cleanup(func() {
		_ = unix.Kill(pid, unix.SIGKILL)
		w.hasEnded(strconv.Itoa(pid))
	})
	require.Eventually(w.t, func() bool {
		theirs, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/ipc", pid))
		comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		return err == nil && theirs != own && string(comm) == "sleep\n"
	}, 5*time.Second, 5*time.Millisecond)
	w.pid = pid
}

func newSysctlWorld(t *testing.T, v variant, values map[string]string) *world {
	t.Helper()
	w := newWorld(t, v)
	w.setSysctls(values)
	return w
}

func (w *world) setSysctls(values map[string]string) {
	w.t.Helper()
	w.linux()["sysctl"] = values
	w.writeConfig()
}

// TestSysctls is STA-13: what is the container's is set there, and nowhere else.
func TestSysctls(t *testing.T) {
	beginNet(t)
	host := hostSysctls(t)
	sameHost := func(t *testing.T) { t.Helper(); require.Empty(t, diff(host, hostSysctls(t)), "the host's values") }
	mapped := variant{user: true, net: true}
	for _, v := range []variant{
		{name: "plain", user: true, net: true},
		{name: "one-cpu", user: true, net: true, oneCPU: true},
		{name: "few-caps", user: true, net: true, fewCaps: true},
	} {
		t.Run("STA-13/good-"+v.name, func(t *testing.T) {
			w := newSysctlWorld(t, v, goodSysctls)
			w.start()
			w.ownIPC()
			before := w.inSysctls()
			res := w.prestart()
			require.Zero(t, res.code, res)
			require.Empty(t, res.stderr)
			w.hasSysctls(before, goodSysctls)
			sameHost(t)
			require.Zero(t, w.poststop().code)
			sameHost(t)
		})
	}
	t.Run("STA-13/good-pivot", func(t *testing.T) { // the image has no program that makes an IPC namespace
		values := map[string]string{"net.ipv4.ip_forward": "1", "net.core.somaxconn": "1234"}
		w := newSysctlWorld(t, variant{user: true, net: true, pivot: true}, values)
		w.start()
		before := w.inSysctls()
		res := w.prestart()
		require.Zero(t, res.code, res)
		w.hasSysctls(before, values)
		sameHost(t)
		require.Zero(t, w.poststop().code)
	})
	t.Run("STA-13/of-an-interface", func(t *testing.T) {
		w := newSysctlWorld(t, mapped, map[string]string{
			"net.ipv4.conf.c0.forwarding": "1", "net/ipv4/conf/c.1/forwarding": "1", "net.ipv4.conf.c/1.arp_ignore": "1",
			"kernel.msgmax": "9000",
		})
		w.hostSh(bridge)
		w.links = []string{"c0h", "c1h"}
		w.record(nics(veth("c0", "c0h", "10.9.0.2/24"), veth("c.1", "c1h", "10.9.0.3/24")))
		w.start()
		w.ownIPC()
		res := w.prestart()
		require.Zero(t, res.code, res)
		out, err := exec.Command("/usr/bin/nsenter", fmt.Sprintf("--target=%d", w.pid), "--net", "--", "/bin/sh", "-c",
			"cd /proc/sys/net/ipv4/conf; cat c0/forwarding c.1/forwarding c.1/arp_ignore all/forwarding").Output()
		require.NoError(t, err)
		require.Equal(t, "1\n1\n1\n0\n", string(out))
		sameHost(t)
		require.Zero(t, w.poststop().code)
	})
	t.Run("STA-13/taken-back", func(t *testing.T) {
		values := maps.Clone(goodSysctls)
		values["net.ipv4.conf.nothere.forwarding"] = "1"
		w := newSysctlWorld(t, mapped, values)
		w.hostSh(bridge)
		w.links = []string{"c0h"}
		w.record(nics(veth("c0", "c0h", "10.9.0.2/24")))
		w.start()
		w.ownIPC()
		before, clean := w.inSysctls(), w.clean()
		w.failed(w.prestart(), "net.ipv4.conf.nothere.forwarding", 0)
		w.hasSysctls(before, nil)
		require.Empty(t, w.settled(clean, w.clean), "CLEAN")
		sameHost(t)
		require.Zero(t, w.poststop().code)
	})
	t.Run("STA-13/twice-in-other-words", func(t *testing.T) {
		w := newSysctlWorld(t, mapped, map[string]string{"net.ipv4.ip_forward": "0", "net/ipv4/ip_forward": "1"})
		w.start()
		w.failed(w.prestart(), "net.ipv4.ip_forward", 0)
		require.Zero(t, w.poststop().code)
	})
	t.Run("STA-13/no-user-namespace", func(t *testing.T) { // the runtime's own matter
		values := maps.Clone(badSysctls)
		values["net.core.somaxconn"] = "55"
		w := newSysctlWorld(t, variant{net: true}, values)
		w.start()
		w.ownIPC()
		before := w.inSysctls()
		res := w.prestart()
		require.Zero(t, res.code, res)
		w.hasSysctls(before, nil)
		sameHost(t)
		require.Zero(t, w.poststop().code)
	})
}

// TestBadSysctls is STA-13 with each key on its own, behind good ones.
func TestBadSysctls(t *testing.T) {
	beginNet(t)
	host := hostSysctls(t)
	w := newSysctlWorld(t, variant{user: true, net: true}, nil)
	w.start()
	w.ownIPC()
	before, clean := w.inSysctls(), w.clean()
	for _, key := range slices.Sorted(maps.Keys(badSysctls)) {
		t.Run(fmt.Sprintf("STA-13/%.60q", key), func(t *testing.T) {
			old := w.t
			w.t = t
			defer func() { w.t = old }()
			values := map[string]string{"fs.mqueue.queues_max": "33", "net.ipv4.tcp_fin_timeout": "31", key: badSysctls[key]}
			w.setSysctls(values)
			clean["bundle/config.json"] = describe(t, w.bundle+"/config.json", false)
			quoted := strconv.Quote(key)
			w.failed(w.prestart(), quoted[1:min(len(quoted)-1, 60)], 2*time.Second)
			w.hasSysctls(before, nil)
			require.Empty(t, w.settled(clean, w.clean), "CLEAN")
			require.Empty(t, diff(host, hostSysctls(t)), "the host's values")
			require.Zero(t, w.poststop().code)
		})
	}
}

// TestSharedNamespaces is STA-13 in a container that has a namespace of the host's: nothing is set there.
func TestSharedNamespaces(t *testing.T) {
	beginNet(t)
	host := hostSysctls(t)
	for name, c := range map[string]struct {
		net, ipc bool
		key, bad string
	}{
		"network": {ipc: true, key: "kernel.msgmax", bad: "net.core.somaxconn"},
		"ipc":     {net: true, key: "net.core.somaxconn", bad: "kernel.msgmax"},
		"ipc-fs":  {net: true, key: "net.core.somaxconn", bad: "fs.mqueue.msg_max"},
		"both":    {key: "kernel.sem", bad: "kernel.sem"},
	} {
		t.Run("STA-13/host-"+name, func(t *testing.T) {
			w := newSysctlWorld(t, variant{user: true, net: c.net}, map[string]string{
				c.key: goodSysctls[c.key], c.bad: goodSysctls[c.bad],
			})
			w.start()
			if c.ipc {
				w.ownIPC()
			}
			before, clean := w.inSysctls(), w.clean()
			res := w.prestart()
			w.failed(res, c.bad, 0)
			require.Contains(t, res.stderr, "the container has the host's")
			w.hasSysctls(before, nil)
			require.Empty(t, w.settled(clean, w.clean), "CLEAN")
			require.Empty(t, diff(host, hostSysctls(t)), "the host's values")
			require.Zero(t, w.poststop().code)
			if c.key == c.bad {
				return
			}
			// What is left is the container's own.
			w.setSysctls(map[string]string{c.key: goodSysctls[c.key]})
			res = w.prestart()
			require.Zero(t, res.code, res)
			w.hasSysctls(before, map[string]string{c.key: goodSysctls[c.key]})
			require.Empty(t, diff(host, hostSysctls(t)), "the host's values")
			require.Zero(t, w.poststop().code)
		})
	}
}

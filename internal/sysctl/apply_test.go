//go:build linux

package sysctl

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"isula.org/syscontainer-hooks/internal/kernel"
	"isula.org/syscontainer-hooks/internal/testutil"
	"isula.org/syscontainer-hooks/internal/thread"
)

// process starts one in new namespaces, and opens the network and IPC ones among them.
func process(t *testing.T, flags uintptr) Namespaces {
	t.Helper()
	testutil.RequireRoot(t)
	cmd := exec.Command("/bin/sh", "-c", "read -r end")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: flags}
	if flags&unix.CLONE_NEWUSER != 0 {
		ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: testutil.MapBase, Size: 65536}}
		cmd.SysProcAttr.UidMappings, cmd.SysProcAttr.GidMappings = ids, ids
	}
	_, err := cmd.StdinPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	open := func(kind string, flag uintptr) *os.File {
		if flags&flag == 0 {
			return nil
		}
		f, err := kernel.Open(fmt.Sprintf("/proc/%d/ns/%s", cmd.Process.Pid, kind), unix.O_RDONLY)
		require.NoError(t, err)
		t.Cleanup(func() { f.Close() })
		return f
	}
	return Namespaces{Net: open("net", unix.CLONE_NEWNET), IPC: open("ipc", unix.CLONE_NEWIPC)}
}

// read gives the values of the keys in the namespaces, "" for one that is not there, with single blanks.
func read(t *testing.T, n Namespaces, keys ...string) map[string]string {
	t.Helper()
	values := map[string]string{}
	require.NoError(t, thread.Own(func() error {
		for _, ns := range []*os.File{n.Net, n.IPC} {
			if ns == nil {
				continue
			}
			if err := unix.Setns(int(ns.Fd()), 0); err != nil {
				return err
			}
		}
		for _, key := range keys {
			path, err := pathOf(key)
			if err != nil {
				return err
			}
			data, _ := os.ReadFile("/proc/sys/" + path)
			values[key] = strings.Join(strings.Fields(string(data)), " ")
		}
		return nil
	}))
	return values
}

var allKinds = map[string]string{
	"net.ipv4.ip_forward":                "1",
	"net.ipv4.conf.lo.forwarding":        "0",
	"net/ipv4/ip_local_port_range":       "20000 30000",
	"net.ipv4.ip_local_reserved_ports":   "21000-21003,22000",
	"net.ipv4.ping_group_range":          "0 2147483647",
	"net.core.somaxconn":                 "1234",
	"net.ipv6.conf.all.forwarding":       "1",
	"net.ipv6.conf.default.disable_ipv6": "1",
	"net.unix.max_dgram_qlen":            "77",
	"kernel.shmmax":                      "123456789",
	"kernel.shmall":                      "1234567",
	"kernel.shm_rmid_forced":             "1",
	"kernel.msgmax":                      "9000",
	"kernel.msgmni":                      "123",
	"kernel.sem":                         "300 40000 50 200",
	"kernel.msg_next_id":                 "7",
	"fs.mqueue.msg_max":                  "11",
	"fs.mqueue.queues_max":               "33",
	"net.ipv4.tcp_congestion_control":    "reno",
	"net.ipv4.neigh.lo.gc_stale_time":    "61",
}

// Nothing of all this reaches the host: its values are the same before, in between and after.
func TestApply(t *testing.T) {
	for _, c := range []struct {
		name     string
		flags    uintptr
		net, ipc bool
	}{
		{"user namespace", unix.CLONE_NEWUSER | unix.CLONE_NEWNET | unix.CLONE_NEWIPC, true, true},
		{"no user namespace", unix.CLONE_NEWNET | unix.CLONE_NEWIPC, true, true},
		{"network of the host", unix.CLONE_NEWUSER | unix.CLONE_NEWIPC, false, true},
		{"IPC of the host", unix.CLONE_NEWUSER | unix.CLONE_NEWNET, true, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := process(t, c.flags)
			possible, values := map[string]string{}, map[string]string{}
			for key, value := range allKinds {
				isNet := strings.HasPrefix(key, "net")
				if isNet && c.net || !isNet && c.ipc {
					possible[key] = value
					values[key] = value
				}
			}
			var keys []string
			for key := range allKinds {
				keys = append(keys, key)
			}
			host, old := read(t, Namespaces{}, keys...), read(t, n, keys...)
			sameHost := func() { t.Helper(); require.Equal(t, host, read(t, Namespaces{}, keys...), "the host's values") }

			everything, err := Parse(allKinds)
			require.NoError(t, err)
			if !c.net || !c.ipc {
				before, missing, err := n.Apply(everything)
				require.ErrorContains(t, err, "the container has the host's "+map[bool]string{true: "IPC", false: "network"}[c.net])
				require.Empty(t, before)
				require.Empty(t, missing)
				require.Equal(t, old, read(t, n, keys...))
				sameHost()
			}
			settings, err := Parse(possible)
			require.NoError(t, err)
			before, missing, err := n.Apply(settings)
			require.NoError(t, err)
			require.Empty(t, missing)
			require.NotEmpty(t, before)
			got := read(t, n, keys...)
			for key := range possible {
				require.Equal(t, values[key], got[key], key)
			}
			sameHost()

			again, missing, err := n.Apply(settings)
			require.NoError(t, err)
			require.Empty(t, again, "all values are as they should be")
			require.Empty(t, missing)

			_, missing, err = n.Apply(before)
			require.NoError(t, err)
			require.Empty(t, missing)
			got = read(t, n, keys...)
			if c.ipc {
				require.Equal(t, "7", got["kernel.msg_next_id"], "nothing that can be taken back")
				got["kernel.msg_next_id"] = "-1"
			}
			require.Equal(t, old, got)
			sameHost()
		})
	}
}

func TestApplyNothing(t *testing.T) {
	t.Parallel()
	before, missing, err := Namespaces{}.Apply(nil)
	require.NoError(t, err)
	require.Empty(t, before)
	require.Empty(t, missing)
	_, _, err = Namespaces{}.Apply([]Setting{{"kernel.modprobe", "/x"}})
	require.ErrorContains(t, err, "not namespaced")
}

// The file of an interface is there as soon as the interface is.
func TestMissing(t *testing.T) {
	n := process(t, unix.CLONE_NEWUSER|unix.CLONE_NEWNET|unix.CLONE_NEWIPC)
	settings := []Setting{
		{"net.ipv4.conf.lo.forwarding", "1"},
		{"net.ipv4.conf.eth0/100.forwarding", "1"},
		{"net.nothing.such", "1"},
		{"kernel.shmnot", "1"},
	}
	before, missing, err := n.Apply(settings)
	require.NoError(t, err)
	require.Equal(t, settings[1:], missing)
	require.Equal(t, []Setting{{"net.ipv4.conf.lo.forwarding", "0"}}, before)

	inNet(t, n, "ip", "link", "add", "eth0.100", "type", "ifb")
	before, missing, err = n.Apply(missing)
	require.NoError(t, err)
	require.Equal(t, settings[2:], missing)
	require.Equal(t, []Setting{{"net.ipv4.conf.eth0/100.forwarding", "0"}}, before)
	require.Equal(t, "1", read(t, n, "net/ipv4/conf/eth0.100/forwarding")["net/ipv4/conf/eth0.100/forwarding"])

	inNet(t, n, "ip", "link", "del", "eth0.100")
	again, missing, err := n.Apply(before)
	require.NoError(t, err, "what has gone needs no undo")
	require.Empty(t, again)
	require.Len(t, missing, 1)
}

func inNet(t *testing.T, n Namespaces, args ...string) {
	t.Helper()
	cmd := exec.Command("/usr/bin/nsenter", append([]string{"--net=/proc/self/fd/3"}, args...)...)
	cmd.ExtraFiles = []*os.File{n.Net}
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%q: %s", args, out)
}

func TestApplyFails(t *testing.T) {
	n := process(t, unix.CLONE_NEWUSER|unix.CLONE_NEWNET|unix.CLONE_NEWIPC)
	for _, test := range []struct{ key, value, want string }{
		{"net.core.rmem_max", "212992", "not namespaced on this kernel"},
		{"net.ipv4.tcp_available_congestion_control", "reno", "not namespaced on this kernel"},
		{"net.netfilter.nf_hooks_lwtunnel", "1", "not namespaced"},
		{"net.ipv4.ip_forward", "x", "invalid argument"},
		{"net.ipv4.ip_local_port_range", "5 4", "invalid argument"},
		{"net.ipv4.ip_local_reserved_ports", "5-4", "invalid argument"},
		{"net.ipv4.tcp_congestion_control", "nothing", "no such file"},
		{"net.ipv4.conf", "1", "a group of parameters"},
		{"net.ipv4.ip_forward.x", "1", "not a directory"},
		{"net.core.somaxconn", "50 60", "only the first 3 bytes"},
		{"kernel.sem", "", "invalid argument"},
		{"kernel.shm_rmid_forced", "5", "invalid argument"},
		{"fs.mqueue.msg_max", "-1", "invalid argument"},
	} {
		first := Setting{"net.ipv4.tcp_fin_timeout", "99"}
		old := read(t, n, test.key, first.Key)
		before, missing, err := n.Apply([]Setting{first, {test.key, test.value}, {"net.unix.max_dgram_qlen", "5"}})
		require.ErrorContains(t, err, test.want, test.key)
		require.ErrorContains(t, err, `sysctl "`+test.key+`"`)
		require.Empty(t, missing)
		require.Equal(t, "10", read(t, n, "net.unix.max_dgram_qlen")["net.unix.max_dgram_qlen"], "what comes after the error")
		_, _, err = n.Apply(before)
		require.NoError(t, err)
		require.Equal(t, old, read(t, n, test.key, first.Key))
	}
}

// A caller's mistake does not reach the host either.
func TestHostsNamespace(t *testing.T) {
	testutil.RequireRoot(t)
	f, err := kernel.Open("/proc/thread-self/ns/net", unix.O_RDONLY)
	require.NoError(t, err)
	defer f.Close()
	old := read(t, Namespaces{}, "net.core.somaxconn")
	before, _, err := Namespaces{Net: f}.Apply([]Setting{{"net.core.somaxconn", "99"}})
	require.ErrorIs(t, err, errHost)
	require.Empty(t, before)
	require.Equal(t, old, read(t, Namespaces{}, "net.core.somaxconn"))
}

// Another procfs, or none, in the place of the host's is no way to a file.
func TestNoProcfs(t *testing.T) {
	n := process(t, unix.CLONE_NEWNET)
	require.NoError(t, unix.Mount("test", "/proc/sys", "tmpfs", 0, ""))
	t.Cleanup(func() { require.NoError(t, unix.Unmount("/proc/sys", unix.MNT_DETACH)) })
	require.NoError(t, os.MkdirAll("/proc/sys/net/core", 0o755))
	const file = "/proc/sys/net/core/somaxconn"
	require.NoError(t, os.WriteFile(file, []byte("1\n"), 0o600))
	_, _, err := n.Apply([]Setting{{"net.core.somaxconn", "99"}})
	require.ErrorContains(t, err, "no procfs")
	data, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Equal(t, "1\n", string(data))
}

// What is mounted in it is not written either.
func TestMountInProcfs(t *testing.T) {
	n := process(t, unix.CLONE_NEWNET)
	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, []byte("1\n"), 0o600))
	const target = "/proc/sys/net/core/somaxconn"
	require.NoError(t, unix.Mount(file, target, "", unix.MS_BIND, ""))
	t.Cleanup(func() { require.NoError(t, unix.Unmount(target, unix.MNT_DETACH)) })
	_, _, err := n.Apply([]Setting{{"net.core.somaxconn", "99"}})
	require.ErrorIs(t, err, unix.EXDEV)
	data, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Equal(t, "1\n", string(data))
}

// The thread that wrote as another user is gone, all others are as they were.
func TestThreads(t *testing.T) {
	n := process(t, unix.CLONE_NEWUSER|unix.CLONE_NEWIPC)
	for i := range 50 {
		_, _, err := n.Apply([]Setting{{"kernel.msgmax", fmt.Sprint(9000 + i)}})
		require.NoError(t, err)
	}
	own, err := os.Readlink("/proc/self/ns/ipc")
	require.NoError(t, err)
	require.Eventually(t, func() bool { // the last of them may be on its way
		tasks, err := os.ReadDir("/proc/self/task")
		return err == nil && !slices.ContainsFunc(tasks, func(task os.DirEntry) bool {
			status, _ := os.ReadFile("/proc/self/task/" + task.Name() + "/status")
			ipc, err := os.Readlink("/proc/self/task/" + task.Name() + "/ns/ipc")
			return err != nil || ipc != own || !strings.Contains(string(status), "\nUid:\t0\t0\t0\t0\n")
		})
	}, 5*time.Second, time.Millisecond)
}

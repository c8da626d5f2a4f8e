//go:build linux

package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"isula.org/syscontainer-hooks/internal/testutil"
	"isula.org/syscontainer-hooks/test/harness"
	"isula.org/syscontainer-hooks/test/payload/nettool"
)

// bare is what a runtime has made when it calls the hook, without the runtime: so many containers start together that the time of
// runtimes would be all that is seen.
type bare struct {
	id, bundle string
	record     record
	pid        int
	stdin      io.Closer
	process    *exec.Cmd
}

const (
	crowd      = 100
	interfaces = 4 // of each container
)

// newBare starts the process of the container number i.
func newBare(t *testing.T, payload string, i int) *bare {
	t.Helper()
	b := &bare{id: fmt.Sprintf("hookcrowd-%d-%d", os.Getpid(), i), bundle: harness.TempDir(t)}
	rootfs := filepath.Join(b.bundle, "rootfs")
	harness.Mkdir(t, rootfs, 0o755, 0)
	spec := fmt.Sprintf(`{"ociVersion":"1.0.2","root":{"path":%q},"linux":{"cgroupsPath":"/%s"}}`, rootfs, b.id)
	harness.WriteFile(t, filepath.Join(b.bundle, "config.json"), spec, 0)
	for k := range interfaces {
		address := netip.AddrFrom4([4]byte{10, 94, byte(i), byte(k + 1)})
		b.record.NetworkInterfaces = append(b.record.NetworkInterfaces, nic{
			IP: netip.PrefixFrom(address, 16).String(), MTU: 1400, Qlen: 500, Type: "veth", Bridge: linuxBridge,
			HostNicName: fmt.Sprintf("hookc%dn%d", i, k), CtrNicName: fmt.Sprintf("eth%d", k),
		})
	}
	b.record.NetworkRoute = []route{{Gw: fmt.Sprintf("10.94.%d.200", i), Dev: "eth0"}}
	harness.WriteFile(t, filepath.Join(b.bundle, "device_hook.json"), b.record.String(), 0)
	require.NoError(t, os.Chmod(filepath.Join(b.bundle, "device_hook.json"), 0o600))

	b.process = exec.Command(payload, "hold", rootfs)
	b.process.Stderr = os.Stderr
	b.process.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET}
	stdin, err := b.process.StdinPipe()
	require.NoError(t, err)
	stdout, err := b.process.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, b.process.Start())
	b.stdin, b.pid = stdin, b.process.Process.Pid
	t.Cleanup(b.stop)
	line, err := bufio.NewReader(stdout).ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, "ready\n", line)
	return b
}

func (b *bare) stop() {
	_ = b.stdin.Close()
	_ = b.process.Wait()
}

// check looks at the interfaces from outside: the process has no tools.
func (b *bare) check(t *testing.T, host map[int]nettool.Link) {
	t.Helper()
	ns, err := netns.GetFromPid(b.pid)
	require.NoError(t, err)
	defer ns.Close()
	handle, err := netlink.NewHandleAt(ns)
	require.NoError(t, err)
	defer handle.Close()
	links, err := nettool.LinksOf(handle)
	require.NoError(t, err)
	require.Len(t, links, interfaces+1)
	for _, want := range b.record.NetworkInterfaces {
		got := findLink(links, want.CtrNicName)
		require.Equal(t, nettool.Link{
			Name: want.CtrNicName, Kind: "veth", MAC: got.MAC, MTU: want.MTU, QueueLen: want.Qlen, Up: true,
			Addresses: []string{want.IP}, Index: got.Index, Peer: got.Peer,
		}, got)
		end := host[got.Peer]
		require.Equal(t, nettool.Link{
			Name: want.HostNicName, Kind: "veth", MAC: end.MAC, MTU: want.MTU, QueueLen: want.Qlen, Up: true,
			Master: linuxBridge, Index: got.Peer, Peer: got.Index,
		}, end)
	}
}

// hookAll runs the hook for all containers at once and gives the time it takes.
func hookAll(t *testing.T, hook, stage string, all []*bare) time.Duration {
	t.Helper()
	var done sync.WaitGroup
	begin := time.Now()
	for _, b := range all {
		done.Go(func() {
			pid := b.pid
			if stage == "poststop" {
				pid = -1
			}
			state, err := json.Marshal(map[string]any{"ociVersion": "1.0.2", "id": b.id, "pid": pid, "bundle": b.bundle})
			if err != nil {
				t.Error(err)
				return
			}
			got := harness.Command(string(state), hook, "-state", stage, "-log", filepath.Join(b.bundle, "log"))
			if got != (harness.Result{}) {
				t.Errorf("%s of %s: %+v", stage, b.id, got)
			}
		})
	}
	done.Wait()
	took := time.Since(begin)
	require.False(t, t.Failed())
	return took
}

// TestCrowd: 25 and then 100 containers prestart at once. All is right, and the time grows with their number, not with its
// square.
func TestCrowd(t *testing.T) {
	testutil.RequireRoot(t)
	addHostLink(t, "bridge", linuxBridge)
	tools, err := harness.BuiltTools()
	require.NoError(t, err)
	var all []*bare
	for i := range crowd {
		all = append(all, newBare(t, tools.Payload, i))
	}
	links := linkNames(harness.HostLinks(t))
	took := map[int]time.Duration{}
	for _, n := range []int{crowd / 4, crowd} {
		took[n] = hookAll(t, tools.Hook, "prestart", all[:n])
		host := map[int]nettool.Link{}
		for _, link := range harness.HostLinks(t) {
			host[link.Index] = link
		}
		for _, b := range all[:n] {
			b.check(t, host)
		}
		away := hookAll(t, tools.Hook, "poststop", all[:n])
		require.Equal(t, links, linkNames(harness.HostLinks(t)))
		t.Logf("%d containers: prestart %s, poststop %s", n, took[n], away)
	}
	// 16 times as long would be the square.
	require.Less(t, took[crowd], 10*took[crowd/4])
	for _, pattern := range []string{"/run/syscontainer-tools/*/hookcrowd-*", "/.sharedpath/*/hookcrowd-*"} {
		left, err := filepath.Glob(pattern)
		require.NoError(t, err)
		require.Empty(t, left)
	}
}

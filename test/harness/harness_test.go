//go:build linux

package harness

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"

	"isula.org/syscontainer-hooks/internal/testutil"
	"isula.org/syscontainer-hooks/test/payload/nettool"
)

func TestMain(m *testing.M) { os.Exit(testutil.Main(m)) }

// TestContainer runs a container without the hook: what the other tests see is then the hook's doing.
func TestContainer(t *testing.T) {
	testutil.RequireRoot(t)
	tools := Tools{Payload: filepath.Join(t.TempDir(), "payload")}
	require.NoError(t, GoBuild("", tools.Payload, module+"/test/payload", "CGO_ENABLED=0"))
	for _, name := range []string{"runc", "crun"} {
		for _, userns := range []bool{false, true} {
			t.Run(name+map[bool]string{true: " userns"}[userns], func(t *testing.T) {
				rt, err := FindRuntime(name)
				if err != nil {
					Skip(t, err.Error())
				}
				c := New(t, Config{Runtime: rt, Tools: tools, UserNS: userns})
				before := c.Left()
				c.Start()
				for range 2 {
					require.Contains(t, c.Exec("ls", "/"), "payload")
					require.Equal(t, "c 1:3 0666", c.Exec("stat", "/dev/null")[:10])
					require.Equal(t, "d 0:0 0755 0 0", c.Exec("stat", "/mnt"))
					require.NotEqual(t, 0, c.TryExec("stat", "/missing").Code)
					require.Len(t, At(c.Mounts(), "/dev"), 1)
					if V1Devices() {
						require.Contains(t, c.AllowedDevices(), "c 1:3 rwm")
					}
					c.Restart()
				}
				c.Stop()
				require.Equal(t, before, c.Left())
			})
		}
	}
}

// TestContainerNetwork: what the payload tells of the network and does to it is so.
func TestContainerNetwork(t *testing.T) {
	testutil.RequireRoot(t)
	tools := Tools{Payload: filepath.Join(t.TempDir(), "payload")}
	require.NoError(t, GoBuild("", tools.Payload, module+"/test/payload", "CGO_ENABLED=0"))
	rt, err := FindRuntime("runc")
	if err != nil {
		Skip(t, err.Error())
	}
	c := New(t, Config{Runtime: rt, Tools: tools, UserNS: true, Spec: func(spec *specs.Spec) {
		spec.Process.Args = []string{"/payload", "init", ":7777"}
		caps := slices.Concat(spec.Process.Capabilities.Bounding, []string{"CAP_NET_ADMIN"})
		spec.Process.Capabilities = &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps}
	}})
	before := c.Left()
	c.Start()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "hooktest0"
	require.NoError(t, nettool.AddLink(&netlink.Veth{
		LinkAttrs: attrs, PeerName: "eth0", PeerTxQLen: 800, PeerNamespace: netlink.NsPid(c.Pid),
	}))
	require.NotEqual(t, before.Links, c.Left().Links)
	require.NoError(t, nettool.AddAddress("hooktest0", "fd00::1/64"))
	require.NotEqual(t, before.Routes, c.Left().Routes)

	c.Exec("rename", "eth0", "mine0")
	for _, args := range []string{
		"mtu mine0 1300", "mac mine0 02:00:00:00:00:07", "alias mine0 words", "altname mine0 other0", "address mine0 fd00::2/64",
		"add veth mine1",
	} {
		c.Exec(strings.Split(args, " ")...)
	}
	links := c.Links()
	require.Len(t, links, 4)
	got := links[1]
	require.Equal(t, nettool.Link{
		Name: "mine0", Kind: "veth", MAC: "02:00:00:00:00:07", MTU: 1300, QueueLen: 800, Up: true, Alias: "words",
		AltNames: []string{"other0"}, Addresses: []string{"fd00::2/64"}, Index: got.Index, Peer: got.Peer,
	}, got)
	require.Equal(t, []string{"lo", "mine1", "mine1p"}, []string{links[0].Name, links[2].Name, links[3].Name})
	require.Equal(t, "fd00::/64 dev mine0", c.Exec("routes"))
	require.Equal(t, "tx-checksumming\nscatter-gather\ntcp-segmentation-offload", c.Exec("offloads", "mine0"))
	require.NoError(t, nettool.Echo("[fd00::2]:7777", 1<<20))
	require.NotEqual(t, 0, c.TryExec("echo", "[fd00::1]:1", "1").Code, "nobody listens there")
	require.NotEqual(t, 0, c.TryExec("rename", "missing", "new").Code)

	require.NoError(t, nettool.Change("hooktest0", netlink.LinkDel))
	c.Stop()
	require.Equal(t, before, c.Left())
}

// TestFailedHook: when a hook fails, nothing of the container is the runtime's leaving.
func TestFailedHook(t *testing.T) {
	testutil.RequireRoot(t)
	tools := Tools{Payload: filepath.Join(t.TempDir(), "payload"), Hook: "/bin/false"}
	require.NoError(t, GoBuild("", tools.Payload, module+"/test/payload", "CGO_ENABLED=0"))
	for _, name := range []string{"runc", "crun"} {
		for _, stage := range []string{"prestart", "createRuntime"} {
			t.Run(name+" "+stage, func(t *testing.T) {
				rt, err := FindRuntime(name)
				if err != nil {
					Skip(t, err.Error())
				}
				c := New(t, Config{Runtime: rt, Tools: tools, Stage: stage})
				before := c.Left()
				r := c.TryStart()
				require.Positive(t, r.Code)
				require.Contains(t, r.Stderr, "hook")
				require.NotZero(t, c.Runtime("state", c.ID).Code)
				require.Equal(t, before, c.Left())
			})
		}
	}
}

func TestLoopDevice(t *testing.T) {
	testutil.RequireRoot(t)
	path := LoopDevice(t, "text")
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, "text", string(text[:4]))
}

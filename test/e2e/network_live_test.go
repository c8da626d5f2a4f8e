//go:build linux

package e2e

import (
	"fmt"
	"os"
	"slices"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"

	"isula.org/syscontainer-hooks/internal/testutil"
	"isula.org/syscontainer-hooks/test/harness"
	"isula.org/syscontainer-hooks/test/payload/nettool"
)

// inHostNetwork leaves the container in the host's network namespace.
func inHostNetwork(cfg harness.Config) harness.Config {
	cfg.Spec = func(spec *specs.Spec) {
		own := spec.Linux.Namespaces[:0]
		for _, ns := range spec.Linux.Namespaces {
			if ns.Type != specs.NetworkNamespace {
				own = append(own, ns)
			}
		}
		spec.Linux.Namespaces = own
		if !cfg.UserNS {
			return
		}
		for i, m := range spec.Mounts { // only the owner of the network namespace may mount sysfs
			if m.Type == "sysfs" {
				spec.Mounts[i] = specs.Mount{Destination: "/sys", Type: "none", Source: "/sys", Options: []string{"rbind", "rslave", "ro"}}
			}
		}
	}
	return cfg
}

// logged expects words in the hook's log.
func logged(t *testing.T, c *harness.Container, words ...string) {
	t.Helper()
	log, err := os.ReadFile(c.Log)
	require.NoError(t, err)
	for _, word := range words {
		require.Contains(t, string(log), word)
	}
}

// holdNetwork keeps the container's network namespace, so that nothing goes only because that does.
func holdNetwork(t *testing.T, c *harness.Container) {
	t.Helper()
	f, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", c.Pid))
	require.NoError(t, err)
	t.Cleanup(func() { f.Close() })
}

// addVeth makes a pair with one end in the container, as syscontainer-tools add-nic does it.
func addVeth(t *testing.T, c *harness.Container, entry nic) {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = entry.HostNicName
	require.NoError(t, nettool.AddLink(&netlink.Veth{
		LinkAttrs: attrs, PeerName: entry.CtrNicName, PeerNamespace: netlink.NsPid(c.Pid),
	}))
	switch entry.Bridge {
	case linuxBridge:
		bridge, err := netlink.LinkByName(linuxBridge)
		require.NoError(t, err)
		require.NoError(t, nettool.Change(entry.HostNicName, func(l netlink.Link) error { return netlink.LinkSetMaster(l, bridge) }))
	case ovsBridge:
		testutil.OVS(t, "add-port", ovsBridge, entry.HostNicName)
	}
}

// TestLiveAdded: what was added to the running container, and so stands only in the record, goes at poststop as well.
func TestLiveAdded(t *testing.T) {
	testutil.StartOVS(t)
	for _, withRecord := range []bool{false, true} {
		t.Run(fmt.Sprintf("record before=%t", withRecord), func(t *testing.T) {
			each(t, oneStage, func(t *testing.T, cfg harness.Config) {
				n := newNetwork(t, "macvlan", true)
				c := harness.New(t, withNetwork(cfg))
				before := n.trace(t, c)
				if withRecord {
					c.WriteRecord(n.record.String())
				} else {
					n.record = record{}
				}
				c.Start()
				added := []nic{
					{"10.90.0.7/24", "", 1500, 1000, "veth", linuxBridge, "hookv7", "eth7"},
					{"10.91.0.8/24", "", 1500, 1000, "veth", ovsBridge, "hookv8", "eth8"},
				}
				for _, entry := range added {
					addVeth(t, c, entry)
				}
				if !withRecord {
					added = append(added, nic{"10.92.0.2/24", "", 1450, 900, "eth", "", physical, "ext0"})
					require.NoError(t, nettool.Change(physical, func(link netlink.Link) error { return netlink.LinkSetNsPid(link, c.Pid) }))
					c.Exec("rename", physical, "ext0")
				}
				all := n.record
				all.NetworkInterfaces = slices.Concat(all.NetworkInterfaces, added)
				c.WriteRecord(all.String())
				c.Exec("rename", "eth7", "mine7") // it is the same all the same
				holdNetwork(t, c)
				c.Stop()
				after := n.trace(t, c)
				if !withRecord { // nobody has written down what else it had
					forgetNames(before.Links)
					forgetNames(after.Links)
				}
				require.Equal(t, before, after)
			})
		})
	}
}

func forgetNames(links []nettool.Link) {
	for i := range links {
		links[i].AltNames, links[i].Alias = nil, ""
	}
}

// TestOthersInterfaces: an interface of the host that merely has the name of one in the record is not the container's.
func TestOthersInterfaces(t *testing.T) {
	each(t, oneStage, func(t *testing.T, cfg harness.Config) {
		newNetwork(t, "veth", false)
		c, neighbour := harness.New(t, withNetwork(cfg)), harness.New(t, withNetwork(cfg))
		neighbour.Start()
		c.Start()
		addHostLink(t, "veth", "hookv5") // both ends on the host
		addHostLink(t, "bridge", "hookv6")
		entries := []nic{
			{"10.90.0.5/24", "", 1500, 1000, "veth", "", "hookv5", "eth5"},
			{"10.90.0.6/24", "", 1500, 1000, "veth", "", "hookv6", "eth6"},
			{"10.90.0.7/24", "", 1500, 1000, "veth", linuxBridge, "hookv7", "eth7"},
			{"10.92.0.2/24", "", 1500, 1000, "eth", "", physical, "ext0"},
		}
		addVeth(t, neighbour, entries[2])
		removeAtEnd(t, "hookv7")
		c.Exec("add", "ifb", "eth5") // names of the record, and the container's own making
		c.Exec("add", "veth", "eth7")
		c.Exec("add", "veth", "ext0")
		c.WriteRecord(record{NetworkInterfaces: entries}.String())
		want, inside := harness.HostLinks(t), linkNames(neighbour.Links())
		holdNetwork(t, c)
		c.Stop()
		require.Equal(t, want, harness.HostLinks(t))
		require.Equal(t, inside, linkNames(neighbour.Links()))
		neighbour.Stop()
	})
}

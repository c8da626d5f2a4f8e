//go:build linux

package e2e

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"

	"isula.org/syscontainer-hooks/test/harness"
)

// withLateSysctls has the specification get them when the runtime has read it, and before it calls the hook. So none of them is
// the runtime's work.
func withLateSysctls(c *harness.Container, sysctl map[string]string) {
	c.Reconfigure(func(cfg *harness.Config) {
		cfg.Spec = func(spec *specs.Spec) {
			late := filepath.Join(c.Dir, "late.json")
			copySpec := specs.Hook{Path: "/bin/cp", Args: []string{"cp", late, filepath.Join(c.Bundle, "config.json")}}
			if len(spec.Hooks.CreateRuntime) > 0 {
				spec.Hooks.CreateRuntime = append([]specs.Hook{copySpec}, spec.Hooks.CreateRuntime...)
			} else {
				spec.Hooks.Prestart = append([]specs.Hook{copySpec}, spec.Hooks.Prestart...) //nolint:staticcheck // what iSulad has
			}
			spec.Linux.Sysctl = sysctl
			text, err := json.Marshal(spec)
			if err == nil {
				err = os.WriteFile(late, text, 0o600)
			}
			if err != nil {
				panic(err)
			}
			spec.Linux.Sysctl = nil
		}
	})
}

// sysctls are set in the container to what no namespace begins with.
var sysctls = map[string]string{
	"net.ipv4.ip_forward":              "1",
	"net.ipv4.ip_local_port_range":     "20000 30000",
	"net.ipv6.conf.all.hop_limit":      "77",
	"net/ipv4/conf/default/arp_ignore": "2",
	"kernel.shmmni":                    "777",
	"kernel.shm_rmid_forced":           "1",
	"kernel.msgmax":                    "16384",
	"kernel.sem":                       "501 64001 502 129",
	"fs.mqueue.msg_max":                "20",
}

// readSysctls gives the values, of the host or of a container.
func readSysctls(t *testing.T, sysctl map[string]string, read func(path string) string) map[string]string {
	t.Helper()
	values := map[string]string{}
	for key := range sysctl {
		values[key] = strings.Join(strings.Fields(read("/proc/sys/"+strings.ReplaceAll(key, ".", "/"))), " ")
	}
	return values
}

func hostSysctls(t *testing.T, sysctl map[string]string) map[string]string {
	t.Helper()
	return readSysctls(t, sysctl, func(path string) string {
		text, err := os.ReadFile(path)
		require.NoError(t, err)
		return string(text)
	})
}

func containerSysctls(t *testing.T, c *harness.Container, sysctl map[string]string) map[string]string {
	t.Helper()
	return readSysctls(t, sysctl, func(path string) string { return c.Exec("read", path) })
}

// TestSysctls: a container with a user namespace has those of its specification, without the runtime's help. In others they
// are the runtime's alone. Those of the host stay.
func TestSysctls(t *testing.T) {
	each(t, allStages, func(t *testing.T, cfg harness.Config) {
		c := harness.New(t, cfg)
		host, before := hostSysctls(t, sysctls), c.Left()
		c.Start()
		own := containerSysctls(t, c, sysctls)
		for key := range sysctls {
			require.NotEqual(t, sysctls[key], own[key], key)
		}
		c.Stop()

		withLateSysctls(c, sysctls)
		want := own
		if cfg.UserNS {
			want = sysctls
		}
		for range 2 {
			c.WriteSpec() // the last start has left the other one
			c.Start()
			require.Equal(t, want, containerSysctls(t, c, sysctls))
			require.Equal(t, host, hostSysctls(t, sysctls))
			c.Stop()
			require.Equal(t, before, c.Left())
		}
	})
}

// TestSysctlsOfBoth: the runtime sets what it may, and the hook does the same.
func TestSysctlsOfBoth(t *testing.T) {
	each(t, oneStage, func(t *testing.T, cfg harness.Config) {
		both := maps.Clone(sysctls)
		cfg.Spec = func(spec *specs.Spec) { spec.Linux.Sysctl = both }
		c := harness.New(t, cfg)
		host, before := hostSysctls(t, both), c.Left()
		c.Start()
		require.Equal(t, both, containerSysctls(t, c, both))
		require.Equal(t, host, hostSysctls(t, both))
		c.Stop()
		require.Equal(t, before, c.Left())
	})
}

// interfaceSysctls are by the file that they are in.
var interfaceSysctls = map[string]specSysctl{
	"net/ipv4/conf/all/rp_filter":    {"net.ipv4.conf.all.rp_filter", "1"},
	"net/ipv4/conf/eth1/rp_filter":   {"net.ipv4.conf.eth1.rp_filter", "2"},
	"net/ipv4/conf/eth1.5/rp_filter": {"net/ipv4/conf/eth1.5/rp_filter", "2"},
	"net/ipv6/conf/eth1/hop_limit":   {"net.ipv6.conf.eth1.hop_limit", "78"},
}

type specSysctl struct{ key, value string }

// TestSysctlsOfInterfaces: an interface that the record gives to the container has them too.
func TestSysctlsOfInterfaces(t *testing.T) {
	each(t, allStages, func(t *testing.T, cfg harness.Config) {
		addHostLink(t, "bridge", linuxBridge)
		c := harness.New(t, cfg)
		before := c.Left()
		c.WriteRecord(record{NetworkInterfaces: []nic{
			{"10.90.0.2/24", "", 1400, 500, "veth", linuxBridge, "hooks0", "eth1"},
			{"10.90.0.3/24", "", 1400, 500, "veth", linuxBridge, "hooks1", "eth1.5"},
		}}.String())
		wanted := map[string]string{}
		for _, s := range interfaceSysctls {
			wanted[s.key] = s.value
		}
		withLateSysctls(c, wanted)
		for range 2 {
			c.WriteSpec() // the last start has left the other one
			c.Start()
			for file, s := range interfaceSysctls {
				got := strings.TrimSpace(c.Exec("read", "/proc/sys/"+file))
				require.Equal(t, cfg.UserNS, got == s.value, "%s %s", s.key, got)
			}
			c.Stop()
			require.Equal(t, before, c.Left())
		}
		if cfg.UserNS {
			withLateSysctls(c, map[string]string{"net.ipv4.conf.eth9.rp_filter": "2"})
			refusedStart(t, c, cfg, "net.ipv4.conf.eth9.rp_filter")
			require.Equal(t, before, c.Left())
		}
	})
}

// TestSysctlsOfHost: what is no namespace's is an error that says so, and nothing is set. Without a user namespace
// they are not the hook's.
func TestSysctlsOfHost(t *testing.T) {
	each(t, oneStage, func(t *testing.T, cfg harness.Config) {
		c := harness.New(t, cfg)
		host, before := hostSysctls(t, sysctls), c.Left()
		for key, says := range map[string]string{
			"vm.swappiness":            "not namespaced",
			"kernel.pid_max":           "not namespaced",
			"kernel.hostname":          "not namespaced",
			"net.core.netdev_budget":   "the container's namespaces",
			"net/../../vm/swappiness":  "the key has a part",
			"kernel.shmmni\n":          "control character",
			"net.ipv4.conf.all":        "no single one",
			"net.ipv4.no_such_sysctl":  "the container's namespaces",
			"net.ipv4.tcp_fin_timeout": "set to", // not to this value
		} {
			withLateSysctls(c, map[string]string{key: "x", "kernel.msgmax": "16384"})
			if !cfg.UserNS {
				c.Start()
				c.Stop()
				continue
			}
			refusedStart(t, c, cfg, "sysctl", says)
			require.NoError(t, os.Remove(c.Log))
			require.Equal(t, before, c.Left())
			require.Equal(t, host, hostSysctls(t, sysctls))
		}
	})
}

//go:build linux

package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"

	"isula.org/syscontainer-hooks/test/harness"
)

// withModules gives the container's init the variable that asks for modules.
func withModules(cfg harness.Config, names ...string) harness.Config {
	cfg.Spec = func(spec *specs.Spec) {
		spec.Process.Env = append(spec.Process.Env, "KERNEL_MODULES="+strings.Join(names, ","))
	}
	return cfg
}

// presentModule is one that the machine's kernel has loaded or built in.
func presentModule(t *testing.T) string {
	t.Helper()
	dirs, err := filepath.Glob("/sys/module/*")
	require.NoError(t, err)
	for _, dir := range dirs {
		state, err := os.ReadFile(dir + "/initstate")
		if os.IsNotExist(err) || err == nil && string(state) == "live\n" {
			return filepath.Base(dir)
		}
	}
	require.Fail(t, "/sys/module has none")
	return ""
}

// TestModules: modprobe is called at each start, once, for what the kernel does not have.
func TestModules(t *testing.T) {
	each(t, allStages, func(t *testing.T, cfg harness.Config) {
		modprobe := harness.FakeProgram(t, "modprobe", "exit 0")
		present := presentModule(t)
		c := harness.New(t, withModules(cfg, "hooktest-a", present, "hooktest_b", "hooktest_a"))
		before := c.Left()
		for range 2 {
			c.Start()
			require.Equal(t, []string{"-a -- hooktest-a hooktest_b"}, modprobe.Calls())
			c.Stop()
			require.Equal(t, before, c.Left())
		}
		c.Reconfigure(func(cfg *harness.Config) { *cfg = withModules(*cfg, present) })
		c.Start()
		c.Stop()
		c.Reconfigure(func(cfg *harness.Config) { cfg.Spec = nil })
		c.Start()
		c.Stop()
		require.Empty(t, modprobe.Calls())
	})
}

// TestModulesAllowed: the host may have a list of what containers may ask for.
func TestModulesAllowed(t *testing.T) {
	const dir = "/etc/syscontainer-tools"
	each(t, oneStage, func(t *testing.T, cfg harness.Config) {
		modprobe := harness.FakeProgram(t, "modprobe", "exit 0")
		harness.Mkdir(t, dir, 0o755, 0)
		t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
		harness.WriteFile(t, dir+"/modules.allow", "# for containers\nhooktest_a\nhooktest-b # and this\n", 0)

		c := harness.New(t, withModules(cfg, "hooktest-a", "hooktest-b"))
		before := c.Left()
		c.Start()
		require.Equal(t, []string{"-a -- hooktest-a hooktest-b"}, modprobe.Calls())
		c.Stop()

		c.Reconfigure(func(cfg *harness.Config) { *cfg = withModules(*cfg, "hooktest-a", "hooktest-c") })
		refusedStart(t, c, cfg, "hooktest-c is not allowed", dir+"/modules.allow")
		require.Empty(t, modprobe.Calls())
		require.Equal(t, before, c.Left())
	})
}

// TestModulesFail: the container does not start, and says what modprobe says. The record counts for nothing then.
func TestModulesFail(t *testing.T) {
	each(t, oneStage, func(t *testing.T, cfg harness.Config) {
		modprobe := harness.FakeProgram(t, "modprobe", "echo modprobe: FATAL: Module hooktest-a not found >&2\nexit 1")
		c := harness.New(t, withModules(cfg, "hooktest-a"))
		r := newResources(t, c.RootID())
		c.WriteRecord(r.record.String())
		before := c.Left()
		refusedStart(t, c, cfg, "load kernel modules", "FATAL: Module hooktest-a not found")
		require.Equal(t, []string{"-a -- hooktest-a"}, modprobe.Calls())
		require.Equal(t, before, c.Left())
		require.NoDirExists(t, r.dir+"/newdir")

		for _, names := range []string{"-r", "a b", "../a", "a,,b"} {
			c.Reconfigure(func(cfg *harness.Config) { *cfg = withModules(*cfg, names) })
			refusedStart(t, c, cfg, "KERNEL_MODULES")
			require.Empty(t, modprobe.Calls())
		}
		require.Equal(t, before, c.Left())
	})
}

//go:build linux

package e2e

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"isula.org/syscontainer-hooks/test/harness"
)

// failing are records that cannot be restored, and what the message says besides the container.
var failing = []struct {
	name   string
	record func(r *resources) string
	says   []string
}{
	{"missing host device", func(r *resources) string {
		return r.with(func(rec *record) {
			rec.DeviceToAdd = append(rec.DeviceToAdd, entry{
				Type: "c", Major: 1, Minor: 5, PathOnHost: "/dev/none-such", PathInContainer: "/dev/tnone", CgroupPermissions: "rwm",
			})
		})
	}, []string{"/dev/none-such", "no such"}},
	{"not a device", func(r *resources) string {
		return r.with(func(rec *record) {
			rec.DeviceToAdd = append(rec.DeviceToAdd, entry{
				Type: "c", Major: 1, Minor: 5, PathOnHost: r.dir + "/file", PathInContainer: "/dev/tfile", CgroupPermissions: "rwm",
			})
		})
	}, []string{"/share/file"}},
	{"mount point is a file", func(r *resources) string {
		return r.with(func(rec *record) { rec.BindToAdd = append(rec.BindToAdd, r.dir+"/live:/payload:rw") })
	}, []string{"/payload"}},
	{"two binds of one container path", func(r *resources) string {
		return r.with(func(rec *record) { rec.BindToAdd = append(rec.BindToAdd, r.dir+"/live:/mnt/c0:rw") })
	}, []string{"/mnt/c0"}},
	{"not JSON", func(r *resources) string {
		text := r.record.String()
		return text[:len(text)-2]
	}, []string{"device_hook.json"}},
}

// with is the record after a change.
func (r *resources) with(change func(*record)) string {
	rec := record{BindToAdd: slices.Clone(r.record.BindToAdd), DeviceToAdd: slices.Clone(r.record.DeviceToAdd)}
	change(&rec)
	return rec.String()
}

// TestFailedStart: the container does not start, says why, leaves nothing, and starts when the record is put right.
func TestFailedStart(t *testing.T) {
	for _, f := range failing {
		t.Run(f.name, func(t *testing.T) {
			each(t, oneStage, func(t *testing.T, cfg harness.Config) {
				c := harness.New(t, cfg)
				r := newResources(t, c.RootID())
				before := c.Left()
				c.WriteRecord(f.record(r))
				started := c.TryStart()
				require.NotZero(t, started.Code)
				require.Equal(t, before, c.Left())

				log, err := os.ReadFile(c.Log)
				require.NoError(t, err)
				for _, word := range append([]string{c.ID}, f.says...) {
					require.Contains(t, string(log), word)
					if cfg.Runtime.Name == "runc" { // crun drops what a hook prints
						require.Contains(t, started.Stderr, word)
					}
				}
				require.NoDirExists(t, r.dir+"/newdir", "a host directory that only this start had made")

				c.WriteRecord(r.record.String())
				c.Start()
				r.check(t, c)
				c.Stop()
				require.Equal(t, before, c.Left())
			})
		})
	}
}

// TestFailureContract: exit status 1, one line on stderr, and all that was done in the running container taken back.
func TestFailureContract(t *testing.T) {
	each(t, noStage, func(t *testing.T, cfg harness.Config) {
		c := harness.New(t, cfg)
		r := newResources(t, c.RootID())
		c.Start()
		type inside struct {
			left                 harness.Left
			mounts, dev, allowed []string
		}
		look := func() inside {
			i := inside{left: c.Left(), dev: harness.Tree(t, c.HostPath("/dev")), allowed: c.AllowedDevices()}
			for _, m := range c.Mounts() {
				i.mounts = append(i.mounts, m.String())
			}
			return i
		}
		before := look()
		for _, f := range failing {
			c.WriteRecord(f.record(r))
			got := c.RunHook("prestart", c.State("running", c.Pid))
			require.Equal(t, 1, got.Code, "%s: %+v", f.name, got)
			require.Empty(t, got.Stdout, f.name)
			require.Equal(t, 1, strings.Count(got.Stderr, "\n"), "%s: %s", f.name, got.Stderr)
			for _, word := range append([]string{c.ID}, f.says...) {
				require.Contains(t, got.Stderr, word, f.name)
			}
			require.Equal(t, before, look(), f.name)
			require.Equal(t, harness.Result{}, c.RunHook("poststop", c.State("stopped", -1)), f.name)
			require.Equal(t, before, look(), f.name)
		}
		c.Stop()
	})
}

// TestHookKilled: prestart is killed by the runtime's time limit or a signal that it cannot catch. Without a call of poststop,
// which crun does not make, the next start puts things right.
func TestHookKilled(t *testing.T) {
	each(t, noStage, func(t *testing.T, cfg harness.Config) {
		c := harness.New(t, cfg)
		r := newResources(t, c.RootID())
		before := c.Left()
		for round := range 8 {
			c.WriteRecord(r.record.String())
			c.Start()
			kill(t, c.HookArgs("prestart"), c.State("creating", c.Pid), round)
			c.Stop()
		}
		c.Start()
		require.Equal(t, harness.Result{}, c.RunHook("prestart", c.State("creating", c.Pid)))
		r.check(t, c)
		c.Stop()
		require.Equal(t, harness.Result{}, c.RunHook("poststop", c.State("stopped", -1)))
		require.Equal(t, before, c.Left())
	})
}

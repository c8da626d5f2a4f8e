//go:build linux

package e2e

import (
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"isula.org/syscontainer-hooks/test/harness"
)

// TestRestart: a container that never had a record, the same with one, and two restarts.
func TestRestart(t *testing.T) {
	each(t, allStages, func(t *testing.T, cfg harness.Config) {
		c := harness.New(t, cfg)
		r := newResources(t, c.RootID())
		before := c.Left()

		c.Start()
		checkBase(t, c)
		r.checkLiveAdd(t, c)
		require.NoFileExists(t, c.Record())
		c.Stop()
		require.Equal(t, before, c.Left())

		c.WriteRecord(r.record.String())
		for range 3 {
			c.Start()
			r.check(t, c)
			r.checkLiveAdd(t, c)
			c.Stop()
			require.Equal(t, before, c.Left())
		}
		require.DirExists(t, filepath.Join(r.dir, "newdir"))
	})
}

// TestRootPropagation: the runtime makes the container's mounts private, slave or shared, or is not told.
func TestRootPropagation(t *testing.T) {
	for _, propagation := range []string{"private", "rprivate", "slave", "rslave", "shared"} {
		t.Run(propagation, func(t *testing.T) {
			each(t, oneStage, func(t *testing.T, cfg harness.Config) {
				cfg.RootfsPropagation = propagation
				c := harness.New(t, cfg)
				r := newResources(t, c.RootID())
				c.WriteRecord(r.record.String())
				before := c.Left()
				c.Start()
				r.check(t, c)
				r.checkLiveAdd(t, c)
				c.Stop()
				require.Equal(t, before, c.Left())
			})
		})
	}
}

// TestTwoContainers: what one container has of a host path is not the other's when it goes.
func TestTwoContainers(t *testing.T) {
	each(t, oneStage, func(t *testing.T, cfg harness.Config) {
		one, two := harness.New(t, cfg), harness.New(t, cfg)
		r := newResources(t, one.RootID())
		one.WriteRecord(r.record.String())
		two.WriteRecord(r.record.String())
		before := one.Left()
		one.Start()
		two.Start()
		r.check(t, one)
		r.check(t, two)
		one.Stop()
		r.check(t, two)
		r.checkLiveAdd(t, two)
		two.Stop()
		require.Equal(t, before, one.Left())
	})
}

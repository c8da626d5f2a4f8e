//go:build linux

package e2e

import (
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"isula.org/syscontainer-hooks/internal/testutil"
	"isula.org/syscontainer-hooks/test/harness"
)

// TestCgroupV2 runs where only a filter of cgroup v2 governs a container's devices: a record without devices is restored, one
// with devices is refused with the reason, and nothing is left of that.
func TestCgroupV2(t *testing.T) {
	testutil.RequireRoot(t)
	rt, err := harness.FindRuntime("runc")
	if err != nil {
		harness.Skip(t, err.Error())
	}
	rt, err = rt.InV2View()
	require.NoError(t, err)
	c := harness.New(t, harness.Config{Runtime: rt, Stage: "createRuntime"})
	r := newResources(t, c.RootID())
	before := c.Left()

	c.WriteRecord(record{BindToAdd: r.record.BindToAdd}.String())
	c.Start()
	r.checkContent(t, c)
	r.checkReadOnly(t, c)
	r.checkMounts(t, c)
	c.Stop()
	require.Equal(t, before, c.Left())

	c.WriteRecord(r.record.String())
	result := c.TryStart()
	require.NotZero(t, result.Code)
	require.Contains(t, result.Stderr, "cgroup v2")
	require.Equal(t, before, c.Left())

	require.NoError(t, os.Remove(c.Record()))
	c.Start()
	checkBase(t, c)
}

//go:build linux

// Package e2e runs the hook in real containers: on runc and crun, with and without a user namespace, at both stages.
package e2e

import (
	"os"
	"testing"

	"isula.org/syscontainer-hooks/internal/testutil"
	"isula.org/syscontainer-hooks/test/harness"
)

func TestMain(m *testing.M) {
	code := testutil.Main(m)
	harness.RemoveBuilt()
	os.Exit(code)
}

// each calls the test for both runtimes, without and with a user namespace, and for each of the stages.
func each(t *testing.T, stages []string, test func(t *testing.T, cfg harness.Config)) {
	testutil.RequireRoot(t)
	for _, name := range []string{"runc", "crun"} {
		for _, userns := range []bool{false, true} {
			for _, stage := range stages {
				title := name
				if userns {
					title += " userns"
				}
				if stage != "" {
					title += " " + stage
				}
				t.Run(title, func(t *testing.T) {
					if !harness.V1Devices() {
						harness.Skip(t, "needs the devices controller of cgroup v1")
					}
					rt, err := harness.FindRuntime(name)
					if err != nil {
						harness.Skip(t, err.Error())
					}
					test(t, harness.Config{Runtime: rt, UserNS: userns, Stage: stage})
				})
			}
		}
	}
}

var (
	allStages = []string{"prestart", "createRuntime"}
	oneStage  = []string{"prestart"} // where the stage makes no difference to what is tested
	noStage   = []string{""}         // a container without the hook
)

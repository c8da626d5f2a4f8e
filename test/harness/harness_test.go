//go:build linux

package harness

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"isula.org/syscontainer-hooks/internal/testutil"
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

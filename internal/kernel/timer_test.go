//go:build linux

package kernel

import (
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

const hangVariable = "KERNEL_TEST_HANG"

// The kernel kills a process that does not end by itself, and none that does.
func TestKillAfter(t *testing.T) {
	if limit, err := time.ParseDuration(os.Getenv(hangVariable)); err == nil {
		require.NoError(t, KillAfter(limit))
		time.Sleep(200 * time.Millisecond)
		return
	}
	t.Parallel()
	run := func(limit string) *exec.Cmd {
		cmd := exec.Command("/proc/self/exe", "-test.run", "^TestKillAfter$")
		cmd.Env = append(os.Environ(), hangVariable+"="+limit)
		_ = cmd.Run() // the state tells
		return cmd
	}
	require.True(t, run("1h").ProcessState.Success())
	for _, limit := range []string{"20ms", "0s"} {
		status := run(limit).ProcessState.Sys().(interface{ Signal() unix.Signal })
		require.Equal(t, unix.SIGKILL, status.Signal(), limit)
	}
}

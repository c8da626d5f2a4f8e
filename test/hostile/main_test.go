//go:build linux

// Package hostile runs the built hook against root filesystems, records, states and environments that an attacker could have
// prepared. Every row is black box: the program is started as a runtime starts it, and what counts is its exit code, what it
// says, and what it left on the host and in the container.
//
// The tests need root and the cgroup v1 devices hierarchy. HOSTILE_FULL=1 runs the loops in full length.
package hostile

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"isula.org/syscontainer-hooks/internal/testutil"
)

const (
	// helperEnv makes the test binary play the container's first process.
	helperEnv = "HOSTILE_HELPER"
	// base is a tmpfs of the test's own, every directory above it root's own: a place that the hook may trust.
	base        = "/var/lib/hostile"
	devicesRoot = "/sys/fs/cgroup/devices"
)

func TestMain(m *testing.M) {
	if os.Getenv(helperEnv) != "" {
		os.Exit(helperMain())
	}
	os.Exit(testutil.Main(m))
}

func full() bool { return os.Getenv("HOSTILE_FULL") == "1" }

// scaled picks the length of a loop.
func scaled(normal, whole int) int {
	if full() {
		return whole
	}
	return normal
}

// prepareHost mounts the tmpfs that everything of these tests lives in.
var prepareHost = sync.OnceValue(func() error {
	if err := os.MkdirAll(base, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("hostile", base, "tmpfs", 0, "mode=0755"); err != nil {
		return fmt.Errorf("mount %s: %w", base, err)
	}
	if _, err := os.Stat(filepath.Join(devicesRoot, "devices.allow")); err != nil {
		return fmt.Errorf("the cgroup v1 devices hierarchy is needed: %w", err)
	}
	return os.Mkdir(filepath.Join(base, "bin"), 0o755)
})

var buildHook = sync.OnceValues(func() (string, error) {
	bin := filepath.Join(base, "bin", "syscontainer-hooks")
	cmd := exec.Command("go", "build", "-o", bin, "../../cmd/syscontainer-hooks")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the hook: %w\n%s", err, out)
	}
	return bin, nil
})

// hookBinary is the program under test.
func hookBinary(tb testing.TB) string {
	tb.Helper()
	bin, err := buildHook()
	require.NoError(tb, err)
	return bin
}

var warmed = sync.OnceValue(func() string {
	for _, d := range []string{"/.sharedpath", "/run/syscontainer-tools"} {
		if _, err := os.Lstat(d); err == nil {
			return d + " is there before the first run"
		}
	}
	return ""
})

// begin is the first call of every test: privilege, the place to work in, and the check that the test leaves nothing behind.
// With a hook it also lets one good container start and stop, since the master mount of the transfer directories is made
// by the first one and stays: afterwards "nothing left" is plain equality.
func begin(t *testing.T, withHook bool) {
	t.Helper()
	testutil.RequireRoot(t)
	require.NoError(t, prepareHost())
	if withHook {
		hookBinary(t)
		require.Empty(t, warmed())
		warmUp(t)
	}
	before := leftovers(t)
	t.Cleanup(func() {
		if d := diff(before, leftovers(t)); len(d) > 0 {
			t.Errorf("the test left behind: %q", d)
		}
	})
}

// warmUp starts and stops a container without a record.
func warmUp(t *testing.T) {
	t.Helper()
	w := newWorld(t, variant{})
	w.start()
	res := w.prestart()
	require.Zero(t, res.code, "a container without a record: %s", res)
	require.Zero(t, w.poststop().code)
	w.stop()
	w.remove()
}

//go:build linux

// Package harness runs containers on real runtimes for the end to end tests, the demonstration and the benchmarks. It expects
// root and a mount namespace of its own (testutil.OwnHost), and every wait in it is bounded.
package harness

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// TB is what the harness needs of a test, of a benchmark, or of a program that is neither.
type TB interface {
	Helper()
	Cleanup(f func())
	Logf(format string, args ...any)
	Errorf(format string, args ...any)
	FailNow()
	Failed() bool
}

// waitLimit bounds each command that the harness starts, and each wait for a container to end.
const waitLimit = 30 * time.Second

// Fatal ends the test when err is not nil.
func Fatal(tb TB, err error, doing string) {
	tb.Helper()
	if err != nil {
		tb.Errorf("%s: %v", doing, err)
		tb.FailNow()
	}
}

// Skipper is a test that can be skipped.
type Skipper interface {
	TB
	Skipf(format string, args ...any)
}

// Skip skips a test that the machine cannot run. With REQUIRE_ROOT=1, as in CI, that is a failure.
func Skip(tb Skipper, why string) {
	tb.Helper()
	if os.Getenv("REQUIRE_ROOT") == "1" {
		tb.Errorf("%s, and REQUIRE_ROOT=1 forbids to skip", why)
		tb.FailNow()
	}
	tb.Skipf("%s", why)
}

// TempDir makes a directory that the root of a user namespace can pass through, which testing.T.TempDir is not. Mounts that a
// failed test left below it are detached before it is removed.
func TempDir(tb TB) string {
	tb.Helper()
	dir, err := os.MkdirTemp("", "ctr")
	Fatal(tb, err, "temporary directory")
	Fatal(tb, os.Chmod(dir, 0o711), "temporary directory")
	tb.Cleanup(func() {
		mounts := HostMounts(tb)
		for _, m := range slices.Backward(mounts) {
			if strings.HasPrefix(m.Point, dir+"/") {
				tb.Errorf("mount left below the test's directory: %s", m.Point)
				Fatal(tb, unix.Unmount(m.Point, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW), "unmount")
			}
		}
		Fatal(tb, os.RemoveAll(dir), "remove temporary directory")
	})
	return dir
}

// Mkdir makes a directory with exactly this mode, owned by uid and the group of the same number, and its parents 0755.
func Mkdir(tb TB, path string, mode os.FileMode, uid int) {
	tb.Helper()
	Fatal(tb, os.MkdirAll(filepath.Dir(path), 0o755), "make directory")
	Fatal(tb, os.Mkdir(path, mode), "make directory")
	Fatal(tb, os.Chmod(path, mode), "make directory")
	Fatal(tb, os.Chown(path, uid, uid), "make directory")
}

// WriteFile makes a file 0644 owned by uid.
func WriteFile(tb TB, path, text string, uid int) {
	tb.Helper()
	Fatal(tb, os.WriteFile(path, []byte(text), 0o644), "write file")
	Fatal(tb, os.Chown(path, uid, uid), "write file")
}

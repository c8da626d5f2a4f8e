//go:build linux

// Package testutil has what the tests of several packages need: privilege, a host of their own, trees from one-line
// specifications, and snapshots of what a test may leave behind.
package testutil

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/moby/sys/mountinfo"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// isolatedEnv names the scratch directory of a test process that already has its own mount namespace.
const isolatedEnv = "SYSCONTAINER_HOOKS_TEST_ISOLATED"

// Main runs the tests of a package on a host of their own. Without root the tests run where they are, and those that need root
// skip themselves.
func Main(m *testing.M) int {
	// A fuzzing process and its workers talk through descriptors that a new process would not have.
	fuzzing := slices.ContainsFunc(os.Args, func(arg string) bool { return strings.HasPrefix(arg, "-test.fuzz=") || arg == "-test.fuzzworker" })
	if os.Geteuid() != 0 || fuzzing {
		return m.Run()
	}
	return OwnHost(m.Run)
}

// OwnHost calls run in a new process of the same program and arguments, as root, and returns its exit status. The process has a
// mount namespace whose root is an overlay of the machine's, so that /.sharedpath, /run and /etc can be written as the hook
// writes them and nothing of it reaches the machine. The root is shared, as systemd makes it. It also has a network namespace
// with nothing but the loopback interface: the host's, as far as the tests can tell.
func OwnHost(run func() int) int {
	scratch := os.Getenv(isolatedEnv)
	if scratch == "" {
		return reexec()
	}
	if err := ownRoot(scratch); err != nil {
		fmt.Fprintln(os.Stderr, "testutil: own root:", err)
		return 1
	}
	if err := loopbackUp(); err != nil {
		fmt.Fprintln(os.Stderr, "testutil: own network:", err)
		return 1
	}
	return run()
}

// Isolated says whether this is the new process that OwnHost makes.
func Isolated() bool { return os.Getenv(isolatedEnv) != "" }

// RequireRoot skips a test that needs root. With REQUIRE_ROOT=1, as in CI, a skip is a failure.
func RequireRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("REQUIRE_ROOT") == "1" {
		t.Fatal("needs root, and REQUIRE_ROOT=1 forbids to skip")
	}
	t.Skip("needs root")
}

func reexec() int {
	scratch, err := os.MkdirTemp("", "testroot")
	if err != nil {
		fmt.Fprintln(os.Stderr, "testutil:", err)
		return 1
	}
	defer func() { _ = os.Remove(scratch) }()
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), isolatedEnv+"="+scratch)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET, Pdeathsig: unix.SIGKILL}
	err = cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return exit.ExitCode()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "testutil: reexec:", err)
		return 1
	}
	return 0
}

// ownRoot makes an overlay of / the root of this mount namespace, which is already our own and private. Its upper layer is
// a tmpfs on the empty directory base.
func ownRoot(base string) error {
	cwd, err := os.Getwd()
	if err != nil {
		return err
	}
	cache, err := os.UserCacheDir() // go build called by a test finds and keeps its cache
	if err != nil {
		return err
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("testroot", base, "tmpfs", 0, "mode=0755"); err != nil {
		return fmt.Errorf("mount tmpfs: %w", err)
	}
	upper, work, root := filepath.Join(base, "u"), filepath.Join(base, "w"), filepath.Join(base, "r")
	for _, d := range []string{upper, work, root} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return err
		}
	}
	if err := unix.Mount("testroot", root, "overlay", 0, "lowerdir=/,upperdir="+upper+",workdir="+work); err != nil {
		return fmt.Errorf("mount overlay: %w", err)
	}
	// What a hook in use has left on the machine's root file system; its mounts are not in the overlay.
	if err := os.RemoveAll(root + "/.sharedpath"); err != nil {
		return err
	}
	for _, d := range []string{"/proc", "/dev", os.TempDir(), cache, cwd} {
		if err := os.MkdirAll(root+d, 0o755); err != nil {
			return err
		}
		flags := uintptr(unix.MS_BIND)
		if filepath.Dir(d) == "/" && d != os.TempDir() { // base itself is below the temporary directory
			flags |= unix.MS_REC
		}
		if err := unix.Mount(d, root+d, "", flags, ""); err != nil {
			return fmt.Errorf("bind %s: %w", d, err)
		}
	}
	if err := ownSys(root + "/sys"); err != nil {
		return fmt.Errorf("mount /sys: %w", err)
	}
	if err := unix.Mount("testrun", root+"/run", "tmpfs", 0, "mode=0755"); err != nil {
		return fmt.Errorf("mount /run: %w", err)
	}
	// Both roots stacked on one directory, then the old one dropped: pivot_root(2), NOTES.
	if err := os.Chdir(root); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot_root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("detach the machine's root: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_SHARED|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("make / shared: %w", err)
	}
	return os.Chdir(cwd)
}

// ownSys mounts sysfs, which shows the network namespace that it is mounted from, with what is mounted on the machine's: cgroups
// for the most part.
func ownSys(target string) error {
	if err := unix.Mount("sysfs", target, "sysfs", 0, ""); err != nil {
		return err
	}
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter("/sys"))
	if err != nil {
		return err
	}
	var bound []string
	for _, m := range mounts {
		below := func(dir string) bool { return strings.HasPrefix(m.Mountpoint+"/", dir+"/") }
		if m.Mountpoint == "/sys" || slices.ContainsFunc(bound, below) { // what is below a mount comes with it
			continue
		}
		bound = append(bound, m.Mountpoint)
		flags := uintptr(unix.MS_BIND | unix.MS_REC)
		if err := unix.Mount(m.Mountpoint, target+strings.TrimPrefix(m.Mountpoint, "/sys"), "", flags, ""); err != nil {
			return fmt.Errorf("bind %s: %w", m.Mountpoint, err)
		}
	}
	return nil
}

// loopbackUp sets lo up, as every host does early.
func loopbackUp() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("look for lo: %w", err)
	}
	return netlink.LinkSetUp(lo)
}

//go:build linux

// Command demo shows what the hook does, on a host of its own and with a real runtime: a container gets a record of a device,
// two directories, a disk with a limit, a network interface and a route, is restarted, and has them. Nothing of it stays on the
// machine.
package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"isula.org/syscontainer-hooks/internal/testutil"
	"isula.org/syscontainer-hooks/test/harness"
)

// toolsEnv tells the process on the host of its own where the programs are: that host has no place to keep downloads.
const toolsEnv = "SYSCONTAINER_HOOKS_DEMO_TOOLS"

func main() {
	code, err := run()
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		code = 1
	}
	os.Exit(code)
}

func run() (int, error) {
	if os.Geteuid() != 0 {
		return 0, errors.New("needs root: sudo make demo")
	}
	if testutil.Isolated() {
		return testutil.OwnHost(demo), nil
	}
	dir, err := os.MkdirTemp("", "demo")
	if err != nil {
		return 0, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	if err := os.Chmod(dir, 0o711); err != nil { // a runtime may call the hook by a path that only root can follow otherwise
		return 0, err
	}
	if _, err := harness.BuildTools(dir); err != nil {
		return 0, err
	}
	if err := linkRuntime(dir); err != nil {
		return 0, err
	}
	if err := os.Setenv(toolsEnv, dir); err != nil {
		return 0, err
	}
	return testutil.OwnHost(demo), nil
}

// linkRuntime puts runc or crun into the directory: the machine's, else one built from the module proxy.
func linkRuntime(dir string) error {
	for _, name := range []string{"runc", "crun"} {
		if path, err := exec.LookPath(name); err == nil {
			return os.Symlink(path, filepath.Join(dir, name))
		}
	}
	fmt.Println("No runc or crun in PATH: building runc (needs gcc, and some minutes the first time).")
	gomod, err := exec.Command("go", "env", "GOMOD").Output()
	if err != nil {
		return fmt.Errorf("go env GOMOD: %w", err)
	}
	module := filepath.Join(filepath.Dir(strings.TrimSpace(string(gomod))), "test", "runc")
	return harness.GoBuild(module, filepath.Join(dir, "runc"), "github.com/opencontainers/runc", "CGO_ENABLED=1")
}

func findRuntime(dir string) (*harness.Runtime, error) {
	for _, name := range []string{"runc", "crun"} {
		path := filepath.Join(dir, name)
		if _, err := os.Stat(path); err == nil {
			return harness.NewRuntime(name, path)
		}
	}
	return nil, errors.New("no runtime in " + dir)
}

// demo is the demonstration itself; its result is the exit status.
func demo() int {
	r := &reporter{}
	r.run(func() {
		dir := os.Getenv(toolsEnv)
		rt, err := findRuntime(dir)
		harness.Fatal(r, err, "runtime")
		s := newScene(r, rt, harness.Tools{Hook: filepath.Join(dir, "syscontainer-hooks"), Payload: filepath.Join(dir, "payload")})
		s.play()
	})
	if r.Failed() {
		fmt.Println("Something is wrong: see above.")
		return 1
	}
	return 0
}

// reporter is the demonstration's harness.TB.
type reporter struct {
	failed   bool
	cleanups []func()
}

// stop is what FailNow panics with.
type stop struct{}

func (r *reporter) run(f func()) {
	defer func() {
		for len(r.cleanups) > 0 {
			last := len(r.cleanups) - 1
			cleanup := r.cleanups[last]
			r.cleanups = r.cleanups[:last]
			r.guard(cleanup)
		}
	}()
	r.guard(f)
}

func (r *reporter) guard(f func()) {
	defer func() {
		if p := recover(); p != nil && p != (stop{}) {
			panic(p)
		}
	}()
	f()
}

func (r *reporter) Helper()                         {}
func (r *reporter) Cleanup(f func())                { r.cleanups = append(r.cleanups, f) }
func (r *reporter) Logf(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }
func (r *reporter) Failed() bool                    { return r.failed }

func (r *reporter) Errorf(format string, args ...any) {
	r.failed = true
	r.Logf(format, args...)
}

func (r *reporter) FailNow() {
	r.failed = true
	panic(stop{})
}

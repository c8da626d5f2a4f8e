//go:build linux

package harness

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"
)

const module = "isula.org/syscontainer-hooks"

// Tools are the programs of this module that a container needs.
type Tools struct{ Hook, Payload string }

// BuildTools builds the hook and the payload, both static, into a directory.
func BuildTools(dir string) (Tools, error) {
	t := Tools{Hook: filepath.Join(dir, "syscontainer-hooks"), Payload: filepath.Join(dir, "payload")}
	return t, errors.Join(
		GoBuild("", t.Hook, module+"/cmd/syscontainer-hooks", "CGO_ENABLED=0"),
		GoBuild("", t.Payload, module+"/test/payload", "CGO_ENABLED=0"))
}

// GoBuild builds one package of the module that dir (default: the working directory) is in.
func GoBuild(dir, output, pkg string, env ...string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Minute) // runc on a slow machine, with nothing cached
	defer cancel()
	cmd := exec.CommandContext(ctx, "go", "build", "-o", output, pkg)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), env...)
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w\n%s", pkg, err, text)
	}
	return nil
}

var built struct {
	sync.Mutex
	dir string
	Tools
}

// RemoveBuilt removes what the tests of this process had built. Call it at the end of TestMain.
func RemoveBuilt() {
	built.Lock()
	defer built.Unlock()
	if built.dir != "" {
		os.RemoveAll(built.dir) //nolint:errcheck // temporary files
		built.dir, built.Tools = "", Tools{}
	}
}

// BuiltTools are the tools of this process's tests, built once.
func BuiltTools() (Tools, error) {
	built.Lock()
	defer built.Unlock()
	if built.Hook != "" {
		return built.Tools, nil
	}
	dir, err := os.MkdirTemp("", "tools")
	if err != nil {
		return Tools{}, err
	}
	t, err := BuildTools(dir)
	if err != nil {
		return Tools{}, errors.Join(err, os.RemoveAll(dir))
	}
	built.dir, built.Tools = dir, t
	return t, nil
}

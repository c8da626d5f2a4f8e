//go:build linux

package harness

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"isula.org/syscontainer-hooks/test/payload/nettool"
)

// Config says how a container is made. The zero value, but for Runtime, is one without a hook.
type Config struct {
	Runtime           *Runtime
	Tools             Tools             // default: built once for the process
	ID                string            // default: one of its own
	UserNS            bool              // ids 0.. are MapBase.. on the host
	Stage             string            // prestart or createRuntime: the hook is called there, and at poststop
	NoPoststop        bool              // the hook is not called at poststop
	RootfsPropagation string            // as in the OCI spec
	Spec              func(*specs.Spec) // last change of the spec
}

// Container is one container with its directories. Those stay the same over a restart; Pid is that of the current init.
type Container struct {
	ID             string
	Dir            string // holds all below, passable for the container's root
	Bundle, Rootfs string
	Log            string // the hook's
	Tools          Tools
	Pid            int // 0: not running

	tb  TB
	cfg Config
}

var containers atomic.Int32

// New makes the bundle of a container and removes container and bundle at the end of the test.
func New(tb TB, cfg Config) *Container {
	tb.Helper()
	c := &Container{tb: tb, cfg: cfg, Tools: cfg.Tools, ID: fmt.Sprintf("hooktest-%d-%d", os.Getpid(), containers.Add(1))}
	if cfg.ID != "" {
		c.ID = cfg.ID
	}
	if c.Tools == (Tools{}) {
		var err error
		c.Tools, err = BuiltTools()
		Fatal(tb, err, "build")
	}
	Fatal(tb, adopt(), "adopt the inits of containers")
	c.Dir = TempDir(tb)
	c.Bundle, c.Rootfs = filepath.Join(c.Dir, "bundle"), filepath.Join(c.Dir, "rootfs")
	c.Log = filepath.Join(c.Dir, "hook.log")
	Mkdir(tb, c.Bundle, 0o750, 0) // as iSulad makes it
	Mkdir(tb, c.Rootfs, 0o755, c.RootID())
	for _, d := range []string{"proc", "sys", "dev", "tmp", "run", "etc", "mnt"} {
		Mkdir(tb, filepath.Join(c.Rootfs, d), 0o755, c.RootID())
	}
	payload, err := os.ReadFile(c.Tools.Payload)
	Fatal(tb, err, "copy payload")
	WriteFile(tb, filepath.Join(c.Rootfs, "payload"), string(payload), c.RootID())
	Fatal(tb, os.Chmod(filepath.Join(c.Rootfs, "payload"), 0o755), "copy payload")
	c.WriteSpec()
	tb.Cleanup(c.cleanup)
	return c
}

// RootID is the host's id of the container's root, user and group.
func (c *Container) RootID() int {
	if c.cfg.UserNS {
		return MapBase
	}
	return 0
}

// Reconfigure changes the configuration for the next start.
func (c *Container) Reconfigure(change func(*Config)) {
	c.tb.Helper()
	change(&c.cfg)
	c.WriteSpec()
}

// WriteSpec writes config.json anew, as iSulad does on each start.
func (c *Container) WriteSpec() {
	c.tb.Helper()
	text, err := json.MarshalIndent(newSpec(c), "", "\t")
	Fatal(c.tb, err, "spec")
	Fatal(c.tb, os.WriteFile(filepath.Join(c.Bundle, "config.json"), text, 0o640), "spec")
}

// Record is the path of the container's record.
func (c *Container) Record() string { return filepath.Join(c.Bundle, "device_hook.json") }

// WriteRecord writes the record as it stands.
func (c *Container) WriteRecord(text string) {
	c.tb.Helper()
	Fatal(c.tb, os.WriteFile(c.Record(), []byte(text), 0o600), "record")
}

func (c *Container) args(args ...string) []string {
	return append([]string{c.cfg.Runtime.Path, "--root", filepath.Join(c.Dir, "state")}, args...)
}

// Runtime calls the container's runtime.
func (c *Container) Runtime(args ...string) Result {
	return command(c.cfg.Runtime.start, c.Dir, "", c.args(args...)...)
}

// TryStart creates and starts the container. The hook runs in create, so that is what fails when the hook does.
func (c *Container) TryStart() Result {
	c.tb.Helper()
	pidFile := filepath.Join(c.Dir, "pid")
	r := detached(c.cfg.Runtime.start, c.Bundle, filepath.Join(c.Dir, "output"),
		c.args("create", "--bundle", c.Bundle, "--pid-file", pidFile, c.ID)...)
	if r.Code != 0 {
		return r
	}
	text, err := os.ReadFile(pidFile)
	Fatal(c.tb, err, "pid file")
	c.Pid, err = strconv.Atoi(strings.TrimSpace(string(text)))
	Fatal(c.tb, err, "pid file")
	if r := c.Runtime("start", c.ID); r.Code != 0 {
		return r
	}
	return c.awaitInit()
}

// awaitInit waits until the container's init is the payload. It may still be the runtime when that says that it is started, and
// who enters the user namespace of such a process is at times refused (crun 1.8.1).
func (c *Container) awaitInit() Result {
	c.tb.Helper()
	end := time.Now().Add(waitLimit)
	for time.Now().Before(end) {
		exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", c.Pid))
		if err != nil || filepath.Base(exe) == "payload" {
			return Result{}
		}
		time.Sleep(time.Millisecond)
	}
	return Result{Code: -1, Stderr: "the container's init does not come up"}
}

// Start is TryStart that must work.
func (c *Container) Start() {
	c.tb.Helper()
	Fatal(c.tb, c.TryStart().Err(), "start container")
}

// Stop ends the container's init, deletes the container, and with that runs its poststop hook.
func (c *Container) Stop() {
	c.tb.Helper()
	Fatal(c.tb, c.stopInit(), "stop container")
	Fatal(c.tb, c.Runtime("delete", c.ID).Err(), "delete container")
	c.Pid = 0
}

// Restart stops and starts the container.
func (c *Container) Restart() {
	c.tb.Helper()
	c.Stop()
	c.Start()
}

func (c *Container) stopInit() error {
	fd, err := unix.PidfdOpen(c.Pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("pidfd_open %d: %w", c.Pid, err)
	}
	defer unix.Close(fd)
	// An init that has just started does not yet listen to anything milder.
	if r := c.Runtime("kill", c.ID, "KILL"); r.Code != 0 {
		return r.Err()
	}
	return reap(c.Pid, fd)
}

// reap waits for the end of an init, and takes it from the table of processes: it is our child since the runtime, which had
// started it, is gone.
func reap(pid, pidfd int) error {
	end := time.Now().Add(waitLimit)
	for {
		left := time.Until(end)
		if left <= 0 {
			return fmt.Errorf("init %d still runs %s after it was told to end", pid, waitLimit)
		}
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, int(left.Milliseconds())+1)
		if n > 0 {
			break
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("wait for init %d: %w", pid, err)
		}
	}
	if _, err := unix.Wait4(pid, nil, unix.WNOHANG, nil); err != nil {
		return fmt.Errorf("wait for init %d: %w", pid, err)
	}
	return nil
}

// adopt makes this process the parent of each init whose runtime is gone. The init of the machine may never ask for their
// exit status, and then they stay as zombies.
var adopt = sync.OnceValue(func() error {
	return unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
})

// Forget deletes what the runtime knows of a container that may not be there, without the test's opinion.
func (c *Container) Forget() {
	c.tb.Helper()
	fd, err := unix.PidfdOpen(c.Pid, 0) // EINVAL for pid 0
	c.Runtime("delete", "--force", c.ID)
	if err == nil {
		Fatal(c.tb, reap(c.Pid, fd), "end container")
		Fatal(c.tb, unix.Close(fd), "end container")
	}
	c.Pid = 0
}

func (c *Container) cleanup() {
	if c.tb.Failed() {
		log, err := os.ReadFile(c.Log)
		c.tb.Logf("%s, log of the hook (%v):\n%s", c.ID, err, log)
	}
	if c.Pid != 0 || c.Runtime("state", c.ID).Code == 0 {
		c.Forget()
	}
	if c.tb.Failed() && c.cfg.Stage != "" { // the next test is not to stumble over what this one left
		c.RunHook("poststop", c.State("stopped", -1))
	}
}

// TryExec runs the payload in the container.
func (c *Container) TryExec(args ...string) Result {
	return c.Runtime(append([]string{"exec", c.ID, "/payload"}, args...)...)
}

// Exec is TryExec that must work, and returns what was printed, without the last newline.
func (c *Container) Exec(args ...string) string {
	c.tb.Helper()
	r := c.TryExec(args...)
	Fatal(c.tb, r.Err(), "in the container, "+strings.Join(args, " "))
	return strings.TrimSuffix(r.Stdout, "\n")
}

// Links are the interfaces of the running container as it sees them itself.
func (c *Container) Links() []nettool.Link {
	c.tb.Helper()
	var links []nettool.Link
	Fatal(c.tb, json.Unmarshal([]byte(c.Exec("links")), &links), "interfaces of the container")
	return links
}

// State is what the runtime tells its hooks on stdin: pid -1 for none, as lcr does it.
func (c *Container) State(status string, pid int) string {
	text, err := json.Marshal(map[string]any{
		"ociVersion": "1.0.2", "id": c.ID, "status": status, "pid": pid, "bundle": c.Bundle, "annotations": map[string]string{},
	})
	Fatal(c.tb, err, "state")
	return string(text)
}

// RunHook runs the hook by hand.
func (c *Container) RunHook(stage, state string) Result {
	return command((*exec.Cmd).Start, "/", state, c.HookArgs(stage)...)
}

// HookArgs is the command line of the hook.
func (c *Container) HookArgs(stage string) []string {
	return []string{c.Tools.Hook, "-state", stage, "-log", c.Log}
}

// Mounts is the mount table of the running container.
func (c *Container) Mounts() []Mount {
	c.tb.Helper()
	return readMounts(c.tb, fmt.Sprintf("/proc/%d/mountinfo", c.Pid))
}

// HostPath is where the host finds a path of the running container. Only for paths without links that the container made.
func (c *Container) HostPath(path string) string {
	return fmt.Sprintf("/proc/%d/root%s", c.Pid, path)
}

// AllowedDevices is the list of the container's v1 devices cgroup, one "b 7:0 r" each.
func (c *Container) AllowedDevices() []string {
	c.tb.Helper()
	return c.CgroupFile("devices", "devices.list")
}

// CgroupFile has the lines of a file in the container's cgroup of a v1 controller.
func (c *Container) CgroupFile(controller, name string) []string {
	c.tb.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", c.Pid))
	Fatal(c.tb, err, "cgroup")
	for line := range strings.Lines(string(text)) {
		_, group, ok := strings.Cut(strings.TrimSpace(line), ":"+controller+":")
		if !ok {
			continue
		}
		list, err := os.ReadFile(filepath.Join(cgroupDir, controller, group, name))
		Fatal(c.tb, err, controller+" cgroup")
		return strings.FieldsFunc(string(list), func(r rune) bool { return r == '\n' })
	}
	Fatal(c.tb, fmt.Errorf("process %d is in no v1 %s cgroup", c.Pid, controller), controller+" cgroup")
	return nil
}

// CutOff tells whether the runtime makes all mounts of the container private after it has called the hook, so that no mount of
// the host appears there any more: crun does unless the specification asks for another propagation of the root.
func (c *Container) CutOff() bool {
	return c.cfg.Stage != "" && c.cfg.Runtime.Name == "crun" && (c.cfg.RootfsPropagation == "" || c.cfg.RootfsPropagation == "rprivate")
}

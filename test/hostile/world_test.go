//go:build linux

package hostile

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// mappedRoot is the host's number for the container's root user in a container with a user namespace.
const mappedRoot = 100000

// variant is a way to run a row: kinds of containers, and circumstances of the hook.
type variant struct {
	name                       string
	tmpfs, user, pivot, shared bool
	twice                      bool // a second container starts on what the first one left
	oneCPU, fewCaps            bool
	net                        bool // the container has a network namespace of its own
}

// world is one container with everything that belongs to it: root filesystem, bundle, cgroup, and the host directory with the
// canaries that it must not reach.
type world struct {
	t               testing.TB
	v               variant
	id, cgroup      string
	dir, rf, hd     string
	src, nodes      string // host directories: sources of binds, device nodes
	bundle, logFile string
	config          map[string]any
	links           []string // interfaces of the host that a started container may have taken, or that are its veths' ends
	freeNames       bool     // the hook chooses names for such ends

	cmd   *exec.Cmd // the container's first process
	pid   int
	stdin *json.Encoder
	reply *json.Decoder
	close func() error
	gone  chan struct{}
}

var worlds atomic.Int32

func randomID() string {
	b := make([]byte, 32)
	_, _ = rand.Read(b)
	return hex.EncodeToString(b)
}

func newWorld(t testing.TB, v variant) *world {
	t.Helper()
	n := worlds.Add(1)
	w := &world{t: t, v: v, id: randomID(), cgroup: fmt.Sprintf("hostile-%d-%d", os.Getpid(), n)}
	w.dir = filepath.Join(base, fmt.Sprintf("c%d", n))
	w.rf, w.hd, w.bundle = w.dir+"/rf", w.dir+"/hd", w.dir+"/bundle"
	w.src, w.nodes, w.logFile = w.dir+"/src", w.dir+"/nodes", w.dir+"/hook.log"
	for _, d := range []string{"", "/src", "/src/d", "/nodes", "/rf", "/rf/dev", "/rf/etc", "/rf/usr", "/rf/usr/bin", "/rf/tmp"} {
		require.NoError(t, os.Mkdir(w.dir+d, 0o755))
	}
	require.NoError(t, os.Mkdir(w.bundle, 0o750))
	w.makeCanaries()
	w.write(w.src+"/f", "content of the source\n")
	w.write(w.src+"/d/marker", "marker of the source\n")
	w.write(w.rf+"/etc/passwd", "secret\n")
	if v.user {
		w.chownRF()
	}
	w.config = w.goodConfig()
	w.writeConfig()
	require.NoError(t, os.Mkdir(w.cgroupDir(), 0o755))
	require.NoError(t, os.Mkdir(w.ioDir(), 0o755))
	w.put("devices.deny", "a")
	for _, rule := range []string{"c *:* m", "b *:* m", "c 1:3 rwm", "c 1:8 rwm", "c 5:0 rwm"} {
		w.put("devices.allow", rule)
	}
	t.Cleanup(w.remove)
	return w
}

func (w *world) cgroupDir() string { return filepath.Join(devicesRoot, w.cgroup) }

// ioDir is the container's cgroup that limits I/O.
func (w *world) ioDir() string { return filepath.Join(ioRoot, w.cgroup) }

func (w *world) put(file, line string) {
	w.t.Helper()
	require.NoError(w.t, os.WriteFile(filepath.Join(w.cgroupDir(), file), []byte(line), 0))
}

func (w *world) write(path, text string) {
	w.t.Helper()
	require.NoError(w.t, os.WriteFile(path, []byte(text), 0o644))
}

// makeCanaries fills the host directory that nothing may touch.
func (w *world) makeCanaries() {
	w.t.Helper()
	random := make([]byte, 1024)
	_, _ = rand.Read(random)
	require.NoError(w.t, os.Mkdir(w.hd, 0o750))
	require.NoError(w.t, os.WriteFile(w.hd+"/file", random, 0o640))
	require.NoError(w.t, os.WriteFile(w.hd+"/exec", []byte("#!/bin/sh\n: >"+w.hd+"/RAN\n"), 0o755))
	require.NoError(w.t, os.Mkdir(w.hd+"/dir", 0o755))
	w.write(w.hd+"/dir/keep", "keep\n")
	require.NoError(w.t, unix.Mknod(w.hd+"/node", unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))))
	require.NoError(w.t, unix.Setxattr(w.hd+"/file", "user.canary", []byte("1"), 0))
}

func (w *world) chownRF() {
	w.t.Helper()
	require.NoError(w.t, filepath.WalkDir(w.rf, func(p string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(p, mappedRoot, mappedRoot)
	}))
}

func (w *world) rootUID() uint32 {
	if w.v.user {
		return mappedRoot
	}
	return 0
}

func (w *world) goodConfig() map[string]any {
	spaces := []any{map[string]any{"type": "mount"}}
	linux := map[string]any{"cgroupsPath": "/" + w.cgroup}
	if w.v.user {
		spaces = append(spaces, map[string]any{"type": "user"})
		ids := []any{map[string]any{"containerID": 0, "hostID": mappedRoot, "size": 65536}}
		linux["uidMappings"], linux["gidMappings"] = ids, ids
	}
	if w.v.net {
		spaces = append(spaces, map[string]any{"type": "network"})
	}
	linux["namespaces"] = spaces
	return map[string]any{
		"ociVersion": "1.0.2", "root": map[string]any{"path": w.rf}, "linux": linux,
		"process": map[string]any{"args": []string{"/bin/sh"}, "env": []string{"PATH=/bin"}, "cwd": "/"},
	}
}

func (w *world) linux() map[string]any { return w.config["linux"].(map[string]any) }

func (w *world) writeConfig() {
	w.t.Helper()
	b, err := json.Marshal(w.config)
	require.NoError(w.t, err)
	require.NoError(w.t, os.WriteFile(w.bundle+"/config.json", b, 0o600))
}

// state is what a runtime sends.
func (w *world) state() map[string]any {
	return map[string]any{
		"ociVersion": "1.0", "id": w.id, "pid": w.pid, "root": w.rf, "bundle": w.bundle, "status": "created",
	}
}

// start starts the container's first process, in its own cgroup and namespaces.
func (w *world) start() {
	w.t.Helper()
	w.startMapped(mappedRoot)
}

func (w *world) startMapped(hostID int) {
	w.t.Helper()
	if w.v.shared {
		require.NoError(w.t, unix.Mount(w.rf, w.rf, "", unix.MS_BIND, ""))
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = []string{helperEnv + "=1", "GOMAXPROCS=1"}
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS}
	if w.v.net {
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWNET
	}
	if w.v.user {
		ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: hostID, Size: 65536}}
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings, cmd.SysProcAttr.GidMappings = ids, ids
		cmd.SysProcAttr.GidMappingsEnableSetgroups = true
		cmd.SysProcAttr.Credential = &syscall.Credential{}
	}
	in, err := cmd.StdinPipe()
	require.NoError(w.t, err)
	out, err := cmd.StdoutPipe()
	require.NoError(w.t, err)
	require.NoError(w.t, cmd.Start())
	w.cmd, w.pid, w.gone = cmd, cmd.Process.Pid, make(chan struct{})
	w.stdin, w.reply, w.close = json.NewEncoder(in), json.NewDecoder(out), in.Close
	go func(gone chan struct{}) { _ = cmd.Wait(); close(gone) }(w.gone)
	w.put("cgroup.procs", fmt.Sprint(w.pid))
	require.NoError(w.t, os.WriteFile(w.ioDir()+"/cgroup.procs", []byte(fmt.Sprint(w.pid)), 0))
	rs, err := w.ask(request{Op: "setup", Conf: helperConf{
		RF: w.rf, HD: w.hd, Tmpfs: w.v.tmpfs, Pivot: w.v.pivot, Shared: w.v.shared,
	}})
	require.NoError(w.t, err, rs)
}

func (w *world) ask(rq request) (string, error) {
	if err := w.stdin.Encode(rq); err != nil {
		return "", err
	}
	// A container that never answers is ended: every wait is bounded.
	limit := time.AfterFunc(20*time.Second, func() { _ = w.cmd.Process.Kill() })
	defer limit.Stop()
	var rs response
	if err := w.reply.Decode(&rs); err != nil {
		return "", fmt.Errorf("no answer from the container: %w", err)
	}
	if rs.Err != "" {
		return rs.Out, errors.New(rs.Err)
	}
	return rs.Out, nil
}

// in asks the container's first process to do something that must succeed.
func (w *world) in(op string, args ...string) string {
	w.t.Helper()
	out, err := w.ask(request{Op: op, Args: args})
	require.NoError(w.t, err, "%s %q in the container", op, args)
	return out
}

// try is the same where a failure is of interest.
func (w *world) try(op string, args ...string) (string, error) {
	return w.ask(request{Op: op, Args: args})
}

// sh runs a script in the container's namespaces, with RF and HD set.
func (w *world) sh(script string) {
	w.t.Helper()
	w.in("sh", script)
}

// shNode runs a script that makes device nodes: with a user namespace the container cannot, and an image brings them.
func (w *world) shNode(script string) {
	w.t.Helper()
	if !w.v.user {
		w.sh(script)
		return
	}
	w.hostSh(script)
	w.chownRF()
}

// hostSh runs a script on the host, with RF and HD set.
func (w *world) hostSh(script string) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/bin/sh", "-ec", script)
	cmd.Env = append(os.Environ(), "RF="+w.rf, "HD="+w.hd, "SRC="+w.src, "NODES="+w.nodes, "BUNDLE="+w.bundle)
	cmd.Dir = w.dir
	out, err := cmd.CombinedOutput()
	require.NoError(w.t, err, "%s: %s", script, out)
}

// stop ends the container and waits until it is gone.
func (w *world) stop() {
	w.t.Helper()
	if w.cmd == nil {
		return
	}
	_ = w.close()
	select {
	case <-w.gone:
	case <-time.After(5 * time.Second):
		_ = w.cmd.Process.Kill()
		<-w.gone
		w.t.Error("the container's first process had to be killed")
	}
	w.cmd = nil
}

// kill ends the container at once, as the kernel's OOM killer would.
func (w *world) kill() {
	_ = w.cmd.Process.Kill()
	<-w.gone
	_ = w.close()
	w.cmd = nil
}

// remove ends the container and removes all of the world. Only after a failure it also removes what the hook left, so that
// one failed row does not make the next ones fail.
func (w *world) remove() {
	w.stop()
	if w.t.Failed() {
		w.scrub()
	}
	if w.v.net {
		dropLinks(w.t)
	}
	for _, m := range hostMounts(w.t) {
		if strings.HasPrefix(m.point, w.dir+"/") {
			_ = unix.Unmount(m.point, unix.MNT_DETACH)
		}
	}
	deadline := time.Now().Add(5 * time.Second)
	for _, dir := range []string{w.cgroupDir(), w.ioDir()} {
		for {
			err := unix.Rmdir(dir)
			if err == nil || errors.Is(err, unix.ENOENT) {
				break
			}
			if time.Now().After(deadline) {
				w.t.Errorf("remove cgroup %s: %v", dir, err)
				break
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
	if err := os.RemoveAll(w.dir); err != nil {
		w.t.Errorf("remove the world: %v", err)
	}
}

// scrub removes this container's traces from the host by force.
func (w *world) scrub() {
	mounts := hostMounts(w.t)
	for _, mount := range slices.Backward(mounts) {
		if strings.Contains(mount.point, w.id) {
			_ = unix.Unmount(mount.point, unix.MNT_DETACH)
		}
	}
	for _, d := range []string{"/.sharedpath/master", "/.sharedpath/midpath"} {
		entries, _ := os.ReadDir(filepath.Join(d, w.id))
		for _, e := range entries {
			_ = os.Remove(filepath.Join(d, w.id, e.Name()))
		}
		_ = os.Remove(filepath.Join(d, w.id))
	}
	if b, err := os.ReadFile(rulesFile); err == nil && len(b) < 1<<20 {
		lines := slices.DeleteFunc(strings.SplitAfter(string(b), "\n"), func(line string) bool { return w.ownRule(ruleKey + line) })
		_ = os.WriteFile(rulesFile, []byte(strings.Join(lines, "")), 0o600)
	}
	_ = filepath.WalkDir("/run/syscontainer-tools", func(p string, d fs.DirEntry, err error) error {
		if err == nil && strings.Contains(d.Name(), w.id) {
			_ = os.RemoveAll(p)
			if d.IsDir() {
				return fs.SkipDir
			}
		}
		return nil
	})
}

// view is the container's root as the host can see it.
func (w *world) view() string {
	if w.v.pivot {
		return fmt.Sprintf("/proc/%d/root", w.pid)
	}
	return fmt.Sprintf("/proc/%d/root%s", w.pid, w.rf)
}

// stat looks at a path of the container without leaving its root.
func (w *world) stat(path string) (unix.Stat_t, error) {
	var st unix.Stat_t
	root, err := unix.Open(w.view(), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return st, err
	}
	defer unix.Close(root)
	fd, err := unix.Openat2(root, path, &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT,
	})
	if err != nil {
		return st, err
	}
	defer unix.Close(fd)
	return st, unix.Fstat(fd, &st)
}

// permissions are the lines of the container's devices.list.
func (w *world) permissions() []string {
	w.t.Helper()
	b, err := os.ReadFile(filepath.Join(w.cgroupDir(), "devices.list"))
	require.NoError(w.t, err)
	return strings.Split(string(bytes.TrimSpace(b)), "\n")
}

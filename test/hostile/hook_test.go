//go:build linux

package hostile

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/stretchr/testify/require"
)

// run is one start of the hook.
type run struct {
	args  []string
	wrap  []string // a program that starts the hook
	env   []string
	stdin io.Reader // default: the container's state
	argv0 string
	dir   string
	files []*os.File
	limit time.Duration // the process is killed and the test fails after it
}

type result struct {
	code   int // -1: ended by a signal
	signal syscall.Signal
	stderr string
	log    string
	took   time.Duration
	rss    int64 // peak, in bytes; a lower bound is the test's own size at the start
}

func (r result) String() string {
	return fmt.Sprintf("exit %d, signal %d, %v, stderr %q, log:\n%s", r.code, r.signal, r.took, r.stderr, r.log)
}

// process is a hook that runs.
type process struct {
	w      *world
	cmd    *exec.Cmd
	stderr bytes.Buffer
	since  time.Time
	limit  time.Duration
	ended  chan struct{}
}

// fewCaps is the set that restoring devices and mounts needs.
const fewCaps = "--bounding-set=-all,+sys_admin,+sys_chroot,+mknod,+chown,+fowner,+dac_override,+net_admin,+sys_ptrace," +
	"+setuid,+setgid"

func (w *world) spawn(r run) *process {
	w.t.Helper()
	wrap := r.wrap
	if w.v.fewCaps {
		wrap = append([]string{"/usr/bin/setpriv", fewCaps}, wrap...)
	}
	argv := append(append([]string{}, wrap...), hookBinary(w.t))
	argv = append(argv, "-log", w.logFile)
	argv = append(argv, r.args...)
	p := &process{w: w, cmd: exec.Command(argv[0], argv[1:]...), limit: r.limit, ended: make(chan struct{})}
	if r.argv0 != "" {
		p.cmd.Args[0] = r.argv0
	}
	p.cmd.Dir = r.dir
	if p.cmd.Dir == "" {
		p.cmd.Dir = "/"
	}
	p.cmd.Env = r.env
	if r.env == nil {
		p.cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	}
	if w.v.oneCPU {
		p.cmd.Env = append(p.cmd.Env, "GOMAXPROCS=1")
	}
	p.cmd.Stdin, p.cmd.Stderr, p.cmd.ExtraFiles = r.stdin, &p.stderr, r.files
	if r.stdin == nil {
		b, err := json.Marshal(w.state())
		require.NoError(w.t, err)
		p.cmd.Stdin = bytes.NewReader(b)
	}
	if p.limit == 0 {
		p.limit = 10 * time.Second
	}
	p.cmd.WaitDelay = time.Second // a standard input that never ends does not keep Wait
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	p.since = time.Now()
	require.NoError(w.t, p.cmd.Start())
	go func() { _ = p.cmd.Wait(); close(p.ended) }()
	return p
}

// wait waits for the end of the hook, at most its limit.
func (p *process) wait() result {
	p.w.t.Helper()
	select {
	case <-p.ended:
	case <-time.After(p.limit - time.Since(p.since)):
		_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
		<-p.ended
		p.w.t.Errorf("the hook did not end within %v", p.limit)
	}
	st := p.cmd.ProcessState
	res := result{code: st.ExitCode(), stderr: p.stderr.String(), took: time.Since(p.since)}
	if ws, ok := st.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		res.signal = ws.Signal()
	}
	if ru, ok := st.SysUsage().(*syscall.Rusage); ok {
		res.rss = ru.Maxrss << 10
	}
	if st, err := os.Lstat(p.w.logFile); err == nil && st.Mode().IsRegular() {
		log, _ := os.ReadFile(p.w.logFile)
		res.log = string(log[max(0, len(log)-4096):])
	}
	if strings.Contains(res.stderr+res.log, "goroutine ") {
		p.w.t.Errorf("the hook crashed: %s", res)
	}
	return res
}

func (w *world) hook(stage string, r run) result {
	w.t.Helper()
	r.args = append([]string{"-state", stage}, r.args...)
	return w.spawn(r).wait()
}

func (w *world) prestart() result {
	w.t.Helper()
	return w.hook("prestart", run{})
}

// poststop is called as crun calls it: with no process left to look at.
func (w *world) poststop() result {
	w.t.Helper()
	st := w.state()
	st["pid"], st["status"] = 0, "stopped"
	return w.hook("poststop", run{stdin: asJSON(w, st)})
}

func asJSON(w *world, v any) io.Reader {
	w.t.Helper()
	b, err := json.Marshal(v)
	require.NoError(w.t, err)
	return bytes.NewReader(b)
}

// failed asserts FAIL: the exit code, one line that names the entry, in time.
func (w *world) failed(res result, name string, within time.Duration) {
	w.t.Helper()
	require.NotZero(w.t, res.code, "it must fail: %s", res)
	require.Zero(w.t, res.signal, "it must end by itself: %s", res)
	text := strings.TrimSuffix(res.stderr, "\n")
	require.NotEmpty(w.t, text, "no reason on stderr: %s", res)
	require.NotContains(w.t, text, "\n", "more than one line: %s", res)
	require.Less(w.t, len(text), 8192, "the reason is too long")
	require.Contains(w.t, text, name, "the reason does not name the entry")
	if within == 0 {
		within = 10 * time.Second
	}
	require.Less(w.t, res.took, within, "too slow: %s", res)
}

// recordFile is where the record of the container lies.
func (w *world) recordFile() string { return filepath.Join(w.bundle, "device_hook.json") }

func (w *world) record(v any) {
	w.t.Helper()
	b, err := json.Marshal(v)
	require.NoError(w.t, err)
	w.rawRecord(b)
}

func (w *world) rawRecord(b []byte) {
	w.t.Helper()
	require.NoError(w.t, os.WriteFile(w.recordFile(), b, 0o600))
}

func (w *world) readRecord() string {
	w.t.Helper()
	b, err := os.ReadFile(w.recordFile())
	require.NoError(w.t, err)
	return string(b)
}

type object = map[string]any

// dev is an entry of deviceToAdd.
func dev(kind string, major, minor any, host, container, access string) object {
	return object{
		"Type": kind, "Major": major, "Minor": minor, "PathOnHost": host, "PathInContainer": container,
		"CgroupPermissions": access, "Parent": "",
	}
}

// zero is /dev/zero in the container, which the container's own permissions do not allow.
func zero(container string) object { return dev("c", 1, 5, "/dev/zero", container, "rwm") }

func devices(list ...object) object { return object{"deviceToAdd": list} }

func binds(list ...string) object { return object{"bindToAdd": list} }

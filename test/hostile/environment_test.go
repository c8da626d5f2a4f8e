//go:build linux

package hostile

import (
	"bytes"
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func goodRecord(w *world) any {
	return object{"deviceToAdd": []object{zero("/dev/sdx")}, "bindToAdd": []string{w.src + "/d:/guest:rw"}}
}

func goodInside(w *world) {
	hasZero("/dev/sdx")(w)
	w.hasText("/guest/marker", textOfD)
}

func notRun(w *world) {
	w.t.Helper()
	require.NoFileExists(w.t, w.hd+"/RAN")
}

// TestEnvironment is STA-09 and STA-11: the result is the same as with an empty environment.
func TestEnvironment(t *testing.T) {
	tools := `mkdir -p $RF/bin
		for t in modprobe udevadm mount lsblk go sh -rf; do ln $HD/exec2 $RF/bin/$t; ln $HD/exec2 $RF/$t; done`
	plant := func(w *world) {
		w.hostSh("cp -p $HD/exec $HD/exec2; mkfifo $RF/fifo; echo not a library >$RF/x.so; " + tools)
	}
	rows := []row{{
		id: "STA-09/environment", want: okIn, record: goodRecord, inside: goodInside, host: plant, after: notRun,
		run: func(w *world) run {
			return run{env: []string{
				"LD_PRELOAD=" + w.rf + "/x.so", "PATH=" + w.rf + "/bin:.", "TZ=:" + w.rf + "/fifo", "GODEBUG=madvdontneed=1,x=y",
				"_LIBCONTAINER_INITPIPE=0", "_LIBCONTAINER_STATEDIR=" + w.hd, "GOCOVERDIR=" + w.hd, "TMPDIR=" + w.hd, "HOME=" + w.hd,
				"LISTEN_FDS=5", "NOTIFY_SOCKET=" + w.hd + "/file", "XDG_RUNTIME_DIR=" + w.hd, "LANG=\xff", "no-equals-sign",
			}}
		},
	}, {
		id: "STA-09/empty", want: okIn, record: goodRecord, inside: goodInside,
		run: func(*world) run { return run{env: []string{}} },
	}, {
		id: "STA-11", want: okIn, record: goodRecord, inside: goodInside, host: plant, after: notRun,
		run: func(w *world) run { return run{dir: w.rf, env: []string{"PATH=."}} },
	}}
	for _, name := range []string{"nsenter-init", "reexec-relabel", "runc", "init", "-", ""} {
		rows = append(rows, row{
			id: "STA-09/argv0-" + name, want: okIn, record: goodRecord, inside: goodInside,
			run: func(*world) run { return run{argv0: name} },
		})
	}
	runPlain(t, rows)
}

// openMany opens what a runtime may leave open: directories, namespaces, and files to write to.
func openMany(w *world) []*os.File {
	w.t.Helper()
	var files []*os.File
	for range 12 {
		for _, p := range []string{w.hd, "/proc/self/ns/net", w.hd + "/file"} {
			mode := os.O_RDONLY
			if p == w.hd+"/file" {
				mode = os.O_RDWR
			}
			f, err := os.OpenFile(p, mode, 0)
			require.NoError(w.t, err)
			w.t.Cleanup(func() { f.Close() })
			files = append(files, f)
		}
	}
	return files
}

// TestDescriptors is STA-10: what the hook inherits is not written and changes nothing.
func TestDescriptors(t *testing.T) {
	begin(t, true)
	t.Run("STA-10/inherited", func(t *testing.T) {
		w := newWorld(t, variant{})
		w.record(goodRecord(w))
		w.start()
		files := openMany(w)
		canary := w.canary()
		res := w.hook("prestart", run{files: files})
		require.Zero(t, res.code, res)
		goodInside(w)
		res = w.hook("poststop", run{files: files})
		require.Zero(t, res.code, res)
		require.Empty(t, diff(canary, w.canary()), "CANARY")
	})
	// With no standard descriptors the hook's own files get these numbers; what it has to say must not go there.
	for name, redirect := range map[string]string{"none": "<&- >&- 2>&-", "no-output": ">&- 2>&-", "no-stderr": "2>&-"} {
		t.Run("STA-10/closed-"+name, func(t *testing.T) {
			w := newWorld(t, variant{})
			w.record(devices(zero("/dev/new/a"), dev("c", 1, 5, "/dev/missing", "/dev/b", "rw")))
			w.start()
			before, canary := w.clean(), w.canary()
			res := w.hook("prestart", run{wrap: []string{"/bin/sh", "-c", `exec "$@" ` + redirect, "sh"}})
			require.NotZero(t, res.code)
			require.Zero(t, res.signal)
			require.Empty(t, diff(before, w.clean()), "CLEAN")
			require.Empty(t, diff(canary, w.canary()), "CANARY")
			res = w.hook("poststop", run{wrap: []string{"/bin/sh", "-c", `exec "$@" ` + redirect, "sh"}})
			require.Zero(t, res.code)
			require.Empty(t, diff(before, w.clean()), "CLEAN after poststop")
		})
	}
	t.Run("STA-10/stdin-is-a-host-file", func(t *testing.T) {
		w := newWorld(t, variant{})
		w.record(goodRecord(w))
		w.start()
		f, err := os.OpenFile(w.hd+"/file", os.O_RDWR, 0)
		require.NoError(t, err)
		defer f.Close()
		before, canary := w.clean(), w.canary()
		w.failed(w.hook("prestart", run{stdin: f}), "", 0)
		require.Empty(t, diff(before, w.clean()), "CLEAN")
		require.Empty(t, diff(canary, w.canary()), "CANARY")
	})
}

// TestUsage is STA-12: a wrong call is told apart from a failed one, and does nothing, whatever standard input says.
func TestUsage(t *testing.T) {
	begin(t, true)
	w := newWorld(t, variant{})
	w.record(goodRecord(w))
	w.start()
	before := w.clean()
	for name, args := range map[string][]string{
		"misspelt":           {"-state", "prestrat"},
		"missing":            {},
		"empty":              {"-state", ""},
		"no-value":           {"-state"},
		"operand":            {"-state", "prestart", "poststop"},
		"operand-first":      {"prestart", "-state", "prestart"},
		"empty-operand":      {"-state", "prestart", ""},
		"case":               {"-state", "PreStart"},
		"unknown-flag":       {"-state", "prestart", "-x"},
		"relabel":            {"-state", "prestart", "-with-relabel"},
		"bad-timeout":        {"-state", "prestart", "-timeout", "x"},
		"negative-timeout":   {"-state", "prestart", "-timeout", "-1s"},
		"zero-timeout":       {"-state", "prestart", "-timeout", "0"},
		"relative-directory": {"-state", "prestart", "-record-dir", "x"},
	} {
		t.Run("STA-12/"+name, func(t *testing.T) {
			w.t = t
			res := w.spawn(run{args: args}).wait()
			require.Equal(t, 2, res.code, res)
			require.NotEmpty(t, res.stderr)
			require.Empty(t, diff(before, w.clean()), "CLEAN")
		})
	}
	t.Run("STA-12/twice", func(t *testing.T) {
		w.t = t
		res := w.spawn(run{args: []string{"-state", "prestart", "-state", "poststop"}}).wait()
		require.NotZero(t, res.code, "which of two stages is meant? %s", res)
		require.Empty(t, diff(before, w.clean()), "CLEAN")
	})
	w.t = t
}

// TestLogFile has a log file that the hook must not follow or change the owner of.
func TestLogFile(t *testing.T) {
	begin(t, true)
	for name, script := range map[string]string{"fifo": "mkfifo hook.log", "directory": "mkdir hook.log"} {
		t.Run("log/"+name, func(t *testing.T) {
			w := newWorld(t, variant{})
			w.record(goodRecord(w))
			w.hostSh(script)
			w.start()
			host, canary := w.host(true), w.canary()
			// Whether it fails or goes on without, it ends, and a stop cleans up.
			res := w.prestart()
			require.Zero(t, res.signal)
			require.Zero(t, w.poststop().code)
			require.Empty(t, diff(host, w.host(true)), "HOST after poststop: %d", res.code)
			require.Empty(t, diff(canary, w.canary()), "CANARY")
		})
	}
}

// TestRunDirectory has something else in the place of the hook's own directory on /run.
func TestRunDirectory(t *testing.T) {
	begin(t, true)
	for name, script := range map[string]string{
		"hooks-link":     "rm -r /run/syscontainer-tools/hooks; ln -s $HD /run/syscontainer-tools/hooks",
		"hooks-file":     "rm -r /run/syscontainer-tools/hooks; : >/run/syscontainer-tools/hooks",
		"of-a-user":      "chown 1000 /run/syscontainer-tools",
		"hooks-public":   "chmod 777 /run/syscontainer-tools/hooks",
		"journal-link":   "ln -s $HD/file /run/syscontainer-tools/hooks/ID",
		"journal-fifo":   "mkfifo /run/syscontainer-tools/hooks/ID",
		"journal-empty":  ": >/run/syscontainer-tools/hooks/ID",
		"journal-text":   "echo x >/run/syscontainer-tools/hooks/ID",
		"journal-null":   "echo null >/run/syscontainer-tools/hooks/ID",
		"journal-object": "echo {} >/run/syscontainer-tools/hooks/ID",
		"journal-dir":    "mkdir /run/syscontainer-tools/hooks/ID",
	} {
		t.Run("CON-09/"+name, func(t *testing.T) {
			w := newWorld(t, variant{})
			w.hostSh("cp -a /run/syscontainer-tools saved")
			t.Cleanup(func() { w.hostSh("rm -rf /run/syscontainer-tools; cp -a saved /run/syscontainer-tools") })
			w.record(goodRecord(w))
			w.start()
			w.hostSh(strings.ReplaceAll(script, "ID", w.id))
			canary, before := w.canary(), w.clean()
			res := w.prestart()
			require.Empty(t, diff(canary, w.canary()), "CANARY: %s", res)
			if res.code != 0 {
				w.failed(res, "", 0)
				require.Empty(t, diff(before, w.clean()), "CLEAN")
			} else {
				goodInside(w)
			}
			require.Zero(t, w.poststop().code)
			require.Empty(t, diff(canary, w.canary()), "CANARY after poststop")
			for _, m := range hostMounts(t) {
				require.NotContains(t, m.point, w.id, "a mount is left on the host")
			}
		})
	}
	t.Run("CON-09/read-only", func(t *testing.T) {
		w := newWorld(t, variant{})
		w.record(goodRecord(w))
		w.hostSh("mount --bind /run/syscontainer-tools /run/syscontainer-tools; mount -o remount,bind,ro /run/syscontainer-tools")
		t.Cleanup(func() { require.NoError(t, unix.Unmount("/run/syscontainer-tools", unix.MNT_DETACH)) })
		w.start()
		before := w.clean()
		w.failed(w.prestart(), unix.EROFS.Error(), 0)
		require.Empty(t, diff(before, w.clean()), "CLEAN")
		require.Zero(t, w.poststop().code)
	})
}

// TestRuntimeDialects has states that runtimes really send; the rows above must not make a hook that refuses them.
func TestRuntimeDialects(t *testing.T) {
	begin(t, true)
	for name, change := range map[string]func(w *world, st object){
		"lcr":      func(_ *world, st object) { st["ociVersion"] = ""; delete(st, "status") },
		"runc":     func(_ *world, st object) { delete(st, "root"); st["status"] = "creating"; st["annotations"] = object{} },
		"relative": func(_ *world, st object) { st["root"] = "../rf" },
		"old":      func(_ *world, st object) { st["bundlePath"] = st["bundle"]; delete(st, "bundle") },
		"unknown":  func(_ *world, st object) { st["future"] = []any{object{"a": nil}} },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, variant{})
			w.record(goodRecord(w))
			w.start()
			host := w.host(true)
			st := w.state()
			change(w, st)
			b, err := json.Marshal(st)
			require.NoError(t, err)
			res := w.hook("prestart", run{stdin: bytes.NewReader(b)})
			require.Zero(t, res.code, res)
			goodInside(w)
			st["pid"] = -1
			require.Zero(t, w.hook("poststop", run{stdin: asJSON(w, st)}).code)
			require.Empty(t, diff(host, w.host(true)), "HOST")
		})
	}
}

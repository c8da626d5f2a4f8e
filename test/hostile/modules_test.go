//go:build linux

package hostile

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const modprobe = "/usr/sbin/modprobe"

// recorder is a modprobe that writes down what it was given, and says something on all that it has for that.
const recorder = `#!/bin/sh
for a in "$@"; do echo "arg $a"; done >>LOG
tr '\0' '\n' </proc/$$/environ | sort | sed 's/^/env /' >>LOG
for fd in 0 1 2 3 4 5 6 7 8 9; do [ ! -L /proc/$$/fd/$fd ] || echo "fd $fd" >>LOG; done
echo "cwd $(pwd)" >>LOG
echo noise; echo noise >&2
`

func (w *world) modprobeLog() string { return w.dir + "/modprobe.log" }

// ran gives what the recorder has written, "" when it has not run.
func (w *world) ran() string {
	w.t.Helper()
	data, err := os.ReadFile(w.modprobeLog())
	if err != nil {
		require.ErrorIs(w.t, err, os.ErrNotExist)
	}
	return string(data)
}

// record of one run with the arguments.
func recorded(args ...string) string {
	return "arg " + strings.Join(args, "\narg ") +
		"\nenv LC_ALL=C\nenv PATH=/usr/sbin:/usr/bin:/sbin:/bin\nfd 0\nfd 1\nfd 2\ncwd /\n"
}

// putModprobe puts a script in the place of the host's modprobe until the end of the test.
func putModprobe(w *world, script string) {
	w.t.Helper()
	target, err := os.Readlink(modprobe) // to kmod, on a host that has it
	if err != nil {
		require.ErrorIs(w.t, err, os.ErrNotExist)
	}
	w.hostSh("rm -f " + modprobe)
	require.NoError(w.t, os.WriteFile(modprobe, []byte(strings.ReplaceAll(script, "LOG", w.modprobeLog())), 0o600))
	require.NoError(w.t, os.Chmod(modprobe, 0o755))
	w.t.Cleanup(func() {
		_ = os.Remove(modprobe)
		if target != "" {
			_ = os.Symlink(target, modprobe)
		}
	})
}

// imageEnv gives the container's process an environment.
func imageEnv(w *world, env ...string) {
	w.t.Helper()
	w.config["process"].(map[string]any)["env"] = append([]string{"PATH=/bin"}, env...)
	w.writeConfig()
}

// asks is a host whose modprobe is the recorder, and an image that asks for modules.
func asks(env ...string) func(w *world) {
	return func(w *world) {
		putModprobe(w, recorder)
		imageEnv(w, env...)
	}
}

func notLoaded(w *world) {
	w.t.Helper()
	require.Empty(w.t, w.ran(), "modprobe was run")
}

func loaded(args ...string) func(w *world) {
	return func(w *world) {
		w.t.Helper()
		require.Equal(w.t, recorded(args...), w.ran())
		require.NoError(w.t, os.Remove(w.modprobeLog()))
	}
}

// TestModules is STA-08.
func TestModules(t *testing.T) {
	rows := []row{
		{
			id: "STA-08/good", want: okIn, host: asks("KERNEL_MODULES=hostile-a,hostile_b,hostile_a"),
			after: loaded("-a", "--", "hostile-a", "hostile_b"),
		},
		{id: "STA-08/other-case", want: okIn, host: asks("kernel_modules=evil", "Kernel_Modules=evil"), after: notLoaded},
		{id: "STA-08/no-value", want: okIn, host: asks("KERNEL_MODULES", "KERNEL_MODULES="), after: notLoaded},
		{id: "STA-08/there-already", want: okIn, host: asks("KERNEL_MODULES=kernel"), after: notLoaded},
		{id: "STA-08/env-is-text", host: func(w *world) {
			putModprobe(w, recorder)
			w.config["process"].(map[string]any)["env"] = "KERNEL_MODULES=evil"
			w.writeConfig()
		}, after: notLoaded},
		{id: "STA-08/twice", host: asks("KERNEL_MODULES=a", "KERNEL_MODULES=a"), name: "KERNEL_MODULES", after: notLoaded},
		{id: "STA-08/after-empty", host: asks("KERNEL_MODULES=", "KERNEL_MODULES=-d"), name: "KERNEL_MODULES", after: notLoaded},
	}
	for name, value := range map[string]string{
		"d": "-d,rootfs,evil", "r": "-r,x", "config": "-C,y", "dashes": "--", "second": "hostile_a,-r", "between": "a,,b", "comma": ",",
		"end": "a,", "blank": "a b", "newline": "a\nb", "nul": "a\x00", "path": "../../evil", "absolute": "/evil.ko", "file": "evil.ko",
		"not-ascii": "é", "shell": "a;id", "substitution": "$(id)", "parameter": "a=b", "long": strings.Repeat("a", 65),
		"huge": strings.Repeat("a", 1<<20),
		"many": "a" + strings.Repeat(",a", 100_000),
	} {
		rows = append(rows, row{
			id: "STA-08/name-" + name, host: asks("KERNEL_MODULES=" + value), name: "KERNEL_MODULES", after: notLoaded,
			within: 2 * time.Second,
		})
	}
	runPlain(t, rows)
}

// TestModulesAllowed is STA-08 on a host with a list of what is possible.
func TestModulesAllowed(t *testing.T) {
	list := func(script string) func(w *world) {
		return func(w *world) {
			asks("KERNEL_MODULES=hostile_a,hostile_b")(w)
			w.hostSh("mkdir /etc/syscontainer-tools; cd /etc/syscontainer-tools; " + script)
			w.t.Cleanup(func() { _ = os.RemoveAll("/etc/syscontainer-tools") })
		}
	}
	rows := []row{
		{
			id: "STA-08/list-has-all", want: okIn, host: list("printf '# ours\nhostile-a\n\n hostile_b # too\n' >modules.allow"),
			after: loaded("-a", "--", "hostile_a", "hostile_b"),
		},
		{id: "STA-08/list-not-there", want: okIn, host: list(":"), after: loaded("-a", "--", "hostile_a", "hostile_b")},
	}
	for name, c := range map[string]struct{ script, names string }{
		"lacks-one": {"echo hostile_a >modules.allow", "hostile_b"}, "empty": {": >modules.allow", "hostile_a"},
		"comment":   {"printf 'hostile_a\n# hostile_b\n' >modules.allow", "hostile_b"},
		"pattern":   {"echo '*' >modules.allow", "modules.allow"},
		"one-line":  {"echo hostile_a hostile_b >modules.allow", "modules.allow"},
		"writable":  {"printf 'hostile_a\nhostile_b\n' >modules.allow; chmod 666 modules.allow", "modules.allow"},
		"of-a-user": {"printf 'hostile_a\nhostile_b\n' >modules.allow; chown 1000 modules.allow", "modules.allow"},
		"link":      {"printf 'hostile_a\nhostile_b\n' >$NODES/list; ln -s $NODES/list modules.allow", "modules.allow"},
		"fifo":      {"mkfifo modules.allow", "modules.allow"},
		"100-MiB":   {"truncate -s 100M modules.allow", "modules.allow"},
		"directory": {"chmod 777 .", "/etc/syscontainer-tools"},
	} {
		rows = append(rows, row{
			id: "STA-08/list-" + name, host: list(c.script), name: c.names, after: notLoaded, within: 2 * time.Second, maxRSS: 128 << 20,
		})
	}
	runPlain(t, rows)
}

// TestModulesOfImage is STA-08 with an image that brings modules, programs and their configuration.
func TestModulesOfImage(t *testing.T) {
	image := func(w *world) {
		w.hostSh(`v=$(uname -r); mkdir -p $RF/lib/modules/$v $RF/etc/modprobe.d $RF/sbin $RF/usr/sbin $BUNDLE/lib/modules/$v
			echo 'hostile_evil.ko:' | tee $RF/lib/modules/$v/modules.dep $BUNDLE/lib/modules/$v/modules.dep
			: >$RF/lib/modules/$v/hostile_evil.ko; echo hostile_evil.ko >$RF/lib/modules/$v/modules.builtin
			echo "install hostile_evil $HD/exec" >$RF/etc/modprobe.d/x.conf
			for d in sbin usr/sbin .; do cp $HD/exec $RF/$d/modprobe; done; cp $HD/exec $BUNDLE/modprobe`)
	}
	inBundle := func(w *world) run {
		return run{dir: w.bundle, env: []string{"PATH=" + w.rf + "/sbin:.", "MODPROBE_OPTIONS=-d " + w.rf, "MODULES=" + w.rf}}
	}
	runPlain(t, []row{
		{
			id: "STA-08/image", want: okIn, run: inBundle, after: func(w *world) { loaded("-a", "--", "hostile_evil")(w); notRun(w) },
			host: func(w *world) { image(w); asks("KERNEL_MODULES=hostile_evil")(w) },
		},
		{ // the host's own modprobe, or none: there is no such module either way
			id: "STA-08/image-real", run: inBundle, name: "hostile_evil", after: notRun,
			host: func(w *world) { image(w); imageEnv(w, "KERNEL_MODULES=hostile_evil") },
		},
	})
}

// TestModprobe has one that fails, is none, or hangs.
func TestModprobe(t *testing.T) {
	program := func(script string) func(w *world) {
		return func(w *world) {
			putModprobe(w, script)
			imageEnv(w, "KERNEL_MODULES=hostile_a")
		}
	}
	rows := []row{
		{id: "STA-08/fails", host: program("#!/bin/sh\necho 'a reason' >&2; exit 1\n"), name: "a reason"},
		{
			id: "STA-08/says-much", name: "hostile_a",
			host: program("#!/bin/sh\nhead -c 9000000 /dev/zero | tr '\\0' x | tee /dev/stderr\nexit 1\n"),
		},
		{id: "STA-08/no-program", host: program("not a program\n"), name: "hostile_a"},
		{
			id: "STA-08/of-a-user", name: "modprobe", after: notLoaded,
			host: func(w *world) { program(recorder)(w); w.hostSh("chown 1000 " + modprobe) },
		},
		{
			id: "STA-08/writable", name: "modprobe", after: notLoaded,
			host: func(w *world) { program(recorder)(w); w.hostSh("chmod 777 " + modprobe) },
		},
		{
			id: "STA-08/hangs", name: "hostile_a", within: 6 * time.Second,
			host: program("#!/bin/sh\nsleep 100 & echo $$ $! >LOG; exec sleep 100\n"),
			run:  func(*world) run { return run{args: []string{"-timeout", "2s"}} }, after: func(w *world) {
				for pid := range strings.FieldsSeq(w.ran()) {
					w.hasEnded(pid)
				}
				require.NotEmpty(w.t, w.ran())
			},
		},
	}
	runPlain(t, rows)
}

// hasEnded waits for the end of a process.
func (w *world) hasEnded(pid string) {
	w.t.Helper()
	require.Eventually(w.t, func() bool {
		stat, err := os.ReadFile("/proc/" + pid + "/stat")
		return err != nil || strings.Contains(string(stat), ") Z ")
	}, 2*time.Second, 10*time.Millisecond, "process %s is still there", pid)
}

// TestModuleSurroundings is STA-09 and STA-11 with a program that is run: it gets nothing of them.
func TestModuleSurroundings(t *testing.T) {
	plant := func(w *world) {
		w.hostSh(`cp -p $HD/exec $HD/exec2; mkfifo $RF/fifo; echo not a library >$RF/x.so; mkdir -p $RF/bin
			for t in modprobe tr sed sort sh -rf; do ln $HD/exec2 $RF/bin/$t; ln $HD/exec2 $RF/$t; done`)
		asks("KERNEL_MODULES=hostile_a", "LD_PRELOAD=/x.so", "MODPROBE_OPTIONS=-d /")(w)
	}
	after := func(w *world) { loaded("-a", "--", "hostile_a")(w); notRun(w) }
	runPlain(t, []row{{
		id: "STA-09/modprobe", want: okIn, record: goodRecord, inside: goodInside, host: plant, after: after,
		run: func(w *world) run {
			return run{env: []string{
				"LD_PRELOAD=" + w.rf + "/x.so", "PATH=" + w.rf + "/bin:.", "TZ=:" + w.rf + "/fifo", "MODPROBE_OPTIONS=-d " + w.rf,
				"GOCOVERDIR=" + w.hd, "TMPDIR=" + w.hd, "HOME=" + w.hd, "ENV=" + w.hd + "/exec", "LANG=\xff", "no-equals-sign",
			}}
		},
	}, {
		id: "STA-09/modprobe-empty", want: okIn, record: goodRecord, inside: goodInside, host: plant, after: after,
		run: func(*world) run { return run{env: []string{}} },
	}, {
		id: "STA-11/modprobe", want: okIn, record: goodRecord, inside: goodInside, host: plant, after: after,
		run: func(w *world) run { return run{dir: w.rf, env: []string{"PATH=."}} },
	}})
}

// TestModuleDescriptors is STA-10 with a program that is run: it has none but the standard ones, and they are nobody's files.
func TestModuleDescriptors(t *testing.T) {
	begin(t, true)
	start := func(t *testing.T) *world {
		w := newWorld(t, variant{})
		w.record(goodRecord(w))
		asks("KERNEL_MODULES=hostile_a")(w)
		w.start()
		return w
	}
	t.Run("STA-10/modprobe-inherited", func(t *testing.T) {
		w := start(t)
		files := openMany(w)
		canary := w.canary()
		res := w.hook("prestart", run{files: files})
		require.Zero(t, res.code, res)
		require.Empty(t, res.stderr)
		loaded("-a", "--", "hostile_a")(w)
		require.Zero(t, w.poststop().code)
		require.Empty(t, diff(canary, w.canary()), "CANARY")
	})
	for name, redirect := range map[string]string{
		"no-output": ">&- 2>&-", "no-stderr": "2>&-", "files": "3<>$HD/file >>$HD/file 2>&1", "files-2": "4>>$HD/file 5</ 2>>$HD/file",
	} {
		t.Run("STA-10/modprobe-"+name, func(t *testing.T) {
			w := start(t)
			canary := w.canary()
			script := fmt.Sprintf(`exec "$@" %s`, strings.ReplaceAll(redirect, "$HD", w.hd))
			res := w.hook("prestart", run{wrap: []string{"/bin/sh", "-c", script, "sh"}})
			require.Zero(t, res.code, res)
			loaded("-a", "--", "hostile_a")(w)
			goodInside(w)
			require.Zero(t, w.poststop().code)
			require.Empty(t, diff(canary, w.canary()), "CANARY: modprobe's noise is nowhere")
		})
	}
	t.Run("STA-10/modprobe-none", func(t *testing.T) { // no state to read
		w := start(t)
		before := w.clean()
		res := w.hook("prestart", run{wrap: []string{"/bin/sh", "-c", `exec "$@" <&- >&- 2>&-`, "sh"}})
		require.NotZero(t, res.code)
		notLoaded(w)
		require.Empty(t, diff(before, w.clean()), "CLEAN")
		require.Zero(t, w.poststop().code)
	})
}

// TestModulesBeforeFailure is a prestart that fails after it has loaded modules: they stay, all else goes.
func TestModulesBeforeFailure(t *testing.T) {
	runPlain(t, []row{{
		id: "STA-08/then-fails", record: goodRecord, after: loaded("-a", "--", "hostile_a"),
		host: func(w *world) {
			asks("KERNEL_MODULES=hostile_a")(w)
		},
		content: func(w *world) { w.sh("mount -t tmpfs -o ro ro $RF/dev") },
	}})
}

//go:build linux

package hostile

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// refused starts prestart and poststop of a started container with a state that must be refused: prestart fails, poststop
// says so and ends well, and nothing changes.
func refused(t *testing.T, w *world, name string, within time.Duration, stdin func() io.Reader) {
	t.Helper()
	before, canary := w.clean(), w.canary()
	args := []string{"-timeout", "3s"}
	w.failed(w.hook("prestart", run{args: args, stdin: stdin()}), name, within)
	require.Empty(t, diff(before, w.clean()), "CLEAN after prestart")
	require.Empty(t, diff(canary, w.canary()), "CANARY")
	res := w.hook("poststop", run{args: args, stdin: stdin()})
	require.Zero(t, res.code, "poststop: %s", res)
	require.Empty(t, diff(before, w.clean()), "CLEAN after poststop")
	require.Empty(t, diff(canary, w.canary()), "CANARY")
}

// blanks is white space without end.
type blanks struct{}

func (blanks) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = ' '
	}
	return len(b), nil
}

func TestState(t *testing.T) {
	begin(t, true)
	w := newWorld(t, variant{})
	w.record(object{"deviceToAdd": []object{zero("/dev/sdx")}, "bindToAdd": []string{w.src + "/d:/guest:rw"}})
	w.start()
	good, err := json.Marshal(w.state())
	require.NoError(t, err)
	text := string(good)
	inner := strings.TrimSuffix(text, "}")
	for name, s := range map[string]string{
		"empty": "", "half": text[:len(text)/2], "two": text + text, "trailing": text + "x", "array": "[" + text + "]", "null": "null",
		"twice": inner + `,"id":"` + w.id + `"}`, "case": inner + `,"ID":"` + w.id + `"}`, "case-of-root": inner + `,"Root":"/"}`,
		"bom": "\ufeff" + text, "id-number": strings.Replace(text, `"`+w.id+`"`, "1", 1), "pid-text": setPid(text, w.pid, `"1"`),
		"pid-fraction": setPid(text, w.pid, fmt.Sprintf("%d.5", w.pid)), "bad-utf-8": inner + `,"x":"` + "\xff" + `"`,
		"deep": inner + `,"x":` + strings.Repeat("[", 100_000) + strings.Repeat("]", 100_000) + "}",
	} {
		t.Run("STA-01/"+name, func(t *testing.T) {
			w.t = t
			refused(t, w, "", 0, func() io.Reader { return strings.NewReader(s) })
		})
	}
	t.Run("STA-01/never-closed", func(t *testing.T) {
		w.t = t
		r, wr, err := os.Pipe()
		require.NoError(t, err)
		defer r.Close()
		defer wr.Close()
		_, err = wr.WriteString(text[:10])
		require.NoError(t, err)
		refused(t, w, "", 0, func() io.Reader { return r })
	})
	t.Run("STA-01/1-GiB", func(t *testing.T) {
		w.t = t
		refused(t, w, "", 2*time.Second, func() io.Reader {
			return io.MultiReader(strings.NewReader(inner), io.LimitReader(blanks{}, 1<<30), strings.NewReader("}"))
		})
	})
	for name, pid := range badPids(t, w) {
		t.Run("STA-02/"+name, func(t *testing.T) {
			w.t = t
			before := w.clean()
			st := setPid(text, w.pid, strconv.FormatInt(pid, 10))
			w.failed(w.hook("prestart", run{stdin: strings.NewReader(st)}), "", 0)
			require.Empty(t, diff(before, w.clean()), "CLEAN")
		})
	}
	t.Run("still-good", func(t *testing.T) {
		w.t = t
		res := w.prestart()
		require.Zero(t, res.code, "the state that was changed is good by itself: %s", res)
		require.Zero(t, w.poststop().code)
	})
	w.t = t
}

func setPid(state string, pid int, to string) string {
	return strings.Replace(state, fmt.Sprintf(`"pid":%d`, pid), `"pid":`+to, 1)
}

// badPids are numbers that are no container's first process.
func badPids(t *testing.T, w *world) map[string]int64 {
	t.Helper()
	dead := newWorld(t, variant{})
	dead.start()
	all := map[string]int64{
		"zero": 0, "negative": -1, "one": 1, "host": int64(os.Getpid()), "2^31": 1 << 31, "2^32+pid": 1<<32 + int64(w.pid),
		"dead": int64(dead.pid), "kernel-thread": 2,
	}
	dead.kill()
	comm, err := os.ReadFile("/proc/2/comm")
	require.NoError(t, err)
	require.Equal(t, "kthreadd\n", string(comm))
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", w.pid))
	require.NoError(t, err)
	for _, task := range tasks {
		if tid, err := strconv.Atoi(task.Name()); err == nil && tid != w.pid {
			all["thread"] = int64(tid)
		}
	}
	require.Contains(t, all, "thread", "the container's first process has one thread only")
	return all
}

// TestOtherProcess is STA-03: when the hook looks, the number belongs to another container's process, or to none.
func TestOtherProcess(t *testing.T) {
	begin(t, true)
	for _, v := range []variant{{name: "plain"}, {name: "pivot", pivot: true}} {
		t.Run("STA-03/other-container-"+v.name, func(t *testing.T) {
			w, other := newWorld(t, variant{}), newWorld(t, v)
			w.record(devices(zero("/dev/sdx")))
			w.start()
			other.start()
			before, theirs := w.clean(), other.clean()
			st := w.state()
			st["pid"] = other.pid
			w.failed(w.hook("prestart", run{stdin: asJSON(w, st)}), "", 0)
			require.Empty(t, diff(before, w.clean()), "CLEAN")
			require.Empty(t, diff(theirs, other.clean()), "the other container changed")
		})
	}
	for i := range scaled(20, 200) {
		t.Run(fmt.Sprintf("STA-03/dies-%d", i), func(t *testing.T) {
			w := newWorld(t, variant{})
			w.record(object{"deviceToAdd": []object{zero("/dev/sdx")}, "bindToAdd": []string{w.src + "/d:/guest:rw"}})
			w.start()
			host, canary := w.host(true), w.canary()
			p := w.spawn(run{args: []string{"-state", "prestart"}})
			time.Sleep(time.Duration(i) * 20 * time.Millisecond / time.Duration(scaled(20, 200)))
			w.kill()
			res := p.wait()
			require.Zero(t, res.signal, res)
			if res.code != 0 {
				w.failed(res, "", 0)
				require.Empty(t, diff(host, w.host(true)), "HOST after a failed prestart: %s", res)
			}
			require.Zero(t, w.poststop().code)
			require.Empty(t, diff(host, w.host(true)), "HOST after poststop")
			require.Empty(t, diff(canary, w.canary()), "CANARY")
		})
	}
}

// TestRoot is STA-05: only the directory that config.json names, a mount of the container, is its root.
func TestRoot(t *testing.T) {
	set := func(root string) func(w *world) run {
		return func(w *world) run {
			st := w.state()
			r := strings.NewReplacer("RF", w.rf, "HD", w.hd, "DIR", w.dir)
			st["root"] = r.Replace(root)
			return run{stdin: asJSON(w, st)}
		}
	}
	rec := one("/dev/sdx")
	rows := []row{
		// A runtime that does not know the extension may send nothing; config.json says the root then.
		{id: "STA-05/empty", want: either, record: rec, run: set("")},
		{id: "STA-05/good", want: okIn, record: rec, run: set("RF"), inside: hasZero("/dev/sdx")},
	}
	for name, root := range map[string]string{
		"dot": ".", "slash": "/", "etc": "/etc", "dots": "RF/../hd", "colon": "RF:x", "host-directory": "HD", "file": "RF/etc/passwd",
		"inside": "RF/etc", "not-a-mount": "DIR/src", "missing": "DIR/none", "newline": "RF\n", "nul": "RF\x00", "relative": "../src",
		"link": "DIR/link", "link-to-host": "DIR/hostlink", "proc": "/proc/self/root",
	} {
		rows = append(rows, row{
			id: "STA-05/" + name, record: rec, run: set(root), host: hostSh("ln -s $HD hostlink; ln -s src link"),
		})
	}
	rows = append(rows,
		row{id: "STA-05/config-differs", record: rec, host: func(w *world) {
			w.config["root"] = object{"path": w.src}
			w.writeConfig()
		}},
		row{id: "STA-05/both-not-a-mount", record: rec, run: set("DIR/src"), host: func(w *world) {
			w.config["root"] = object{"path": w.src}
			w.writeConfig()
		}},
		row{id: "STA-05/both-the-host", record: rec, run: set("/"), host: func(w *world) {
			w.config["root"] = object{"path": "/"}
			w.writeConfig()
		}},
		row{id: "STA-05/both-the-host-directory", record: rec, run: set("HD"), host: func(w *world) {
			w.config["root"] = object{"path": w.hd}
			w.writeConfig()
		}})
	runPlain(t, rows)
}

// TestConfig is STA-06.
func TestConfig(t *testing.T) {
	without := func(member string) func(w *world) {
		return func(w *world) { delete(w.config, member); w.writeConfig() }
	}
	script := func(s string) func(w *world) {
		return func(w *world) { w.hostSh("cd $BUNDLE; " + s) }
	}
	rec := one("/dev/sdx")
	rows := []row{
		// Nothing of the process is used to restore devices.
		{id: "STA-06/no-process", want: either, host: without("process"), record: rec},
		{id: "STA-06/no-linux", host: without("linux"), record: rec},
		{id: "STA-06/no-root", host: without("root"), record: rec},
		{id: "STA-06/missing-bundle", record: rec, run: func(w *world) run {
			st := w.state()
			st["bundle"] = w.dir + "/none"
			return run{stdin: asJSON(w, st)}
		}},
		{id: "STA-06/relative-bundle", record: rec, run: func(w *world) run {
			st := w.state()
			st["bundle"] = "bundle"
			return run{stdin: asJSON(w, st), dir: w.dir}
		}},
		{id: "STA-06/twice", record: rec, host: func(w *world) {
			b, err := json.Marshal(w.config)
			require.NoError(w.t, err)
			b = append(bytes.TrimSuffix(b, []byte("}")), `,"root":{"path":"/"}}`...)
			require.NoError(w.t, os.WriteFile(w.bundle+"/config.json", b, 0o600))
		}},
	}
	for name, s := range map[string]string{
		"null": "echo null >config.json", "empty": ": >config.json", "array": "echo [] >config.json", "text": "echo x >config.json",
		"link": "mv config.json ..; ln -s ../config.json config.json", "link-to-host": "ln -sf $HD/file config.json",
		"fifo": "rm config.json; mkfifo config.json", "directory": "rm config.json; mkdir config.json", "missing": "rm config.json",
		"100-MiB": "truncate -s 100M config.json",
		"device":  "rm config.json; mknod config.json c 1 5",
	} {
		rows = append(rows, row{
			id: "STA-06/" + name, host: script(s), record: rec, within: 2 * time.Second, maxRSS: 128 << 20,
		})
	}
	runPlain(t, rows)
}

// TestMappings is STA-07: what config.json says of the ids is not what the kernel does, or lets the container be the host's root.
func TestMappings(t *testing.T) {
	entry := func(container, host, size int64) any {
		return object{"containerID": container, "hostID": host, "size": size}
	}
	begin(t, true)
	for _, c := range []struct {
		name       string
		user       bool
		uids, gids []any
	}{
		{"size-0", true, []any{entry(0, mappedRoot, 0)}, nil},
		{"wrap", true, []any{entry(0, 1<<32-1, 2)}, nil},
		{"none-for-root", true, []any{entry(1, mappedRoot, 65535)}, nil},
		{"host-root", true, []any{entry(0, 0, 65536)}, nil},
		{"other-host-id", true, []any{entry(0, mappedRoot+1, 65536)}, nil},
		{"negative", true, []any{entry(0, -1, 65536)}, nil},
		{"too-large", true, []any{entry(0, 1<<32+mappedRoot, 65536)}, nil},
		{"overlap", true, []any{entry(0, mappedRoot, 65536), entry(0, 200000, 65536)}, nil},
		{"only-gids-differ", true, []any{entry(0, mappedRoot, 65536)}, []any{entry(0, 0, 65536)}},
		{"no-user-namespace", false, []any{entry(0, mappedRoot, 65536)}, nil},
	} {
		t.Run("STA-07/"+c.name, func(t *testing.T) {
			w := newWorld(t, variant{user: c.user})
			if c.gids == nil {
				c.gids = c.uids
			}
			w.linux()["uidMappings"], w.linux()["gidMappings"] = c.uids, c.gids
			w.writeConfig()
			w.record(devices(zero("/dev/sdx")))
			w.start()
			before := w.clean()
			w.failed(w.prestart(), "", 0)
			require.Empty(t, diff(before, w.clean()), "CLEAN")
			require.Zero(t, w.poststop().code)
		})
	}
	t.Run("STA-07/really-host-root", func(t *testing.T) {
		w := newWorld(t, variant{user: true})
		ids := []any{entry(0, 0, 65536)}
		w.linux()["uidMappings"], w.linux()["gidMappings"] = ids, ids
		w.writeConfig()
		w.record(devices(zero("/dev/sdx")))
		w.startMapped(0)
		before := w.clean()
		w.failed(w.prestart(), "", 0)
		require.Empty(t, diff(before, w.clean()), "CLEAN")
		require.Zero(t, w.poststop().code)
	})
}

// TestNoRecordDirectory has a -record-dir that is no good place.
func TestNoRecordDirectory(t *testing.T) {
	var rows []row
	for name, script := range map[string]string{
		"public": "mkdir -m 777 other", "of-a-user": "mkdir other; chown 1000 other", "file": ": >other",
		"link-to-public": "mkdir -m 777 real; ln -s real other",
	} {
		rows = append(rows, row{
			id: "STO-08/record-dir-" + name, host: hostSh(script + "; cp $BUNDLE/config.json other/device_hook.json || :"),
			run: func(w *world) run { return run{args: []string{"-record-dir", filepath.Join(w.dir, "other")}} },
		})
	}
	runPlain(t, rows)
}

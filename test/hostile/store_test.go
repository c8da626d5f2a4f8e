//go:build linux

package hostile

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// raw is a record of exactly these bytes.
func raw(b []byte) func(w *world) { return func(w *world) { w.rawRecord(b) } }

func TestRecordSyntax(t *testing.T) {
	var rows []row
	add := func(id, text string) {
		rows = append(rows, row{id: id, host: raw([]byte(text)), name: "device_hook.json"})
	}
	for name, text := range map[string]string{
		"null": "null", "array": "[]", "string": `""`, "empty": "", "open": "{", "bom": "\ufeff{}", "trailing-text": "{}x",
		"two": "{}{}", "comma": "{},", "number": "1", "nul": "{}\x00", "utf-16": "{\x00}\x00",
	} {
		add("STO-01/"+name, text)
	}
	for _, key := range []string{
		"bindToAdd", "deviceToAdd", "readIops", "writeIops", "readBps", "writeBps", "blkioWeight", "networkInterfaces", "networkRoute",
	} {
		add("STO-02/"+key+"-nothing", `{"`+key+`":}`)
		for i, v := range []string{`{}`, `"x"`, `1`, `true`, `[null]`, `[[]]`, `[1]`, `[true]`} {
			add(fmt.Sprintf("STO-02/%s-%d", key, i), `{"`+key+`":`+v+`}`)
		}
	}
	add("STO-02/bind-object", `{"bindToAdd":[{}]}`)
	add("STO-02/device-text", `{"deviceToAdd":["c"]}`)
	for member, v := range map[string]string{
		"Type": "1", "Major": `"1"`, "Minor": "null", "PathOnHost": "[]", "PathInContainer": "{}", "CgroupPermissions": "true",
		"Parent": "1",
	} {
		d := zero("/dev/sdx")
		d[member] = json.RawMessage(v)
		b, err := json.Marshal(devices(d))
		require.NoError(t, err)
		add("STO-02/device-"+member, string(b))
	}
	entry, err := json.Marshal(zero("/dev/a"))
	require.NoError(t, err)
	list := `[` + string(entry) + `]`
	for name, text := range map[string]string{
		"twice":         `{"deviceToAdd":` + list + `,"deviceToAdd":` + list + `}`,
		"case":          `{"deviceToAdd":` + list + `,"DEVICETOADD":` + list + `}`,
		"only-case":     `{"DeviceToAdd":` + list + `}`,
		"in-the-device": `{"deviceToAdd":[` + strings.TrimSuffix(string(entry), "}") + `,"Type":"b"}]}`,
		"case-in-the-device": `{"deviceToAdd":[` + strings.TrimSuffix(string(entry), "}") +
			`,"pathoncontainer":"/x","pathInContainer":"/y"}]}`,
		"escaped": `{"deviceToAdd":` + list + `,"device\u0054oAdd":` + list + `}`,
	} {
		add("STO-04/"+name, text)
	}
	runPlain(t, rows)
}

// TestRecordSize is STO-03: what is too large is refused early, whatever it is.
func TestRecordSize(t *testing.T) {
	const limit = 128 << 20
	write := func(n int, head, each, tail string) func(w *world) {
		return func(w *world) {
			f, err := os.OpenFile(w.recordFile(), os.O_CREATE|os.O_WRONLY, 0o600)
			require.NoError(w.t, err)
			defer f.Close()
			// In pieces: the size of this process counts in the peak of its child.
			piece := strings.Repeat(each, min(n, 1024))
			_, err = f.WriteString(head)
			require.NoError(w.t, err)
			for i := 0; i < n; i += 1024 {
				_, err = f.WriteString(piece[:len(each)*min(1024, n-i)])
				require.NoError(w.t, err)
			}
			_, err = f.WriteString(tail)
			require.NoError(w.t, err)
		}
	}
	large := func(id string, host func(w *world)) row {
		return row{id: id, host: host, within: 2 * time.Second, maxRSS: limit}
	}
	runPlain(t, []row{
		large("STO-03/100-MiB-blank", write(100<<20, "{", " ", "}")),
		large("STO-03/sparse", func(w *world) {
			w.rawRecord(nil)
			require.NoError(w.t, os.Truncate(w.recordFile(), 10<<30))
		}),
		large("STO-03/depth-unknown", write(100_000, `{"x":`, "[", strings.Repeat("]", 100_000)+"}")),
		large("STO-03/depth-objects", write(100_000, `{"x":`, `{"a":`, "1"+strings.Repeat("}", 100_000)+"}")),
		large("STO-03/depth-open", write(400_000, `{"bindToAdd":`, "[", "")),
		large("STO-03/devices", write(1_000_000, `{"deviceToAdd":[`, "{},", "{}]}")),
		large("STO-03/nulls", write(150_000, `{"deviceToAdd":[`, "null,", "null]}")),
		large("STO-03/string", write(10<<20, `{"x":"`, "x", `"}`)),
		large("STO-03/path", write(1_000_000, `{"bindToAdd":["`, "/", `:/m:rw"]}`)),
		large("STO-03/members", write(100_000, `{`, `"x":1,`, `"y":1}`)),
	})
}

// renumbered is a record that prestart must save: the numbers in it are old.
func renumbered(w *world) {
	w.hostSh("mknod $NODES/disk c 1 7")
	w.record(w.oldRecord())
}

func (w *world) oldRecord() object {
	return object{
		"deviceToAdd": []object{dev("c", 1, 5, w.nodes+"/disk", "/dev/disk", "rw")},
		"bindToAdd":   []string{w.src + "/d:/guest:rw"},
	}
}

// TestRecordSave is STO-05: the save cannot be done, so prestart fails and takes everything back.
func TestRecordSave(t *testing.T) {
	limited := func(limit string) func(w *world) run {
		return func(*world) run { return run{wrap: []string{"/usr/bin/prlimit", limit, "--"}} }
	}
	// The bundle becomes a small file system that keeps its files.
	small := func(after string) func(w *world) {
		return func(w *world) {
			renumbered(w)
			w.hostSh(`cp -a $BUNDLE old; mount -t tmpfs -o size=64k,mode=0750 b $BUNDLE; cp -a old/. $BUNDLE
				: >$BUNDLE/.device_hook.lock; chmod 600 $BUNDLE/.device_hook.lock; ` + after)
		}
	}
	runPlain(t, []row{
		{id: "STO-05/full", host: small("! cat /dev/zero >$BUNDLE/fill 2>/dev/null"), name: unix.ENOSPC.Error()},
		{
			id: "STO-05/no-inode", name: unix.ENOSPC.Error(),
			host: small("mount -o remount,nr_inodes=8 $BUNDLE; i=0; while touch $BUNDLE/$i; do i=$((i+1)); done 2>/dev/null"),
		},
		{id: "STO-05/read-only", host: small("mount -o remount,ro $BUNDLE"), name: unix.EROFS.Error()},
		{id: "STO-05/immutable", name: unix.EPERM.Error(), host: func(w *world) {
			renumbered(w)
			w.hostSh(": >$BUNDLE/.device_hook.lock; chmod 600 $BUNDLE/.device_hook.lock; chattr +i $BUNDLE")
			w.t.Cleanup(func() { w.hostSh("chattr -i $BUNDLE") })
		}},
		{id: "STO-05/file-size-0", host: renumbered, run: limited("--fsize=0")},
		// With so few descriptors both are right, as long as nothing is half done.
		{id: "STO-05/16-descriptors", want: either, host: renumbered, run: limited("--nofile=16"), allowed: diskAndGuest},
		{id: "STO-05/8-descriptors", want: either, host: renumbered, run: limited("--nofile=8"), allowed: diskAndGuest},
	})
}

func diskAndGuest(*world) []string { return []string{"/dev/disk", "/guest"} }

// TestRecordFile is STO-08: the record is nothing that root alone could have put there.
func TestRecordFile(t *testing.T) {
	rows := []row{}
	for name, script := range map[string]string{
		"link":          "cp $BUNDLE/device_hook.json r; rm $BUNDLE/device_hook.json; ln -s ../r $BUNDLE/device_hook.json",
		"link-to-host":  "rm $BUNDLE/device_hook.json; ln -s $HD/file $BUNDLE/device_hook.json",
		"dangling":      "rm $BUNDLE/device_hook.json; ln -s $HD/new $BUNDLE/device_hook.json",
		"fifo":          "rm $BUNDLE/device_hook.json; mkfifo -m 600 $BUNDLE/device_hook.json",
		"directory":     "rm $BUNDLE/device_hook.json; mkdir $BUNDLE/device_hook.json",
		"char-device":   "rm $BUNDLE/device_hook.json; mknod -m 600 $BUNDLE/device_hook.json c 1 5",
		"of-a-user":     "chown 1000 $BUNDLE/device_hook.json",
		"public":        "chmod 666 $BUNDLE/device_hook.json",
		"of-a-group":    "chmod 660 $BUNDLE/device_hook.json",
		"parent-public": "chmod 777 $BUNDLE",
		"parent-user":   "chown 1000 $BUNDLE",
	} {
		rows = append(rows, row{id: "STO-08/" + name, within: 2 * time.Second, host: func(w *world) {
			renumbered(w)
			w.hostSh(script)
		}})
	}
	runPlain(t, rows)
}

// TestRecordUnknown is STO-10: what a newer writer added survives the save.
func TestRecordUnknown(t *testing.T) {
	begin(t, true)
	w := newWorld(t, variant{})
	renumbered(w)
	rec := w.oldRecord()
	rec["futureList"] = []any{object{"Deep": []any{1, 2.5, "x", nil, true}}, 12345678901234567}
	rec["version"] = "99.1"
	rec["deviceToAdd"].([]object)[0]["Future"] = object{"a": "ä\u2028<>&"}
	w.record(rec)
	w.start()
	res := w.prestart()
	require.Zero(t, w.poststop().code)
	if res.code != 0 {
		w.failed(res, "version", 0)
		return
	}
	rec["deviceToAdd"].([]object)[0]["Minor"] = 7
	want, err := json.Marshal(rec)
	require.NoError(t, err)
	require.Equal(t, compact(t, string(want)), compact(t, w.readRecord()))
}

// compact sorts and compacts JSON without loss in its numbers.
func compact(t testing.TB, text string) string {
	t.Helper()
	in := json.NewDecoder(strings.NewReader(text))
	in.UseNumber()
	var v any
	require.NoError(t, in.Decode(&v), text)
	b, err := json.Marshal(v)
	require.NoError(t, err)
	return string(bytes.TrimSpace(b))
}

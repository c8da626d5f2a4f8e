//go:build linux

package hostile

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

const ioRoot = "/sys/fs/cgroup/blkio"

var limitFiles = []string{
	"blkio.throttle.read_iops_device", "blkio.throttle.write_iops_device", "blkio.throttle.read_bps_device",
	"blkio.throttle.write_bps_device", "blkio.bfq.weight_device",
}

// limitLists are the lists of a record, in the order of these files.
var limitLists = []string{"readIops", "writeIops", "readBps", "writeBps", "blkioWeight"}

// limit is a value of the runtime's, which the container has before the hook runs.
func (w *world) limit(kind, value string) {
	w.t.Helper()
	d := hostDisk(w.t)
	line := fmt.Sprintf("%d:%d %s", d.major, d.minor, value)
	require.NoError(w.t, os.WriteFile(w.ioDir()+"/blkio.throttle."+kind+"_device", []byte(line), 0))
}

// hasLimits asserts that the container has just these limits.
func (w *world) hasLimits(want ...string) {
	w.t.Helper()
	var all []string
	for line := range w.limits() {
		_, text, _ := strings.Cut(line, ": ")
		all = append(all, strings.TrimPrefix(text, "blkio."))
	}
	require.ElementsMatch(w.t, want, all)
}

// limitEntry is an entry of a record's list.
func limitEntry(major, minor uint32, path, value string) object {
	return object{"major": major, "minor": minor, "path": path, "value": value}
}

func (d disk) limit(value string) object { return limitEntry(d.major, d.minor, "/dev/"+d.name, value) }

// line is one of a throttle file.
func (d disk) line(kind, value string) string {
	return fmt.Sprintf("throttle.%s_device %d:%d %s", kind, d.major, d.minor, value)
}

// oneLimit is a record of one limit.
func oneLimit(list, value string) func(w *world) any {
	return func(w *world) any { return object{list: []object{hostDisk(w.t).limit(value)}} }
}

// fourLimits is a record with a device and a limit of each kind that every disk can have.
func fourLimits(w *world) any {
	d := hostDisk(w.t)
	return object{
		"deviceToAdd": []object{zero("/dev/sdx")}, "readIops": []object{d.limit("100")}, "writeIops": []object{d.limit("200")},
		"readBps": []object{d.limit("1000000")}, "writeBps": []object{d.limit("18446744073709551614")},
	}
}

func fourInside(w *world) {
	w.t.Helper()
	hasZero("/dev/sdx")(w)
	d := hostDisk(w.t)
	w.hasLimits(d.line("read_iops", "100"), d.line("write_iops", "200"), d.line("read_bps", "1000000"),
		d.line("write_bps", "18446744073709551614"))
}

// TestLimits has what must work, so that the rows below fail for their own reason.
func TestLimits(t *testing.T) {
	begin(t, true)
	for _, v := range rowVariants {
		if noUserTmpfs(v) != "" {
			continue
		}
		t.Run("good/"+v.name, func(t *testing.T) { row{want: okIn, record: fourLimits, inside: fourInside}.play(t, v) })
	}
	runPlain(t, []row{
		{
			id: "good/runtime's", want: okIn, record: fourLimits, inside: fourInside,
			host: func(w *world) { w.limit("read_bps", "5000") }, // poststop puts it back: HOST
		},
		{
			id: "good/none", want: okIn, record: oneLimit("readBps", "0"), inside: func(w *world) { w.hasLimits() },
			host: func(w *world) { w.limit("read_bps", "5000") },
		},
		{
			id: "good/weight", want: okIn,
			record: func(w *world) any {
				d := loopDisk(w.t, "bfq")
				return object{"blkioWeight": []object{d.limit("300")}}
			},
			inside: func(w *world) {
				d := loopDisk(w.t, "bfq")
				w.hasLimits(fmt.Sprintf("bfq.weight_device %d:%d 300", d.major, d.minor))
			},
		},
	})
}

// loopDisk attaches a file with a partition to a loop device, once in a test.
func loopDisk(t testing.TB, scheduler string) disk {
	t.Helper()
	dir := filepath.Join(base, "loop")
	name, err := os.ReadFile(dir + "/name")
	if err != nil {
		require.NoError(t, os.MkdirAll(dir, 0o755))
		script := `cd ` + dir + `; truncate -s 8M img; echo 2048,2048,83 | sfdisk -q img
			L=$(losetup -f --show img); echo ${L#/dev/} >name; partx -a $L`
		out, err := execSh(script)
		require.NoError(t, err, out)
		name, err = os.ReadFile(dir + "/name")
		require.NoError(t, err)
		t.Cleanup(func() {
			out, err := execSh("L=/dev/$(cat " + dir + "/name); partx -d $L; losetup -d $L; rm -r " + dir)
			require.NoError(t, err, out)
		})
	}
	d, err := statDisk(strings.TrimSpace(string(name)))
	require.NoError(t, err)
	require.NoError(t, os.WriteFile("/sys/block/"+d.name+"/queue/scheduler", []byte(scheduler), 0))
	return d
}

// TestLimitValues is CGR-05, and CGR-06 for lists of limits: refused before anything is written.
func TestLimitValues(t *testing.T) {
	begin(t, true)
	d := hostDisk(t)
	none := func(w *world) { w.t.Helper(); w.hasLimits(); noWildcard(w) }
	var rows []row
	add := func(id, name string, record object) {
		rows = append(rows, row{id: id, name: name, after: none, record: func(*world) any {
			r := object{"deviceToAdd": []object{zero("/dev/sdx")}, "writeIops": []object{d.limit("7")}}
			for list, entries := range record {
				if list == "writeIops" {
					entries = append(entries.([]object), d.limit("7"))
				}
				r[list] = entries
			}
			return r
		}})
	}
	for _, list := range limitLists {
		for name, value := range map[string]string{
			"two-lines": fmt.Sprintf("1\n%d:%d 5", d.major, d.minor), "two-lines-max": "1\n8:0 max", "newline": "1\n", "negative": "-1",
			"2^64": "18446744073709551616", "2^64-1": "18446744073709551615", "empty": "", "max": "max", "fraction": "1.5",
			"exponent": "1e3", "hex": "0x10", "plus": "+1", "blank": " 1", "blank-after": "1 ", "underscore": "1_0", "nul": "1\x00",
			"suffix": "1M", "arabic": "١", "wildcard": "a *:* rwm", "long": strings.Repeat("1", 5000), "default": "default",
		} {
			add("CGR-05/"+list+"-"+name, list, object{list: []object{d.limit(value)}})
		}
		for name, change := range map[string]object{
			"number": {"value": 5}, "null": {"value": nil}, "major-text": {"major": "*"}, "major-negative": {"major": -1},
			"minor-2^32": {"minor": 1 << 32}, "minor-2^20": {"minor": 1 << 20}, "path-list": {"path": []string{"/dev/" + d.name}},
			"path-wildcard": {"path": "a *:* rwm"}, "path-lines": {"path": "/dev/" + d.name + "\na *:* rwm"},
		} {
			entry := d.limit("50")
			maps.Copy(entry, change)
			add("CGR-06/"+list+"-"+name, list, object{list: []object{entry}})
		}
	}
	for list, values := range map[string][]string{
		"readIops": {"4294967295", "4294967296", "4294967396"}, "blkioWeight": {"1", "9", "1001", "4294967396"},
	} {
		for _, value := range values {
			add("CGR-05/"+list+"-"+value, list, object{list: []object{d.limit(value)}})
		}
	}
	runPlain(t, rows)
}

// TestLimitDisks is CGR-05: what is no whole disk, or is twice.
func TestLimitDisks(t *testing.T) {
	begin(t, true)
	d, loop := hostDisk(t), loopDisk(t, "none")
	part, err := statDisk(loop.name + "p1")
	require.NoError(t, err)
	free := uint32(4000) // a minor number of no disk
	require.NoDirExists(t, fmt.Sprintf("/sys/dev/block/%d:%d", d.major, free))
	var rows []row
	add := func(id, name, host string, record func(w *world) object) {
		rows = append(rows, row{
			id: "CGR-05/" + id, name: name, host: hostSh(host), after: func(w *world) { w.t.Helper(); w.hasLimits() },
			record: func(w *world) any {
				r := record(w)
				r["deviceToAdd"] = []object{zero("/dev/sdx")}
				return r
			},
		})
	}
	for _, list := range limitLists {
		for name, c := range map[string]struct{ path, host, say string }{
			"char":         {"/dev/zero", "", "/dev/zero"},
			"char-same":    {"NODES/n", fmt.Sprintf("mknod $NODES/n c %d %d", d.major, d.minor), "nodes/n"},
			"partition":    {"/dev/" + part.name, "", part.name},
			"missing-disk": {"NODES/n", fmt.Sprintf("mknod $NODES/n b %d %d", d.major, free), fmt.Sprintf("%d:%d", d.major, free)},
			"missing":      {"NODES/n", "", "nodes/n"},
			"file":         {"NODES/n", ": >$NODES/n", "nodes/n"},
			"directory":    {"NODES/n", "mkdir $NODES/n", "nodes/n"},
			"fifo":         {"NODES/n", "mkfifo $NODES/n", "nodes/n"},
			"user's-link":  {"NODES/n", "chmod 777 $NODES; ln -s /dev/" + d.name + " $NODES/n", "nodes/n"},
			"relative":     {"dev/" + d.name, "", list},
			"magic":        {"/proc/self/root/dev/" + d.name, "", "/proc/self/root"},
			"stdin":        {"/dev/stdin", "", "/dev/stdin"},
		} {
			add(list+"-"+name, c.say, c.host, func(w *world) object {
				path := strings.Replace(c.path, "NODES", w.nodes, 1)
				return object{list: []object{limitEntry(d.major, d.minor, path, "50")}}
			})
		}
		add(list+"-twice", list, "", func(*world) object { return object{list: []object{d.limit("50"), d.limit("60")}} })
		add(list+"-twice-by-link", list, "ln -s /dev/"+d.name+" $NODES/n", func(w *world) object {
			return object{list: []object{d.limit("50"), limitEntry(d.major, d.minor, w.nodes+"/n", "60")}}
		})
	}
	add("weight-scheduler-none", "bfq", "", func(*world) object { return object{"blkioWeight": []object{loop.limit("50")}} })
	add("weight-scheduler-other", loop.name, "echo mq-deadline >/sys/block/"+loop.name+"/queue/scheduler", func(*world) object {
		return object{"blkioWeight": []object{loop.limit("50")}}
	})
	runPlain(t, rows)
}

// TestLimitRefused is the second half of CGR-05: the kernel refuses a write that looked right; what was written goes back.
func TestLimitRefused(t *testing.T) {
	begin(t, true)
	d := hostDisk(t)
	for i, kind := range []string{"read_iops", "write_iops", "read_bps", "write_bps"} {
		for _, errno := range []string{"EIO", "ENODEV", "ENOMEM", "EINVAL", "EBUSY"} {
			runPlainCase(t, "CGR-05/refused-"+kind+"-"+errno, row{
				record: fourLimits, name: limitLists[i],
				host: func(w *world) { w.limit("read_iops", "5000") },
				run: func(w *world) run {
					return run{limit: 30 * time.Second, wrap: []string{
						"/usr/bin/strace", "-f", "-qq", "-o", "/dev/null", "-P", w.ioDir() + "/blkio.throttle." + kind + "_device",
						"-e", "trace=write", "-e", "inject=write:error=" + errno + ":when=1",
					}}
				},
				after: func(w *world) { w.t.Helper(); w.hasLimits(d.line("read_iops", "5000")) },
			})
		}
	}
}

func runPlainCase(t *testing.T, id string, r row) {
	t.Helper()
	t.Run(id, func(t *testing.T) { r.play(t, variant{}) })
}

// TestSubCgroup is CGR-08: the container has moved its process into a cgroup of its own making, below the configured one.
func TestSubCgroup(t *testing.T) {
	begin(t, true)
	for _, name := range []string{"sub", "SAME", "a/b/c"} {
		runPlainCase(t, "CGR-08/"+strings.ReplaceAll(name, "/", "-"), row{
			want: okIn, record: fourLimits,
			mounts: func(w *world) {
				for _, dir := range []string{w.ioDir(), w.cgroupDir()} {
					sub := filepath.Join(dir, strings.Replace(name, "SAME", w.cgroup, 1))
					require.NoError(w.t, os.MkdirAll(sub, 0o755))
					require.NoError(w.t, os.WriteFile(sub+"/cgroup.procs", []byte(pidText(w)), 0))
					w.t.Cleanup(func() {
						w.stop()
						for ; sub != dir; sub = filepath.Dir(sub) {
							require.Eventually(w.t, func() bool { return unix.Rmdir(sub) == nil }, 5*time.Second, 5*time.Millisecond)
						}
					})
				}
			},
			inside: func(w *world) {
				w.t.Helper()
				d := hostDisk(w.t)
				w.hasLimits(d.line("read_iops", "100"), d.line("write_iops", "200"), d.line("read_bps", "1000000"),
					d.line("write_bps", "18446744073709551614"))
				w.hasBelow(name, "")
			},
			after: func(w *world) { w.hasBelow(name, "") },
		})
	}
}

// hasBelow asserts what the throttle files of the container's own cgroup have.
func (w *world) hasBelow(name, want string) {
	w.t.Helper()
	for _, file := range limitFiles[:4] {
		b, err := os.ReadFile(filepath.Join(w.ioDir(), strings.Replace(name, "SAME", w.cgroup, 1), file))
		require.NoError(w.t, err)
		require.Equal(w.t, want, string(b), file)
	}
}

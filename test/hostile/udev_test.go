//go:build linux

package hostile

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"isula.org/syscontainer-hooks/internal/testutil"
)

const (
	rulesFile  = "/etc/udev/rules.d/99-syscontainer-tools.rules"
	rulesLock  = "/run/syscontainer-tools/udevd_config_locker"
	reloadLock = "/run/syscontainer-tools/udevd_reload.lock"
	udevTool   = "/usr/bin/udevadm"

	// A line of the companion tool, of a disk's name, a container's id and a path; and what the hook adds to it.
	ruleFormat = `KERNEL=="%[1]s*",ACTION=="add|remove", ENV{DEVTYPE}=="partition", SUBSYSTEM=="block", ` +
		`RUN{program}+="/lib/udev/syscontainer-tools_wrapper $env{ACTION} %[2]s $name %[3]s %[1]s"`
	lastMatch = `, DEVPATH=="*/%[1]s/*"`
)

// disk is a whole disk of the host, which these tests neither read nor write.
type disk struct {
	name         string
	major, minor uint32
}

var findDisk = sync.OnceValues(func() (disk, error) {
	for _, name := range []string{"zram0", "vda", "sda", "nvme0n1", "xvda"} {
		if d, err := statDisk(name); err == nil {
			return d, nil
		}
	}
	return disk{}, errors.New("the tests need a disk that is no loop device, such as zram0")
})

func statDisk(name string) (disk, error) {
	var st unix.Stat_t
	if err := unix.Stat("/dev/"+name, &st); err != nil {
		return disk{}, err
	}
	return disk{name, unix.Major(st.Rdev), unix.Minor(st.Rdev)}, nil
}

func hostDisk(tb testing.TB) disk {
	tb.Helper()
	d, err := findDisk()
	require.NoError(tb, err)
	return d
}

// entry is the disk's in a record.
func (d disk) entry(container string) object {
	return dev("b", d.major, d.minor, "/dev/"+d.name, container, "rwm")
}

// rule is the line that the hook writes.
func (d disk) rule(w *world, container string) string {
	return fmt.Sprintf(ruleFormat+lastMatch+"\n", d.name, w.ruleID(), container)
}

// oneDisk is a record with the disk at one path.
func oneDisk(container string) func(w *world) any {
	return func(w *world) any { return devices(hostDisk(w.t).entry(container)) }
}

// ruleID is what a rule has of the container's id.
func (w *world) ruleID() string {
	if len(w.id) == 64 && strings.Trim(w.id, "0123456789abcdefABCDEF") == "" {
		return w.id[:8]
	}
	return w.id
}

// foreignRules has comments, other containers' rules for the same disk and path, and a line of the host's administrator.
func foreignRules(tb testing.TB) string {
	d := hostDisk(tb)
	return "## Rules of syscontainer-tools.\n## Do not edit.\n\n" +
		fmt.Sprintf(ruleFormat, d.name, "abcdef01", "/dev/sdx") + "\n" +
		fmt.Sprintf(ruleFormat+lastMatch, d.name, "other", "/dev/sdx") + "\n" +
		`KERNEL=="sdz", SYMLINK+="mine"` + "\n"
}

func readRules(tb testing.TB) string {
	tb.Helper()
	b, err := os.ReadFile(rulesFile)
	require.NoError(tb, err)
	return string(b)
}

func writeRules(tb testing.TB, text string) {
	tb.Helper()
	require.NoError(tb, os.WriteFile(rulesFile, []byte(text), 0o600))
}

// sameRules asserts that no byte of the file has changed, and that it is alone.
func sameRules(w *world) {
	w.t.Helper()
	require.Equal(w.t, foreignRules(w.t), readRules(w.t))
	entries, err := os.ReadDir(filepath.Dir(rulesFile))
	require.NoError(w.t, err)
	require.Len(w.t, entries, 1, "%v", entries)
}

// hasRules asserts that the file has these lines, and otherwise what it had.
func hasRules(w *world, before string, rules ...string) {
	w.t.Helper()
	now := readRules(w.t)
	for _, rule := range rules {
		require.Equal(w.t, 1, strings.Count("\n"+now, "\n"+rule), "%q is not there once: %.4096q", rule, now)
		now = strings.TrimPrefix(strings.Replace("\n"+now, "\n"+rule, "\n", 1), "\n")
	}
	require.True(w.t, before == now, "the rest of the file is not what it was: %.4096q", now)
}

func hasRule(container string) func(w *world) {
	return func(w *world) {
		w.t.Helper()
		d := hostDisk(w.t)
		hasRules(w, foreignRules(w.t), d.rule(w, container))
		w.hasBlockNode(container, d)
	}
}

// hasBlockNode asserts that the container has the disk, and may use it.
func (w *world) hasBlockNode(container string, d disk) {
	w.t.Helper()
	st, err := w.stat(container)
	require.NoError(w.t, err, container)
	require.EqualValues(w.t, unix.S_IFBLK, st.Mode&unix.S_IFMT, "%s: mode %o", container, st.Mode)
	require.Equal(w.t, unix.Mkdev(d.major, d.minor), st.Rdev, container)
	require.Equal(w.t, w.rootUID(), st.Uid, container)
	require.Contains(w.t, w.permissions(), fmt.Sprintf("b %d:%d rwm", d.major, d.minor))
}

// beginRules is begin for containers with disks.
func beginRules(t *testing.T) {
	t.Helper()
	prepareRules(t)
	begin(t, true)
}

// prepareRules makes the file of rules, and has a first container make the lock files, which stay.
func prepareRules(t *testing.T) {
	t.Helper()
	testutil.RequireRoot(t)
	require.NoError(t, prepareHost())
	hookBinary(t)
	require.Empty(t, warmed())
	rulesThere(t)
	w := newWorld(t, variant{})
	w.record(oneDisk("/dev/sdx")(w))
	w.start()
	res := w.prestart()
	require.Zero(t, res.code, "a good record: %s", res)
	hasRule("/dev/sdx")(w)
	require.Zero(t, w.poststop().code)
	w.stop()
	w.remove()
	sameRules(w)
	require.NoError(t, os.WriteFile(reloadLock, nil, 0o600)) // where udevd runs
}

// rulesThere makes the file of rules until the end of the test.
func rulesThere(t *testing.T) {
	t.Helper()
	require.NoFileExists(t, rulesFile)
	require.NoError(t, os.MkdirAll(filepath.Dir(rulesFile), 0o755))
	writeRules(t, foreignRules(t))
	t.Cleanup(func() { require.NoError(t, os.Remove(rulesFile)) })
}

// TestRuleInjection is UDV-01 and UDV-02: paths that udev, a shell or the companion tool would read as more than a path.
func TestRuleInjection(t *testing.T) {
	second := fmt.Sprintf(ruleFormat, "sd", "x", "/dev/x")
	var rows []row
	for name, path := range map[string]string{
		"newline":            "/dev/a\n" + second,
		"newline-end":        "/dev/a\n",
		"carriage-return":    "/dev/a\r" + second,
		"carriage-and-line":  "/dev/a\r\n" + second,
		"backslash-n":        `/dev/a\n` + second,
		"backslash-n-alone":  `/dev/a\nb`,
		"nul":                "/dev/a\x00b",
		"line-separator":     "/dev/a\u2028b",
		"next-line":          "/dev/a\u0085b",
		"form-feed-and-more": "/dev/a\f\v\x1bb",
	} {
		rows = append(rows, row{id: "UDV-01/" + name, record: oneDisk(path), after: sameRules, name: "/dev/a"})
	}
	for i, part := range []string{
		`"`, `",RUN+="/bin/x`, ",", " ", "  ", "\t", "$env{X}", "$$", "$name", "%k", "%%", `\`, `\"`, ";", "`", "*", "[", "]", "{", "}",
		"'", "(", "&", "|", "<", "#", "?", "~", "^", "!", "ü", "\x7f", "\xff", " sdb", "$(x)", strings.Repeat("n", 255) + "/x",
	} {
		path := "/dev/a" + part + "b"
		rows = append(rows, row{id: "UDV-02/" + strconv.Itoa(i), record: oneDisk(path), after: sameRules, name: "/dev/a"})
	}
	for name, path := range map[string]string{"all": "/dev/A-z_0.9+@=", "long": "/dev/" + strings.Repeat("n", 250)} {
		rows = append(rows, row{id: "UDV-02/good-" + name, want: okIn, record: oneDisk(path), inside: hasRule(path)})
	}
	// A disk without a good path, after good ones: nothing of the others is done either.
	rows = append(rows, row{id: "UDV-02/second", after: sameRules, name: "/dev/a", record: func(w *world) any {
		d := hostDisk(w.t)
		return devices(zero("/dev/zero"), d.entry("/dev/sdx"), d.entry("/dev/a$b"))
	}})
	beginRules(t)
	runPlain(t, rows)
	for _, v := range rowVariants {
		if noUserTmpfs(v) == "" {
			t.Run("UDV-01/good-"+v.name, func(t *testing.T) {
				row{want: okIn, record: oneDisk("/dev/sdx"), inside: hasRule("/dev/sdx")}.play(t, v)
			})
		}
	}
}

// TestRuleIDs is UDV-03: an id of 64 hexadecimal digits is cut to 8, any other is whole.
func TestRuleIDs(t *testing.T) {
	beginRules(t)
	for _, id := range []string{
		"abc", "a", "abcdef01", "abcdef0123", "other1", strings.Repeat("0a", 32), strings.Repeat("0A", 32),
		strings.Repeat("0a", 31) + "0", strings.Repeat("0g", 32), strings.Repeat("x", 128), "web-prod-1", "a.b_c",
	} {
		t.Run("UDV-03/"+id[:min(len(id), 12)]+"-"+strconv.Itoa(len(id)), func(t *testing.T) {
			before := foreignRules(t)
			d := hostDisk(t)
			if id == "abcdef01" { // the file has that container's rule already
				before = strings.Replace(before, fmt.Sprintf(ruleFormat, d.name, id, "/dev/sdx")+"\n", "", 1)
			}
			w := newWorld(t, variant{})
			w.id = id
			w.record(oneDisk("/dev/sdx")(w))
			w.start()
			res := w.prestart()
			require.Zero(t, res.code, res)
			hasRules(w, before, d.rule(w, "/dev/sdx"))
			w.kill()
			res = w.poststop()
			require.Zero(t, res.code, res)
			require.Equal(t, before, readRules(t))
			writeRules(t, foreignRules(t))
		})
	}
}

// TestRuleOfOther is UDV-04: two containers, whose ids begin the same, with the same disk at the same path.
func TestRuleOfOther(t *testing.T) {
	beginRules(t)
	for i, ids := range [][2]string{
		{"web-prod-1", "web-prod-2"}, {"web-prod", "web-prod-1"}, {"abc", "ab"}, {"aaaaaaaa", "aaaaaaaaa"},
	} {
		for _, first := range []int{0, 1} {
			t.Run(fmt.Sprintf("UDV-04/%d-%d", i, first), func(t *testing.T) {
				d, before := hostDisk(t), foreignRules(t)
				var both [2]*world
				for k := range both {
					both[k] = newWorld(t, variant{})
					both[k].id = ids[k]
					both[k].record(oneDisk("/dev/sdx")(both[k]))
					both[k].start()
					res := both[k].prestart()
					require.Zero(t, res.code, res)
				}
				hasRules(both[0], before, d.rule(both[0], "/dev/sdx"), d.rule(both[1], "/dev/sdx"))
				both[first].kill()
				require.Zero(t, both[first].poststop().code)
				hasRules(both[0], before, d.rule(both[1-first], "/dev/sdx"))
				both[1-first].kill()
				require.Zero(t, both[1-first].poststop().code)
				sameRules(both[0])
			})
		}
	}
}

// TestRulesFileContent is UDV-06: whatever the file has, only the container's own lines come and go.
func TestRulesFileContent(t *testing.T) {
	beginRules(t)
	random := make([]byte, 64<<10)
	_, _ = rand.Read(random)
	base, d := foreignRules(t), hostDisk(t)
	for name, text := range map[string]string{
		"empty":             "",
		"no-kernel":         `KERNEL==""` + "\n" + base + `KERNEL==` + "\nKERNEL\n" + `KERNEL=="",RUN{program}+=""` + "\nRUN\n,\n,,,\n",
		"half-rules":        strings.ReplaceAll(base, " $name", "") + fmt.Sprintf(ruleFormat, "", "", "") + "\n" + `KERNEL=="sdb`,
		"binary":            string(random) + "\n" + base,
		"zeros":             base + strings.Repeat("\x00", 8192) + base,
		"long-line":         base + "# " + strings.Repeat("x", 1<<20) + "\n" + base,
		"long-rule":         base + fmt.Sprintf(ruleFormat, d.name, "other", "/"+strings.Repeat("x", 1<<20)) + "\n",
		"only-a-long-line":  strings.Repeat("x", 1<<20),
		"no-newline-at-end": strings.TrimSuffix(base, "\n"),
		"crlf":              strings.ReplaceAll(base, "\n", "\r\n"),
		"continued":         "# \\\n" + base + "KERNEL==\"x\", \\\n\\\n\\",
		"comments":          "#\n\n#" + base + "# KERNEL==\"x\"\n   # x\n\n\n",
		"comma":             base + fmt.Sprintf(ruleFormat+"\n"+ruleFormat, d.name, "other", "/dev/a,b,/dev/,") + "\n",
		"commented-rule":    base + "#" + fmt.Sprintf(ruleFormat, d.name, "ID", "/dev/sdx") + "\n",
		"byte-order-mark":   "\ufeff" + base,
		"twice":             base + base,
		"disk-of-same-name": base + fmt.Sprintf(ruleFormat+lastMatch, d.name+"1", "other", "/dev/sdx") + "\n",
	} {
		t.Run("UDV-06/"+name, func(t *testing.T) {
			w := newWorld(t, variant{})
			text := strings.ReplaceAll(text, "ID", w.ruleID())
			t.Cleanup(func() { writeRules(t, base) })
			writeRules(t, text)
			w.record(oneDisk("/dev/sdx")(w))
			w.start()
			for range 2 {
				res := w.prestart()
				require.Zero(t, res.code, res)
				hasRules(w, text, d.rule(w, "/dev/sdx"))
			}
			w.kill()
			require.Zero(t, w.poststop().code)
			require.True(t, text == readRules(t), "not what it was: %.4096q", readRules(t))
		})
	}
	t.Run("UDV-06/own-lines", func(t *testing.T) { // as the companion tool writes them, once more, and one that is not in the record
		w := newWorld(t, variant{})
		t.Cleanup(func() { writeRules(t, base) })
		own := fmt.Sprintf(ruleFormat, d.name, w.ruleID(), "/dev/sdx") + "\n"
		writeRules(t, base+own+own+fmt.Sprintf(ruleFormat, d.name, w.ruleID(), "/dev/a,$env{X}")+"\n"+base)
		w.record(oneDisk("/dev/sdx")(w))
		w.start()
		res := w.prestart()
		require.Zero(t, res.code, res)
		hasRules(w, base+base, d.rule(w, "/dev/sdx"))
		writeRules(t, base+own+fmt.Sprintf(ruleFormat, "sdq", w.ruleID(), "/dev/sdq")+"\n"+base)
		w.kill()
		require.Zero(t, w.poststop().code)
		require.Equal(t, base+base, readRules(t))
	})
	runPlain(t, []row{{
		id: "UDV-06/100-MiB", record: oneDisk("/dev/sdx"), name: rulesFile, within: 2 * time.Second, maxRSS: 128 << 20,
		host: func(w *world) {
			w.t.Cleanup(func() { writeRules(w.t, base) })
			require.NoError(w.t, os.Truncate(rulesFile, 100<<20))
		},
		after: func(w *world) {
			res := w.poststop()
			require.Zero(w.t, res.signal)
			require.Less(w.t, res.took, 2*time.Second)
			require.Less(w.t, res.rss, int64(128<<20))
		},
		undo: func(w *world) { writeRules(w.t, base) },
	}})
}

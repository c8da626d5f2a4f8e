//go:build linux

package hostile

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// bindOf is a record of binds; SRC stands for the directory of sources.
func bindOf(specs ...string) func(w *world) any {
	return func(w *world) any {
		list := make([]string, len(specs))
		for i, s := range specs {
			list[i] = strings.ReplaceAll(s, "SRC", w.src)
		}
		return binds(list...)
	}
}

func reads(container, text string) func(w *world) {
	return func(w *world) { w.t.Helper(); w.hasText(container, text) }
}

func all(checks ...func(w *world)) func(w *world) {
	return func(w *world) {
		w.t.Helper()
		for _, c := range checks {
			c(w)
		}
	}
}

const (
	textOfD = "marker of the source\n"
	textOfF = "content of the source\n"
)

func TestBinds(t *testing.T) {
	rows := []row{
		{id: "BND-01", content: sh("ln -s $HD/file $RF/guest"), record: bindOf("SRC/f:/guest:ro"), name: "/guest", after: seesNoCanary},
		{id: "BND-02", content: sh("ln -s $HD $RF/guest"), record: bindOf("SRC/d:/guest:rw"), name: "/guest", after: seesNoCanary},
		{
			id: "BND-03/dangling", want: either, content: sh("ln -s $HD $RF/a"), record: bindOf("SRC/d:/a/b/c:rw"), name: "/a/b/c",
			allowed: inHD(""), after: seesNoCanary,
		},
		{
			id: "BND-03/inside", want: either, content: sh("mkdir -p $RF$HD; ln -s $HD $RF/a"), record: bindOf("SRC/d:/a/b/c:rw"),
			name: "/a/b/c", allowed: inHD("/b/c"), after: seesNoCanary, inside: reads("/a/b/c/marker", textOfD),
		},
		{id: "BND-04", content: sh("ln -s $HD/not-there/x $RF/guest"), record: bindOf("SRC/f:/guest:rw"), name: "/guest"},
		{
			id: "BND-05/fifo", within: 2 * time.Second, content: sh("mkfifo $RF/guest"), record: bindOf("SRC/f:/guest:rw"),
			name: "/guest",
		},
		{
			id: "BND-05/socket", within: 2 * time.Second, content: func(w *world) { w.in("socket", "/guest") },
			record: bindOf("SRC/f:/guest:rw"), name: "/guest",
		},
		{
			id: "BND-05/char-5-1", within: 2 * time.Second, content: shNode("mknod $RF/guest c 5 1"),
			record: bindOf("SRC/f:/guest:rw"), name: "/guest",
		},
		{id: "BND-05/dir-for-file", content: sh("mkdir $RF/guest"), record: bindOf("SRC/f:/guest:rw"), name: "/guest"},
		{id: "BND-05/file-for-dir", content: sh(": >$RF/guest"), record: bindOf("SRC/d:/guest:rw"), name: "/guest"},
		{
			id: "BND-07/magic-root", content: kernelDirs, mounts: kernelMounts, record: bindOf("SRC/d:/proc/1/root/tmp/x:rw"),
			name: "/proc/1/root/tmp/x",
		},
		{
			id: "BND-07/link-to-magic-root", content: func(w *world) { kernelDirs(w); w.sh("ln -s /proc/self/root $RF/l") },
			mounts: kernelMounts, record: bindOf("SRC/d:/l/x:rw"), name: "/l/x",
		},
		{
			id: "BND-07/on-sysfs", content: func(w *world) { kernelDirs(w); w.sh("ln -s /sys $RF/l") },
			mounts: kernelMounts, record: bindOf("SRC/d:/l/kernel:rw"), name: "/l/kernel",
		},
		{
			id: "BND-09", want: okIn, host: hostSh("mkdir $SRC/m; mount -t tmpfs -o nosuid,nodev m $SRC/m; echo m >$SRC/m/m"),
			record: bindOf("SRC/m:/m:ro"),
			inside: func(w *world) {
				w.hasText("/m/m", "m\n")
				at := w.mountsAt("/m")
				require.Len(w.t, at, 1)
				for _, o := range []string{"ro", "nosuid", "nodev"} {
					require.Contains(w.t, strings.Split(at[0].options, ","), o)
				}
			},
		},
		{
			id: "BND-15", host: hostSh("ln -s $HD $SRC/l"), record: bindOf("SRC/l/missing:/guest:rw"), name: "/missing",
		},
		{
			id: "BND-15/deeper", host: hostSh("ln -s $HD $SRC/l"), record: bindOf("SRC/l/dir/a/b:/guest:rw"), name: "/dir/a/b",
		},
		{
			id: "BND-15/dangling", host: hostSh("ln -s $HD/new $SRC/l"), record: bindOf("SRC/l:/guest:rw"), name: "/l",
		},
		{
			id: "BND-15/link-of-a-user", host: hostSh("mkdir -m 777 $SRC/p; ln -s $HD $SRC/p/l"),
			record: bindOf("SRC/p/l:/guest:rw"), name: "/p/l", after: seesNoCanary,
		},
		{
			id: "BND-15/link-of-root", want: okIn, host: hostSh("ln -s d $SRC/l"), record: bindOf("SRC/l:/guest:rw"),
			inside: reads("/guest/marker", textOfD),
		},
		{
			id: "BND-17", content: sh("mkfifo $RF/second"), name: "/second",
			record: bindOf("SRC/d:/new/first:rw", "SRC/f:/second:rw", "SRC/f:/third:rw"),
		},
		{
			id: "BND-19", want: okIn, record: bindOf("SRC/d:/guest:rw,rslave"),
			host: hostSh("mkdir $SRC/d/sub; mount -t tmpfs sub $SRC/d/sub; echo secret >$SRC/d/sub/secret"),
			inside: func(w *world) {
				w.hasText("/guest/marker", textOfD)
				_, err := w.try("read", "/guest/sub/secret")
				require.ErrorContains(w.t, err, unix.ENOENT.Error())
			},
		},
		{
			id: "BND-20/inner-first", want: okIn, host: hostSh("mkdir -p $SRC/a/b; echo a >$SRC/a/a; mkdir $SRC/b; echo b >$SRC/b/b"),
			record: bindOf("SRC/b:/a/b:rw", "SRC/a:/a:rw"), inside: all(reads("/a/a", "a\n"), reads("/a/b/b", "b\n")),
		},
		{id: "BND-20/same-path", record: bindOf("SRC/d:/guest:rw", "SRC/f:/guest:rw"), name: "/guest"},
		{
			id: "BND-20/same-path-written-twice", record: bindOf("SRC/d:/guest:rw", "SRC/d:/guest/:rw"), name: "/guest",
		},
		{
			id: "BND-20/one-source", want: okIn, record: bindOf("SRC/d:/one:rw", "SRC/d:/two:rw"),
			inside: all(reads("/one/marker", textOfD), reads("/two/marker", textOfD)),
		},
	}
	runRows(t, rows)
}

// TestBindNames is BND-16: what a path may hold, and that the container's mount is found under exactly these bytes.
func TestBindNames(t *testing.T) {
	var rows []row
	for name, part := range map[string]string{
		"blank": "a b", "leading-blank": " a", "comma": "a,ro", "backslash": `a\b`, "escape": `a\040b`, "utf-8": "ä€😀",
		"255-bytes": strings.Repeat("n", 255), "option": "-o", "hash": "a#b", "quotes": `a"b'c`,
	} {
		rows = append(rows, bindName("BND-16/"+name, part, ""), bindName("BND-16/"+name+"-slash", part, "/"))
	}
	for name, part := range map[string]string{
		"newline": "a\nb", "tab": "a\tb", "carriage-return": "a\rb", "escape-byte": "a\x1bb", "delete": "a\x7fb", "nul": "a\x00b",
		"256-bytes": strings.Repeat("n", 256), "dots": "../d", "long": strings.Repeat("n/", 4096),
	} {
		rows = append(rows,
			row{id: "BND-16/source-" + name, light: true, record: bindOf("SRC/" + part + ":/m:rw")},
			row{id: "BND-16/target-" + name, light: true, record: bindOf("SRC/d:/m/" + part + ":rw")})
	}
	rows = append(rows,
		row{id: "BND-16/colon-in-source", light: true, host: hostSh("mkdir $SRC/a:b"), record: bindOf("SRC/a:b:/m:rw")},
		row{id: "BND-16/colon-in-target", light: true, record: bindOf("SRC/d:/m:x:rw")},
		row{id: "BND-16/relative-source", light: true, record: bindOf("d:/m:rw")},
		row{id: "BND-16/relative-target", light: true, record: bindOf("SRC/d:m:rw")},
		row{id: "BND-16/no-target", light: true, record: bindOf("SRC/d")},
		row{id: "BND-16/empty", light: true, record: bindOf("")},
		row{id: "BND-16/bad-utf-8", light: true, record: func(w *world) any { return w.badUTF8() }},
	)
	for i, p := range []string{
		"/", "/.", "/proc", "/proc/self/attr", "/sys/fs/cgroup", "/dev", "/dev/", "/.sharedpath", "/.sharedpath/x",
	} {
		rows = append(rows, row{id: fmt.Sprintf("BND-06/target-%d", i), light: true, record: bindOf("SRC/d:" + p + ":rw")})
	}
	for i, o := range []string{
		"rw,shared", "ro,ro", "ro,rw", "remount", "exec,suid", ",", "rw,", "private,rslave", "RO", "ro ", "bind",
		strings.Repeat("ro,", 100_000) + "ro", strings.Repeat("ro,", 350_000) + "ro",
	} {
		rows = append(rows, row{id: fmt.Sprintf("BND-08/options-%d", i), light: true, record: bindOf("SRC/d:/m:" + o)})
	}
	runRows(t, rows)
}

// badUTF8 is a record whose bytes a JSON library would change; as raw JSON it goes to the file as it is.
func (w *world) badUTF8() any {
	w.rawRecord([]byte(`{"bindToAdd":["` + w.src + `/d:/m` + "\xff" + `:rw"]}`))
	return nil
}

func bindName(id, part, slash string) row {
	return row{
		id: id, want: okIn, record: bindOf("SRC/" + part + slash + ":/m/" + part + slash + ":rw,rslave"),
		host: func(w *world) {
			require.NoError(w.t, os.Mkdir(filepath.Join(w.src, part), 0o755))
			w.write(filepath.Join(w.src, part, "marker"), textOfD)
		},
		inside: func(w *world) {
			w.hasText("/m/"+part+"/marker", textOfD)
			require.Len(w.t, w.mountsAt("/m/"+part), 1)
			// Where `syscontainer-tools` looks for it: the hash is of the string as it is written.
			entry := "/.sharedpath/" + hexOf(w.src+"/"+part+slash)
			w.hasText(entry+"/marker", textOfD)
		},
	}
}

// TestBindLimits is BND-18.
func TestBindLimits(t *testing.T) {
	many := func(n int) func(w *world) any {
		return func(w *world) any {
			list := make([]string, n)
			for i := range list {
				list[i] = fmt.Sprintf("%s/f:/m/%d:ro", w.src, i)
			}
			return binds(list...)
		}
	}
	const limit = 128 << 20
	runPlain(t, []row{
		{id: "BND-18/128", want: okIn, record: many(128), inside: reads("/m/127", textOfF)},
		{id: "BND-18/129", record: many(129), within: 2 * time.Second, maxRSS: limit},
		{id: "BND-18/100000", record: many(100_000), within: 2 * time.Second, maxRSS: limit},
	})
}

// TestSharedRoot is BND-12: whatever is attached below a mount with a peer on the host would also be attached there, and stay.
func TestSharedRoot(t *testing.T) {
	for name, record := range map[string]func(w *world) any{
		"bind": bindOf("SRC/d:/guest:rw"), "transfer-directory": nil, "device": one("/dev/sdx"),
	} {
		t.Run("BND-12/"+name, func(t *testing.T) {
			begin(t, true)
			w := newWorld(t, variant{shared: true})
			if record != nil {
				w.record(record(w))
			}
			w.start()
			before, host := w.clean(), w.host(true)
			w.failed(w.prestart(), "", 0)
			require.Empty(t, diff(before, w.clean()), "CLEAN")
			w.kill()
			require.Empty(t, diff(host, w.host(true)), "HOST after the container died")
			require.Zero(t, w.poststop().code)
			require.Empty(t, diff(host, w.host(true)), "HOST after poststop")
		})
	}
}

// TestBindSourceRace is BND-13: the source is a link to the host directory every other moment, in a directory where not only
// root could have put it.
func TestBindSourceRace(t *testing.T) {
	for _, v := range []variant{{name: "plain"}, {name: "user", user: true}} {
		t.Run("BND-13/"+v.name, func(t *testing.T) {
			begin(t, true)
			w := newWorld(t, v)
			w.hostSh("mkdir $SRC/p; cp -r $SRC/d $SRC/p/d; ln -s $HD $SRC/p/l; chown 1000 $SRC/p $SRC/p/d")
			w.record(binds(w.src + "/p/d:/guest:rw"))
			canary := w.canary()
			stop := flip(w.src+"/p/d", w.src+"/p/l")
			defer stop()
			good := 0
			for range scaled(100, 1000) {
				w.start()
				res := w.hook("prestart", run{limit: 5 * time.Second})
				seesNoCanary(w)
				_, err := w.try("read", "/guest/file")
				require.Error(t, err, "the container reads the host's file")
				if res.code == 0 {
					good++
					w.hasText("/guest/marker", textOfD)
				} else {
					w.failed(res, "/p/d", 5*time.Second)
				}
				require.Zero(t, w.poststop().code)
				w.stop()
			}
			require.Empty(t, diff(canary, w.canary()), "CANARY")
			require.Positive(t, good, "the race was never won by the hook")
		})
	}
}

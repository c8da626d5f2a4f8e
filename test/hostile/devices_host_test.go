//go:build linux

package hostile

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// TestHostDevices has host paths that are no device, or not surely the one that was meant.
func TestHostDevices(t *testing.T) {
	for _, tool := range []string{"/usr/bin/strace", "/usr/bin/chattr", "/usr/bin/setpriv"} {
		require.FileExists(t, tool, "the tests of this package need it")
	}
	open, err := os.Open("/dev/zero")
	require.NoError(t, err)
	defer open.Close()
	var rows []row
	for name, c := range map[string]struct{ host, path string }{
		"regular-file":               {"echo x >$NODES/n", "NODES/n"},
		"directory":                  {"mkdir $NODES/n", "NODES/n"},
		"fifo":                       {"mkfifo $NODES/n", "NODES/n"},
		"link-loop":                  {"ln -s n $NODES/n", "NODES/n"},
		"missing":                    {"", "NODES/n"},
		"missing-directory":          {"", "NODES/d/n"},
		"stdin":                      {"", "/dev/stdin"},
		"inherited":                  {"", "/dev/fd/3"},
		"own-descriptor":             {"", "/proc/self/fd/3"},
		"magic-root":                 {"", "/proc/self/root/dev/zero"},
		"relative":                   {"", "dev/zero"},
		"empty":                      {"", ""},
		"newline":                    {"mknod \"$NODES/a\nb\" c 1 5", "NODES/a\nb"},
		"link-in-a-public-directory": {"chmod 777 $NODES; ln -s /dev/zero $NODES/n", "NODES/n"},
		"link-of-a-user":             {"chown 1000 $NODES; ln -s /dev/zero $NODES/n", "NODES/n"},
	} {
		rows = append(rows, row{
			id: "DEV-11/" + name, within: 2 * time.Second, light: true, host: hostSh(c.host),
			run: func(*world) run { return run{files: []*os.File{open}} },
			record: func(w *world) any {
				return devices(dev("c", 1, 5, strings.Replace(c.path, "NODES", w.nodes, 1), "/dev/sdx", "rwm"))
			},
		})
	}
	rows = append(rows, row{
		id: "DEV-11/link-of-root", want: okIn, light: true, host: hostSh("ln -s /dev/zero $NODES/n"),
		record: func(w *world) any { return devices(dev("c", 1, 5, w.nodes+"/n", "/dev/sdx", "rwm")) },
		inside: hasZero("/dev/sdx"),
	})
	runRows(t, rows)
}

// TestDevicesNeverOpened is the second half of DEV-07: what the image left at the device's path is not opened, since opening a
// FIFO waits and opening a device acts.
func TestDevicesNeverOpened(t *testing.T) {
	begin(t, true)
	for name, content := range map[string]string{"fifo": "mkfifo $RF/dev/sdx", "char-5-1": "mknod $RF/dev/sdx c 5 1"} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, variant{})
			w.record(devices(zero("/dev/sdx")))
			w.start()
			w.shNode(content)
			trace := w.dir + "/trace"
			res := w.hook("prestart", run{
				wrap: []string{"/usr/bin/strace", "-f", "-o", trace, "-e", "trace=open,openat,openat2,creat"},
			})
			require.Zero(t, res.code, res)
			hasZero("/dev/sdx")(w)
			require.Zero(t, w.poststop().code)
			b, err := os.ReadFile(trace)
			require.NoError(t, err)
			require.Contains(t, string(b), "config.json", "the trace shows the hook")
			for line := range strings.SplitSeq(string(b), "\n") {
				if strings.Contains(line, `sdx"`) {
					require.Contains(t, line, "O_PATH")
				}
			}
		})
	}
}

// flip exchanges two names in a tight loop until the returned function is called.
func flip(a, b string) (stop func()) {
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
				_ = unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE)
				// The hook needs one of two processors; without a pause it would not get into the race often.
				time.Sleep(20 * time.Microsecond)
			}
		}
	})
	return func() { close(done); wg.Wait() }
}

// TestDeviceRace is DEV-17: a directory of the device's path is a link to the host every other moment.
func TestDeviceRace(t *testing.T) {
	for _, v := range []variant{{name: "plain"}, {name: "user", user: true}} {
		t.Run("DEV-17/"+v.name, func(t *testing.T) {
			begin(t, true)
			w := newWorld(t, v)
			require.NoError(t, os.MkdirAll(w.rf+"/a/dev", 0o755))
			require.NoError(t, os.Symlink(w.hd, w.rf+"/a/other"))
			if v.user {
				w.chownRF()
			}
			canary := w.canary()
			stop := flip(w.rf+"/a/dev", w.rf+"/a/other")
			defer func() {
				if stop != nil {
					stop()
				}
			}()
			good, bad := 0, 0
			for i := range scaled(100, 1000) {
				// Each one is the start of the same container, and its old process is gone.
				w.record(devices(zero(fmt.Sprintf("/a/dev/n%d", i))))
				w.start()
				res := w.hook("prestart", run{limit: 5 * time.Second})
				if res.code == 0 {
					good++
				} else {
					w.failed(res, "/a/dev/n", 5*time.Second)
					bad++
				}
				require.Zero(t, w.poststop().code)
				w.stop()
			}
			stop()
			stop = nil
			require.Empty(t, diff(canary, w.canary()), "CANARY")
			t.Logf("%d restored, %d refused", good, bad)
			require.Positive(t, good, "the race was never won by the hook")
			dirs, err := filepath.Glob(w.rf + "/a/*/n*")
			require.NoError(t, err)
			require.Positive(t, len(dirs)+bad, "nothing happened")
		})
	}
}

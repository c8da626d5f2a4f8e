//go:build linux

package udev

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"isula.org/syscontainer-hooks/internal/command"
	"isula.org/syscontainer-hooks/internal/testutil"
)

// udevdEnv is set in the process that runs udevd.
const (
	udevdEnv    = "SYSCONTAINER_HOOKS_TEST_UDEVD"
	udevdPath   = "/lib/systemd/systemd-udevd"
	udevdReady  = 20 * time.Second
	recordsFile = "/run/records"
)

// TestUdevd starts itself again as the first process of a PID namespace: elsewhere udevadm(8) finds that its root is not that of
// process 1, takes it for a chroot, and does nothing.
func TestUdevd(t *testing.T) {
	testutil.RequireRoot(t)
	requireProgram(t, udevdPath, "udev")
	if os.Getenv(udevdEnv) != "" {
		besideUdevd(t)
		return
	}
	args := []string{"-test.run=^TestUdevd$", "-test.v"}
	if testing.Short() {
		args = append(args, "-test.short")
	}
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), udevdEnv+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWPID, Unshareflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET, Pdeathsig: unix.SIGKILL,
	}
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Contains(t, string(out), "--- PASS: TestUdevd (", "%s", out)
}

// runBesideUdevd has a /dev of its own, since udevd sets the permissions of nodes, and the devtmpfs is the machine's.
func runBesideUdevd(m *testing.M) int {
	nodes := map[string]uint32{"null": 3, "zero": 5, "random": 8, "urandom": 9}
	err := errors.Join(
		unix.Mount("proc", "/proc", "proc", 0, ""),
		unix.Mount("run", "/run", "tmpfs", 0, "mode=0755"),
		unix.Mount("dev", "/dev", "tmpfs", 0, "mode=0755"),
		os.MkdirAll("/etc/udev/rules.d", 0o755),
		unix.Mount("rules", "/etc/udev/rules.d", "tmpfs", 0, "mode=0755"),
		unix.Mknod("/dev/loop-control", unix.S_IFCHR|0o600, int(unix.Mkdev(10, 237))))
	for name, minor := range nodes {
		err = errors.Join(err, unix.Mknod("/dev/"+name, unix.S_IFCHR|0o666, int(unix.Mkdev(1, minor))))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

func besideUdevd(t *testing.T) {
	installRecorder(t)
	daemon := startUdevd(t)
	disk, other := twoLoops(t)
	t.Run("events", func(t *testing.T) { eventsReachTheContainer(t, disk, other) })
	t.Run("huge line", func(t *testing.T) { rulesComeBeforeHugeLines(t, disk) })
	t.Run("many reloads", manyReloads)
	t.Run("hanging", func(t *testing.T) { hangingUdevd(t, daemon) })
	t.Run("gone", func(t *testing.T) { goneUdevd(t, daemon) })
}

func installRecorder(t *testing.T) {
	t.Helper()
	require.NoFileExists(t, Wrapper)
	require.NoError(t, os.WriteFile(Wrapper, []byte("#!/bin/sh\necho \"$*\" >>"+recordsFile+"\n"), 0o755))
	t.Cleanup(func() { require.NoError(t, os.Remove(Wrapper)) })
}

func startUdevd(t *testing.T) *os.Process {
	t.Helper()
	log, err := os.Create(filepath.Join(t.TempDir(), "log"))
	require.NoError(t, err)
	cmd := exec.Command(udevdPath)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	cmd.Stdout, cmd.Stderr = log, log
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			text, _ := os.ReadFile(log.Name())
			t.Logf("udevd says:\n%s", text[max(0, len(text)-4<<10):])
		}
		_ = log.Close()
	})
	require.Eventually(t, func() bool {
		_, err := os.Stat(controlSocket)
		return err == nil
	}, udevdReady, 10*time.Millisecond)
	return cmd.Process
}

// twoLoops makes two disks, and the name of the first one begins that of the second.
func twoLoops(t *testing.T) (disk, other string) {
	t.Helper()
	control, err := os.Open("/dev/loop-control")
	require.NoError(t, err)
	defer control.Close()
	for n := 700; n < 800; n++ {
		if !makeLoop(t, control, n) {
			continue
		}
		require.True(t, makeLoop(t, control, 10*n+1))
		return fmt.Sprintf("loop%d", n), fmt.Sprintf("loop%d", 10*n+1)
	}
	t.Fatal("no free loop devices")
	return "", ""
}

func makeLoop(t *testing.T, control *os.File, number int) bool {
	t.Helper()
	err := unix.IoctlSetInt(int(control.Fd()), unix.LOOP_CTL_ADD, number)
	if errors.Is(err, unix.EEXIST) {
		return false
	}
	require.NoError(t, err)
	t.Cleanup(func() {
		again, err := os.Open("/dev/loop-control")
		require.NoError(t, err)
		defer again.Close()
		require.Eventually(t, func() bool { // udevd may look at it
			return unix.IoctlSetInt(int(again.Fd()), unix.LOOP_CTL_REMOVE, number) == nil
		}, 5*time.Second, 10*time.Millisecond)
	})
	var device [2]uint32
	text, err := os.ReadFile(fmt.Sprintf("/sys/block/loop%d/dev", number))
	require.NoError(t, err)
	_, err = fmt.Sscanf(string(text), "%d:%d", &device[0], &device[1])
	require.NoError(t, err)
	path := fmt.Sprintf("/dev/loop%d", number)
	require.NoError(t, unix.Mknod(path, unix.S_IFBLK|0o600, int(unix.Mkdev(device[0], device[1]))))
	image := filepath.Join(t.TempDir(), "image")
	require.NoError(t, os.WriteFile(image, nil, 0o600))
	require.NoError(t, os.Truncate(image, 16<<20))
	run(t, "losetup", path, image)
	t.Cleanup(func() { run(t, "losetup", "-d", path) })
	return true
}

func run(t *testing.T, args ...string) {
	t.Helper()
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	require.NoError(t, err, "%q: %s", args, out)
}

// during gives what the helper scripts are told because of call.
func during(t *testing.T, call func()) []string {
	t.Helper()
	require.NoError(t, os.WriteFile(recordsFile, nil, 0o600))
	call()
	run(t, "udevadm", "settle", "--timeout=20")
	text, err := os.ReadFile(recordsFile)
	require.NoError(t, err)
	lines := strings.Split(strings.TrimSuffix(string(text), "\n"), "\n")
	slices.Sort(lines)
	return slices.DeleteFunc(lines, func(line string) bool { return line == "" })
}

func addPartition(t *testing.T, disk string, number int) {
	t.Helper()
	run(t, "addpart", "/dev/"+disk, fmt.Sprint(number), fmt.Sprint(number*2048), "2048")
}

func removePartition(t *testing.T, disk string, number int) {
	t.Helper()
	run(t, "delpart", "/dev/"+disk, fmt.Sprint(number))
}

func eventsReachTheContainer(t *testing.T, disk, other string) {
	id := longID("1f2e3d4c")
	rules := []Rule{{disk, "/dev/sdx", id}}
	_, err := Set(t.Context(), id, rules)
	require.NoError(t, err)
	require.Equal(t, []string{"add 1f2e3d4c " + disk + "p1 /dev/sdx " + disk}, during(t, func() {
		addPartition(t, disk, 1)
		addPartition(t, other, 1)
	}))
	types := requireAsLsblk(t)
	require.Equal(t, "part", types[disk+"p1"])
	require.Equal(t, "loop", types[disk])
	require.Equal(t, []string{"remove 1f2e3d4c " + disk + "p1 /dev/sdx " + disk}, during(t, func() {
		removePartition(t, disk, 1)
		removePartition(t, other, 1)
	}))

	// Another container has the same disk elsewhere, and one the other disk.
	require.NoError(t, Add(t.Context(), Rule{disk, "/dev/sdy", "c2"}, Rule{other, "/dev/disk/by-path/a:0@b=+c", "web-prod-1"}))
	require.Equal(t, []string{
		"add 1f2e3d4c " + disk + "p2 /dev/sdx " + disk,
		"add c2 " + disk + "p2 /dev/sdy " + disk,
		"add web-prod-1 " + other + "p2 /dev/disk/by-path/a:0@b=+c " + other,
	}, during(t, func() {
		addPartition(t, disk, 2)
		addPartition(t, other, 2)
	}))
	require.NoError(t, Remove(t.Context(), Rule{disk, "/dev/sdy", "c2"}, Rule{other, "/dev/disk/by-path/a:0@b=+c", "web-prod-1"}))

	// Without the last match the rule catches the other disk's partitions too; Set puts it back.
	writeRules(t, rules[0].String()[:strings.LastIndex(rules[0].String(), ", DEVPATH")]+"\n")
	run(t, "udevadm", "control", "--reload")
	run(t, "udevadm", "control", "--reload") // see tellTwice
	require.Len(t, during(t, func() { removePartition(t, other, 2) }), 1)
	_, err = Set(t.Context(), id, rules)
	require.NoError(t, err)
	require.Empty(t, during(t, func() { addPartition(t, other, 2) }))

	before, err := Set(t.Context(), id, nil)
	require.NoError(t, err)
	require.Len(t, before, 1)
	require.Empty(t, during(t, func() {
		removePartition(t, disk, 2)
		removePartition(t, other, 2)
		addPartition(t, disk, 3)
		removePartition(t, disk, 3)
	}))
}

// udevd reads no further than a line of more than 16 KiB.
func rulesComeBeforeHugeLines(t *testing.T, disk string) {
	writeRules(t, header+strings.Repeat("x", 1<<20)+"\nforeign \\\n")
	_, err := Set(t.Context(), "c1", []Rule{{disk, "/dev/sdx", "c1"}})
	require.NoError(t, err)
	require.Equal(t, []string{"add c1 " + disk + "p4 /dev/sdx " + disk}, during(t, func() { addPartition(t, disk, 4) }))
	_, err = Set(t.Context(), "c1", nil)
	require.NoError(t, err)
	require.Empty(t, during(t, func() { removePartition(t, disk, 4) }))
}

// udevd turns away whoever comes while it talks with others; another program may have no patience.
func manyReloads(t *testing.T) {
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			id := fmt.Sprintf("c%d", i)
			if _, err := Set(t.Context(), id, []Rule{{"sdb", "/dev/sdx", id}}); err != nil {
				t.Error(err)
			}
			if i%5 == 0 {
				_ = exec.Command("udevadm", "control", "--reload").Run()
			}
			if _, err := Set(t.Context(), id, nil); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

// The file has changed, and the caller knows what was there.
func hangingUdevd(t *testing.T, daemon *os.Process) {
	if testing.Short() {
		t.Skip("takes seconds")
	}
	rule := Rule{"sdb", "/dev/sdx", "c1"}
	_, err := Set(t.Context(), "c1", []Rule{rule})
	require.NoError(t, err)
	require.NoError(t, daemon.Signal(unix.SIGSTOP))
	defer func() { require.NoError(t, daemon.Signal(unix.SIGCONT)) }()
	start := time.Now()
	before, err := Set(t.Context(), "c1", nil)
	require.ErrorIs(t, err, ErrNotTold)
	require.Less(t, time.Since(start), reloadLimit+2*time.Second)
	require.Equal(t, []Rule{rule}, before)
	require.NotContains(t, readRules(t), rule.String())

	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err = Set(ctx, "c1", before)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	_, err = Set(t.Context(), "c1", before) // nothing to tell
	require.NoError(t, err)
}

// A socket that nobody listens at is no udevd; nor is what is no socket.
func goneUdevd(t *testing.T, daemon *os.Process) {
	require.NoError(t, daemon.Kill())
	_, _ = daemon.Wait()
	info, err := os.Lstat(controlSocket)
	require.NoError(t, err)
	require.Equal(t, os.ModeSocket, info.Mode().Type())
	rule := Rule{"sdb", "/dev/sdx", "c3"}
	require.NoError(t, Add(t.Context(), rule))
	require.NoError(t, os.Remove(controlSocket))
	require.NoError(t, os.WriteFile(controlSocket, nil, 0o600))
	require.NoError(t, Remove(t.Context(), rule))
	require.NoError(t, os.Remove(controlSocket))
	require.NoError(t, Add(t.Context(), rule))

	// Where one runs that cannot be told, it is an error.
	socket, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	defer func() { _ = unix.Close(socket) }()
	require.NoError(t, unix.Bind(socket, &unix.SockaddrUnix{Name: controlSocket}))
	require.NoError(t, unix.Listen(socket, 10))
	withoutUdevadm(t)
	before, err := Set(t.Context(), "c3", nil)
	require.ErrorIs(t, err, command.ErrNotFound)
	require.Equal(t, []Rule{rule}, before)
}

// withoutUdevadm hides the program, wherever it is.
func withoutUdevadm(t *testing.T) {
	t.Helper()
	for _, dir := range []string{"/usr/sbin", "/usr/bin", "/usr/local/sbin", "/usr/local/bin", "/sbin", "/bin"} {
		path := dir + "/udevadm"
		content, err := os.ReadFile(path)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		require.NoError(t, err)
		require.NoError(t, os.Remove(path))
		t.Cleanup(func() {
			if now, err := os.ReadFile(path); err != nil || !bytes.Equal(now, content) {
				require.NoError(t, os.WriteFile(path, content, 0o755))
			}
		})
	}
}

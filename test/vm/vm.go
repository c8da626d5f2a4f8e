//go:build linux

// Package vm runs tests in a virtual machine: a kernel of Debian under QEMU, without hardware acceleration, with the root file
// system of this machine, of which it gets a copy on write in memory. So what a test finds outside is there inside too, and what
// it does there is gone afterwards. It is for what the kernel outside cannot do or must not be asked to do.
package vm

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"isula.org/syscontainer-hooks/internal/testutil"
	"isula.org/syscontainer-hooks/test/harness"
	"isula.org/syscontainer-hooks/test/vm/job"
)

const (
	prepareLimit = 5 * time.Minute // each program that runs before the guest does
	testLimit    = 3 * time.Minute // the test in the guest
	guestLimit   = testLimit + time.Minute

	memory    = "768M"
	driveSize = 16 << 20

	qemu      = "qemu-system-x86_64"
	virtiofsd = "/usr/lib/qemu/virtiofsd" // where Debian's package of QEMU has it
)

// Machine says what a guest has that others have not.
type Machine struct {
	Drives  []string // of QEMU by their ids: empty, 16 MiB each, raw files
	Devices []string // of QEMU, that a drive is in for example
	Append  []string // words for the kernel's command line
}

// insideEnv tells a test that it runs in the guest, and where the tools of this module are.
const insideEnv = "SYSCONTAINER_HOOKS_TEST_VM"

// Tools are for the test in the guest.
func Tools() harness.Tools {
	hook, payload, _ := strings.Cut(os.Getenv(insideEnv), ":")
	return harness.Tools{Hook: hook, Payload: payload}
}

// Inside says whether this is the guest. When it is not, the calling test runs in one now, and what becomes of it there becomes
// of it here; the caller then returns. In the guest no test may skip itself: look before for what it needs.
func Inside(t *testing.T, m Machine) bool {
	t.Helper()
	if os.Getenv(insideEnv) != "" {
		return true
	}
	testutil.RequireRoot(t)
	if runtime.GOARCH != "amd64" {
		harness.Skip(t, "virtual machines are those of amd64")
	}
	for _, program := range []string{qemu, virtiofsd, "modprobe"} {
		if _, err := exec.LookPath(program); err != nil {
			harness.Skip(t, err.Error())
		}
	}
	k, err := findKernel()
	if err != nil {
		harness.Skip(t, err.Error())
	}
	g := guest{dir: t.TempDir(), kernel: k, machine: m}
	harness.Fatal(t, g.prepare(t.Name()), "prepare guest")
	began := time.Now()
	err = g.run()
	t.Logf("%s in %s, output:\n%s", filepath.Base(k.modules), time.Since(began).Round(time.Millisecond), g.read("output"))
	if err != nil {
		t.Fatalf("guest: %v\nend of its console:\n%s", err, tail(g.read("console"), 4096))
	}
	return false
}

// guest is one virtual machine; all files of it are in dir.
type guest struct {
	dir     string
	kernel  kernel
	machine Machine
}

func (g *guest) path(name string) string { return filepath.Join(g.dir, name) }

// prepare writes what the guest begins with.
func (g *guest) prepare(test string) error {
	tools, err := harness.BuiltTools()
	if err != nil {
		return err
	}
	if err := harness.GoBuild("", g.path("init"), "isula.org/syscontainer-hooks/test/vm/guest", "CGO_ENABLED=0"); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	work, err := os.Getwd()
	if err != nil {
		return err
	}
	modules, err := g.kernel.earlyModules()
	if err != nil {
		return err
	}
	for _, drive := range g.machine.Drives {
		if err := errors.Join(os.WriteFile(g.path(drive), nil, 0o600), os.Truncate(g.path(drive), driveSize)); err != nil {
			return err
		}
	}
	return writeInitramfs(g.path("initramfs"), g.path("init"), modules, job.Job{
		Args: []string{self, "-test.run=^" + regexp.QuoteMeta(test) + "$", "-test.v", "-test.timeout=" + testLimit.String()},
		Env: []string{
			insideEnv + "=" + tools.Hook + ":" + tools.Payload, "REQUIRE_ROOT=1", "HOME=/root",
			"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		},
		Dir: work, Modules: g.kernel.modules,
	})
}

// run runs the guest to its end, which is a failure unless the test passed.
func (g *guest) run() error {
	// A child told to die with its parent dies with the thread that started it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	ctx, cancel := context.WithTimeout(context.Background(), guestLimit)
	defer cancel()
	fs, err := g.serveRoot(ctx)
	if err != nil {
		return err
	}
	defer fs.Wait() //nolint:errcheck // killed
	defer cancel()
	machine, err := start(ctx, g.path("qemu"), nil, g.args()...)
	if err != nil {
		return err
	}
	err = machine.Wait()
	if ctx.Err() != nil {
		err = fmt.Errorf("not done after %s", guestLimit)
	}
	if err != nil {
		return fmt.Errorf("%w: %s%s", err, g.read("qemu"), g.read("virtiofsd"))
	}
	_, status, ok := strings.Cut(g.read("output"), job.Verdict)
	if !ok {
		return errors.New("ended before the test did")
	}
	if status != "0\n" {
		return errors.New("the test failed")
	}
	return nil
}

// serveRoot gives the machine's root file system to the guest, which mounts it read-only.
func (g *guest) serveRoot(ctx context.Context) (*exec.Cmd, error) {
	socket, err := net.ListenUnix("unix", &net.UnixAddr{Name: g.path("socket"), Net: "unix"})
	if err != nil {
		return nil, err
	}
	defer socket.Close()
	socket.SetUnlinkOnClose(false)
	listener, err := socket.File()
	if err != nil {
		return nil, err
	}
	defer listener.Close()
	var files unix.Rlimit // each file that the guest has in its cache is open
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		return nil, err
	}
	return start(ctx, g.path("virtiofsd"), listener, virtiofsd, "--fd=3", "-o", "source=/,cache=always,sandbox=chroot",
		"--thread-pool-size=1", fmt.Sprintf("--rlimit-nofile=%d", files.Max))
}

// start starts a program that does not outlive the test, with descriptor 3 when there is a file, and its output in a file.
func start(ctx context.Context, outputPath string, file *os.File, args ...string) (*exec.Cmd, error) {
	out, err := os.Create(outputPath)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr = out, out
	if file != nil {
		cmd.ExtraFiles = []*os.File{file}
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	return cmd, cmd.Start()
}

// args is the command line of QEMU. Its memory is shared with virtiofsd.
func (g *guest) args() []string {
	args := []string{
		qemu, "-machine", "pc", "-accel", "tcg", "-cpu", "Nehalem,+rdrand", "-smp", "2", "-m", memory,
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-object", "memory-backend-memfd,id=memory,share=on,size=" + memory, "-numa", "node,memdev=memory",
		"-chardev", "socket,id=root,path=" + g.path("socket"), "-device", "vhost-user-fs-pci,chardev=root,tag=host",
		"-serial", "file:" + g.path("console"), "-serial", "file:" + g.path("output"),
		"-kernel", g.kernel.image, "-initrd", g.path("initramfs"),
		"-append", "console=ttyS0 panic=-1 quiet mitigations=off no_timer_check " + strings.Join(g.machine.Append, " "),
	}
	for _, id := range g.machine.Drives {
		args = append(args, "-drive", "if=none,format=raw,cache=unsafe,id="+id+",file="+g.path(id))
	}
	for _, device := range g.machine.Devices {
		args = append(args, "-device", device)
	}
	return args
}

func (g *guest) read(name string) string {
	text, err := os.ReadFile(g.path(name))
	if err != nil {
		return err.Error() + "\n"
	}
	return string(text)
}

func tail(text string, size int) string { return text[max(0, len(text)-size):] }

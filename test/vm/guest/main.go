//go:build linux

// Command guest is the first process of a virtual machine. It makes the root file system of the machine outside, which it can
// only read, the guest's own by an overlay in memory, runs one program in it, and ends the guest. What the program prints goes to
// the second serial port; its exit status is the last line.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"isula.org/syscontainer-hooks/test/vm/job"
)

func main() {
	output, err := openOutput()
	if err == nil {
		err = run(output)
	}
	if output != nil {
		fmt.Fprintf(output, "%s%d\n", job.Verdict, status(output, err))
		output.Close()
	}
	unix.Sync()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF) // should it fail: the end of this process is a panic, and ends the guest too
}

// status is that of the program; one that could not be run has 125, as with env(1).
func status(output io.Writer, err error) int {
	if err == nil {
		return 0
	}
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.Exited() {
		return exit.ExitCode()
	}
	fmt.Fprintln(output, "guest:", err)
	return 125
}

// openOutput opens the second serial port, and has it pass bytes as they are.
func openOutput() (*os.File, error) {
	if err := unix.Mount("dev", "/dev", "devtmpfs", 0, ""); err != nil {
		return nil, fmt.Errorf("mount /dev: %w", err)
	}
	f, err := os.OpenFile("/dev/ttyS1", os.O_WRONLY|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	tty, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	if err != nil {
		return f, fmt.Errorf("get settings of the serial port: %w", err)
	}
	tty.Oflag &^= unix.OPOST
	if err := unix.IoctlSetTermios(int(f.Fd()), unix.TCSETS, tty); err != nil {
		return f, fmt.Errorf("set up serial port: %w", err)
	}
	return f, nil
}

func run(output *os.File) error {
	text, err := os.ReadFile(job.File)
	if err != nil {
		return err
	}
	var j job.Job
	if err := json.Unmarshal(text, &j); err != nil {
		return fmt.Errorf("read job: %w", err)
	}
	if err := loadModules(); err != nil {
		return err
	}
	if err := makeRoot(); err != nil {
		return err
	}
	if err := linkModules(j.Modules); err != nil {
		return err
	}
	cmd := exec.Command(j.Args[0], j.Args[1:]...)
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = j.Dir, j.Env, output, output
	return cmd.Run()
}

// loadModules loads what the root file system needs; the files are named in this order.
func loadModules() error {
	files, err := filepath.Glob(job.ModuleDir + "/*")
	if err != nil {
		return err
	}
	slices.Sort(files)
	for _, path := range files {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		err = unix.FinitModule(int(f.Fd()), "", 0)
		f.Close()
		if err != nil {
			return fmt.Errorf("load %s: %w", path, err)
		}
	}
	return nil
}

// makeRoot makes the overlay the root, and the initial file system unreachable, as switch_root(8) does it: where that is the
// root, no container can pivot.
func makeRoot() error {
	if err := mount("host", "/host", "virtiofs", unix.MS_RDONLY, ""); err != nil {
		return err
	}
	if err := mount("upper", "/upper", "tmpfs", 0, "mode=0755"); err != nil {
		return err
	}
	for _, dir := range []string{"/upper/u", "/upper/w"} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
	}
	if err := mount("root", "/root", "overlay", 0, "lowerdir=/host,upperdir=/upper/u,workdir=/upper/w"); err != nil {
		return err
	}
	if err := unix.Mount("/dev", "/root/dev", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move /dev: %w", err)
	}
	for _, m := range []struct{ fstype, target string }{{"proc", "/root/proc"}, {"sysfs", "/root/sys"}, {"tmpfs", "/root/run"}} {
		if err := mount(m.fstype, m.target, m.fstype, 0, ""); err != nil {
			return err
		}
	}
	if err := os.Chdir("/root"); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("chroot: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_SHARED|unix.MS_REC, ""); err != nil { // as systemd has it
		return fmt.Errorf("share root: %w", err)
	}
	return nil
}

func mount(source, target, fstype string, flags uintptr, options string) error {
	if err := os.MkdirAll(target, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(source, target, fstype, flags, options); err != nil {
		return fmt.Errorf("mount %s: %w", target, err)
	}
	return nil
}

// linkModules puts the modules of the guest's kernel where modprobe and udevd look for them.
func linkModules(dir string) error {
	if err := os.MkdirAll("/lib/modules", 0o755); err != nil {
		return err
	}
	link := "/lib/modules/" + filepath.Base(dir)
	if err := os.RemoveAll(link); err != nil { // the machine may have the same kernel
		return err
	}
	return os.Symlink(dir, link)
}

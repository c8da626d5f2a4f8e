//go:build linux

// Aid does for the benchmarks what their own, large process cannot: it is a container's first process, and it starts programs
// whose peak memory is asked for.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

func main() {
	if err := run(os.Args[1], os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, "aid:", err)
		os.Exit(1)
	}
}

func run(mode string, args []string) error {
	switch mode {
	case "hold":
		return hold(args[0])
	case "peak":
		return peak(args)
	default:
		return fmt.Errorf("unknown mode %q", mode)
	}
}

// hold is a container at the point where a runtime calls its prestart hooks: a mount namespace whose mounts are slaves of the
// host's, the root directory mounted in it, /dev a tmpfs, pivot_root still to come. It ends when its standard input does.
func hold(root string) error {
	if err := unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("make / a slave: %w", err)
	}
	if err := unix.Mount(root, root, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind the root: %w", err)
	}
	if err := unix.Mount("dev", filepath.Join(root, "dev"), "tmpfs", 0, "mode=0755"); err != nil {
		return fmt.Errorf("mount /dev: %w", err)
	}
	if _, err := fmt.Println("ready"); err != nil {
		return err
	}
	_, err := io.Copy(io.Discard, os.Stdin)
	return err
}

// peak runs a program and prints its peak resident memory in KiB. The kernel starts that count at the size of the process which
// calls exec, so whoever asks has to be small itself.
func peak(args []string) error {
	process, err := os.StartProcess(args[0], args, &os.ProcAttr{Env: []string{}, Files: []*os.File{os.Stdin, nil, os.Stderr}})
	if err != nil {
		return err
	}
	state, err := process.Wait()
	if err != nil {
		return err
	}
	if !state.Success() {
		return errors.New(state.String())
	}
	usage, ok := state.SysUsage().(*syscall.Rusage)
	if !ok {
		return errors.New("no resource usage")
	}
	_, err = fmt.Println(usage.Maxrss)
	return err
}

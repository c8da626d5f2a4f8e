//go:build linux

// Command payload is the only file of a test container's root filesystem: its init, and the tools with which a test looks at
// the container from inside. It is linked statically and prints one fact per line.
package main

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"

	"golang.org/x/sys/unix"
)

const usage = `usage: payload init [ADDRESS] | hold ROOT | mountinfo | stat PATH | ls PATH | read PATH [N] | write PATH TEXT` +
	` | openw PATH | remount-rw PATH` + directUsage + networkUsage

var errUsage = errors.New(usage)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case match(args, "init", 0):
		return initProcess()
	case match(args, "init", 1):
		return serve(args[1])
	case match(args, "hold", 1):
		return hold(args[1])
	case match(args, "mountinfo", 0):
		return printAll("/proc/self/mountinfo")
	case match(args, "stat", 1):
		return stat(args[1])
	case match(args, "ls", 1):
		return list(args[1])
	case match(args, "read", 1):
		return printAll(args[1])
	case match(args, "read", 2):
		return printHex(args[1], args[2])
	case match(args, "write", 2):
		return write(args[1], args[2])
	case match(args, "openw", 1):
		return openWrite(args[1])
	case match(args, "remount-rw", 1):
		return remountWritable(args[1])
	case match(args, "direct", 4):
		return direct(args[1], args[2], args[3], args[4])
	}
	return network(args)
}

func match(args []string, name string, operands int) bool {
	return len(args) == operands+1 && args[0] == name
}

// initProcess waits to be told to end. Pid 1 of a pid namespace gets only signals that it has a handler for.
func initProcess() error {
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, unix.SIGTERM, unix.SIGINT)
	<-stop
	return nil
}

// hold is a container at the point where a runtime calls its hooks: in a mount namespace of its own, whose root directory is
// mounted and not yet changed to. It ends when its standard input does.
func hold(root string) error {
	if err := unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("make / a slave: %w", err)
	}
	if err := unix.Mount(root, root, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind the root: %w", err)
	}
	fmt.Println("ready")
	_, err := io.Copy(io.Discard, os.Stdin)
	return err
}

// stat prints type, device number, mode, uid and gid, without following a link: "c 1:5 0666 0 0".
func stat(path string) error {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return fmt.Errorf("stat %s: %w", path, err)
	}
	types := map[uint32]string{
		unix.S_IFCHR: "c", unix.S_IFBLK: "b", unix.S_IFREG: "f", unix.S_IFDIR: "d",
		unix.S_IFLNK: "l", unix.S_IFIFO: "p", unix.S_IFSOCK: "s",
	}
	fmt.Printf("%s %d:%d %04o %d %d\n", types[st.Mode&unix.S_IFMT], unix.Major(st.Rdev), unix.Minor(st.Rdev),
		st.Mode&^unix.S_IFMT, st.Uid, st.Gid)
	return nil
}

func list(path string) error {
	entries, err := os.ReadDir(path)
	if err != nil {
		return err
	}
	for _, e := range entries {
		fmt.Println(e.Name())
	}
	return nil
}

func printAll(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(os.Stdout, f)
	return err
}

func printHex(path, count string) error {
	n, err := strconv.Atoi(count)
	if err != nil {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	b := make([]byte, n)
	if _, err := io.ReadFull(f, b); err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	fmt.Println(hex.EncodeToString(b))
	return nil
}

func write(path, text string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}

func openWrite(path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	return f.Close()
}

// remountWritable asks for the mount as it is but without read-only: leaving out another flag too could be refused because
// of that flag.
func remountWritable(path string) error {
	var fs unix.Statfs_t
	if err := unix.Statfs(path, &fs); err != nil {
		return fmt.Errorf("statfs %s: %w", path, err)
	}
	flags := uintptr(unix.MS_REMOUNT | unix.MS_BIND)
	for st, ms := range map[int64]uintptr{
		unix.ST_NOSUID: unix.MS_NOSUID, unix.ST_NODEV: unix.MS_NODEV, unix.ST_NOEXEC: unix.MS_NOEXEC,
		unix.ST_NOATIME: unix.MS_NOATIME, unix.ST_NODIRATIME: unix.MS_NODIRATIME, unix.ST_RELATIME: unix.MS_RELATIME,
	} {
		if int64(fs.Flags)&st != 0 {
			flags |= ms
		}
	}
	if err := unix.Mount("", path, "", flags, ""); err != nil {
		return fmt.Errorf("remount %s: %w", path, err)
	}
	return nil
}

//go:build linux

package hostile

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// request is one line from the test to the container's first process, response the line that answers it.
type request struct {
	Op   string
	Args []string
	Conf helperConf
}

type response struct {
	Err string
	Out string
}

// helperConf says how the first process sets up its mount namespace.
type helperConf struct {
	RF, HD               string
	Tmpfs, Pivot, Shared bool
}

// helper is the container's first process: it lives in the container's namespaces, changes them when the test asks, and ends
// when its standard input does, so that it never outlives the test.
type helper struct {
	conf helperConf
	top  string // the container's root in its own view
}

func helperMain() int {
	in, out := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	h := &helper{}
	for {
		var rq request
		if err := in.Decode(&rq); err != nil {
			if errors.Is(err, io.EOF) {
				return 0
			}
			return 1
		}
		var rs response
		text, err := h.do(rq)
		rs.Out = text
		if err != nil {
			rs.Err = err.Error()
		}
		if err := out.Encode(rs); err != nil {
			return 1
		}
	}
}

func (h *helper) do(rq request) (string, error) {
	switch rq.Op {
	case "setup":
		return "", h.setup(rq.Conf)
	case "sh":
		cmd := exec.Command("/bin/sh", "-ec", rq.Args[0])
		cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "RF=" + h.conf.RF, "HD=" + h.conf.HD}
		cmd.Dir = h.conf.RF
		out, err := cmd.CombinedOutput()
		if err != nil {
			return "", fmt.Errorf("%w: %s", err, out)
		}
		return string(out), nil
	case "socket":
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return "", err
		}
		defer unix.Close(fd)
		return "", unix.Bind(fd, &unix.SockaddrUnix{Name: h.path(rq.Args[0])})
	case "mount": // source, target, type
		return "", unix.Mount(rq.Args[0], h.path(rq.Args[1]), rq.Args[2], 0, "")
	case "umount":
		return "", unix.Unmount(h.path(rq.Args[0]), unix.MNT_DETACH)
	case "symlink":
		return "", os.Symlink(rq.Args[0], h.path(rq.Args[1]))
	case "remove":
		return "", os.Remove(h.path(rq.Args[0]))
	case "read", "open", "append":
		return h.open(rq.Op, rq.Args[0])
	}
	return "", fmt.Errorf("unknown request %q", rq.Op)
}

func (h *helper) path(p string) string { return filepath.Join(h.top, p) }

// open opens a file as a process inside the container would: no link leads out of its root.
func (h *helper) open(op, path string) (string, error) {
	root, err := unix.Open(h.path("/"), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(root)
	how := unix.OpenHow{Flags: unix.O_NONBLOCK | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT}
	if op == "append" {
		how.Flags |= unix.O_WRONLY | unix.O_APPEND
	}
	fd, err := unix.Openat2(root, path, &how)
	if err != nil {
		return "", err
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	switch op {
	case "read":
		var b strings.Builder
		_, err = io.Copy(&b, io.LimitReader(f, 1<<16))
		return b.String(), err
	case "append":
		_, err = f.WriteString("written in the container\n")
	}
	return "", err
}

func (h *helper) setup(conf helperConf) error {
	h.conf, h.top = conf, conf.RF
	if !conf.Shared {
		if err := unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("make / a slave: %w", err)
		}
		if err := unix.Mount(conf.RF, conf.RF, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind the root: %w", err)
		}
	}
	if conf.Tmpfs {
		if err := unix.Mount("dev", filepath.Join(conf.RF, "dev"), "tmpfs", 0, "mode=0755"); err != nil {
			return fmt.Errorf("mount tmpfs: %w", err)
		}
	}
	if !conf.Pivot {
		return nil
	}
	if err := os.Chdir(conf.RF); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot_root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("detach the old root: %w", err)
	}
	h.top = "/"
	return os.Chdir("/")
}

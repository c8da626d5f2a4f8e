//go:build linux

// Package command runs the few programs of the host that the kernel has no call instead of. They get nothing of this process:
// a path where only root can have put them, a fixed environment, / as the working directory, no input, and a time limit.
package command

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"isula.org/syscontainer-hooks/internal/kernel"
)

// Causes of errors.
var (
	ErrNotFound = errors.New("no such program on the host")
	ErrTimeout  = errors.New("it does not end in time")
)

const (
	killDelay  = time.Second // that a program gets to let go of its output once it is killed
	maxOutput  = 1 << 20
	maxMessage = 4 << 10
)

// directories are where the programs are looked for, the first one counts.
var directories = []string{"/usr/sbin", "/usr/bin", "/usr/local/sbin", "/usr/local/bin", "/sbin", "/bin"}

// Error is a program that has not ended with success.
type Error struct {
	Program string
	Status  syscall.WaitStatus
	Message string // from its standard error, on one line
}

func (e *Error) Error() string {
	text := fmt.Sprintf("run %s: exit status %d", e.Program, e.Status.ExitStatus())
	if e.Status.Signaled() {
		text = fmt.Sprintf("run %s: signal: %s", e.Program, e.Status.Signal())
	}
	if e.Message != "" {
		text += ": " + e.Message
	}
	return text
}

// Run runs the program name and gives its standard output, and the beginning of its standard error on one line. With the end of
// ctx or after timeout it is killed, with all that it has started in its process group. The caller's thread must be in the host's
// namespaces.
func Run(ctx context.Context, timeout time.Duration, name string, args ...string) (stdout, stderr string, err error) {
	path, err := find(name)
	if err != nil {
		return "", "", err
	}
	limited, cancel := context.WithTimeoutCause(ctx, timeout, ErrTimeout)
	defer cancel()
	cmd := exec.CommandContext(limited, path, args...)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"}
	cmd.Dir = "/"
	out, message := head{limit: maxOutput}, head{limit: maxMessage}
	cmd.Stdout, cmd.Stderr = &out, &message
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error {
		err := unix.Kill(-cmd.Process.Pid, unix.SIGKILL)
		if errors.Is(err, unix.ESRCH) {
			err = os.ErrProcessDone
		}
		return err
	}
	cmd.WaitDelay = killDelay
	err = cmd.Run()
	stderr = message.oneLine()
	exit, exited := errors.AsType[*exec.ExitError](err)
	switch {
	case err != nil && limited.Err() != nil:
		err = fmt.Errorf("run %s: %w", path, context.Cause(limited))
	case exited:
		status, _ := exit.Sys().(syscall.WaitStatus)
		err = &Error{Program: path, Status: status, Message: stderr}
	case err != nil:
		err = fmt.Errorf("run %s: %w", path, err)
	case out.cut:
		err = fmt.Errorf("run %s: it says more than %d bytes", path, maxOutput)
	}
	return string(out.kept), stderr, err
}

// find gives the path of a program, where nobody but root can have put it.
func find(name string) (string, error) {
	for _, dir := range directories {
		path := dir + "/" + name
		var stat unix.Stat_t
		err := kernel.Do(func() error { return unix.Stat(path, &stat) })
		switch {
		case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
			continue
		case err != nil:
			return "", fmt.Errorf("look for %s: %w", path, err)
		case stat.Mode&unix.S_IFMT != unix.S_IFREG || stat.Uid != 0 || stat.Mode&0o022 != 0:
			return "", fmt.Errorf("run %s: it has to be a file of root's that nobody else can write", path)
		}
		return path, nil
	}
	return "", fmt.Errorf("run %s: %w", name, ErrNotFound)
}

// head keeps the beginning of what is written to it, and takes the rest, so that the program that writes it goes on.
type head struct {
	kept  []byte
	limit int
	cut   bool
}

func (h *head) Write(p []byte) (int, error) {
	room := h.limit - len(h.kept)
	h.cut = h.cut || len(p) > room
	h.kept = append(h.kept, p[:min(len(p), room)]...)
	return len(p), nil
}

func (h *head) oneLine() string {
	const most = 300
	text := strings.Join(strings.Fields(string(h.kept)), " ")
	return strings.ToValidUTF8(text[:min(len(text), most)], "")
}

//go:build linux

package harness

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"
)

// Result is what a command left: exit status, and the text of both streams. A command that a signal ended, or that could not be
// started, has Code -1 and the reason in Stderr.
type Result struct {
	Code           int
	Stdout, Stderr string
}

// Err is nil for exit status 0.
func (r Result) Err() error {
	if r.Code == 0 {
		return nil
	}
	return fmt.Errorf("exit status %d: %s", r.Code, strings.TrimSpace(r.Stdout+r.Stderr))
}

// Command runs a program on the host, with this text as its standard input.
func Command(stdin string, args ...string) Result {
	return command((*exec.Cmd).Start, "/", stdin, args...)
}

// command runs a program to its end, at most waitLimit. Its standard streams are pipes: crun 1.8.1 gives those of a container to
// the container's root, and given /dev/null it chowns the machine's.
func command(start func(*exec.Cmd) error, dir, stdin string, args ...string) Result {
	ctx, cancel := context.WithTimeout(context.Background(), waitLimit)
	defer cancel()
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Dir, cmd.WaitDelay = dir, 2*time.Second
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &stdout, &stderr
	err := start(cmd)
	if err == nil {
		err = cmd.Wait()
	}
	return result(ctx, cmd, err, stdout.String(), stderr.String())
}

// detached is command for one whose child stays and keeps the streams: they are a file, so that nobody waits for their end.
func detached(start func(*exec.Cmd) error, dir, output string, args ...string) Result {
	ctx, cancel := context.WithTimeout(context.Background(), waitLimit)
	defer cancel()
	stdin, end, err := os.Pipe()
	if err != nil {
		return Result{Code: -1, Stderr: err.Error()}
	}
	defer stdin.Close()
	end.Close()
	out, err := os.OpenFile(output, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return Result{Code: -1, Stderr: err.Error()}
	}
	defer out.Close()
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Dir = dir
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, out, out
	err = start(cmd)
	if err == nil {
		err = cmd.Wait()
	}
	text, readErr := io.ReadAll(io.NewSectionReader(out, 0, 1<<20))
	return result(ctx, cmd, errors.Join(err, readErr), "", string(text))
}

func result(ctx context.Context, cmd *exec.Cmd, err error, stdout, stderr string) Result {
	r := Result{Code: -1, Stdout: stdout, Stderr: stderr}
	if cmd.ProcessState != nil {
		r.Code = cmd.ProcessState.ExitCode()
	}
	var exit *exec.ExitError
	if err != nil && (r.Code == 0 || !errors.As(err, &exit)) {
		r.Code, r.Stderr = -1, r.Stderr+err.Error()
	}
	if ctx.Err() != nil {
		r.Code, r.Stderr = -1, r.Stderr+fmt.Sprintf("%s: not done after %s", cmd, waitLimit)
	}
	return r
}

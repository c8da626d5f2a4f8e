//go:build linux

// Package hookstate reads what a runtime tells a hook, the state on standard input and the bundle's specification, and turns
// it into handles on the container: nothing that follows names the container by a pid or a path any more.
package hookstate

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"isula.org/syscontainer-hooks/internal/strictjson"
)

// maxState is how much standard input may hold.
const maxState = 1 << 20

// maxID is how long an id may be; iSulad's and Podman's have 64 characters.
const maxID = 128

// State is the part of the OCI state that the hook uses, in every runtime's dialect: pid is missing, 0 or -1 once the
// container has stopped; root is an extension of lcr and crun and may be relative to the bundle; old iSulad says bundlePath.
type State struct {
	ID         string `json:"id"`
	Pid        int64  `json:"pid"`
	Root       string `json:"root"`
	Bundle     string `json:"bundle"`
	BundlePath string `json:"bundlePath"`
}

// stdinTimeout is how long a runtime may take to write the state.
const stdinTimeout = 5 * time.Second

// ReadState reads and checks the state. It waits for the end of f until ctx is done, and not longer than 5 seconds.
func ReadState(ctx context.Context, f *os.File) (*State, error) {
	data, err := readAll(ctx, f)
	if err != nil {
		return nil, fmt.Errorf("read state from standard input: %w", err)
	}
	state, err := ParseState(data)
	if err != nil {
		return nil, fmt.Errorf("state on standard input: %w", err)
	}
	return state, nil
}

// ParseState decodes and checks the state.
func ParseState(data []byte) (*State, error) {
	var state State
	if err := strictjson.Unmarshal(data, &state); err != nil {
		return nil, err
	}
	if state.Bundle == "" {
		state.Bundle = state.BundlePath
	}
	switch {
	case !validID(state.ID):
		return nil, fmt.Errorf("container id %.140q: want letters, digits and _.-, the first one a letter or digit", state.ID)
	case state.Bundle != "" && !filepath.IsAbs(state.Bundle):
		return nil, fmt.Errorf("bundle %q is not absolute", state.Bundle)
	}
	return &state, nil
}

// validID tells whether id can be the name of files and directories of the host: it becomes that.
func validID(id string) bool {
	const alphanumeric = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
	return id != "" && len(id) <= maxID && strings.Contains(alphanumeric, id[:1]) && strings.Trim(id, alphanumeric+"_.-") == ""
}

// pollInterval is how often a wait for standard input looks whether ctx is done.
const pollInterval = 100 // milliseconds

// readAll reads to the end of f, which may be non-blocking, and which a runtime may never close.
func readAll(ctx context.Context, f *os.File) ([]byte, error) {
	data := make([]byte, 0, 1<<10)
	for start := time.Now(); ; {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if time.Since(start) > stdinTimeout {
			return nil, errors.New("it does not end")
		}
		// A file or a pipe with something in it, or closed at its other end, is ready at once.
		ready := []unix.PollFd{{Fd: int32(f.Fd()), Events: unix.POLLIN}}
		if n, err := unix.Poll(ready, pollInterval); n == 0 || errors.Is(err, unix.EINTR) {
			continue
		} else if err != nil {
			return nil, err
		}
		data = slices.Grow(data, 1)
		n, err := unix.Read(int(f.Fd()), data[len(data):cap(data)])
		switch {
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return nil, err
		case n == 0:
			return data, nil
		case len(data)+n > maxState:
			return nil, errors.New("more than 1 MiB")
		}
		data = data[:len(data)+n]
	}
}

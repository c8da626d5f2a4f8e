//go:build linux

// Package hookstate reads what a runtime tells a hook, the state on standard input and the bundle's specification, and turns
// it into handles on the container: nothing that follows names the container by a pid or a path any more.
package hookstate

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"

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

// ReadState reads and checks the state. It waits for the end of r until ctx is done.
func ReadState(ctx context.Context, r io.Reader) (*State, error) {
	data, err := readAll(ctx, r)
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

// readAll reads on a goroutine of its own: a runtime that never closes the pipe must not hold the hook.
func readAll(ctx context.Context, r io.Reader) ([]byte, error) {
	type result struct {
		data []byte
		err  error
	}
	done := make(chan result, 1)
	go func() {
		data, err := io.ReadAll(io.LimitReader(r, maxState+1))
		done <- result{data, err}
	}()
	select {
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case got := <-done:
		if got.err == nil && len(got.data) > maxState {
			got.err = errors.New("more than 1 MiB")
		}
		return got.data, got.err
	}
}

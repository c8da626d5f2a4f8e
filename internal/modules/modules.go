//go:build linux

// Package modules loads the kernel modules that a container's environment asks for.
package modules

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"isula.org/syscontainer-hooks/internal/command"
	"isula.org/syscontainer-hooks/internal/kernel"
)

const (
	variable    = "KERNEL_MODULES"
	maxName     = 64 // longer than the kernel allows, MODULE_NAME_LEN
	maxNames    = 128
	loadTimeout = 10 * time.Second
)

// FromEnv gives the names in the variable KERNEL_MODULES of env, a specification's process.env: separated by commas, none when
// the variable is empty or not there.
func FromEnv(env []string) ([]string, error) {
	var list string
	found := false
	for _, entry := range env {
		name, value, _ := strings.Cut(entry, "=")
		if name != variable || len(entry) == len(variable) {
			continue
		}
		if found {
			return nil, fmt.Errorf("process.env has %s twice: leave one of them", variable)
		}
		found, list = true, value
	}
	if list == "" {
		return nil, nil
	}
	var names []string
	for name := range strings.SplitSeq(list, ",") {
		if err := checkName(name); err != nil {
			return nil, fmt.Errorf("%s in process.env: %w", variable, err)
		}
		if names = append(names, name); len(names) > maxNames {
			return nil, fmt.Errorf("%s in process.env: more than %d names", variable, maxNames)
		}
	}
	return names, nil
}

// checkName takes what no program reads as an option, a path or a pattern.
func checkName(name string) error {
	other := func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '_' && r != '-'
	}
	if name == "" || len(name) > maxName || name[0] == '-' || strings.ContainsFunc(name, other) {
		return fmt.Errorf("%.100q is no module name: want up to %d letters, digits, _ and -, the first one no -", name, maxName)
	}
	return nil
}

// canonical is the name as the kernel has it: for modprobe(8) - and _ are the same.
func canonical(name string) string { return strings.ReplaceAll(name, "-", "_") }

// Load loads those of the modules that are neither loaded nor built in, all with one modprobe(8).
func Load(ctx context.Context, names []string) error {
	wanted, err := notLoaded(names)
	if err != nil || len(wanted) == 0 {
		return err
	}
	_, _, err = command.Run(ctx, loadTimeout, "modprobe", append([]string{"-a", "--"}, wanted...)...)
	switch {
	case errors.Is(err, command.ErrNotFound):
		return fmt.Errorf("load kernel modules %s: %w: install kmod, or load them when the host boots", list(wanted), err)
	case err != nil:
		return fmt.Errorf("load kernel modules %s: %w", list(wanted), err)
	}
	return nil
}

// list gives the names for an error, which must not get too long.
func list(names []string) string {
	const most = 20
	if len(names) > most {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
	}
	return strings.Join(names, ", ")
}

// notLoaded gives each name once that modprobe has something to do for.
func notLoaded(names []string) ([]string, error) {
	var wanted, seen, builtin []string
	for _, name := range names {
		module := canonical(name)
		if slices.Contains(seen, module) {
			continue
		}
		seen = append(seen, module)
		live, err := loaded(module)
		if err != nil {
			return nil, err
		}
		if live {
			continue
		}
		if builtin == nil {
			if builtin, err = builtins(); err != nil {
				return nil, err
			}
		}
		if !slices.Contains(builtin, module) {
			wanted = append(wanted, name)
		}
	}
	return wanted, nil
}

// loaded tells whether sysfs has the module, and it is neither just coming nor going. A built-in one has no state, and only one
// with parameters is in sysfs at all.
func loaded(module string) (bool, error) {
	dir := "/sys/module/" + module
	state, err := read(dir+"/initstate", 32)
	if errors.Is(err, fs.ErrNotExist) {
		var stat unix.Stat_t
		err := kernel.Do(func() error { return unix.Stat(dir, &stat) })
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return false, &fs.PathError{Op: "stat", Path: dir, Err: err}
		}
		return err == nil, nil
	}
	return strings.TrimSpace(string(state)) == "live", err
}

// builtins gives the modules that the running kernel has built in: never nil. Without a list of them modprobe decides.
func builtins() ([]string, error) {
	const most = 1 << 20
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return nil, fmt.Errorf("ask for the kernel's release: %w", err)
	}
	data, err := read("/lib/modules/"+unix.ByteSliceToString(name.Release[:])+"/modules.builtin", most)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	names := []string{}
	for line := range strings.Lines(string(data)) {
		file, isModule := strings.CutSuffix(path.Base(strings.TrimSpace(line)), ".ko")
		if isModule {
			names = append(names, canonical(file))
		}
	}
	return names, nil
}

// read gives the beginning of a file of the host's.
func read(file string, most int64) ([]byte, error) {
	f, err := kernel.Open(file, unix.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, most))
}

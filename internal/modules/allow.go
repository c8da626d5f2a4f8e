//go:build linux

package modules

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"isula.org/syscontainer-hooks/internal/atomicfile"
)

// The host's list of what containers may have loaded.
const (
	allowDir  = "/etc/syscontainer-tools"
	allowFile = "modules.allow"
	maxAllow  = 1 << 20
)

// CheckAllowed refuses a name that is not in the host's list, where the host has one.
func CheckAllowed(names []string) error {
	if len(names) == 0 {
		return nil
	}
	allowed, err := readAllowed()
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("check kernel modules %s: %w", list(names), err)
	}
	for _, name := range names {
		if !slices.Contains(allowed, canonical(name)) {
			return fmt.Errorf("kernel module %s is not allowed: add it to %s/%s, or remove it from %s in the container's environment",
				name, allowDir, allowFile, variable)
		}
	}
	return nil
}

func readAllowed() ([]string, error) {
	dir, err := atomicfile.OpenDir(allowDir)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	data, err := atomicfile.Read(dir, allowFile, maxAllow)
	if err != nil {
		return nil, err
	}
	return parseAllowed(string(data))
}

// parseAllowed reads one name a line. A line that is none would allow less than its author thinks.
func parseAllowed(text string) ([]string, error) {
	var allowed []string
	number := 0
	for line := range strings.Lines(text) {
		number++
		line, _, _ = strings.Cut(line, "#")
		name := strings.TrimSpace(line)
		if name == "" {
			continue
		}
		if err := checkName(name); err != nil {
			return nil, fmt.Errorf("%s/%s, line %d: %w", allowDir, allowFile, number, err)
		}
		allowed = append(allowed, canonical(name))
	}
	return allowed, nil
}

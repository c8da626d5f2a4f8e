//go:build linux

package udev

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"isula.org/syscontainer-hooks/internal/atomicfile"
)

const (
	maxSize   = 16 << 20 // of the file: some 80,000 rules
	lockLimit = 5 * time.Second
	// temp is what package atomicfile has a new file under until it is whole; udev reads only what ends in ".rules".
	temp = ".99-syscontainer-tools.rules.tmp"
)

// Set makes rules the only ones of the container, and gives those that it had, for a caller who wants to put them back; but not
// rules that Validate refuses. Nothing is written when nothing changes. It waits for the lock until ctx is done, and not longer
// than 5 seconds. With an error, before is nil as long as nothing can have changed; ErrNotTold comes when all is done.
func Set(ctx context.Context, id string, rules []Rule) (before []Rule, err error) {
	if err := errors.Join(checkID(id), validate(rules)); err != nil {
		return nil, err
	}
	id = shortID(id)
	c := &change{ids: []string{id}, mine: func(r Rule) bool { return r.ID == id }, want: short(rules)}
	for _, r := range c.want {
		if r.ID != id {
			return nil, fmt.Errorf("set udev rules of container %s: one is of container %s", id, r.ID)
		}
	}
	had, err := c.carryOut(ctx)
	if had != nil {
		before = []Rule{}
	}
	for _, r := range short(had) {
		if r.Validate() == nil {
			before = append(before, r)
		}
	}
	return before, err
}

// Add adds rules to those that their containers have. A rule that is there is no error. For the lock and errors see [Set].
func Add(ctx context.Context, rules ...Rule) error {
	if err := validate(rules); err != nil {
		return err
	}
	c := replacing(rules)
	c.want = short(rules)
	_, err := c.carryOut(ctx)
	return err
}

// Remove removes rules. One that is not there is no error. For the lock and errors see [Set].
func Remove(ctx context.Context, rules ...Rule) error {
	_, err := replacing(rules).carryOut(ctx)
	return err
}

// List gives the rules of all containers, in the order of the file, with what a line has of a container's id. It takes the lock
// too, since syscontainer-tools writes into the file that is there.
func List(ctx context.Context) ([]Rule, error) {
	var rules []Rule
	err := locked(ctx, false, func(_ *os.File, content []byte) error {
		for line := range strings.Lines(string(content)) {
			if rule, ok := ParseRule(line); ok {
				rules = append(rules, rule)
			}
		}
		return nil
	})
	return rules, err
}

func validate(rules []Rule) error {
	for _, r := range rules {
		if err := r.Validate(); err != nil {
			return err
		}
	}
	return nil
}

// replacing is a change of just these rules.
func replacing(rules []Rule) *change {
	rules = short(rules)
	c := &change{mine: func(r Rule) bool { return slices.Contains(rules, r) }}
	for _, r := range rules {
		if !slices.Contains(c.ids, r.ID) {
			c.ids = append(c.ids, r.ID)
		}
	}
	return c
}

// carryOut changes the file, and tells udevd once others can have the lock again. What the file had is nil until it is read.
func (c *change) carryOut(ctx context.Context) (had []Rule, err error) {
	changed := false
	err = locked(ctx, len(c.want) > 0, func(dir *os.File, content []byte) error {
		var edited []byte
		edited, had, changed = c.apply(content)
		had = append([]Rule{}, had...)
		switch {
		case !changed:
			return nil
		case len(edited) > maxSize:
			return fmt.Errorf("save udev rules: %s would be larger than %d bytes; remove what nobody needs", RulesFile, maxSize)
		}
		if err := atomicfile.Replace(dir, filepath.Base(RulesFile), edited, 0o600); err != nil {
			return fmt.Errorf("save udev rules: %w", err)
		}
		return nil
	})
	if err == nil && changed {
		err = reload(ctx)
	}
	return had, err
}

// locked calls f with the directory and the content of the file, or with what a new file begins with, under the lock. Without
// create, a file that is not there is no reason to call f, and no lock is made for it.
func locked(ctx context.Context, create bool, f func(dir *os.File, content []byte) error) error {
	if !create && !written() {
		return nil
	}
	dir, err := openDir()
	if err != nil {
		return fmt.Errorf("open directory of udev rules: %w", err)
	}
	defer dir.Close()
	lockDir, err := atomicfile.MakeDir(filepath.Dir(LockFile))
	if err != nil {
		return fmt.Errorf("lock udev rules: %w", err)
	}
	defer lockDir.Close()
	limited, cancel := context.WithTimeoutCause(ctx, lockLimit, fmt.Errorf("not released within %s", lockLimit))
	defer cancel()
	lock, err := atomicfile.Lock(limited, lockDir, filepath.Base(LockFile))
	if err != nil {
		return fmt.Errorf("lock udev rules: %w", err)
	}
	defer lock.Close()
	// A killed writer leaves it, and the next one may have nothing to write.
	if exists(dir, temp) {
		if err := unix.Unlinkat(int(dir.Fd()), temp, 0); err != nil {
			return fmt.Errorf("clean up udev rules: unlink %s/%s: %w", dir.Name(), temp, err)
		}
	}
	content, err := atomicfile.Read(dir, filepath.Base(RulesFile), maxSize)
	switch {
	case errors.Is(err, fs.ErrNotExist) && !create:
		return nil
	case errors.Is(err, fs.ErrNotExist):
		content = []byte(header)
	case err != nil:
		return fmt.Errorf("read udev rules: %w", err)
	}
	return f(dir, content)
}

// written tells whether there is a file, or what a killed writer has left of it: whatever is there, also when that cannot be told.
func written() bool {
	for _, name := range []string{filepath.Base(RulesFile), temp} {
		var stat unix.Stat_t
		err := unix.Lstat(filepath.Dir(RulesFile)+"/"+name, &stat)
		if !errors.Is(err, unix.ENOENT) {
			return true
		}
	}
	return false
}

func openDir() (*os.File, error) {
	path := filepath.Dir(RulesFile)
	if err := os.MkdirAll(path, 0o755); err != nil {
		return nil, err
	}
	return atomicfile.OpenDir(path)
}

// exists is true for whatever has the name, and when that cannot be told.
func exists(dir *os.File, name string) bool {
	var stat unix.Stat_t
	return !errors.Is(unix.Fstatat(int(dir.Fd()), name, &stat, unix.AT_SYMLINK_NOFOLLOW), unix.ENOENT)
}

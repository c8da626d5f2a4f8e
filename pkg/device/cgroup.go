//go:build linux

package device

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"isula.org/syscontainer-hooks/internal/kernel"
)

// ErrCgroupV2 is the cause when only a version 2 cgroup governs the container's devices or I/O.
var ErrCgroupV2 = errors.New("cgroup v2 governs the container's devices or I/O, which is not supported yet; " +
	"use the cgroup v1 controllers devices and blkio, or remove the devices and I/O limits from the record")

// Access is what a container may do with a device: a set of Read, Write and Mknod.
type Access uint8

// The kinds of access, devices.rst in the kernel's documentation of cgroup v1.
const (
	Read Access = 1 << iota
	Write
	Mknod

	allAccess = Read | Write | Mknod
)

const accessLetters = "rwm"

// ParseAccess reads letters out of "rwm", each once at the most.
func ParseAccess(s string) (Access, error) {
	var a Access
	for _, letter := range s {
		index := strings.IndexRune(accessLetters, letter)
		if index < 0 || a&(1<<index) != 0 {
			return 0, fmt.Errorf("access %q: want letters out of %q, each once", s, accessLetters)
		}
		a |= 1 << index
	}
	if a == 0 {
		return 0, errors.New("access is empty")
	}
	return a, nil
}

func (a Access) String() string {
	var s strings.Builder
	for i, letter := range accessLetters {
		if a&(1<<i) != 0 {
			s.WriteRune(letter)
		}
	}
	return s.String()
}

// Rule is a device and what may be done with it. It names one device, never a range.
type Rule struct {
	Type   Type   `json:"type"`
	Major  uint32 `json:"major"`
	Minor  uint32 `json:"minor"`
	Access Access `json:"access"`
}

func (r Rule) String() string {
	line := make([]byte, 0, 32)
	line = append(line, r.Type...)
	line = append(line, ' ')
	line = strconv.AppendUint(line, uint64(r.Major), 10)
	line = append(line, ':')
	line = strconv.AppendUint(line, uint64(r.Minor), 10)
	line = append(line, ' ')
	return string(append(line, r.Access.String()...))
}

// Cgroup is a container's cgroup as far as it governs devices. Today that is a cgroup of the version 1 devices controller;
// version 2 gets the same methods.
type Cgroup struct{ dir *os.File }

// OpenCgroup takes the handle of a container's cgroup directory, which stays the caller's. A version 2 cgroup is ErrCgroupV2.
func OpenCgroup(dir *os.File) (*Cgroup, error) {
	if err := checkCgroup(dir); err != nil {
		return nil, err
	}
	return &Cgroup{dir}, nil
}

// checkCgroup makes sure that dir is on a file system of version 1 cgroups.
func checkCgroup(dir *os.File) error {
	var statfs unix.Statfs_t
	if err := kernel.Do(func() error { return unix.Fstatfs(int(dir.Fd()), &statfs) }); err != nil {
		return &fs.PathError{Op: "statfs", Path: dir.Name(), Err: err}
	}
	switch statfs.Type {
	case unix.CGROUP_SUPER_MAGIC:
		return nil
	case unix.CGROUP2_SUPER_MAGIC:
		return ErrCgroupV2
	default:
		return fmt.Errorf("%s is no cgroup (file system magic %#x)", dir.Name(), statfs.Type)
	}
}

// Grant is what Allow writes to give a container its devices, and Revoke takes back.
type Grant struct {
	Rules []Rule `json:"rules"`
	// DefaultAllow: the cgroup allows what is not listed. The kernel then hides what it denies, so Allow writes all rules and
	// Revoke none.
	DefaultAllow bool `json:"defaultAllow,omitempty"`
}

// Plan works out what is missing for rules to hold. What the cgroup allows already, by whatever entry, is not part of it: so
// taking the grant back never takes away what the runtime gave.
func (c *Cgroup) Plan(rules []Rule) (Grant, error) {
	f, err := c.open("devices.list", unix.O_RDONLY)
	if err != nil {
		return Grant{}, err
	}
	defer f.Close()
	listed, err := parseList(f)
	if err != nil {
		return Grant{}, fmt.Errorf("read %s: %w", f.Name(), err)
	}
	var grant Grant
	for _, rule := range rules {
		missing, open := listed.missing(rule)
		grant.DefaultAllow = grant.DefaultAllow || open
		if missing != 0 {
			rule.Access = missing
			grant.Rules = append(grant.Rules, rule)
		}
	}
	return grant, nil
}

// Allow makes the grant effective. Rules that hold already stay as they are.
func (c *Cgroup) Allow(grant Grant) error { return c.write("devices.allow", grant.Rules) }

// Revoke takes the grant back. Rules that do not hold any more are no error.
func (c *Cgroup) Revoke(grant Grant) error {
	if grant.DefaultAllow {
		return nil
	}
	return c.write("devices.deny", grant.Rules)
}

// write writes the rules one by one: the kernel takes one in a write.
func (c *Cgroup) write(name string, rules []Rule) error {
	if len(rules) == 0 {
		return nil
	}
	f, err := c.open(name, unix.O_WRONLY)
	if err != nil {
		return err
	}
	defer f.Close()
	for _, rule := range rules {
		if rule.Type != Char && rule.Type != Block {
			return fmt.Errorf("write %s: rule %q: unknown device type", f.Name(), rule)
		}
		_, err := kernel.Value(func() (int, error) { return unix.Write(int(f.Fd()), []byte(rule.String())) })
		if errors.Is(err, unix.EPERM) {
			err = fmt.Errorf("%w: the parent cgroup does not allow this device", err)
		}
		if err != nil {
			return fmt.Errorf("write %q to %s: %w", rule, f.Name(), err)
		}
	}
	return nil
}

func (c *Cgroup) open(name string, flags int) (*os.File, error) {
	return kernel.OpenAt(c.dir, name, flags|unix.O_NOFOLLOW, 0)
}

// wildcard stands for any number in a listed entry. No device number has 32 bits.
const wildcard = ^uint32(0)

// entry is a line of devices.list. Unlike a Rule it can name ranges and, with the type "a", the cgroup's default.
type entry Rule

type list []entry

func parseList(r io.Reader) (list, error) {
	var entries list
	scanner := bufio.NewScanner(r)
	for scanner.Scan() {
		e, err := parseEntry(scanner.Text())
		if err != nil {
			return nil, err
		}
		entries = append(entries, e)
	}
	return entries, scanner.Err()
}

func parseEntry(line string) (entry, error) {
	fields := strings.Split(line, " ")
	if len(fields) != 3 {
		return entry{}, fmt.Errorf("entry %q: want three fields", line)
	}
	e := entry{Type: Type(fields[0])}
	if e.Type != Char && e.Type != Block && e.Type != "a" {
		return entry{}, fmt.Errorf("entry %q: unknown type", line)
	}
	major, minor, _ := strings.Cut(fields[1], ":")
	var err error
	if e.Major, err = parseNumber(major); err == nil {
		e.Minor, err = parseNumber(minor)
	}
	if err == nil {
		e.Access, err = ParseAccess(fields[2])
	}
	if err != nil {
		return entry{}, fmt.Errorf("entry %q: %w", line, err)
	}
	return e, nil
}

func parseNumber(s string) (uint32, error) {
	if s == "*" {
		return wildcard, nil
	}
	n, err := strconv.ParseUint(s, 10, 31)
	return uint32(n), err
}

// missing gives the access that has to be added for rule to hold. The kernel asks that one entry covers all that a single
// open(2) wants, and adds up what is allowed for exactly the same device. open tells that the list is a default-allow one.
func (l list) missing(rule Rule) (missing Access, open bool) {
	missing = rule.Access
	for _, e := range l {
		if e.Type == "a" {
			return rule.Access, true
		}
		if e.Type != rule.Type {
			continue
		}
		exact := e.Major == rule.Major && e.Minor == rule.Minor
		matches := (e.Major == wildcard || e.Major == rule.Major) && (e.Minor == wildcard || e.Minor == rule.Minor)
		switch {
		case matches && rule.Access&^e.Access == 0:
			return 0, false
		case exact:
			missing &^= e.Access
		}
	}
	return missing, false
}

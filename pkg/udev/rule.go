//go:build linux

package udev

import (
	"fmt"
	"slices"
	"strings"
)

// Paths that are shared with syscontainer-tools.
const (
	RulesFile = "/etc/udev/rules.d/99-syscontainer-tools.rules"
	LockFile  = "/run/syscontainer-tools/udevd_config_locker" // flock(2) for all who read or write the rules
	Wrapper   = "/lib/udev/syscontainer-tools_wrapper"        // what udev calls
)

// What stands between the parts of a line.
const (
	beforeDisk = `KERNEL=="`
	beforeID   = `*",ACTION=="add|remove", ENV{DEVTYPE}=="partition", SUBSYSTEM=="block", RUN{program}+="` + Wrapper + action
	action     = " $env{ACTION} "
	beforePath = " $name "
)

const (
	digits      = "0123456789"
	letters     = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
	hexDigits   = digits + "abcdefABCDEF"
	diskChars   = letters + digits + "!_-"
	idChars     = letters + digits + "_.-"
	pathChars   = letters + digits + "._/+:@=-"
	longestID   = 128
	longestPath = 256
)

// Rule makes udev tell the helper script of a container about partitions that come and go on a disk.
type Rule struct {
	Disk string // the disk's kernel name: sdb
	Path string // of the disk's node in the container
	ID   string // of the container
}

// ParseRule reads a line of the file, and tells whether it is one of our rules, with or without the last match. The id is what
// the line has of it. The path may be one that Validate refuses: syscontainer-tools writes any.
func ParseRule(line string) (Rule, bool) {
	rest, ok := strings.CutPrefix(strings.TrimRight(line, "\r\n"), beforeDisk)
	if !ok {
		return Rule{}, false
	}
	name, rest, ok := strings.Cut(rest, beforeID)
	if !ok {
		return Rule{}, false
	}
	id, rest, ok := strings.Cut(rest, beforePath)
	r := Rule{Disk: strings.ReplaceAll(name, "/", "!"), ID: id}
	rest = strings.TrimSuffix(rest, r.lastMatch())
	path, closed := strings.CutSuffix(rest, " "+name+`"`)
	r.Path = path
	if !ok || !closed || path == "" || strings.ContainsAny(path, "\"\n") || strings.Contains(name, "!") {
		return Rule{}, false
	}
	return r, validDisk(r.Disk) && validID(id) && id == shortID(id)
}

// String is the line of the rule, without a newline.
func (r Rule) String() string {
	name := r.udevName()
	return beforeDisk + name + beforeID + shortID(r.ID) + beforePath + r.Path + " " + name + `"` + r.lastMatch()
}

func (r Rule) lastMatch() string { return `, DEVPATH=="*/` + r.Disk + `/*"` }

// udevName is what udev calls the disk in KERNEL and $name: the kernel writes the slash of cciss/c0d0 as "!" in sysfs.
func (r Rule) udevName() string { return strings.ReplaceAll(r.Disk, "!", "/") }

// Validate refuses what could be read as more than one word, quoted text, substitution, pattern or line by udev, by a shell or by
// syscontainer-tools.
func (r Rule) Validate() error {
	switch {
	case !validDisk(r.Disk):
		return fmt.Errorf("udev rule for disk %q: the name has to be of letters, digits and !_-", r.Disk)
	case len(r.Path) < 2 || len(r.Path) > longestPath || r.Path[0] != '/' || !only(r.Path, pathChars):
		return fmt.Errorf("udev rule for path %q in the container: it has to begin with / and be of letters, digits and ._/+:@=- "+
			"(2 to %d of them)", r.Path, longestPath)
	}
	return checkID(r.ID)
}

func checkID(id string) error {
	if !validID(id) {
		return fmt.Errorf("udev rule for container id %q: it has to begin with a letter or digit and be of these and _.- "+
			"(1 to %d of them)", id, longestID)
	}
	return nil
}

func validDisk(name string) bool { return name != "" && only(name, diskChars) }

func validID(id string) bool {
	return id != "" && len(id) <= longestID && only(id, idChars) && only(id[:1], letters+digits)
}

func only(s, chars string) bool { return strings.TrimLeft(s, chars) == "" }

// shortID is what a line has of a container's id.
func shortID(id string) string {
	if len(id) == 64 && only(id, hexDigits) {
		return id[:8]
	}
	return id
}

// short gives the rules as ParseRule gives them, each once.
func short(rules []Rule) []Rule {
	var list []Rule
	for _, r := range rules {
		r.ID = shortID(r.ID)
		if !slices.Contains(list, r) {
			list = append(list, r)
		}
	}
	return list
}

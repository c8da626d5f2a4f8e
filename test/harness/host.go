//go:build linux

package harness

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"isula.org/syscontainer-hooks/test/payload/nettool"
)

// Mount is one line of a mountinfo file, proc_pid_mountinfo(5).
type Mount struct {
	Dev, Root, Point string
	Options          []string // of the mount: ro, nodev, …
	Peers            []string // shared:N, master:N, propagate_from:N, unbindable
	Type, Source     string
	Super            string // options of the filesystem
}

// String has what identifies the mount on every run: peer groups are numbered as they come.
func (m Mount) String() string {
	return strings.Join([]string{m.Point, m.Dev, m.Root, strings.Join(m.Options, ","), m.Type, m.Source, m.Super}, " ")
}

// Has says whether the mount has an option.
func (m Mount) Has(option string) bool { return slices.Contains(m.Options, option) }

// Shared and Slave say whether the mount sends and receives propagation.
func (m Mount) Shared() bool { return m.peer("shared:") }

// Slave says whether the mount receives propagation from a master.
func (m Mount) Slave() bool { return m.peer("master:") }

func (m Mount) peer(prefix string) bool {
	return slices.ContainsFunc(m.Peers, func(s string) bool { return strings.HasPrefix(s, prefix) })
}

// At returns the mounts on exactly this path, the one on top last.
func At(mounts []Mount, path string) []Mount {
	return slices.DeleteFunc(slices.Clone(mounts), func(m Mount) bool { return m.Point != path })
}

// HostMounts is the mount table of the test's mount namespace.
func HostMounts(tb TB) []Mount {
	tb.Helper()
	return readMounts(tb, "/proc/thread-self/mountinfo")
}

func readMounts(tb TB, path string) []Mount {
	tb.Helper()
	text, err := os.ReadFile(path)
	Fatal(tb, err, "mount table")
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	var mounts []Mount
	for line := range strings.Lines(string(text)) {
		mount, super, ok := strings.Cut(strings.TrimSuffix(line, "\n"), " - ")
		f, s := strings.Fields(mount), strings.Fields(super)
		if !ok || len(f) < 6 || len(s) < 3 {
			Fatal(tb, fmt.Errorf("line %q", line), "mount table")
		}
		mounts = append(mounts, Mount{
			Dev: f[2], Root: unescape.Replace(f[3]), Point: unescape.Replace(f[4]), Options: strings.Split(f[5], ","),
			Peers: f[6:], Type: s[0], Source: s[1], Super: s[2],
		})
	}
	return mounts
}

// Left is what this container has on the host: compare one taken before a start with one taken after a stop.
type Left struct {
	Mounts   []string       // of the test's host, but for the tmpfs on /.sharedpath/master, which is every container's
	Rootfs   []string       // name, type, mode, owner and device number of everything in the root filesystem
	Transfer []string       // names in /.sharedpath/master and /.sharedpath/midpath
	Run      []string       // what /run/syscontainer-tools keeps for containers
	Cgroups  []string       // with the container's name
	Nodes    []string       // owner and mode of host devices
	Links    []nettool.Link // interfaces of the host, without their numbers
	Routes   []string
	Rules    []string // what udev is told for containers
}

// Left lists it.
func (c *Container) Left() Left {
	c.tb.Helper()
	var l Left
	for _, m := range HostMounts(c.tb) {
		if m.Point != "/.sharedpath/master" {
			l.Mounts = append(l.Mounts, m.String())
		}
	}
	slices.Sort(l.Mounts)
	l.Rootfs = Tree(c.tb, c.Rootfs)
	for _, dir := range []string{"/.sharedpath/master/*", "/.sharedpath/midpath/*"} {
		l.Transfer = append(l.Transfer, glob(c.tb, dir)...)
	}
	for _, dir := range []string{"hooks", "netns", "transit"} {
		l.Run = append(l.Run, glob(c.tb, "/run/syscontainer-tools/"+dir+"/*")...)
	}
	l.Cgroups = append(glob(c.tb, cgroupDir+"/"+c.ID), glob(c.tb, cgroupDir+"/*/"+c.ID)...)
	for _, node := range []string{"/dev/null", "/dev/zero", "/dev/full", "/dev/loop-control"} {
		l.Nodes = append(l.Nodes, node+" "+describe(c.tb, node))
	}
	l.Rules = UdevRules(c.tb)
	l.Links, l.Routes = HostLinks(c.tb), hostRoutes(c.tb)
	for i := range l.Links {
		l.Links[i].Index, l.Links[i].Peer = 0, 0
	}
	return l
}

// HostLinks are the interfaces of the test's network namespace.
func HostLinks(tb TB) []nettool.Link {
	tb.Helper()
	links, err := nettool.Links()
	Fatal(tb, err, "interfaces of the host")
	return links
}

// RulesFile has the udev rules of all containers.
const RulesFile = "/etc/udev/rules.d/99-syscontainer-tools.rules"

// UdevRules are its lines but for comments, none when it is not there.
func UdevRules(tb TB) []string {
	tb.Helper()
	text, err := os.ReadFile(RulesFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	Fatal(tb, err, "udev rules")
	var rules []string
	for line := range strings.Lines(string(text)) {
		if line = strings.TrimSuffix(line, "\n"); line != "" && line[0] != '#' {
			rules = append(rules, line)
		}
	}
	return rules
}

func hostRoutes(tb TB) []string {
	tb.Helper()
	routes, err := nettool.Routes()
	Fatal(tb, err, "routes of the host")
	return routes
}

func glob(tb TB, pattern string) []string {
	tb.Helper()
	names, err := filepath.Glob(pattern)
	Fatal(tb, err, "list "+pattern)
	return names
}

// Tree describes all files below a directory, one line each.
func Tree(tb TB, root string) []string {
	tb.Helper()
	var lines []string
	err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err == nil {
			lines = append(lines, strings.TrimPrefix(path, root)+" "+describe(tb, path))
		}
		return err
	})
	Fatal(tb, err, "list "+root)
	return lines
}

func describe(tb TB, path string) string {
	tb.Helper()
	var st unix.Stat_t
	err := unix.Lstat(path, &st)
	if errors.Is(err, unix.ENOENT) {
		return "absent"
	}
	Fatal(tb, err, "stat "+path)
	return fmt.Sprintf("%06o %d:%d %d:%d", st.Mode, st.Uid, st.Gid, unix.Major(st.Rdev), unix.Minor(st.Rdev))
}

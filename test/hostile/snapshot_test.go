//go:build linux

package hostile

import (
	"bufio"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// snapshot is a description of something, a line for each part, by the part's name.
type snapshot map[string]string

// diff lists what differs, readable in a test's message.
func diff(before, after snapshot) []string {
	var d []string
	for k, v := range before {
		switch now, ok := after[k]; {
		case !ok:
			d = append(d, fmt.Sprintf("gone: %s: %s", k, v))
		case now != v:
			d = append(d, fmt.Sprintf("changed: %s: %s -> %s", k, v, now))
		}
	}
	for k, v := range after {
		if _, ok := before[k]; !ok {
			d = append(d, fmt.Sprintf("new: %s: %s", k, v))
		}
	}
	sort.Strings(d)
	return d
}

func merge(parts ...snapshot) snapshot {
	all := snapshot{}
	for _, p := range parts {
		maps.Copy(all, p)
	}
	return all
}

// kernelFS are file systems that have no files of anybody's.
var kernelFS = map[int64]bool{
	unix.PROC_SUPER_MAGIC: true, unix.SYSFS_MAGIC: true, unix.CGROUP_SUPER_MAGIC: true, unix.CGROUP2_SUPER_MAGIC: true,
	unix.DEVPTS_SUPER_MAGIC: true,
}

// describe is all that lstat and the content of an object tell. The times are told only for canaries: making and removing a
// name beside an object changes the time of its directory.
func describe(tb testing.TB, path string, times bool) string {
	tb.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return err.Error()
	}
	s := fmt.Sprintf("mode %o uid %d gid %d", st.Mode, st.Uid, st.Gid)
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		s += fmt.Sprintf(" ino %d rdev %x nlink %d size %d", st.Ino, st.Rdev, st.Nlink, st.Size)
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		to, _ := os.Readlink(path)
		s += " -> " + to
	case unix.S_IFREG:
		// Only small ones: a sparse file of a row may be large.
		if st.Size <= 1<<20 {
			b, err := os.ReadFile(path)
			s += fmt.Sprintf(" sha256 %x %v", sha256.Sum256(b), err)
		}
	}
	if times {
		s += fmt.Sprintf(" dev %d ino %d nlink %d ctime %d.%09d", st.Dev, st.Ino, st.Nlink, st.Ctim.Sec, st.Ctim.Nsec)
		list := make([]byte, 4096)
		n, err := unix.Llistxattr(path, list)
		s += fmt.Sprintf(" xattrs %q %v", list[:max(n, 0)], err)
	}
	return s
}

// tree describes everything below a directory, the directory included.
func tree(tb testing.TB, name, dir string, times bool) snapshot {
	tb.Helper()
	all := snapshot{}
	_ = filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		key := name + strings.TrimPrefix(p, dir)
		if err != nil {
			all[key] = err.Error()
			return nil
		}
		all[key] = describe(tb, p, times)
		if !d.IsDir() {
			return nil
		}
		var sfs unix.Statfs_t
		if unix.Statfs(p, &sfs) == nil && kernelFS[sfs.Type] {
			return fs.SkipDir
		}
		return nil
	})
	return all
}

// canary describes the host directory that nothing may touch. The change times find a chmod or chown that was taken back.
func (w *world) canary() snapshot {
	w.t.Helper()
	return tree(w.t, "HD", w.hd, true)
}

// mountLine is what the tests need of a line of mountinfo.
type mountLine struct {
	root, point, options, tags, fstype string
	line                               string
}

var unescape = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)

func mounts(tb testing.TB, file string) []mountLine {
	tb.Helper()
	f, err := os.Open(file)
	require.NoError(tb, err)
	defer f.Close()
	var all []mountLine
	in := bufio.NewScanner(f)
	in.Buffer(nil, 1<<20)
	for in.Scan() {
		left, right, ok := strings.Cut(in.Text(), " - ")
		require.True(tb, ok, in.Text())
		l := strings.Split(left, " ")
		all = append(all, mountLine{
			root: unescape.Replace(l[3]), point: unescape.Replace(l[4]), options: l[5],
			tags: strings.Join(l[6:], " "), fstype: strings.Split(right, " ")[0], line: in.Text(),
		})
	}
	require.NoError(tb, in.Err())
	return all
}

func hostMounts(tb testing.TB) []mountLine {
	tb.Helper()
	return mounts(tb, "/proc/thread-self/mountinfo")
}

func (w *world) mounts() []mountLine {
	w.t.Helper()
	return mounts(w.t, fmt.Sprintf("/proc/%d/mountinfo", w.pid))
}

// mountsAt are the container's mounts on a path of the container.
func (w *world) mountsAt(path string) []mountLine {
	w.t.Helper()
	if !w.v.pivot {
		path = filepath.Join(w.rf, path)
	}
	var at []mountLine
	for _, m := range w.mounts() {
		if m.point == path {
			at = append(at, m)
		}
	}
	return at
}

func mountTable(name string, all []mountLine) snapshot {
	s := snapshot{}
	for _, m := range all {
		s[name+" "+m.line] = ""
	}
	return s
}

// host describes the parts of the host that the hook knows of. Lines that name the container, which a started one has, are
// left out on demand.
func (w *world) host(withOwn bool) snapshot {
	w.t.Helper()
	all := merge(hostTrees(w.t), mountTable("host mount", hostMounts(w.t)), w.limits())
	files := []string{"/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe"}
	if w.v.net {
		all = merge(all, w.hostNet()) // the counters of the file below change by themselves once an interface is up
	} else {
		files = append(files, "/proc/thread-self/net/route", "/proc/thread-self/net/dev")
	}
	for _, f := range files {
		b, err := os.ReadFile(f) // a kernel without modules has no name of a modprobe
		all[f] = fmt.Sprintf("%s%v", b, err)
	}
	if !withOwn {
		return w.others(all)
	}
	return all
}

// others leaves out what a started container changes on the host: lines that name it, its interfaces and rules.
func (w *world) others(all snapshot) snapshot {
	rest := snapshot{}
	for k, v := range all {
		if !strings.Contains(k, w.id) && !w.ownLink(k) && !w.ownRule(k) {
			rest[k] = v
		}
	}
	return rest
}

// settled lists what differs. In network namespaces the kernel finishes some of it later, so there a difference has to last.
func (w *world) settled(before snapshot, now func() snapshot) []string {
	w.t.Helper()
	deadline := time.Now().Add(3 * time.Second)
	for {
		d := diff(before, now())
		if len(d) == 0 || !w.v.net || time.Now().After(deadline) {
			return d
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// sameHost asserts HOST.
func (w *world) sameHost(before snapshot, when string) {
	w.t.Helper()
	require.Empty(w.t, w.settled(before, func() snapshot { return w.host(true) }), when)
}

func hostTrees(tb testing.TB) snapshot {
	tb.Helper()
	all := snapshot{}
	for _, d := range []string{"/.sharedpath", "/run/syscontainer-tools"} {
		all = merge(all, tree(tb, d, d, false))
	}
	for _, d := range []string{"/etc/udev/rules.d", "/etc/selinux"} {
		if _, err := os.Lstat(d); err == nil {
			all = merge(all, tree(tb, d, d, true))
		}
	}
	return merge(all, ruleLines(tb, all))
}

// ruleLines describes the file of all containers' udev rules by its lines, which the hook changes, and drops from all what
// changes with them.
func ruleLines(tb testing.TB, all snapshot) snapshot {
	tb.Helper()
	st, err := os.Lstat(rulesFile)
	if err != nil || !st.Mode().IsRegular() || st.Size() > 16<<20 {
		return nil
	}
	all[filepath.Dir(rulesFile)] = describe(tb, filepath.Dir(rulesFile), false)
	all[rulesFile] = fmt.Sprint(st.Mode(), st.Sys().(*syscall.Stat_t).Uid)
	b, err := os.ReadFile(rulesFile)
	require.NoError(tb, err)
	lines := snapshot{}
	for line := range strings.Lines(string(b)) {
		lines[ruleKey+line] += "x" // one for each time
	}
	return lines
}

const ruleKey = "udev rule "

// ownRule says whether a line of a snapshot is a udev rule of the container's.
func (w *world) ownRule(key string) bool {
	return strings.HasPrefix(key, ruleKey) && strings.Contains(key, " "+w.ruleID()+" $name ")
}

// limits are the I/O limits of the container's cgroup.
func (w *world) limits() snapshot {
	w.t.Helper()
	all := snapshot{}
	for _, name := range limitFiles {
		file := filepath.Join(w.ioDir(), name)
		if st, err := os.Lstat(file); err != nil || !st.Mode().IsRegular() {
			continue // of a row that has something else there
		}
		b, err := os.ReadFile(file)
		require.NoError(w.t, err)
		for line := range strings.Lines(string(b)) {
			if strings.HasPrefix(line, "default ") {
				continue // every cgroup has it
			}
			all["limit of "+w.id+": "+name+" "+strings.TrimSpace(line)] = ""
		}
	}
	return all
}

// clean describes all that a failed run must have left as it was: host, bundle, sources, the container's tree and mounts, and
// its permissions.
func (w *world) clean() snapshot {
	w.t.Helper()
	all := merge(w.host(true), tree(w.t, "bundle", w.bundle, false), tree(w.t, "src", w.src, false),
		tree(w.t, "nodes", w.nodes, false))
	delete(all, "bundle/.device_hook.lock") // a lock file stays
	if w.cmd != nil {
		all = merge(all, tree(w.t, "container", w.view(), false), mountTable("container mount", w.mounts()))
		for _, p := range w.permissions() {
			all["permission "+p] = ""
		}
		if w.v.net {
			all = merge(all, w.inNet())
		}
	}
	return all
}

// leftovers describes what a test could leave on the machine and on its host, apart from the numbers of mounts.
func leftovers(tb testing.TB) snapshot {
	tb.Helper()
	all := hostTrees(tb)
	for _, m := range hostMounts(tb) {
		all["mount "+m.point+" "+m.fstype] = ""
	}
	cgroups := fmt.Sprintf("/hostile-%d-*", os.Getpid())
	for _, pattern := range []string{devicesRoot + cgroups, ioRoot + cgroups, base + "/*"} {
		found, err := filepath.Glob(pattern)
		require.NoError(tb, err)
		for _, f := range found {
			all["file "+f] = ""
		}
	}
	for _, name := range hostLinks(tb) {
		all["interface "+name] = ""
	}
	for _, p := range hookProcesses() {
		all["process "+p] = ""
	}
	return all
}

// hookProcesses are the processes that run the binary under test or play a container.
func hookProcesses() []string {
	exes, _ := filepath.Glob("/proc/[0-9]*/exe")
	own, _ := os.Readlink("/proc/self/exe")
	var found []string
	for _, e := range exes {
		to, err := os.Readlink(e)
		if err != nil || (to != own && to != base+"/bin/syscontainer-hooks") {
			continue
		}
		if env, err := os.ReadFile(filepath.Dir(e) + "/environ"); err == nil && to == own &&
			!strings.Contains(string(env), helperEnv+"=") {
			continue // the test process itself and its parents
		}
		found = append(found, filepath.Base(filepath.Dir(e)))
	}
	return found
}

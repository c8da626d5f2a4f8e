//go:build linux

package hookstate

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"isula.org/syscontainer-hooks/internal/kernel"
	"isula.org/syscontainer-hooks/internal/mounttable"
)

// Cgroup is a container's cgroup in one hierarchy.
type Cgroup struct {
	*os.File        // the directory, O_PATH
	Path     string // of the directory on the host
}

// Cgroup opens the cgroup in which controller governs the container: that of the version 1 hierarchy of the controller where
// the container has one of its own there, else that of version 2. It is taken from what the kernel says of the process and
// has to be the one that the specification asks for.
func (c *Container) Cgroup(controller string) (*Cgroup, error) {
	theirs, err := c.readProc("cgroup")
	if err != nil {
		return nil, err
	}
	ours, err := os.ReadFile("/proc/thread-self/cgroup")
	if err != nil {
		return nil, err
	}
	f, err := kernel.Open("/proc/thread-self/mountinfo", unix.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	mounts, err := mounttable.Read(f)
	if err != nil {
		return nil, err
	}
	for _, name := range []string{controller, ""} {
		path, ok := cgroupPath(theirs, name)
		own, _ := cgroupPath(ours, name)
		if !ok || path == "/" || path == own {
			continue
		}
		if path, err = matchCgroup(path, c.Spec.Linux.CgroupsPath, c.ID); err != nil {
			return nil, err
		}
		return openCgroup(mounts, name, path)
	}
	return nil, fmt.Errorf("the container has no cgroup of its own for %s", controller)
}

// cgroupPath gives the path that /proc/<pid>/cgroup has for a version 1 controller, or for version 2 with the name "".
func cgroupPath(data []byte, controller string) (string, bool) {
	for line := range bytes.Lines(data) {
		fields := strings.SplitN(strings.TrimSuffix(string(line), "\n"), ":", 3)
		if len(fields) != 3 || (controller == "") != (fields[0] == "0") {
			continue
		}
		if controller == "" || slices.Contains(strings.Split(fields[1], ","), controller) {
			return fields[2], true
		}
	}
	return "", false
}

// matchCgroup cuts the path of the process's cgroup down to the cgroup that the specification configures: the process may
// have moved itself below, and lcr appends -1, -2 … to a name that is taken. Without a configured path it is the
// deepest one named after the container, by itself or as a systemd scope. What does not match is another container's.
func matchCgroup(path, configured, id string) (string, error) {
	names := strings.Split(strings.TrimPrefix(path, "/"), "/")
	if !strings.HasPrefix(path, "/") || slices.Contains(names, "..") || slices.Contains(names, "") {
		return "", fmt.Errorf("cgroup %q: no path inside the hierarchy", path)
	}
	if configured == "" {
		for i, name := range slices.Backward(names) {
			if unit := strings.TrimSuffix(name, ".scope"); unit == id || unit != name && strings.HasSuffix(unit, "-"+id) {
				return "/" + strings.Join(names[:i+1], "/"), nil
			}
		}
		return "", fmt.Errorf("cgroup %s: neither configured nor named after the container", path)
	}
	want, err := configuredNames(configured)
	if err != nil {
		return "", err
	}
	for end := len(want); end <= len(names); end++ {
		tail := names[end-len(want) : end]
		last := len(want) - 1
		if slices.Equal(tail[:last], want[:last]) && sameCgroup(tail[last], want[last]) {
			return "/" + strings.Join(names[:end], "/"), nil
		}
	}
	return "", fmt.Errorf("the container is in cgroup %s, not in %.200s as the specification says", path, configured)
}

// configuredNames splits a cgroupsPath into names; of systemd's form, slice:prefix:name, only the unit counts.
func configuredNames(configured string) ([]string, error) {
	if slice, unit, ok := strings.Cut(configured, ":"); ok && !strings.Contains(slice, "/") {
		prefix, name, ok := strings.Cut(unit, ":")
		switch {
		case !ok || name == "" || strings.ContainsAny(unit, "/") || strings.Contains(name, ":"):
			return nil, fmt.Errorf("cgroupsPath %.200q: want slice:prefix:name", configured)
		case strings.HasSuffix(name, ".slice"):
			return []string{name}, nil
		case prefix == "":
			return []string{name + ".scope"}, nil
		default:
			return []string{prefix + "-" + name + ".scope"}, nil
		}
	}
	names := strings.Split(strings.Trim(configured, "/"), "/")
	for _, name := range names {
		if name == "" || name == "." || name == ".." || len(configured) >= unix.PathMax {
			return nil, fmt.Errorf("cgroupsPath %.200q: not a plain path", configured)
		}
	}
	return names, nil
}

// sameCgroup tells whether name is want, or want with the number that lcr appends.
func sameCgroup(name, want string) bool {
	rest, ok := strings.CutPrefix(name, want)
	if !ok || rest == "" {
		return ok
	}
	number, ok := strings.CutPrefix(rest, "-")
	return ok && number != "" && strings.Trim(number, "0123456789") == ""
}

// openCgroup opens the directory beneath the newest mount of the hierarchy that shows it.
func openCgroup(mounts mounttable.Table, controller, path string) (*Cgroup, error) {
	for _, m := range slices.Backward(mounts) {
		if controller == "" && m.FSType != "cgroup2" || controller != "" &&
			(m.FSType != "cgroup" || !slices.Contains(strings.Split(m.VFSOptions, ","), controller)) {
			continue
		}
		below, ok := strings.CutPrefix(path, strings.TrimSuffix(m.Root, "/"))
		if !ok || !strings.HasPrefix(below, "/") {
			continue
		}
		hierarchy, err := kernel.Open(m.Mountpoint, unix.O_PATH|unix.O_DIRECTORY)
		if err != nil {
			return nil, err
		}
		defer hierarchy.Close()
		how := unix.OpenHow{
			Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC,
			Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV,
		}
		fd, err := kernel.Value(func() (int, error) { return unix.Openat2(int(hierarchy.Fd()), below[1:], &how) })
		full := m.Mountpoint + below
		if err != nil {
			return nil, &os.PathError{Op: "open cgroup", Path: full, Err: err}
		}
		return &Cgroup{os.NewFile(uintptr(fd), full), full}, nil
	}
	if controller == "" {
		controller = "version 2"
	}
	return nil, errors.New("no mount shows the container's cgroup: " + controller + " " + path)
}

//go:build linux

package sysctl

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"isula.org/syscontainer-hooks/internal/kernel"
	"isula.org/syscontainer-hooks/internal/thread"
)

// maxCurrent is how much is read of a value at once. What the kernel has to say in more than one read it does not say whole.
const maxCurrent = 64 << 10

// errHost is the cause when a parameter of the host's would be set.
var errHost = errors.New("not namespaced on this kernel, or not meant to be set: remove it from linux.sysctl, " +
	"and set it on the host if need be")

// Namespaces are those of a container. nil stands for the host's, in which nothing is ever set.
type Namespaces struct{ Net, IPC *os.File }

// Apply sets in the namespaces what has another value there. Also when it fails, before is what it has changed, in the order in
// which Apply takes it back. missing are settings that have no file: not yet, when an interface of that name is still to come.
//
// Which values a procfs shows depends on the namespaces of the thread that looks, so the host's does for all of them. That of the
// container is the container's to mount.
func (n Namespaces) Apply(settings []Setting) (before, missing []Setting, err error) {
	if len(settings) == 0 {
		return nil, nil, nil
	}
	targets, err := n.targets(settings)
	if err != nil {
		return nil, nil, err
	}
	sys, err := openSys()
	if err != nil {
		return nil, nil, err
	}
	defer sys.Close()
	w := writer{sys: sys, buf: make([]byte, maxCurrent)}
	err = thread.Own(func() error { return w.applyIn(n, targets) })
	slices.Reverse(w.before)
	return w.before, w.missing, err
}

// targets checks all settings before the first one is made.
func (n Namespaces) targets(settings []Setting) ([]target, error) {
	const shared = "the container has the host's %s namespace: remove it from linux.sysctl, or give the container one of its own"
	targets := make([]target, len(settings))
	for i, s := range settings {
		t, err := newTarget(s)
		if err != nil {
			return nil, err
		}
		switch {
		case t.kind == network && n.Net == nil:
			return nil, fmt.Errorf("sysctl %q: "+shared, s.Key, "network")
		case t.kind == ipc && n.IPC == nil:
			return nil, fmt.Errorf("sysctl %q: "+shared, s.Key, "IPC")
		}
		targets[i] = t
	}
	return targets, nil
}

// openSys opens the root of all parameters, and makes sure that it is no other file system's.
func openSys() (*os.File, error) {
	sys, err := kernel.Open("/proc/sys", unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	var stat unix.Statfs_t
	err = kernel.Do(func() error { return unix.Fstatfs(int(sys.Fd()), &stat) })
	if err == nil && stat.Type != unix.PROC_SUPER_MAGIC {
		err = errors.New("it is no procfs: mount proc on /proc")
	}
	if err != nil {
		sys.Close()
		return nil, fmt.Errorf("check /proc/sys: %w", err)
	}
	return sys, nil
}

// writer sets parameters of the namespaces that its thread is in.
type writer struct {
	sys             *os.File
	buf             []byte
	before, missing []Setting
}

func (w *writer) applyIn(n Namespaces, targets []target) error {
	hosts, err := w.openHosts(targets)
	defer func() {
		for _, f := range hosts {
			f.Close()
		}
	}()
	if err != nil {
		return err
	}
	for _, ns := range []struct {
		file *os.File
		flag int
	}{{n.Net, unix.CLONE_NEWNET}, {n.IPC, unix.CLONE_NEWIPC}} {
		if ns.file == nil {
			continue
		}
		if err := kernel.Do(func() error { return unix.Setns(int(ns.file.Fd()), ns.flag) }); err != nil {
			return fmt.Errorf("enter namespace %s: %w", ns.file.Name(), err)
		}
	}
	for _, t := range targets {
		if err := w.apply(t, hosts[t.path]); err != nil {
			return fmt.Errorf("sysctl %q: %w", t.Key, err)
		}
	}
	return nil
}

// openHosts opens the network parameters that the host has too, as long as the thread is there.
func (w *writer) openHosts(targets []target) (map[string]*os.File, error) {
	hosts := map[string]*os.File{}
	for _, t := range targets {
		if t.kind != network { // older kernels have one file of the others, with a value for each namespace
			continue
		}
		f, err := w.open(t.path, unix.O_PATH)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return hosts, fmt.Errorf("sysctl %q: %w", t.Key, err)
		}
		if err == nil {
			hosts[t.path] = f
		}
	}
	return hosts, nil
}

// apply refuses a file that is the host's own one, for all namespaces: a kernel module may have made it so by mistake.
func (w *writer) apply(t target, host *os.File) error {
	f, err := w.open(t.path, unix.O_PATH)
	if errors.Is(err, fs.ErrNotExist) {
		w.missing = append(w.missing, t.Setting)
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	stat, err := fileStat(f)
	if err != nil {
		return err
	}
	if host != nil {
		hosts, err := fileStat(host)
		if err != nil {
			return err
		}
		if hosts.Ino == stat.Ino {
			return errHost
		}
	}
	err = w.replace(t)
	// The IPC parameters are their owner's, the root user of the namespace's user namespace, and capabilities do not count.
	if errors.Is(err, unix.EACCES) && stat.Uid != 0 {
		err = asUser(stat.Uid, func() error { return w.replace(t) })
	}
	if errors.Is(err, unix.EACCES) {
		return errHost
	}
	return err
}

// replace fails with EACCES, and has changed nothing, when it may not write.
func (w *writer) replace(t target) error {
	f, err := w.open(t.path, unix.O_WRONLY)
	if err != nil {
		return err
	}
	defer f.Close()
	current, known, err := w.current(t)
	if err != nil {
		return err
	}
	if known {
		if slices.Equal(strings.Fields(current), strings.Fields(t.Value)) {
			return nil
		}
		if current != "-1" || !strings.HasSuffix(t.path, "_next_id") { // no value: how the kernel says that there is none
			w.before = append(w.before, Setting{Key: t.Key, Value: current})
		}
	}
	line := t.Value + "\n" // a value may be empty, and nothing written is no write
	n, err := kernel.Value(func() (int, error) { return unix.Write(int(f.Fd()), []byte(line)) })
	switch {
	case err != nil:
		return fmt.Errorf("set to %.100q: %w", t.Value, err)
	case n < len(t.Value):
		return fmt.Errorf("set to %.100q: the kernel takes only the first %d bytes", t.Value, n)
	}
	return nil
}

// current reads a value; there are parameters that can only be written.
func (w *writer) current(t target) (value string, known bool, err error) {
	f, err := w.open(t.path, unix.O_RDONLY)
	if errors.Is(err, unix.EACCES) {
		return "", false, nil
	}
	if err != nil {
		return "", false, err
	}
	defer f.Close()
	n, err := kernel.Value(func() (int, error) { return unix.Read(int(f.Fd()), w.buf) })
	if err != nil {
		return "", false, fmt.Errorf("read: %w", err)
	}
	return strings.TrimRight(string(w.buf[:n]), "\n"), true, nil
}

// open opens a parameter and nothing else: there are no links in sysctl's part of procfs, and nothing is mounted in ours.
func (w *writer) open(path string, flags uint64) (*os.File, error) {
	how := unix.OpenHow{
		Flags:   flags | unix.O_CLOEXEC | unix.O_NOFOLLOW,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
	}
	full := filepath.Join(w.sys.Name(), path)
	fd, err := kernel.Value(func() (int, error) { return unix.Openat2(int(w.sys.Fd()), path, &how) })
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: full, Err: err}
	}
	return os.NewFile(uintptr(fd), full), nil
}

// fileStat also makes sure that it is a file.
func fileStat(f *os.File) (*unix.Stat_t, error) {
	var stat unix.Stat_t
	if err := kernel.Do(func() error { return unix.Fstat(int(f.Fd()), &stat) }); err != nil {
		return nil, fmt.Errorf("stat: %w", err)
	}
	if stat.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, errors.New("it is a group of parameters, no single one")
	}
	return &stat, nil
}

// asUser runs f while this thread, and no other one, has the user as its effective one. It must be a thread of its own.
func asUser(uid uint32, f func() error) error {
	if err := setEffective(uid); err != nil {
		return fmt.Errorf("become user %d: %w", uid, err)
	}
	err := f()
	if back := setEffective(0); back != nil {
		return errors.Join(err, fmt.Errorf("become root again: %w", back))
	}
	return err
}

// setEffective is the bare system call: the library's changes all threads.
func setEffective(uid uint32) error {
	const keep = ^uintptr(0)
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, keep, uintptr(uid), keep); errno != 0 {
		return errno
	}
	return nil
}

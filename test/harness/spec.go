//go:build linux

package harness

import (
	"github.com/opencontainers/runtime-spec/specs-go"
)

// MapBase and MapSize are the host ids that a container with a user namespace has for 0 and up.
const (
	MapBase = 100000
	MapSize = 65536
)

// newSpec is what `runc spec` writes, with the capabilities that containers have by custom, and mknod.
func newSpec(c *Container) *specs.Spec {
	caps := []string{
		"CAP_AUDIT_WRITE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_MKNOD",
		"CAP_NET_BIND_SERVICE", "CAP_SETGID", "CAP_SETUID", "CAP_SYS_CHROOT",
	}
	if c.cfg.UserNS {
		caps = append(caps, "CAP_SYS_ADMIN") // in its own namespace: it may mount, and must not undo what the host mounted
	}
	spec := &specs.Spec{
		Version:  "1.0.2",
		Hostname: c.ID,
		Root:     &specs.Root{Path: c.Rootfs},
		Process: &specs.Process{
			Args:         []string{"/payload", "init"},
			Cwd:          "/",
			Env:          []string{"PATH=/"},
			Capabilities: &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps},
		},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"},
			{
				Destination: "/dev", Type: "tmpfs", Source: "tmpfs",
				Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"},
			},
			{
				Destination: "/dev/pts", Type: "devpts", Source: "devpts",
				Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"},
			},
			{
				Destination: "/dev/shm", Type: "tmpfs", Source: "shm",
				Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=65536k"},
			},
			{
				Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue",
				Options: []string{"nosuid", "noexec", "nodev"},
			},
			{
				Destination: "/sys", Type: "sysfs", Source: "sysfs",
				Options: []string{"nosuid", "noexec", "nodev", "ro"},
			},
		},
		Linux: &specs.Linux{
			CgroupsPath:       "/" + c.ID,
			RootfsPropagation: c.cfg.RootfsPropagation,
			Resources:         &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}},
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.PIDNamespace},
				{Type: specs.NetworkNamespace},
				{Type: specs.IPCNamespace},
				{Type: specs.UTSNamespace},
				{Type: specs.MountNamespace},
			},
			MaskedPaths:   []string{"/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"},
			ReadonlyPaths: []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
		},
		Hooks: c.hooks(),
	}
	if c.cfg.UserNS {
		ids := []specs.LinuxIDMapping{{ContainerID: 0, HostID: MapBase, Size: MapSize}}
		spec.Linux.UIDMappings, spec.Linux.GIDMappings = ids, ids
		spec.Linux.Namespaces = append(spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
	} else {
		spec.Mounts = append(spec.Mounts, specs.Mount{
			Destination: cgroupDir, Type: "cgroup", Source: "cgroup",
			Options: []string{"nosuid", "noexec", "nodev", "relatime", "ro"},
		})
	}
	if c.cfg.Spec != nil {
		c.cfg.Spec(spec)
	}
	return spec
}

// hooks calls the hook at the stage asked for and at poststop.
func (c *Container) hooks() *specs.Hooks {
	hook := func(state string) []specs.Hook {
		args := []string{"syscontainer-hooks", "-state", state, "-log", c.Log}
		return []specs.Hook{{Path: c.Tools.Hook, Args: args}}
	}
	h := &specs.Hooks{}
	switch c.cfg.Stage {
	case "":
		return nil
	case "prestart":
		h.Prestart = hook(c.cfg.Stage) //nolint:staticcheck // deprecated, and what iSulad has
	default:
		h.CreateRuntime = hook(c.cfg.Stage)
	}
	if !c.cfg.NoPoststop {
		h.Poststop = hook("poststop")
	}
	return h
}

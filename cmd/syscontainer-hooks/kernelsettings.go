//go:build linux

package main

import (
	"context"
	"fmt"

	"isula.org/syscontainer-hooks/internal/modules"
	"isula.org/syscontainer-hooks/internal/sysctl"
)

// sysctls are what is set in the container's network and IPC namespaces, and end with them: the journal need not know.
type sysctls struct {
	namespaces     sysctl.Namespaces
	settings, late []sysctl.Setting // late: those of interfaces that are not there yet
	before         []sysctl.Setting // what the settings have replaced, and what the late ones have
	beforeLate     []sysctl.Setting
}

// loadModules loads the modules that the container's environment asks for, before the devices that they may make are looked for.
// Whoever makes images decides on that environment, so the host may have a list of what is possible.
func (r *restoration) loadModules(ctx context.Context) error {
	names, err := modules.FromEnv(r.container.Spec.Process.Env)
	if err != nil {
		return err
	}
	if err := modules.CheckAllowed(names); err != nil {
		return err
	}
	return modules.Load(ctx, names)
}

// planSysctls is for containers with a user namespace, where the runtime's own attempt may be refused. In others it is enough.
func (r *restoration) planSysctls() (err error) {
	if !r.container.UserNS || len(r.container.Spec.Linux.Sysctl) == 0 {
		return nil
	}
	if r.sysctls.settings, err = sysctl.Parse(r.container.Spec.Linux.Sysctl); err != nil {
		return err
	}
	r.sysctls.namespaces.Net = r.container.NetNS
	r.sysctls.namespaces.IPC, err = r.container.IPCNamespace()
	return err
}

func (r *restoration) applySysctls(context.Context) (err error) {
	s := &r.sysctls
	s.before, s.late, err = s.namespaces.Apply(s.settings)
	return err
}

func (r *restoration) restoreSysctls(context.Context) error {
	_, _, err := r.sysctls.namespaces.Apply(r.sysctls.before)
	return err
}

// applyLateSysctls is for interfaces that have come meanwhile.
func (r *restoration) applyLateSysctls(context.Context) (err error) {
	s := &r.sysctls
	var missing []sysctl.Setting
	if s.beforeLate, missing, err = s.namespaces.Apply(s.late); err == nil && len(missing) > 0 {
		err = fmt.Errorf("sysctl %s: there is none in the container's namespaces", missing[0].Key)
	}
	return err
}

func (r *restoration) restoreLateSysctls(context.Context) error {
	_, _, err := r.sysctls.namespaces.Apply(r.sysctls.beforeLate)
	return err
}

func (s *sysctls) close() {
	if s.namespaces.IPC != nil {
		s.namespaces.IPC.Close()
	}
}

//go:build linux

package main

import (
	"context"
	"errors"

	"isula.org/syscontainer-hooks/pkg/bind"
)

// bindContainer is the container as package bind sees it.
func (r *restoration) bindContainer() bind.Container {
	c := r.container
	return bind.Container{Root: c.Root, HostRoot: c.HostRoot, MountNS: c.MountNS, UID: c.RootUID, GID: c.RootGID}
}

func (r *restoration) planBinds() (err error) {
	specs := make([]bind.Spec, 0, len(r.binds))
	for _, b := range r.binds {
		specs = append(specs, bind.Spec{
			Source:      b.HostPath,
			Target:      b.ContainerPath,
			ReadOnly:    b.ReadOnly,
			Propagation: bind.Propagation(b.Propagation),
		})
	}
	if r.intent.Base, err = r.transfer.PlanBase(r.bindContainer()); err != nil {
		return err
	}
	r.intent.Binds, err = r.transfer.Plan(r.bindContainer(), specs)
	return err
}

// baseAttached tells whether the container has its part of the transfer layout: it has been restored before.
func (r *restoration) baseAttached() bool {
	base, err := r.transfer.PlanBase(r.bindContainer())
	return err == nil && base == nil
}

func (r *restoration) attachBase(ctx context.Context) error {
	if r.intent.Base == nil {
		return nil
	}
	if err := r.transfer.Prepare(ctx); err != nil {
		return err
	}
	return r.transfer.AttachBase(r.bindContainer())
}

// detachBase removes the transfer layout on the host too, whether a journal lists it or not: the id is proof enough. It leaves
// it to a live container that had it before.
func (r *restoration) detachBase(context.Context) error {
	live := r.container != nil && r.container.MountNS != nil
	if live && r.intent.Base == nil && r.baseAttached() {
		return nil
	}
	var err error
	if r.container != nil && r.intent.Base != nil {
		err = r.bindContainer().Detach([]bind.Attachment{*r.intent.Base})
	}
	return errors.Join(err, r.transfer.Remove())
}

// makeSources writes down what it has made: by its inode a later run knows it from what others put there.
func (r *restoration) makeSources(context.Context) error {
	if len(r.intent.Binds) == 0 {
		return nil
	}
	err := r.bindContainer().MakeSources(r.intent.Binds)
	for _, a := range r.intent.Binds {
		if len(a.Made) > 0 {
			return errors.Join(err, r.journal.Append(r.intent))
		}
	}
	return err
}

// removeSources keeps the host directories of a finished run: the container may have put something there.
func (r *restoration) removeSources(context.Context) error {
	if r.intent.Done {
		return nil
	}
	return bind.RemoveSources(r.intent.Binds)
}

func (r *restoration) attachBinds(context.Context) error {
	if len(r.intent.Binds) == 0 {
		return nil
	}
	return r.transfer.Attach(r.bindContainer(), r.intent.Binds)
}

func (r *restoration) detachBinds(context.Context) error {
	if r.container == nil {
		return nil
	}
	return r.bindContainer().Detach(r.intent.Binds)
}

//go:build linux

package main

import (
	"context"
	"errors"

	"isula.org/syscontainer-hooks/pkg/bind"
	"isula.org/syscontainer-hooks/pkg/store"
)

// bindContainer is the container as package bind sees it.
func (p *program) bindContainer() bind.Container {
	c := p.container
	return bind.Container{Root: c.Root, HostRoot: c.HostRoot, MountNS: c.MountNS, UID: c.RootUID, GID: c.RootGID}
}

func (p *program) planBinds() error {
	specs := make([]bind.Spec, 0, len(p.record.Binds))
	for _, line := range p.record.Binds {
		b, err := store.ParseBind(line)
		if err != nil {
			return err
		}
		specs = append(specs, bind.Spec{
			Source:      b.HostPath,
			Target:      b.ContainerPath,
			ReadOnly:    b.ReadOnly,
			Propagation: bind.Propagation(b.Propagation),
		})
	}
	var err error
	if p.intent.Base, err = p.transfer.PlanBase(p.bindContainer()); err != nil {
		return err
	}
	p.intent.Binds, err = p.transfer.Plan(p.bindContainer(), specs)
	return err
}

func (p *program) attachBase(ctx context.Context) error {
	if p.intent.Base == nil {
		return nil
	}
	if err := p.transfer.Prepare(ctx); err != nil {
		return err
	}
	return p.transfer.AttachBase(p.bindContainer())
}

// detachBase removes the transfer layout on the host too, whether a journal lists it or not: the id is proof enough.
func (p *program) detachBase(context.Context) error {
	var err error
	if p.container != nil && p.intent.Base != nil {
		err = p.transfer.Detach(p.bindContainer(), []bind.Attachment{*p.intent.Base})
	}
	return errors.Join(err, p.transfer.Remove())
}

func (p *program) attachBinds(context.Context) error {
	if len(p.intent.Binds) == 0 {
		return nil
	}
	return p.transfer.Attach(p.bindContainer(), p.intent.Binds)
}

// detachBinds keeps the host directories that a finished run has made: the container may have put something there.
func (p *program) detachBinds(context.Context) error {
	var err error
	if p.container != nil {
		err = p.transfer.Detach(p.bindContainer(), p.intent.Binds)
	}
	if !p.intent.Done {
		err = errors.Join(err, bind.RemoveSources(p.intent.Binds))
	}
	return err
}

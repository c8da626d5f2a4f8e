//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"isula.org/syscontainer-hooks/pkg/network"
	"isula.org/syscontainer-hooks/pkg/store"
)

// planNetwork plans the interfaces and routes of the record.
func (r *restoration) planNetwork(ctx context.Context) error {
	record := r.record
	if len(record.NetworkInterfaces)+len(record.NetworkRoutes) == 0 {
		return nil
	}
	if r.container.NetNS == nil {
		return fmt.Errorf("the record lists network interfaces or routes, but %w", network.ErrHostNamespace)
	}
	if err := r.openNetwork(); err != nil {
		return err
	}
	var err error
	if r.intent.Interfaces, err = r.network.Plan(ctx, interfacesOf(record)); err != nil {
		return err
	}
	routes := make([]network.Route, 0, len(record.NetworkRoutes))
	for _, route := range record.NetworkRoutes {
		routes = append(routes, network.Route{Dest: route.Dest, Src: route.Src, Gateway: route.Gw, Device: route.Dev})
	}
	var skipped []network.Route
	r.intent.Routes, skipped, err = r.network.PlanRoutes(routes, r.intent.Interfaces)
	for _, route := range skipped {
		r.log().Warnf("route %s is skipped: the container has no interface %s; remove-route takes it from the record",
			route, route.Device)
	}
	return err
}

func interfacesOf(record *store.Record) []network.Interface {
	interfaces := make([]network.Interface, 0, len(record.NetworkInterfaces))
	for _, nic := range record.NetworkInterfaces {
		kind := network.Veth
		if nic.Type == string(network.Physical) {
			kind = network.Physical
		}
		interfaces = append(interfaces, network.Interface{
			Kind:     kind,
			Name:     nic.CtrNicName,
			HostName: nic.HostNicName,
			Bridge:   nic.Bridge,
			MAC:      nic.MAC,
			MTU:      int(nic.MTU),
			QueueLen: int(nic.Qlen),
			Address:  nic.IP,
		})
	}
	return interfaces
}

// openNetwork opens the network of the container: its namespace, the one that an earlier run has pinned when the container has
// ended, or none when that is gone too.
func (r *restoration) openNetwork() error {
	if r.network != nil {
		return nil
	}
	var ns *os.File
	if r.container != nil {
		ns = r.container.NetNS
	}
	var err error
	if ns == nil && r.pinned == nil {
		if r.pinned, err = network.OpenPin(r.state.ID); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	if ns == nil {
		ns = r.pinned
	}
	r.network, err = network.Open(r.state.ID, ns)
	return err
}

func (r *restoration) closeNetwork() {
	if r.network != nil {
		r.network.Close()
	}
	if r.pinned != nil {
		r.pinned.Close()
	}
}

// pinNetwork is for every container with a network of its own: interfaces may be added while it runs.
func (r *restoration) pinNetwork(context.Context) error {
	if r.container.NetNS == nil {
		return nil
	}
	return network.Pin(r.state.ID, r.container.NetNS)
}

// unpinNetwork keeps a namespace that an interface has not been brought home from, for the next try.
func (r *restoration) unpinNetwork(context.Context) error {
	if r.occupied {
		return errors.New("kept for the interfaces that are still in it")
	}
	return network.Unpin(r.state.ID)
}

// attachInterfaces writes down what it has made: by their indexes a later run knows the interfaces again.
func (r *restoration) attachInterfaces(ctx context.Context) error {
	if len(r.intent.Interfaces) == 0 {
		return nil
	}
	r.occupied = true
	err := r.network.Attach(ctx, r.intent.Interfaces)
	return errors.Join(err, r.journal.Append(r.intent))
}

func (r *restoration) detachInterfaces(ctx context.Context) error {
	if len(r.intent.Interfaces) > 0 {
		if err := r.openNetwork(); err != nil {
			return err
		}
		if err := r.network.Detach(ctx, r.intent.Interfaces); err != nil {
			r.occupied = !errors.Is(err, network.ErrUnsettled) && !errors.Is(err, network.ErrElsewhere)
			return err
		}
	}
	r.occupied = false
	return nil
}

// removeInterfaces removes those too that were added while the container ran, and stand in its record only. They are written
// down first: on its way home an interface is where only the journal leads to.
func (r *restoration) removeInterfaces(ctx context.Context) error {
	added, err := r.findAdded(ctx)
	if len(added) > 0 {
		r.intent.Interfaces = append(r.intent.Interfaces, added...)
		err = errors.Join(err, r.journal.Append(r.intent))
	}
	taken := r.forgetTaken()
	detachErr := r.detachInterfaces(ctx)
	r.occupied = r.occupied || err != nil
	return errors.Join(err, detachErr, r.detachTaken(ctx, taken))
}

// forgetTaken takes those interfaces of the host out of the intent that the record does not list any more: another program has
// taken them from the running container, and may have given them to somebody else.
func (r *restoration) forgetTaken() []network.Attachment {
	if r.record == nil || !r.intent.Done {
		return nil
	}
	var taken []network.Attachment
	listed := interfacesOf(r.record)
	r.intent.Interfaces = slices.DeleteFunc(r.intent.Interfaces, func(a network.Attachment) bool {
		gone := a.Kind == network.Physical &&
			!slices.ContainsFunc(listed, func(i network.Interface) bool { return i.HostName == a.HostName })
		if gone {
			taken = append(taken, a)
		}
		return gone
	})
	return taken
}

// detachTaken makes sure of it: one that was not brought home comes home now.
func (r *restoration) detachTaken(ctx context.Context, taken []network.Attachment) error {
	if len(taken) == 0 {
		return nil
	}
	if err := r.openNetwork(); err != nil {
		return err
	}
	err := r.network.Detach(ctx, taken)
	if errors.Is(err, network.ErrElsewhere) {
		r.log().Info("taken from the record while the container ran: ", err)
		return nil
	}
	r.occupied = r.occupied || err != nil && !errors.Is(err, network.ErrUnsettled)
	return err
}

func (r *restoration) findAdded(ctx context.Context) ([]network.Attachment, error) {
	if err := r.readRecord(ctx); err != nil {
		if !errors.Is(err, os.ErrNotExist) {
			r.log().Warn("cannot tell whether interfaces were added while the container ran: ", err)
		}
		return nil, nil
	}
	added := interfacesOf(r.record)
	added = slices.DeleteFunc(added, func(i network.Interface) bool {
		return slices.ContainsFunc(r.intent.Interfaces, func(a network.Attachment) bool {
			return a.Kind == i.Kind && a.Name == i.Name && a.Bridge == i.Bridge && (a.HostName == i.HostName || i.HostName == "")
		})
	})
	if len(added) == 0 {
		return nil, nil
	}
	if err := r.openNetwork(); err != nil {
		return nil, err
	}
	if r.intent.Instance == nil && r.pinned == nil {
		return nil, nil // no hook has been here
	}
	return r.network.Find(ctx, added, r.intent.Interfaces...)
}

func (r *restoration) addRoutes(context.Context) error {
	if len(r.intent.Routes) == 0 {
		return nil
	}
	return r.network.AddRoutes(r.intent.Routes)
}

// deleteRoutes is for a container that goes on: a namespace takes its routes with it.
func (r *restoration) deleteRoutes(context.Context) error {
	if len(r.intent.Routes) == 0 || r.container == nil || r.container.NetNS == nil {
		return nil
	}
	if err := r.openNetwork(); err != nil {
		return err
	}
	return r.network.DeleteRoutes(r.intent.Routes)
}

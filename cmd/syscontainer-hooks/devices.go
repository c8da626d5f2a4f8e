//go:build linux

package main

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"

	"isula.org/syscontainer-hooks/pkg/device"
	"isula.org/syscontainer-hooks/pkg/store"
)

// grant is a permission for devices and the cgroup that has it.
type grant struct {
	cgroupRef
	device.Grant
}

// numbers is a device's major and minor number.
type numbers struct{ major, minor uint32 }

// deviceContainer is the container as package device sees it.
func (r *restoration) deviceContainer() device.Container {
	c := r.container
	return device.Container{Root: c.Root, MountNS: c.MountNS, UID: c.RootUID, GID: c.RootGID}
}

// planDevices finds the devices on the host as they are now, and works out what the container lacks.
func (r *restoration) planDevices(finder *device.Finder) error {
	if len(r.record.Devices) == 0 {
		return nil
	}
	if err := r.checkOverlap(); err != nil {
		return err
	}
	r.nodes = make([]device.Node, 0, len(r.record.Devices))
	rules := make([]device.Rule, 0, len(r.record.Devices))
	for _, entry := range r.record.Devices {
		node, rule, err := r.resolve(finder, entry)
		if err != nil {
			return fmt.Errorf("device %s: %w", entry.PathOnHost, err)
		}
		r.nodes = append(r.nodes, node)
		rules = append(rules, rule)
	}
	cgroup, err := r.container.Cgroup("devices")
	if err != nil {
		return err
	}
	defer cgroup.Close()
	granter, err := device.OpenCgroup(cgroup.File)
	if err != nil {
		return err
	}
	ref, err := refer(cgroup)
	if err != nil {
		return err
	}
	missing, err := granter.Plan(rules)
	if err != nil {
		return err
	}
	r.intent.Grant = &grant{ref, missing}
	r.intent.Nodes, err = r.deviceContainer().Plan(r.nodes)
	return err
}

// resolve turns an entry of the record into the node and the permission that it stands for today.
func (r *restoration) resolve(finder *device.Finder, entry store.Device) (device.Node, device.Rule, error) {
	host, err := finder.Lookup(entry.PathOnHost)
	if err != nil {
		return device.Node{}, device.Rule{}, err
	}
	if string(host.Type) != entry.Type {
		return device.Node{}, device.Rule{}, fmt.Errorf("it is of type %s now, the record says %s", host.Type, entry.Type)
	}
	r.compareNumbers(host, entry.Major, entry.Minor)
	access, err := device.ParseAccess(entry.CgroupPermissions)
	if err != nil {
		return device.Node{}, device.Rule{}, err
	}
	node := device.Node{
		Path: entry.PathInContainer,
		Type: host.Type, Major: host.Major, Minor: host.Minor,
		Mode: host.Mode, UID: host.UID, GID: host.GID,
	}
	if r.container.UserNS {
		node.UID, node.GID = r.container.RootUID, r.container.RootGID
	}
	if host.Label != "" { // SELinux is on
		node.Label = r.container.Spec.Linux.MountLabel
	}
	return node, device.Rule{Type: host.Type, Major: host.Major, Minor: host.Minor, Access: access}, nil
}

func (r *restoration) allowDevices(context.Context) error {
	return r.withCgroup(func(c *device.Cgroup) error { return c.Allow(r.intent.Grant.Grant) })
}

func (r *restoration) revokeDevices(context.Context) error {
	err := r.withCgroup(func(c *device.Cgroup) error { return c.Revoke(r.intent.Grant.Grant) })
	if cgroupGone(err) {
		return nil
	}
	return err
}

// withCgroup calls f with the cgroup that the grant is for.
func (r *restoration) withCgroup(f func(*device.Cgroup) error) error {
	if r.intent.Grant == nil || len(r.intent.Grant.Rules) == 0 {
		return nil
	}
	dir, err := r.intent.Grant.open()
	if err != nil {
		return err
	}
	defer dir.Close()
	cgroup, err := device.OpenCgroup(dir)
	if err != nil {
		return err
	}
	return f(cgroup)
}

func (r *restoration) makeNodes(context.Context) error {
	return r.deviceContainer().Place(r.intent.Nodes)
}

func (r *restoration) removeNodes(context.Context) error {
	if r.container == nil {
		return nil
	}
	return r.deviceContainer().Remove(r.intent.Nodes)
}

// compareNumbers notes a device whose numbers are not those of the record any more.
func (r *restoration) compareNumbers(host *device.Host, major, minor int64) {
	if int64(host.Major) == major && int64(host.Minor) == minor {
		return
	}
	r.log().Infof("device %s is %d:%d now, was %d:%d", host.Path, host.Major, host.Minor, major, minor)
	if r.renewed == nil {
		r.renewed = make(map[string]numbers)
	}
	r.renewed[host.Path] = numbers{host.Major, host.Minor}
}

// saveNumbers corrects the record where the host has renumbered devices. It reads the record again under its lock: whatever
// syscontainer-tools has written meanwhile stays.
func (r *restoration) saveNumbers(ctx context.Context) error {
	if len(r.renewed) == 0 {
		return nil
	}
	return r.store.Update(ctx, func(record *store.Record) error {
		for i := range record.Devices {
			d := &record.Devices[i]
			if n, ok := r.renewed[d.PathOnHost]; ok {
				d.Major, d.Minor = int64(n.major), int64(n.minor)
			}
		}
		for _, list := range limitLists(record) {
			for i := range list.entries {
				l := &list.entries[i]
				if n, ok := r.renewed[l.Path]; ok {
					l.Major, l.Minor = int64(n.major), int64(n.minor)
				}
			}
		}
		return nil
	})
}

// checkOverlap refuses devices whose path is at or below a shared path: their nodes would be made on the host, or be hidden.
func (r *restoration) checkOverlap() error {
	for _, b := range r.binds {
		shared := filepath.Clean(b.ContainerPath)
		for _, d := range r.record.Devices {
			if d.PathInContainer == shared || strings.HasPrefix(d.PathInContainer, shared+"/") ||
				strings.HasPrefix(shared, d.PathInContainer+"/") {
				return fmt.Errorf("device path %s and shared path %s exclude each other", d.PathInContainer, shared)
			}
		}
	}
	return nil
}

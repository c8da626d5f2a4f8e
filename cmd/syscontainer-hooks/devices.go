//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"isula.org/syscontainer-hooks/internal/kernel"
	"isula.org/syscontainer-hooks/pkg/device"
	"isula.org/syscontainer-hooks/pkg/store"
)

// numbers is a device's major and minor number.
type numbers struct{ major, minor uint32 }

// deviceContainer is the container as package device sees it.
func (p *program) deviceContainer() device.Container {
	c := p.container
	return device.Container{Root: c.Root, MountNS: c.MountNS, UID: c.RootUID, GID: c.RootGID}
}

// planDevices finds the devices on the host as they are now, and works out what the container lacks.
func (p *program) planDevices() error {
	if len(p.record.Devices) == 0 {
		return nil
	}
	nodes := make([]device.Node, 0, len(p.record.Devices))
	rules := make([]device.Rule, 0, len(p.record.Devices))
	p.renewed = make(map[string]numbers)
	var finder device.Finder
	defer finder.Close()
	for _, entry := range p.record.Devices {
		node, rule, err := p.resolve(&finder, entry)
		if err != nil {
			return fmt.Errorf("device %s: %w", entry.PathOnHost, err)
		}
		nodes = append(nodes, node)
		rules = append(rules, rule)
	}
	cgroup, err := p.container.Cgroup("devices")
	if err != nil {
		return err
	}
	defer cgroup.Close()
	granter, err := device.OpenCgroup(cgroup.File)
	if err != nil {
		return err
	}
	p.intent.Grant = &grant{Cgroup: cgroup.Path}
	if p.intent.Grant.Inode, err = inode(cgroup.File); err != nil {
		return err
	}
	if p.intent.Grant.Grant, err = granter.Plan(rules); err != nil {
		return err
	}
	p.intent.Nodes, err = p.deviceContainer().Plan(nodes)
	return err
}

// resolve turns an entry of the record into the node and the permission that it stands for today.
func (p *program) resolve(finder *device.Finder, entry store.Device) (device.Node, device.Rule, error) {
	host, err := finder.Lookup(entry.PathOnHost)
	if err != nil {
		return device.Node{}, device.Rule{}, err
	}
	if string(host.Type) != entry.Type {
		return device.Node{}, device.Rule{}, fmt.Errorf("it is of type %s now, the record says %s", host.Type, entry.Type)
	}
	if int64(host.Major) != entry.Major || int64(host.Minor) != entry.Minor {
		p.renewed[entry.PathOnHost] = numbers{host.Major, host.Minor}
		p.log.Infof("device %s is %d:%d now, was %d:%d", entry.PathOnHost, host.Major, host.Minor, entry.Major, entry.Minor)
	}
	access, err := device.ParseAccess(entry.CgroupPermissions)
	if err != nil {
		return device.Node{}, device.Rule{}, err
	}
	node := device.Node{
		Path: entry.PathInContainer,
		Type: host.Type, Major: host.Major, Minor: host.Minor,
		Mode: host.Mode, UID: host.UID, GID: host.GID,
	}
	if p.container.UserNS {
		node.UID, node.GID = p.container.RootUID, p.container.RootGID
	}
	if host.Label != "" { // SELinux is on
		node.Label = p.container.Spec.Linux.MountLabel
	}
	return node, device.Rule{Type: host.Type, Major: host.Major, Minor: host.Minor, Access: access}, nil
}

func (p *program) allowDevices(context.Context) error {
	return p.withCgroup(func(c *device.Cgroup) error { return c.Allow(p.intent.Grant.Grant) })
}

func (p *program) revokeDevices(context.Context) error {
	err := p.withCgroup(func(c *device.Cgroup) error { return c.Revoke(p.intent.Grant.Grant) })
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return nil // the cgroup is gone, and all it allowed
	}
	return err
}

// withCgroup calls f with the cgroup that the grant is for.
func (p *program) withCgroup(f func(*device.Cgroup) error) error {
	if p.intent.Grant == nil || len(p.intent.Grant.Rules) == 0 {
		return nil
	}
	dir, err := kernel.Open(p.intent.Grant.Cgroup, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW)
	if err != nil {
		return err
	}
	defer dir.Close()
	current, err := inode(dir)
	if err != nil {
		return err
	}
	if current != p.intent.Grant.Inode {
		return fmt.Errorf("cgroup %s: %w: another one has its name now", dir.Name(), os.ErrNotExist)
	}
	cgroup, err := device.OpenCgroup(dir)
	if err != nil {
		return err
	}
	return f(cgroup)
}

func inode(f *os.File) (uint64, error) {
	var stat unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &stat); err != nil {
		return 0, fmt.Errorf("stat %s: %w", f.Name(), err)
	}
	return stat.Ino, nil
}

func (p *program) makeNodes(context.Context) error {
	return p.deviceContainer().Place(p.intent.Nodes)
}

func (p *program) removeNodes(context.Context) error {
	if p.container == nil {
		return nil
	}
	return p.deviceContainer().Remove(p.intent.Nodes)
}

// saveNumbers corrects the record where the host has renumbered devices. It reads the record again under its lock: whatever
// syscontainer-tools has written meanwhile stays.
func (p *program) saveNumbers(ctx context.Context) error {
	if len(p.renewed) == 0 {
		return nil
	}
	return p.store.Update(ctx, func(record *store.Record) error {
		for i := range record.Devices {
			d := &record.Devices[i]
			if n, ok := p.renewed[d.PathOnHost]; ok {
				d.Major, d.Minor = int64(n.major), int64(n.minor)
			}
		}
		return nil
	})
}

// checkOverlap refuses devices whose path is at or below a shared path: their nodes would be made on the host, or be hidden.
func checkOverlap(record *store.Record) error {
	for _, line := range record.Binds {
		b, err := store.ParseBind(line)
		if err != nil {
			return err
		}
		shared := filepath.Clean(b.ContainerPath)
		for _, d := range record.Devices {
			if d.PathInContainer == shared || strings.HasPrefix(d.PathInContainer, shared+"/") ||
				strings.HasPrefix(shared, d.PathInContainer+"/") {
				return fmt.Errorf("device path %s and shared path %s exclude each other", d.PathInContainer, shared)
			}
		}
	}
	return nil
}

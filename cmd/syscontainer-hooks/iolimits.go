//go:build linux

package main

import (
	"context"
	"fmt"
	"strconv"

	"isula.org/syscontainer-hooks/pkg/device"
	"isula.org/syscontainer-hooks/pkg/store"
)

// throttle is what is changed in the cgroup that limits the container's I/O.
type throttle struct {
	cgroupRef
	Changes []device.LimitChange `json:"changes"`
}

// limitList is one of a record's lists of I/O limits.
type limitList struct {
	kind    device.LimitKind
	entries []store.Limit
}

func limitLists(record *store.Record) []limitList {
	return []limitList{
		{device.ReadIOPS, record.ReadIOPS},
		{device.WriteIOPS, record.WriteIOPS},
		{device.ReadBPS, record.ReadBPS},
		{device.WriteBPS, record.WriteBPS},
		{device.Weight, record.Weights},
	}
}

// planLimits finds the disks as they are now, and what the limits change.
func (r *restoration) planLimits(finder *device.Finder) error {
	var limits []device.Limit
	for _, list := range limitLists(r.record) {
		for _, entry := range list.entries {
			limit, err := r.resolveLimit(finder, list.kind, entry)
			if err != nil {
				return fmt.Errorf("I/O limit %s of %s: %w", list.kind, entry.Path, err)
			}
			limits = append(limits, limit)
		}
	}
	if len(limits) == 0 {
		return nil
	}
	dir, err := r.container.Cgroup("blkio")
	if err != nil {
		return err
	}
	defer dir.Close()
	cgroup, err := device.OpenIOCgroup(dir.File)
	if err != nil {
		return err
	}
	ref, err := refer(dir)
	if err != nil {
		return err
	}
	changes, err := cgroup.Plan(limits)
	if err != nil {
		return err
	}
	r.intent.Throttle = &throttle{ref, changes}
	return nil
}

func (r *restoration) resolveLimit(finder *device.Finder, kind device.LimitKind, entry store.Limit) (device.Limit, error) {
	host, err := finder.Lookup(entry.Path)
	if err != nil {
		return device.Limit{}, err
	}
	r.compareNumbers(host, entry.Major, entry.Minor)
	value, err := strconv.ParseUint(entry.Value, 10, 64)
	if err != nil {
		return device.Limit{}, err
	}
	return host.Limit(kind, value)
}

func (r *restoration) setLimits(context.Context) error {
	return r.withIOCgroup(func(c *device.IOCgroup) error { return c.Set(r.intent.Throttle.Changes) })
}

func (r *restoration) resetLimits(context.Context) error {
	err := r.withIOCgroup(func(c *device.IOCgroup) error { return c.Reset(r.intent.Throttle.Changes) })
	if cgroupGone(err) {
		return nil
	}
	return err
}

// withIOCgroup calls f with the cgroup that the limits are for.
func (r *restoration) withIOCgroup(f func(*device.IOCgroup) error) error {
	if r.intent.Throttle == nil || len(r.intent.Throttle.Changes) == 0 {
		return nil
	}
	dir, err := r.intent.Throttle.open()
	if err != nil {
		return err
	}
	defer dir.Close()
	cgroup, err := device.OpenIOCgroup(dir)
	if err != nil {
		return err
	}
	return f(cgroup)
}

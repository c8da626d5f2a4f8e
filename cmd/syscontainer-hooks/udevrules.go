//go:build linux

package main

import (
	"context"
	"fmt"

	"isula.org/syscontainer-hooks/pkg/device"
	"isula.org/syscontainer-hooks/pkg/udev"
)

// planRules finds out which of the devices are whole disks: only those get partitions that udev has to tell the container about.
func (r *restoration) planRules() error {
	for _, node := range r.nodes {
		if node.Type != device.Block {
			continue
		}
		disk, whole, err := udev.WholeDisk(node.Major, node.Minor)
		if err != nil {
			return err
		}
		if !whole {
			continue
		}
		rule := udev.Rule{Disk: disk, Path: node.Path, ID: r.state.ID}
		if err := rule.Validate(); err != nil {
			return fmt.Errorf("udev rule for disk %s: %w", disk, err)
		}
		r.rules = append(r.rules, rule)
	}
	return nil
}

// writeRules needs nothing in the journal: a container's rules are known by its id.
func (r *restoration) writeRules(ctx context.Context) (err error) {
	if len(r.rules) == 0 {
		return nil
	}
	r.rulesWritten = true
	r.rulesBefore, err = udev.Set(ctx, r.state.ID, r.rules)
	return err
}

func (r *restoration) restoreRules(ctx context.Context) error {
	if !r.rulesWritten {
		return nil
	}
	_, err := udev.Set(ctx, r.state.ID, r.rulesBefore)
	return err
}

// removeRules removes those too that were added while the container ran, whatever has become of their disks.
func (r *restoration) removeRules(ctx context.Context) error {
	_, err := udev.Set(ctx, r.state.ID, nil)
	return err
}

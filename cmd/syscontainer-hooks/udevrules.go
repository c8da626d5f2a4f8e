//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"

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
		if errors.Is(err, os.ErrNotExist) || err == nil && !whole {
			continue // a node that no driver has behind it yet is no disk either
		}
		rule := udev.Rule{Disk: disk, Path: node.Path, ID: r.state.ID}
		if err == nil {
			err = rule.Validate()
		}
		if err != nil {
			return fmt.Errorf("device %s: %w", node.Path, err)
		}
		r.rules = append(r.rules, rule)
	}
	return nil
}

// setRules takes a udevd that cannot be told for no failure: it notices by itself, if later.
func (r *restoration) setRules(ctx context.Context, rules []udev.Rule) (before []udev.Rule, err error) {
	before, err = udev.Set(ctx, r.state.ID, rules)
	if errors.Is(err, udev.ErrNotTold) {
		r.log().Warn(err)
		err = nil
	}
	return before, err
}

// writeRules needs nothing in the journal: a container's rules are known by its id. Those of an earlier time go, also when the
// container has no disk any more: the name may be another disk's by now.
func (r *restoration) writeRules(ctx context.Context) error {
	var err error
	r.rulesBefore, err = r.setRules(ctx, r.rules)
	if err != nil && len(r.rules) == 0 {
		r.log().Warn(err)
		return nil
	}
	return err
}

func (r *restoration) restoreRules(ctx context.Context) error {
	if r.rulesBefore == nil {
		return nil
	}
	_, err := r.setRules(ctx, r.rulesBefore)
	return err
}

// removeRules removes those too that were added while the container ran, whatever has become of their disks. What cannot be
// removed is no reason to keep a journal, and with it the container from starting: the next start finds it by the id.
func (r *restoration) removeRules(ctx context.Context) error {
	if _, err := r.setRules(ctx, nil); err != nil {
		r.rulesLeft = fmt.Errorf("remove udev rules: %w", err)
	}
	return nil
}

//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"isula.org/syscontainer-hooks/internal/hookstate"
	"isula.org/syscontainer-hooks/pkg/bind"
	"isula.org/syscontainer-hooks/pkg/device"
	"isula.org/syscontainer-hooks/pkg/network"
	"isula.org/syscontainer-hooks/pkg/store"
	"isula.org/syscontainer-hooks/pkg/udev"
)

// restoration is what the steps work on: a container, or what is left of one, and what is changed for it. Its methods are the
// steps, in one file for each kind of resource.
type restoration struct {
	*program
	container *hookstate.Container // nil when nothing is left of it
	intent    intent
	cleaned   bool // what an earlier run left is gone

	store   *store.Store  // nil when there is no record
	record  *store.Record // never nil once read
	binds   []store.Bind  // of the record
	nodes   []device.Node // of the record's devices
	renewed map[string]numbers

	rules       []udev.Rule // of this container
	rulesBefore []udev.Rule // nil as long as they cannot have been changed
	sysctls     sysctls

	network  *network.Network
	pinned   *os.File // the namespace that network is of, when it is not the container's own handle
	occupied bool     // interfaces may be in it
}

// intent is what one run is going to change: an entry of the journal. It is all that a later run needs to take it back.
type intent struct {
	Instance *hookstate.Instance `json:"instance,omitempty"`
	Root     string              `json:"root,omitempty"`   // the container's root directory on the host
	Bundle   string              `json:"bundle,omitempty"` // where the record is; not every runtime says so at poststop
	Base     *bind.Attachment    `json:"base,omitempty"`
	Binds    []bind.Attachment   `json:"binds,omitempty"`
	Grant    *grant              `json:"grant,omitempty"`
	Nodes    []device.Placement  `json:"nodes,omitempty"`
	Throttle *throttle           `json:"throttle,omitempty"`

	Interfaces []network.Attachment `json:"interfaces,omitempty"`
	Routes     []network.Route      `json:"routes,omitempty"`

	Done    bool `json:"done,omitempty"`    // the run has come to its end
	Removed bool `json:"removed,omitempty"` // and what it did is being taken back
}

func (i *intent) isOf(c *hookstate.Container) bool {
	return i.Instance != nil && *i.Instance == c.Instance
}

// mergeIntents adds up the journal's entries: the newest plan, and what became of it.
func mergeIntents(entries []intent) intent {
	var sum intent
	for _, entry := range entries {
		done, removed := sum.Done || entry.Done, sum.Removed || entry.Removed
		if entry.Instance != nil || len(entry.Interfaces) > 0 {
			sum = entry
		}
		sum.Done, sum.Removed = done, removed
	}
	return sum
}

// cleanUp takes back what an earlier run left: one that was killed, or a container that ended without a poststop.
func (r *restoration) cleanUp(ctx context.Context) error {
	var live *hookstate.Container
	earlier := mergeIntents(r.journal.Entries)
	switch {
	case earlier.isOf(r.container):
		live = r.container
		r.log().Warn("an earlier run for this container was not finished: cleaning up")
	case earlier.Instance != nil && earlier.Instance.Alive():
		return fmt.Errorf("another container with this id is running, as process %d", earlier.Instance.Pid)
	case earlier.Instance != nil:
		r.log().Warn("the container ended without poststop: cleaning up")
	case r.baseAttached():
		r.log().Warn("the container has its shared paths already, but no journal")
		r.cleaned = true
		return nil
	case len(r.journal.Entries) == 0 && !r.transfer.Exists() && !network.Pinned(r.state.ID):
		r.cleaned = true
		return nil
	}
	if err := r.takeBack(ctx, earlier, live); err != nil {
		return err
	}
	if r.rulesLeft != nil {
		r.log().Warn(r.rulesLeft)
	}
	r.cleaned = true
	return r.journal.Clear()
}

// plan works out all changes before the first one is made, so that a record that cannot be restored changes nothing.
func (r *restoration) plan(ctx context.Context) error {
	instance := r.container.Instance
	r.intent = intent{Instance: &instance, Root: r.container.Spec.Root.Path, Bundle: r.state.Bundle}
	var finder device.Finder
	defer finder.Close()
	for _, plan := range []func() error{
		r.planSysctls,
		r.planBinds,
		func() error { return r.planDevices(&finder) },
		func() error { return r.planLimits(&finder) },
		r.planRules,
		func() error { return r.planNetwork(ctx) },
	} {
		if err := plan(); err != nil {
			return err
		}
	}
	return nil
}

func (r *restoration) writeJournal(context.Context) error { return r.journal.Append(r.intent) }

// noteRemoval keeps a prestart that comes next, should this run be killed, from taking the container for restored.
func (r *restoration) noteRemoval(context.Context) error {
	if r.intent.Instance == nil || r.intent.Removed {
		return nil
	}
	return r.journal.Append(intent{Removed: true})
}

// finish marks the container as restored. What is kept only for taking back is dropped after that; what cannot be, waits for
// poststop.
func (r *restoration) finish(context.Context) error {
	if err := r.journal.Append(intent{Done: true}); err != nil {
		return err
	}
	if err := r.deviceContainer().Commit(r.intent.Nodes); err != nil {
		r.log().Error("drop what the nodes have replaced: ", err)
	}
	limits := 0
	for _, list := range limitLists(r.record) {
		limits += len(list.entries)
	}
	if devices, paths, nics := len(r.record.Devices), len(r.record.Binds), len(r.intent.Interfaces); devices+limits+paths+nics > 0 {
		r.log().Infof("restored %d devices, %d I/O limits, %d shared paths, %d network interfaces", devices, limits, paths, nics)
	}
	return nil
}

// readRecord loads the record. A container that nothing was added to has none.
func (r *restoration) readRecord(context.Context) error {
	r.record = &store.Record{}
	if r.recordDir == "" {
		return nil
	}
	var err error
	if r.store, err = store.Open(r.recordDir); err != nil {
		return err
	}
	record, err := r.store.Load()
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	r.record = record
	r.binds, err = record.ParsedBinds()
	return err
}

func (r *restoration) close() {
	if r.store != nil {
		r.store.Close()
	}
	r.sysctls.close()
	r.closeNetwork()
}

// findRecord gives the directory that holds the record, "" when there is none: the one that the command line names, the bundle,
// or the one that belongs to this program where it is installed below iSulad's graph root, <graph root>/hooks.
func (p *program) findRecord() (string, error) {
	if p.options.recordDir != "" {
		return p.options.recordDir, nil
	}
	var dirs []string
	if p.state.Bundle != "" {
		dirs = append(dirs, p.state.Bundle)
	}
	if self, err := os.Executable(); err == nil && filepath.Base(filepath.Dir(self)) == "hooks" {
		graph := filepath.Dir(filepath.Dir(self))
		dirs = append(dirs, filepath.Join(graph, "engines", "lcr", p.state.ID))
	}
	for _, dir := range dirs {
		var stat unix.Stat_t
		err := unix.Lstat(filepath.Join(dir, store.FileName), &stat)
		if err == nil {
			return dir, nil
		}
		if !errors.Is(err, unix.ENOENT) {
			return "", fmt.Errorf("look for record in %s: %w", dir, err)
		}
	}
	return "", nil
}

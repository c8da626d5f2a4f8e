//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"isula.org/syscontainer-hooks/pkg/store"
)

// readRecord finds and loads the record. A container that nothing was added to has none.
func (p *program) readRecord(context.Context) error {
	p.record = &store.Record{}
	dir, err := p.recordDir()
	if err != nil || dir == "" {
		return err
	}
	if p.store, err = store.Open(dir); err != nil {
		return err
	}
	p.record, err = p.store.Load()
	if errors.Is(err, os.ErrNotExist) {
		p.record, err = &store.Record{}, nil
	}
	return err
}

// recordDir gives the directory that holds the record, "" when there is none: the one that the command line names, the bundle,
// or the one that belongs to this program where it is installed below iSulad's graph root, <graph root>/hooks.
func (p *program) recordDir() (string, error) {
	if p.options.recordDir != "" {
		return p.options.recordDir, nil
	}
	dirs := []string{p.state.Bundle}
	if self, err := os.Executable(); err == nil && filepath.Base(filepath.Dir(self)) == "hooks" {
		graph := filepath.Dir(filepath.Dir(self))
		dirs = append(dirs, filepath.Join(graph, "engines", "lcr", p.state.ID))
	}
	for _, dir := range dirs {
		_, err := os.Lstat(filepath.Join(dir, store.FileName))
		if err == nil {
			return dir, nil
		}
		if !errors.Is(err, os.ErrNotExist) {
			return "", fmt.Errorf("look for record: %w", err)
		}
	}
	return "", nil
}

// plan works out all changes before the first one is made, so that a record that cannot be restored changes nothing.
func (p *program) plan(context.Context) error {
	r := p.record
	for kind, n := range map[string]int{
		"I/O limits":         len(r.ReadIOPS) + len(r.WriteIOPS) + len(r.ReadBPS) + len(r.WriteBPS) + len(r.Weights),
		"network interfaces": len(r.NetworkInterfaces),
		"routes":             len(r.NetworkRoutes),
	} {
		if n > 0 {
			return fmt.Errorf("the record lists %s, which this version cannot restore; remove them from %s", kind, p.store.Path())
		}
	}
	if err := checkOverlap(r); err != nil {
		return err
	}
	instance := p.container.Instance
	p.intent.Instance, p.intent.Root = &instance, p.container.Spec.Root.Path
	if err := p.planBinds(); err != nil {
		return err
	}
	return p.planDevices()
}

//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/sirupsen/logrus"

	"isula.org/syscontainer-hooks/internal/hookstate"
	"isula.org/syscontainer-hooks/internal/hostpath"
	"isula.org/syscontainer-hooks/internal/journal"
	"isula.org/syscontainer-hooks/internal/pipeline"
	"isula.org/syscontainer-hooks/pkg/bind"
	"isula.org/syscontainer-hooks/pkg/store"
)

// journalDir is where each container's journal is.
const journalDir = "/run/syscontainer-tools/hooks"

// restoreSteps is what prestart does, in this order. All is planned and written down before the first change.
func (p *program) restoreSteps() []pipeline.Step {
	return []pipeline.Step{
		{Name: "clean up after an earlier run", Do: p.cleanUp, NoUndo: "what is left over stays removed"},
		{Name: "read record", Do: p.readRecord, NoUndo: "changes nothing"},
		{Name: "plan", Do: p.plan, NoUndo: "changes nothing"},
		{Name: "write journal", Do: p.writeJournal, NoUndo: "removed when all else is taken back"},
		{Name: "prepare shared paths", Do: p.attachBase, Undo: p.detachBase},
		{Name: "share host paths", Do: p.attachBinds, Undo: p.detachBinds},
		{Name: "allow devices", Do: p.allowDevices, Undo: p.revokeDevices},
		{Name: "make device nodes", Do: p.makeNodes, Undo: p.removeNodes},
		{Name: "save device numbers", Do: p.saveNumbers, NoUndo: "the corrected numbers are true whatever happens"},
		{Name: "finish", Do: p.finish, NoUndo: "last step"},
	}
}

// removeSteps is what poststop does, and the next prestart when poststop never came: each step, whatever becomes of the others.
func (p *program) removeSteps() []pipeline.Step {
	return []pipeline.Step{
		{Name: "remove device nodes", Do: p.removeNodes, NoUndo: "removal"},
		{Name: "revoke devices", Do: p.revokeDevices, NoUndo: "removal"},
		{Name: "remove mount points", Do: p.detachBinds, NoUndo: "removal"},
		{Name: "remove shared paths", Do: p.detachBase, NoUndo: "removal"},
	}
}

// program is one run of the hook.
type program struct {
	options options
	log     *logrus.Entry

	state     *hookstate.State
	container *hookstate.Container // nil when there is no live one, as at poststop
	transfer  *bind.Transfer
	journal   *journal.Journal[intent]
	store     *store.Store  // nil when there is no record
	record    *store.Record // never nil once read

	intent  intent // what this run is about to change, or an earlier one was
	renewed map[string]numbers

	undoFailed    bool
	signalsCaught chan struct{} // closed when they are
	// interpose lets tests of this package put faults between the steps; nil in the program.
	interpose func([]pipeline.Step) []pipeline.Step
}

// prestart restores what the record lists. It changes nothing for a container that has been restored already.
func (p *program) prestart(ctx context.Context, stdin *os.File) error {
	if err := p.begin(ctx, stdin); err != nil {
		return err
	}
	defer p.end()
	spec, err := hookstate.LoadSpec(p.state.Bundle)
	if err != nil {
		return err
	}
	if p.container, err = hookstate.Open(p.state, spec); err != nil {
		return err
	}
	if p.alreadyRestored() {
		return nil
	}
	err = pipeline.Run(ctx, p.steps(p.restoreSteps()), undoTimeout, p.observe)
	if err != nil && !p.undoFailed {
		err = errors.Join(err, p.journal.Clear())
	}
	return err
}

// poststop removes what the container leaves, known by its id alone: its process has ended, and the pid may be another's.
func (p *program) poststop(ctx context.Context, stdin *os.File) error {
	if err := p.begin(ctx, stdin); err != nil {
		return err
	}
	defer p.end()
	if err := p.takeBack(ctx); err != nil {
		return err
	}
	return p.journal.Clear()
}

// begin does what all stages start with. From here on this is the only run for the container.
func (p *program) begin(ctx context.Context, stdin *os.File) error {
	logger, err := newLogger(p.options.logFile)
	if err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	p.log = logger.WithField("stage", p.options.stage)
	if p.state, err = hookstate.ReadState(ctx, stdin); err != nil {
		return err
	}
	p.log = p.log.WithField("container", p.state.ID)
	if p.transfer, err = bind.NewTransfer(p.state.ID); err != nil {
		return err
	}
	<-p.signalsCaught // nothing is left behind until here
	p.journal, err = journal.Open[intent](ctx, journalDir, p.state.ID)
	return err
}

// end removes a journal that lists nothing any more.
func (p *program) end() {
	if len(p.journal.Entries) == 0 {
		if err := p.journal.Remove(); err != nil {
			p.log.Error("remove journal: ", err)
		}
	}
	p.journal.Close()
	if p.container != nil {
		p.container.Close()
	}
	if p.store != nil {
		p.store.Close()
	}
}

// alreadyRestored tells whether an earlier run has restored this very run of the container: two hook entries for one start
// are common. The transfer layout in its place proves it even when the journal is lost.
func (p *program) alreadyRestored() bool {
	written := mergeIntents(p.journal.Entries)
	if written.Instance != nil {
		return written.Done && !written.Removed && *written.Instance == p.container.Instance
	}
	base, err := p.transfer.PlanBase(p.bindContainer())
	if err != nil || base != nil {
		return false // the plan will say what is wrong
	}
	p.log.Warn("the container has its shared paths already, but no journal: nothing is changed")
	return true
}

// cleanUp takes back what an earlier run left: one that was killed, or a container that ended without a poststop.
func (p *program) cleanUp(ctx context.Context) error {
	if len(p.journal.Entries) > 0 {
		p.log.Warn("an earlier run was not finished or its container ended without poststop: cleaning up")
	}
	live := p.container
	if written := mergeIntents(p.journal.Entries); written.Instance == nil || *written.Instance != live.Instance {
		p.container = nil // that one has ended; only the root file system is left of it
	}
	err := p.takeBack(ctx)
	p.container, p.intent = live, intent{}
	if err != nil {
		return err
	}
	return p.journal.Clear()
}

// takeBack runs the removal steps on what the journal lists.
func (p *program) takeBack(ctx context.Context) error {
	p.intent = mergeIntents(p.journal.Entries)
	if p.intent.Done && !p.intent.Removed {
		if err := p.journal.Append(intent{Removed: true}); err != nil {
			return err
		}
	}
	if p.container == nil && p.intent.Root != "" {
		root, err := hostpath.Open(p.intent.Root)
		switch {
		case err == nil:
			defer root.Close()
			p.container = &hookstate.Container{Root: root}
			defer func() { p.container = nil }()
		case !errors.Is(err, os.ErrNotExist):
			return err
		}
	}
	return pipeline.RunAll(ctx, p.steps(p.removeSteps()), p.observe)
}

// finish drops what is kept only for taking back, and marks the container as restored.
func (p *program) finish(context.Context) error {
	if err := p.deviceContainer().Commit(p.intent.Nodes); err != nil {
		return err
	}
	if err := p.journal.Append(intent{Done: true}); err != nil {
		return err
	}
	if n, m := len(p.record.Devices), len(p.record.Binds); n+m > 0 {
		p.log.Infof("restored %d devices and %d shared paths", n, m)
	}
	return nil
}

func (p *program) steps(steps []pipeline.Step) []pipeline.Step {
	if p.interpose != nil {
		return p.interpose(steps)
	}
	return steps
}

// observe logs what went wrong and what was taken back.
func (p *program) observe(step string, undo bool, took time.Duration, err error) {
	if err == nil && !undo {
		return
	}
	log := p.log.WithFields(logrus.Fields{"step": step, "took": took})
	switch {
	case undo && err != nil:
		p.undoFailed = true
		log.Error("could not be taken back: ", err)
	case undo:
		log.Info("taken back")
	default:
		log.Error(err)
	}
}

// describe is the line for standard error: the container, the step with its resource, and the reason.
func (p *program) describe(err error) string {
	if p.state == nil {
		return fmt.Sprintf("%s: %v", p.options.stage, err)
	}
	return fmt.Sprintf("container %s: %s: %v", p.state.ID, p.options.stage, err)
}

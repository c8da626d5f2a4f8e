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
)

// journalDir is where each container's journal is.
const journalDir = "/run/syscontainer-tools/hooks"

// restoreSteps is what prestart does, in this order. All is planned and written down before the first change.
func (r *restoration) restoreSteps() []pipeline.Step {
	return []pipeline.Step{
		{Name: "clean up after an earlier run", Do: r.cleanUp, NoUndo: "what is left over stays removed"},
		{Name: "read record", Do: r.readRecord, NoUndo: "changes nothing"},
		{Name: "load kernel modules", Do: r.loadModules, NoUndo: "others may use them by now"},
		{Name: "plan", Do: r.plan, NoUndo: "changes nothing"},
		{Name: "write journal", Do: r.writeJournal, NoUndo: "cleared when all else is taken back"},
		{Name: "prepare shared paths", Do: r.attachBase, Undo: r.detachBase},
		{Name: "make host directories", Do: r.makeSources, Undo: r.removeSources},
		{Name: "share host paths", Do: r.attachBinds, Undo: r.detachBinds},
		{Name: "allow devices", Do: r.allowDevices, Undo: r.revokeDevices},
		{Name: "make device nodes", Do: r.makeNodes, Undo: r.removeNodes},
		{Name: "set I/O limits", Do: r.setLimits, Undo: r.resetLimits},
		{Name: "pin network namespace", Do: r.pinNetwork, Undo: r.unpinNetwork},
		{Name: "apply sysctls", Do: r.applySysctls, Undo: r.restoreSysctls},
		{Name: "attach network interfaces", Do: r.attachInterfaces, Undo: r.detachInterfaces},
		{Name: "apply sysctls of interfaces", Do: r.applyLateSysctls, Undo: r.restoreLateSysctls},
		{Name: "add routes", Do: r.addRoutes, Undo: r.deleteRoutes},
		{Name: "write udev rules", Do: r.writeRules, Undo: r.restoreRules},
		{Name: "save device numbers", Do: r.saveNumbers, NoUndo: "the corrected numbers are true whatever happens"},
		{Name: "finish", Do: r.finish, NoUndo: "last step"},
	}
}

// removeSteps is what poststop does, and the next prestart when poststop never came: each step, whatever becomes of the others.
func (r *restoration) removeSteps() []pipeline.Step {
	return []pipeline.Step{
		{Name: "note removal", Do: r.noteRemoval, NoUndo: "removal"},
		{Name: "delete routes", Do: r.deleteRoutes, NoUndo: "removal"},
		{Name: "remove network interfaces", Do: r.removeInterfaces, NoUndo: "removal"},
		{Name: "unpin network namespace", Do: r.unpinNetwork, NoUndo: "removal"},
		{Name: "reset I/O limits", Do: r.resetLimits, NoUndo: "removal"},
		{Name: "remove device nodes", Do: r.removeNodes, NoUndo: "removal"},
		{Name: "revoke devices", Do: r.revokeDevices, NoUndo: "removal"},
		{Name: "remove mount points", Do: r.detachBinds, NoUndo: "removal"},
		{Name: "remove host directories", Do: r.removeSources, NoUndo: "removal"},
		{Name: "remove shared paths", Do: r.detachBase, NoUndo: "removal"},
		{Name: "remove udev rules", Do: r.removeRules, NoUndo: "removal"}, // last: others can hold it up
	}
}

// program is one run of the hook.
type program struct {
	options  options
	logger   *logrus.Entry // see log
	state    *hookstate.State
	transfer *bind.Transfer
	journal  *journal.Journal[intent]

	recordDir string // "" when there is no record

	context    *runContext
	undoFailed bool
	rulesLeft  error // why there are still udev rules after a removal
	// interpose lets tests of this package put faults between the steps; nil in the program.
	interpose func([]pipeline.Step) []pipeline.Step
}

// prestart restores what the record lists. It changes nothing for a container that has been restored already.
func (p *program) prestart(ctx context.Context, stdin *os.File) error {
	if err := p.begin(ctx, stdin); err != nil {
		return err
	}
	var err error
	if p.recordDir, err = p.findRecord(); err != nil {
		return err
	}
	if p.recordDir != "" {
		p.context.keepTime()
		p.context.startCatching()
	}
	spec, err := hookstate.LoadSpec(p.state.Bundle)
	if err != nil {
		return err
	}
	container, err := hookstate.Open(p.state, spec)
	if err != nil {
		return err
	}
	defer container.Close()
	if p.recordDir != "" {
		p.context.catch()
	} else {
		p.context.ignoreSignals()
	}
	if err := p.lock(ctx); err != nil {
		return err
	}
	defer p.end()
	earlier := mergeIntents(p.journal.Entries)
	if earlier.isOf(container) && earlier.Done && !earlier.Removed {
		return nil // two hook entries for one start are common
	}
	r := &restoration{program: p, container: container}
	defer r.close()
	err = pipeline.Run(ctx, p.steps(r.restoreSteps()), undoTimeout, p.observe)
	if err != nil && r.cleaned && !p.undoFailed {
		err = errors.Join(err, p.journal.Clear())
	}
	return err
}

// poststop removes what the container leaves, known by its id alone: its process has ended, and the pid may be another's.
func (p *program) poststop(ctx context.Context, stdin *os.File) error {
	if err := p.begin(ctx, stdin); err != nil {
		return err
	}
	if err := p.lock(ctx); err != nil {
		return err
	}
	defer p.end()
	earlier := mergeIntents(p.journal.Entries)
	if p.state.Bundle == "" {
		p.state.Bundle = earlier.Bundle
	}
	var recordErr error
	if p.recordDir, recordErr = p.findRecord(); p.recordDir != "" {
		p.context.keepTime()
	}
	err := errors.Join(recordErr, p.takeBack(ctx, earlier, nil))
	if err == nil {
		err = p.journal.Clear()
	}
	return errors.Join(err, p.rulesLeft)
}

// begin does what all stages start with.
func (p *program) begin(ctx context.Context, stdin *os.File) (err error) {
	if p.options.logFile != "" {
		p.log() // makes the file
	}
	if p.state, err = hookstate.ReadState(ctx, stdin); err != nil {
		return err
	}
	p.transfer, err = bind.NewTransfer(p.state.ID)
	return err
}

// lock makes this the only run for the container, and reads what an earlier one has written down.
func (p *program) lock(ctx context.Context) (err error) {
	p.journal, err = journal.Open[intent](ctx, journalDir, p.state.ID)
	return err
}

// end removes a journal that lists nothing any more.
func (p *program) end() {
	if len(p.journal.Entries) == 0 {
		if err := p.journal.Remove(); err != nil {
			p.log().Error("remove journal: ", err)
		}
	}
	p.journal.Close()
}

// takeBack runs the removal steps on what an earlier run has changed. Without a live container only its root file system is
// left of it, and that only where the host still has it.
func (p *program) takeBack(ctx context.Context, earlier intent, live *hookstate.Container) error {
	r := &restoration{program: p, container: live, intent: earlier, occupied: true}
	defer r.close()
	var rootErr error
	if live == nil && earlier.Root != "" {
		root, err := hostpath.Open(earlier.Root)
		if err == nil {
			defer root.Close()
			r.container = &hookstate.Container{Root: root}
		} else if !errors.Is(err, os.ErrNotExist) {
			rootErr = fmt.Errorf("look for what is left in the root file system: %w", err)
		}
	}
	return errors.Join(rootErr, pipeline.RunAll(ctx, p.steps(r.removeSteps()), p.observe))
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
	log := p.log().WithFields(logrus.Fields{"step": step, "took": took})
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

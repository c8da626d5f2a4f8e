//go:build linux

package main

import (
	"context"

	"isula.org/syscontainer-hooks/internal/hookstate"
	"isula.org/syscontainer-hooks/pkg/bind"
	"isula.org/syscontainer-hooks/pkg/device"
)

// intent is what one run is going to change: an entry of the journal. It is all that a later run needs to take it back.
type intent struct {
	Instance *hookstate.Instance `json:"instance,omitempty"`
	Root     string              `json:"root,omitempty"` // the container's root directory on the host
	Base     *bind.Attachment    `json:"base,omitempty"`
	Binds    []bind.Attachment   `json:"binds,omitempty"`
	Grant    *grant              `json:"grant,omitempty"`
	Nodes    []device.Placement  `json:"nodes,omitempty"`
	Done     bool                `json:"done,omitempty"`    // the run has come to its end
	Removed  bool                `json:"removed,omitempty"` // and what it did is being taken back
}

// grant is a permission for devices and the cgroup that has it.
type grant struct {
	Cgroup string `json:"cgroup"` // directory on the host
	Inode  uint64 `json:"inode"`  // of it: a cgroup of the same name that comes later is another one
	device.Grant
}

// mergeIntents adds up the journal's entries: the plan, and what became of it.
func mergeIntents(entries []intent) intent {
	var sum intent
	for _, entry := range entries {
		if entry.Instance != nil {
			sum = entry
		}
		sum.Done = sum.Done || entry.Done
		sum.Removed = sum.Removed || entry.Removed
	}
	return sum
}

func (p *program) writeJournal(context.Context) error {
	return p.journal.Append(p.intent)
}

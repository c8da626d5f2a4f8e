//go:build linux

package network

import "errors"

// planPhysical finds the interface on the host and notes all that it is.
func (n *Network) planPhysical(a *Attachment) error { return errors.New("TODO") }

// attachPhysical moves the interface into the container.
func (n *Network) attachPhysical(a *Attachment) error { return errors.New("TODO") }

// detachPhysical brings the interface home from wherever it is.
func (n *Network) detachPhysical(a Attachment) error { return errors.New("TODO") }

//go:build linux

package network

import (
	"context"
	"fmt"
	"slices"
)

// planBridge finds the bridge that the host's end is in and the one that it is to be in, and changes nothing. What is in a Linux
// bridge can be asked of the kernel; only when it is in none, Open vSwitch is asked about the bridge of the record.
func (u *updating) planBridge(ctx context.Context, i, wanted Interface) (from, to Attachment, err error) {
	end := u.ends[hostSide]
	from = Attachment{Interface: wanted, HostIndex: end.Attrs().Index}
	from.Bridge = ""
	to = from
	bridge, err := u.linuxBridge(end)
	switch {
	case err != nil:
		return from, to, err
	case bridge != nil:
		from.Bridge, from.bridge = bridge.Attrs().Name, bridge.Attrs().Index
	case i.Bridge != "":
		if from.OVS, err = u.inOVS(ctx, ovsTimeout, i.Bridge); err != nil {
			return from, to, err
		}
		if from.OVS {
			from.Bridge = i.Bridge
		}
	}
	if wanted.Bridge == "" {
		return from, to, nil
	}
	to.Bridge = wanted.Bridge
	if to.bridge, err = u.findBridge(ctx, to.Bridge); err != nil {
		return from, to, err
	}
	to.OVS = to.bridge == 0
	if to.OVS && !from.OVS {
		err = u.refuseTakenPorts(ctx, []Attachment{to})
	}
	return from, to, err
}

func (u *updating) setBridge(ctx context.Context, from, to Attachment) error {
	var err error
	switch {
	case from.Bridge != to.Bridge:
		err = u.do(
			func() error { return u.move(ctx, from, to) },
			func() error { return u.move(context.WithoutCancel(ctx), to, from) },
		)
	case to.OVS: // by the record; perhaps not in the switch
		err = u.addPorts(ctx, []Attachment{to})
	}
	if err != nil {
		return fmt.Errorf("set bridge %q: %w", to.Bridge, err)
	}
	return nil
}

// move takes the host's end out of one bridge and puts it into another one. It goes from one Linux bridge to another one in one
// step.
func (u *updating) move(ctx context.Context, from, to Attachment) error {
	if from.OVS {
		if err := u.removePort(ctx, from); err != nil {
			return err
		}
	}
	if !to.OVS || from.bridge != 0 {
		if err := u.host.LinkSetMasterByIndex(linkOf(to.HostIndex), to.bridge); err != nil {
			return err
		}
	}
	if to.OVS {
		return u.addPorts(ctx, []Attachment{to})
	}
	return nil
}

// removePort removes one port under the same proof as removePorts, which would also remove the container's other ones.
func (u *updating) removePort(ctx context.Context, a Attachment) error {
	own, err := u.ownPorts(ctx, []Attachment{a})
	if err == nil && slices.Contains(own, a.HostName) {
		_, _, err = vsctl(ctx, ovsTimeout, "--", "--if-exists", "del-port", a.HostName)
	}
	if err != nil {
		return fmt.Errorf("remove port %s from Open vSwitch: %w", a.HostName, err)
	}
	return nil
}

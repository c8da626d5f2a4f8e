//go:build linux

package network

import (
	"context"
	"errors"
	"fmt"
	"slices"
)

// Plan works out what attaching the interfaces changes, and changes nothing. An interface that cannot be attached is an error
// here: a bad value, a name that is taken on either side, a bridge or an interface of the host that is not there.
func (n *Network) Plan(ctx context.Context, interfaces []Interface) ([]Attachment, error) {
	if err := checkAll(interfaces); err != nil {
		return nil, err
	}
	attachments := make([]Attachment, 0, len(interfaces))
	taken := make(map[string]bool) // names on the host that are planned already
	for _, i := range interfaces {
		taken[i.HostName] = true
	}
	for _, i := range interfaces {
		a := Attachment{Interface: i}
		err := refuseTaken(n.inside, i.Name)
		if err != nil {
			err = fmt.Errorf("in the container: %w", err)
		}
		switch {
		case err != nil:
		case i.Kind == Physical:
			err = n.planPhysical(&a)
		default:
			err = n.planVeth(&a, taken)
		}
		if err != nil {
			return nil, fmt.Errorf("interface %s: %w", i, err)
		}
		attachments = append(attachments, a)
	}
	if err := n.planBridges(ctx, attachments); err != nil {
		return nil, err
	}
	return attachments, nil
}

// checkAll checks each interface and what no two can have.
func checkAll(interfaces []Interface) error {
	if len(interfaces) > maxInterfaces {
		return fmt.Errorf("%d interfaces: %d are the limit", len(interfaces), maxInterfaces)
	}
	seen := make(map[string]bool, 4*len(interfaces))
	for _, i := range interfaces {
		if err := i.Check(); err != nil {
			return fmt.Errorf("interface %s: %w", i, err)
		}
		mac, _ := parseMAC(i.MAC)
		prefix, _ := parseAddress(i.Address)
		for what, value := range map[string]string{
			"name in the container": i.Name, "name on the host": i.HostName, "mac": mac.String(), "address": prefix.Addr().String(),
		} {
			if value == "" {
				continue
			}
			if seen[what+value] {
				return fmt.Errorf("interface %s: another one has the same %s", i, what)
			}
			seen[what+value] = true
		}
	}
	return nil
}

// Attach makes what is planned. Where no MAC is given, a Veth gets one that is the same whenever this container's interface of
// this name is attached, and a Physical one keeps its own. It fills in the indexes, by which Detach knows the interfaces again.
// After an error a part of it may be there; Detach takes that back.
func (n *Network) Attach(ctx context.Context, attachments []Attachment) error {
	for i := range attachments {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		a := &attachments[i]
		attach := n.attachVeth
		if a.Kind == Physical {
			attach = n.attachPhysical
		}
		if err := attach(a); err != nil {
			return fmt.Errorf("attach interface %s: %w", a, err)
		}
	}
	return n.addPorts(ctx, attachments)
}

// Detach takes the interfaces back: veth pairs are removed, in one go, and interfaces of the host come home. What is not there
// any more, or was never attached, is no error. An interface that the container has renamed is found all the same; one that
// merely has the name is left alone. An error that is ErrUnsettled or ErrElsewhere leaves nothing in the container's namespace.
func (n *Network) Detach(ctx context.Context, attachments []Attachment) error {
	var veths []Attachment
	var unsettled []error
	errs := []error{n.removePorts(ctx, attachments)}
	for _, a := range slices.Backward(attachments) {
		if a.Kind == Veth {
			veths = append(veths, a)
			continue
		}
		err := n.detachPhysical(a)
		switch {
		case errors.Is(err, ErrUnsettled), errors.Is(err, ErrElsewhere):
			unsettled = append(unsettled, fmt.Errorf("bring home interface %s: %w", a, err))
		case err != nil:
			errs = append(errs, fmt.Errorf("bring home interface %s: %w", a, err))
		}
	}
	errs = append(errs, n.detachVeths(veths))
	if err := errors.Join(errs...); err != nil {
		for _, u := range unsettled {
			err = fmt.Errorf("%w; %v", err, u) //nolint:errorlint // ErrUnsettled would say more than is true
		}
		return err
	}
	return errors.Join(unsettled...)
}

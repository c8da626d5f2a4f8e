//go:build linux

package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const bridgeType = "bridge" // what the kernel calls a Linux one

// Change is what Update changes of an interface. nil leaves a property as it is.
type Change struct {
	Address  *string // instead of the one that the interface has by its record; its other ones stay
	MAC      *string
	MTU      *int    // of both ends of a Veth
	QueueLen *int    // of both ends of a Veth
	Bridge   *string // that the host's end of a Veth is to be in, a Linux or an Open vSwitch one; "" for none
}

// apply gives the interface as it is to be. An address that is not known and stays so is none that can be checked.
func (c Change) apply(i Interface) (Interface, error) {
	wanted := i
	set(&wanted.Address, c.Address)
	set(&wanted.MAC, c.MAC)
	set(&wanted.MTU, c.MTU)
	set(&wanted.QueueLen, c.QueueLen)
	set(&wanted.Bridge, c.Bridge)
	if c.MAC != nil && *c.MAC == "" {
		return i, errors.New("mac: none is given")
	}
	checked := wanted
	if i.Address == "" && c.Address == nil {
		checked.Address = "192.0.2.1/24"
	}
	if i.Kind == Physical && i.HostName == "" {
		checked.HostName = i.Name
	}
	return wanted, checked.Check()
}

func set[T any](property, value *T) {
	if value != nil {
		*property = *value
	}
}

// Update changes an interface that is attached to a live container, and gives it as it is then. The interface i is what the
// record or List says: by Name it is found in the container, Address is the one that a new one replaces, and Bridge tells which
// Open vSwitch bridge it leaves. What has its new value already stays as it is, so that a change can be repeated. After an error
// what was changed is put back. The routes of the interface stay, except those that prefer the old address or one that is
// secondary to it; without any IPv4 address it has no IPv4 routes.
func (n *Network) Update(ctx context.Context, i Interface, change Change) (Interface, error) {
	updated, err := n.update(ctx, i, change)
	if err != nil {
		return i, fmt.Errorf("update interface %s: %w", i, err)
	}
	return updated, nil
}

func (n *Network) update(ctx context.Context, i Interface, change Change) (Interface, error) {
	wanted, err := change.apply(i)
	if err != nil {
		return i, err
	}
	ends, err := n.endsOf(i)
	if err != nil {
		return i, err
	}
	if i.Kind == Veth {
		wanted.HostName = ends[hostSide].Attrs().Name
	}
	u := &updating{Network: n, ends: ends}
	if change.MTU != nil {
		if err := u.checkMTU(*change.MTU); err != nil {
			return i, err
		}
	}
	var from, to Attachment
	if change.Bridge != nil && i.Kind == Veth {
		if from, to, err = u.planBridge(ctx, i, wanted); err != nil {
			return i, err
		}
	}
	if change.MTU != nil {
		err = u.setBoth(*change.MTU, mtuOf, (*netlink.Handle).LinkSetMTU)
	}
	if err == nil && change.QueueLen != nil {
		err = u.setBoth(*change.QueueLen, queueLenOf, (*netlink.Handle).LinkSetTxQLen)
	}
	if err == nil && change.MAC != nil {
		err = u.setMAC(wanted.MAC)
	}
	if err == nil && change.Address != nil {
		err = u.setAddress(i.Address, wanted.Address)
	}
	if err == nil && to.Kind == Veth {
		err = u.setBridge(ctx, from, to)
	}
	if err != nil {
		return i, errors.Join(err, u.putBack())
	}
	return wanted, nil
}

// The ends of an interface.
const (
	insideSide = iota
	hostSide   // of a Veth only
)

// endsOf finds the interface in the container, and the other end of a Veth on the host.
func (n *Network) endsOf(i Interface) ([]netlink.Link, error) {
	if n.inside == nil {
		return nil, errNoNamespace
	}
	link, err := linkNamed(n.inside, i.Name)
	switch {
	case err != nil:
		return nil, err
	case link == nil:
		return nil, errNoDevice
	case i.Kind != Veth:
		return []netlink.Link{link}, nil
	}
	end, err := n.hostEnd(link)
	switch {
	case err != nil:
		return nil, err
	case end == nil:
		return nil, errors.New("it is no veth with its other end on the host")
	case i.HostName != "" && i.HostName != end.Attrs().Name:
		return nil, fmt.Errorf("its other end on the host is %s, not %s", end.Attrs().Name, i.HostName)
	}
	return []netlink.Link{link, end}, nil
}

// updating is one interface while it is changed.
type updating struct {
	*Network
	ends []netlink.Link
	undo []func() error
}

// do makes one change. Its undo runs also when only a part of it was made.
func (u *updating) do(change, undo func() error) error {
	u.undo = append(u.undo, undo)
	return change()
}

// putBack undoes all changes, the last one first.
func (u *updating) putBack() error {
	var errs []error
	for _, undo := range slices.Backward(u.undo) {
		if err := undo(); err != nil {
			errs = append(errs, fmt.Errorf("put back: %w", err))
		}
	}
	return errors.Join(errs...)
}

func (u *updating) handle(side int) *netlink.Handle {
	if side == hostSide {
		return u.host
	}
	return u.inside
}

// checkMTU refuses one with which the kernel would take IPv6 addresses away, without a word.
func (u *updating) checkMTU(mtu int) error {
	if mtu >= minMTU6 {
		return nil
	}
	for side, link := range u.ends {
		list, err := addressesOf(u.handle(side), link.Attrs().Index)
		if err != nil {
			return err
		}
		for _, a := range list {
			if a.IP.To4() == nil && a.Scope == unix.RT_SCOPE_UNIVERSE {
				return fmt.Errorf("mtu %d: %s has the IPv6 address %s, which needs %d or more: remove the address first",
					mtu, link.Attrs().Name, a.IPNet, minMTU6)
			}
		}
	}
	return nil
}

func mtuOf(a *netlink.LinkAttrs) int      { return a.MTU }
func queueLenOf(a *netlink.LinkAttrs) int { return a.TxQLen }

// setBoth sets a number of each end that has another one.
func (u *updating) setBoth(
	value int, get func(*netlink.LinkAttrs) int, put func(*netlink.Handle, netlink.Link, int) error,
) error {
	for side, link := range u.ends {
		was := get(link.Attrs())
		if was == value {
			continue
		}
		err := u.do(
			func() error { return put(u.handle(side), link, value) },
			func() error { return put(u.handle(side), link, was) },
		)
		if err != nil {
			return fmt.Errorf("set %d for %s: %w", value, link.Attrs().Name, err)
		}
	}
	return nil
}

func (u *updating) setMAC(s string) error {
	mac, err := parseMAC(s)
	if err != nil {
		return err
	}
	link := u.ends[insideSide]
	was := slices.Clone(link.Attrs().HardwareAddr)
	if slices.Equal(mac, was) {
		return nil
	}
	setTo := func(mac net.HardwareAddr) func() error {
		return func() error { return u.inside.LinkSetHardwareAddr(link, mac) }
	}
	if err = u.do(setTo(mac), setTo(was)); errors.Is(err, unix.EBUSY) {
		err = fmt.Errorf("%w (its driver wants it to be down for that)", err)
	}
	if err != nil {
		return fmt.Errorf("set mac %s: %w", s, err)
	}
	return nil
}

func (u *updating) setAddress(old, wanted string) error {
	index := u.ends[insideSide].Attrs().Index
	list, err := addressesOf(u.inside, index)
	if err != nil {
		return err
	}
	if old, err = among(list, old); err != nil {
		return err
	}
	had, err := among(list, wanted)
	if err != nil {
		return err
	}
	back := wanted
	if had != "" {
		back, wanted = "", had
	}
	err = u.do(
		func() error { return replaceAddress(u.inside, index, old, wanted) },
		func() error { return replaceAddress(u.inside, index, back, old) },
	)
	if err != nil {
		return fmt.Errorf("set address %s: %w", wanted, err)
	}
	return nil
}

// among gives the address as it is in the list, "" when it is not there.
func among(list []netlink.Addr, s string) (string, error) {
	if s == "" {
		return "", nil
	}
	prefix, err := parseAddress(s)
	if err != nil || !slices.ContainsFunc(list, func(a netlink.Addr) bool { return a.IPNet.String() == prefix.String() }) {
		return "", err
	}
	return prefix.String(), nil
}

func addressesOf(handle *netlink.Handle, index int) ([]netlink.Addr, error) {
	list, err := dump(func() ([]netlink.Addr, error) { return handle.AddrList(linkOf(index), netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	return list, nil
}

// replaceAddress puts one address in the place of another one; "" is none. Without any IPv4 address an interface loses its IPv4
// routes. So the new one comes first, and in the network of the old one as that of a single host, since it would be secondary
// there and go with the old one.
func replaceAddress(handle *netlink.Handle, index int, old, wanted string) error {
	switch {
	case old == wanted:
		return nil
	case old == "":
		return addAddress(handle, index, wanted)
	case wanted == "":
		return deleteAddress(handle, index, old)
	}
	was, errWas := parseAddress(old)
	prefix, err := parseAddress(wanted)
	if err = errors.Join(errWas, err); err != nil {
		return err
	}
	if prefix.Addr().Is6() && prefix.Addr() == was.Addr() { // such an address has one prefix length
		return errors.Join(deleteAddress(handle, index, old), addAddress(handle, index, wanted))
	}
	secondaries, err := secondariesOf(handle, index, was)
	if err != nil {
		return err
	}
	first := prefix
	if prefix.Addr().Is4() && prefix.Masked() == was.Masked() {
		first = netip.PrefixFrom(prefix.Addr(), prefix.Addr().BitLen())
	}
	if err := addAddress(handle, index, first.String()); err != nil {
		return err
	}
	for _, a := range secondaries { // the kernel does it as well, or makes one of them the primary one
		err = errors.Join(err, ignoreNone(handle.AddrDel(linkOf(index), &a)))
	}
	err = errors.Join(err, deleteAddress(handle, index, old), addAddress(handle, index, wanted))
	if first != prefix {
		err = errors.Join(err, deleteAddress(handle, index, first.String()))
	}
	for _, a := range secondaries {
		if errAdd := handle.AddrAdd(linkOf(index), &a); errAdd != nil && !errors.Is(errAdd, unix.EEXIST) {
			err = errors.Join(err, fmt.Errorf("add address %s again: %w", a.IPNet, errAdd))
		}
	}
	return err
}

// secondariesOf gives the addresses that the interface has after a primary one in its network.
func secondariesOf(handle *netlink.Handle, index int, primary netip.Prefix) ([]netlink.Addr, error) {
	list, err := addressesOf(handle, index)
	var secondaries []netlink.Addr
	for _, a := range list {
		prefix, errPrefix := netip.ParsePrefix(a.IPNet.String())
		switch {
		case errPrefix != nil || prefix.Addr().Is6() || prefix.Masked() != primary.Masked():
		case a.Flags&unix.IFA_F_SECONDARY != 0 && prefix == primary:
			return nil, nil
		case a.Flags&unix.IFA_F_SECONDARY != 0:
			secondaries = append(secondaries, a)
		}
	}
	return secondaries, err
}

func deleteAddress(handle *netlink.Handle, index int, s string) error {
	prefix, err := parseAddress(s)
	if err != nil {
		return err
	}
	if err := ignoreNone(handle.AddrDel(linkOf(index), &netlink.Addr{IPNet: ipNet(prefix)})); err != nil {
		return fmt.Errorf("delete address %s: %w", s, err)
	}
	return nil
}

// ignoreNone takes an address that is not there for deleted.
func ignoreNone(err error) error {
	if errors.Is(err, unix.EADDRNOTAVAIL) {
		return nil
	}
	return err
}

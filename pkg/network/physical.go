//go:build linux

package network

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// bound are the types of interfaces that the kernel keeps in the namespace that they were made in.
var bound = []string{"bridge", "bond", "team", "vrf", "hsr", "openvswitch"}

// pairTypes are those whose Lower is the other end of a pair, so that neither sits on the other.
var pairTypes = []string{vethType, "netkit", "vxcan"}

func (n *Network) hostPlace() place   { return place{n.host, n.hostSocket} }
func (n *Network) insidePlace() place { return place{n.inside, n.insideSocket} }

// planPhysical finds the interface on the host and notes all that it is.
func (n *Network) planPhysical(a *Attachment) error {
	link, err := n.host.LinkByName(a.HostName)
	link, err = lookUp(link, err)
	switch {
	case err != nil:
		return fmt.Errorf("look for interface %s: %w", a.HostName, err)
	case link == nil:
		return fmt.Errorf("the host has no interface %s", a.HostName)
	case link.Attrs().Name != a.HostName:
		return fmt.Errorf("%s is an alternative name of the host's interface %s; use that one", a.HostName, link.Attrs().Name)
	}
	for _, refuse := range []func(netlink.Link) error{
		refuseType, n.refuseTCX, n.refuseMember, n.refuseLower, n.refuseInside, n.refuseDefaultRoute,
	} {
		if err := refuse(link); err != nil {
			return err
		}
	}
	a.Original = originalOf(link)
	return nil
}

func originalOf(link netlink.Link) *Original {
	attrs := link.Attrs()
	o := &Original{
		Index:        attrs.Index,
		Type:         link.Type(),
		MAC:          attrs.HardwareAddr.String(),
		PermanentMAC: attrs.PermHWAddr.String(),
		MTU:          attrs.MTU,
		QueueLen:     attrs.TxQLen,
		Up:           attrs.RawFlags&unix.IFF_UP != 0,
		Alias:        strings.ToValidUTF8(attrs.Alias, "?"), // it is kept as JSON
		AltNames:     attrs.AltNames,
		Flags:        attrs.RawFlags & settableFlags,
		Group:        attrs.Group,
		Lower:        lowerOf(link),
		Device:       deviceOf(link),
		LowerAway:    attrs.NetNsID >= 0,
		Limits:       limitsOf(link),
	}
	if vlan, ok := link.(*netlink.Vlan); ok {
		o.VLAN = vlan.VlanId
	}
	return o
}

func refuseType(link netlink.Link) error {
	attrs := link.Attrs()
	switch {
	case attrs.RawFlags&unix.IFF_LOOPBACK != 0:
		return fmt.Errorf("%s is the loopback interface", attrs.Name)
	case slices.Contains(bound, link.Type()):
		return fmt.Errorf("%s is a %s, which cannot be moved", attrs.Name, link.Type())
	case attrs.Xdp != nil && attrs.Xdp.Attached:
		return fmt.Errorf("%s has an XDP program of the host, which would not come home; detach it first", attrs.Name)
	}
	return nil
}

// refuseMember refuses bridge ports, bond members and what else has a master.
func (n *Network) refuseMember(link netlink.Link) error {
	attrs := link.Attrs()
	if attrs.MasterIndex == 0 {
		return nil
	}
	master, err := linkAt(n.host, attrs.MasterIndex)
	if err != nil {
		return err
	}
	if master == nil {
		return fmt.Errorf("%s belongs to interface %d; remove it from there first", attrs.Name, attrs.MasterIndex)
	}
	return fmt.Errorf("%s belongs to the %s %s; remove it from there first", attrs.Name, master.Type(), master.Attrs().Name)
}

// refuseLower refuses what another interface of the host sits on: that would lose its connection.
func (n *Network) refuseLower(link netlink.Link) error {
	upper, err := n.hostPlace().uppers(link.Attrs().Index)
	if err != nil || len(upper) == 0 {
		return err
	}
	return fmt.Errorf("the host's %s %s sits on %s; remove it first", upper[0].Type(), upper[0].Attrs().Name, link.Attrs().Name)
}

// refuseInside refuses what sits on an interface of the container or has its other end there: once in the container it could not
// be told from what the container has made.
func (n *Network) refuseInside(link netlink.Link) error {
	inside, err := n.otherEndInside(link)
	if err != nil || !inside {
		return err
	}
	return fmt.Errorf("%s is connected to interface %d of the container", link.Attrs().Name, lowerOf(link))
}

// uppers gives those that sit on an interface of the same namespace. The kernel does not tell about other namespaces.
func (p place) uppers(index int) ([]netlink.Link, error) {
	links, err := p.all()
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	return slices.DeleteFunc(links, func(l netlink.Link) bool {
		return lowerOf(l) != index || l.Attrs().NetNsID >= 0 || slices.Contains(pairTypes, l.Type())
	}), nil
}

// refuseDefaultRoute refuses the interface that the host is reached through.
func (n *Network) refuseDefaultRoute(link netlink.Link) error {
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := dump(func() ([]netlink.Route, error) {
			return n.host.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
		})
		if err != nil {
			return fmt.Errorf("list routes of the host: %w", err)
		}
		if slices.ContainsFunc(routes, func(r netlink.Route) bool { return isDefaultVia(r, link.Attrs().Index) }) {
			return fmt.Errorf("the host's default route goes through %s", link.Attrs().Name)
		}
	}
	return nil
}

func isDefaultVia(r netlink.Route, index int) bool {
	if r.Dst != nil {
		if ones, _ := r.Dst.Mask.Size(); ones != 0 {
			return false
		}
	}
	return r.LinkIndex == index ||
		slices.ContainsFunc(r.MultiPath, func(hop *netlink.NexthopInfo) bool { return hop.LinkIndex == index })
}

// attachPhysical moves the interface into the container, by way of the transit namespace: the kernel does not take back a move
// when the new name is taken, so it gets the name where it cannot be. A name that is taken in the container leaves it in
// transit.
func (n *Network) attachPhysical(a *Attachment) (err error) {
	link, err := n.current(a)
	if err != nil {
		return err
	}
	t, err := n.makeTransit()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, n.leaveTransit(t)) }()
	index, err := t.receive(n.hostPlace(), link.Attrs().Index, 0)
	if err != nil {
		return fmt.Errorf("move it from the host: %w", err)
	}
	if err := t.prepare(a, index); err != nil {
		return err
	}
	err = t.handle.LinkSetNsFd(linkOf(index), int(n.ns.Fd()))
	if errors.Is(err, unix.EEXIST) {
		err = fmt.Errorf("%s: %w", a.Name, ErrExist)
	}
	if err != nil {
		return fmt.Errorf("move it to the container: %w", err)
	}
	if err := n.arrive(a); err != nil {
		return err
	}
	if err := addAddress(n.inside, a.Index, a.Address); err != nil {
		return err
	}
	return n.inside.LinkSetUp(linkOf(a.Index))
}

// current makes sure that what was planned still holds.
func (n *Network) current(a *Attachment) (netlink.Link, error) {
	link, err := linkNamed(n.host, a.HostName)
	if err != nil {
		return nil, err
	}
	if link == nil || a.Original == nil || link.Attrs().Index != a.Original.Index || link.Type() != a.Original.Type {
		return nil, fmt.Errorf("the host's interface %s is not the one any more that was planned with", a.HostName)
	}
	return link, nil
}

// prepare makes the interface what the container is to get.
func (t *transit) prepare(a *Attachment, index int) error {
	mac, err := parseMAC(a.MAC)
	if err != nil {
		return err
	}
	link, err := linkAt(t.handle, index)
	if err != nil || link == nil {
		return errors.Join(err, fmt.Errorf("interface %s has gone", a.HostName))
	}
	wanted := settings{mtu: a.MTU, queueLen: a.QueueLen, mac: mac, flags: link.Attrs().RawFlags & settableFlags, name: a.Name}
	if mac == nil {
		wanted.mac = link.Attrs().HardwareAddr
	}
	return t.change(link, wanted)
}

// arrive notes the index in the container. The container may have renamed the interface by now.
func (n *Network) arrive(a *Attachment) error {
	link, err := n.findInside(*a)
	if err != nil {
		return err
	}
	if link == nil {
		return errors.New("it has gone from where it was moved to in the container")
	}
	a.Index = link.Attrs().Index
	return nil
}

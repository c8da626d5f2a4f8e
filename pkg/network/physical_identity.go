//go:build linux

package network

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// lowerOf gives the index of what the interface sits on, in whatever namespace that is, or of its other end. 0 is nothing.
func lowerOf(link netlink.Link) int {
	attrs := link.Attrs()
	if attrs.ParentIndex == attrs.Index && !slices.Contains(pairTypes, link.Type()) {
		return 0 // the kernel says this of what sits on nothing but remembers the namespace that it was made in
	}
	return attrs.ParentIndex
}

func deviceOf(link netlink.Link) string {
	attrs := link.Attrs()
	if attrs.ParentDev == "" || attrs.ParentDevBus == "" {
		return ""
	}
	return attrs.ParentDevBus + "/" + attrs.ParentDev
}

// fits compares what nobody can change about an interface. For hardware that is proof. An interface without hardware and without
// a lower one, such as a dummy, is the equal of any other of its type.
func (o *Original) fits(link netlink.Link) bool {
	vlan := 0
	if v, ok := link.(*netlink.Vlan); ok {
		vlan = v.VlanId
	}
	return link.Type() == o.Type && link.Attrs().PermHWAddr.String() == o.PermanentMAC && deviceOf(link) == o.Device &&
		vlan == o.VLAN && (lowerOf(link) != 0) == (o.Lower != 0)
}

// isHardware tells whether fits is proof. A container cannot make what has no type of rtnetlink(7).
func (o *Original) isHardware() bool {
	return o.Type == (&netlink.Device{}).Type() && (o.PermanentMAC != "" || o.Device != "")
}

func (a Attachment) hasMAC(link netlink.Link) bool {
	is := link.Attrs().HardwareAddr
	given, err := parseMAC(a.MAC)
	return is.String() == a.Original.MAC || err == nil && given != nil && bytes.Equal(is, given)
}

// findAtHome finds the interface on the host: under its name, or under another one that this package or, for hardware, the kernel
// has given it.
func (n *Network) findAtHome(a Attachment) (netlink.Link, error) {
	o := a.Original
	links, err := n.hostPlace().all()
	if err != nil {
		return nil, fmt.Errorf("list interfaces of the host: %w", err)
	}
	links = slices.DeleteFunc(links, func(link netlink.Link) bool {
		attrs := link.Attrs()
		same := o.isHardware() || attrs.Index == o.Index || attrs.HardwareAddr.String() == o.MAC
		return !same || !o.fits(link) || attrs.NetNsID < 0 && lowerOf(link) != o.Lower
	})
	if link := only(links, func(link netlink.Link) bool { return link.Attrs().Name == a.HostName }); link != nil {
		return link, nil
	}
	return only(links, func(link netlink.Link) bool { return o.isHardware() || isFreeHomeName(link.Attrs().Name, a.HostName) }), nil
}

func isFreeHomeName(name, hostName string) bool {
	prefix := freeHomePrefix(hostName)
	return strings.HasPrefix(name, prefix) && len(name) == len(prefix)+4
}

// findInside finds the interface in the container, where everything but what it is may have been changed, and another one may
// have its name, its MAC and even its index.
func (n *Network) findInside(a Attachment) (netlink.Link, error) {
	if n.inside == nil {
		return nil, nil
	}
	links, err := n.insidePlace().all()
	if err != nil {
		return nil, fmt.Errorf("list interfaces of the container: %w", err)
	}
	var fitting []netlink.Link
	for _, link := range links {
		if !a.Original.fits(link) {
			continue
		}
		if ok, err := n.onSameLower(a.Original, link); err != nil {
			return nil, err
		} else if ok {
			fitting = append(fitting, link)
		}
	}
	if link := only(fitting, func(l netlink.Link) bool { return l.Attrs().Index == a.Index }); link != nil {
		return link, nil
	}
	return only(fitting, func(l netlink.Link) bool {
		switch {
		case a.Original.isHardware():
			return true
		case a.Original.Lower != 0: // it was in another namespace meanwhile, or a process was killed before it noted the index
			return a.hasMAC(l)
		default:
			return a.Index == 0 && l.Attrs().Name == a.Name && a.hasMAC(l)
		}
	}), nil
}

// only gives the one that is meant, nil when there is none or more than one.
func only(links []netlink.Link, is func(netlink.Link) bool) netlink.Link {
	var found netlink.Link
	for _, link := range links {
		if !is(link) {
			continue
		}
		if found != nil {
			return nil
		}
		found = link
	}
	return found
}

// onSameLower tells whether an interface of the container sits on what the original sat on, or has the same other end. That is
// not in the container, where it could have been made for the purpose. As long as it is on the host, it has to be that one;
// it may have been moved away. What was in a third namespace from the start is known by its index there.
func (n *Network) onSameLower(o *Original, link netlink.Link) (bool, error) {
	if o.Lower == 0 {
		return true, nil
	}
	attrs := link.Attrs()
	if attrs.NetNsID < 0 {
		return false, nil
	}
	host, err := n.hostSeenInside()
	if err != nil {
		return false, err
	}
	if o.LowerAway || attrs.NetNsID == host {
		return lowerOf(link) == o.Lower && o.LowerAway == (attrs.NetNsID != host), nil
	}
	lower, err := linkAt(n.host, o.Lower)
	return lower == nil, err
}

// hostSeenInside gives the id that the container's namespace has for the host's, -1 for none.
func (n *Network) hostSeenInside() (int, error) {
	id, err := n.inside.GetNetNsIdByFd(int(n.hostNS.Fd()))
	if err != nil {
		return 0, fmt.Errorf("ask for the id of the host's network namespace: %w", err)
	}
	return id, nil
}

// find finds the interface in transit. All that is there was moved there by this package, and has a name that tells for which
// attachment.
func (t *transit) find(a Attachment) (netlink.Link, error) {
	links, err := t.links()
	if err != nil {
		return nil, err
	}
	return only(links, func(link netlink.Link) bool {
		name := link.Attrs().Name
		return a.Original.fits(link) && (strings.HasPrefix(name, stagePrefix(a.HostName)) ||
			(name == a.HostName || name == a.Name || isFreeHomeName(name, a.HostName)) && a.hasMAC(link))
	}), nil
}

// findPhysical finds an interface of the host that another program has moved into the container, nil when it is not provable
// that it is one. known are attachments that are not meant. Under another name it is only found when no other one can be meant.
//
// The proof is that the container cannot have made it: hardware, or something that sits on an interface of the host. A container
// that can make such things itself, since it has capabilities in the host's user namespace, is not confined anyway. The other
// end of a veth is no proof unless the name is right: the interfaces that the container was given look the same.
func (n *Network) findPhysical(i Interface, known ...Attachment) (*Attachment, error) {
	if n.inside == nil {
		return nil, nil
	}
	host, err := n.hostSeenInside()
	if err != nil {
		return nil, err
	}
	links, err := n.insidePlace().all()
	if err != nil {
		return nil, fmt.Errorf("list interfaces of the container: %w", err)
	}
	candidates := slices.DeleteFunc(links, func(link netlink.Link) bool {
		return slices.ContainsFunc(known, func(a Attachment) bool { return a.Index == link.Attrs().Index }) || !isFromHost(link, host)
	})
	link := theOneNamed(candidates, i.Name)
	if link == nil {
		return nil, nil
	}
	a := &Attachment{Interface: i, Index: link.Attrs().Index, Original: originalOf(link)}
	o := a.Original
	if o.PermanentMAC != "" {
		o.MAC = o.PermanentMAC
	}
	o.Index, o.Up, o.Alias, o.AltNames, o.Group, o.Limits = 0, true, "", nil, 0, Limits{}
	o.LowerAway = o.LowerAway && link.Attrs().NetNsID != host
	o.Flags &^= unix.IFF_PROMISC | unix.IFF_ALLMULTI
	return a, nil
}

func theOneNamed(candidates []netlink.Link, name string) netlink.Link {
	isPair := func(l netlink.Link) bool { return slices.Contains(pairTypes, l.Type()) }
	for _, link := range candidates {
		if link.Attrs().Name == name && !isPair(link) {
			return link
		}
	}
	single := only(candidates, func(l netlink.Link) bool { return !isPair(l) })
	if single == nil && !slices.ContainsFunc(candidates, func(l netlink.Link) bool { return !isPair(l) }) {
		single = only(candidates, func(l netlink.Link) bool { return l.Attrs().Name == name })
	}
	return single
}

func isFromHost(link netlink.Link, host int) bool {
	attrs := link.Attrs()
	if attrs.NetNsID >= 0 && attrs.NetNsID == host {
		return true
	}
	// Line disciplines of terminals make interfaces without a type as well, but no such ones.
	network := attrs.EncapType == "ether" || attrs.EncapType == "infiniband"
	return network && link.Type() == (&netlink.Device{}).Type() && (deviceOf(link) != "" || attrs.PermHWAddr != nil)
}

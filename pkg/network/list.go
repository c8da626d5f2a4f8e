//go:build linux

package network

import (
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// List gives the interfaces of the container as they are, without lo. A Veth is one whose other end is on the host; anything else
// is listed as Physical, whether it was moved in or made in the container, and has no HostName. Address is the first one that is
// not just for the link, "" for none. Bridge is the Linux bridge that a Veth's host end is in; which Open vSwitch bridge it is in
// is only in the switch's database, and is not told.
func (n *Network) List() ([]Attachment, error) {
	if n.inside == nil {
		return nil, errNoNamespace
	}
	all, err := dump(n.inside.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list the container's interfaces: %w", err)
	}
	addresses, err := n.firstAddresses()
	if err != nil {
		return nil, err
	}
	var attachments []Attachment
	for _, link := range all {
		if link.Attrs().RawFlags&unix.IFF_LOOPBACK != 0 {
			continue
		}
		a, err := n.describe(link)
		if err != nil {
			return nil, fmt.Errorf("interface %s: %w", link.Attrs().Name, err)
		}
		a.Address = addresses[a.Index]
		attachments = append(attachments, a)
	}
	return attachments, nil
}

// describe leaves the address to others.
func (n *Network) describe(link netlink.Link) (Attachment, error) {
	attrs := link.Attrs()
	a := Attachment{Index: attrs.Index, Interface: Interface{
		Kind: Physical, Name: attrs.Name, MAC: attrs.HardwareAddr.String(), MTU: attrs.MTU, QueueLen: attrs.TxQLen,
	}}
	end, err := n.hostEnd(link)
	if err != nil || end == nil {
		return a, err
	}
	a.Kind, a.HostName, a.HostIndex = Veth, end.Attrs().Name, end.Attrs().Index
	bridge, err := n.linuxBridge(end)
	if err == nil && bridge != nil {
		a.Bridge, a.bridge = bridge.Attrs().Name, bridge.Attrs().Index
	}
	return a, err
}

// hostEnd gives the other end of a veth in the container, nil when it is not on the host. Both ends have to name each other: the
// index of one does not say which namespace it is of.
func (n *Network) hostEnd(link netlink.Link) (netlink.Link, error) {
	if link.Type() != vethType {
		return nil, nil
	}
	end, err := linkAt(n.host, link.Attrs().ParentIndex)
	if err != nil || end == nil || end.Type() != vethType || end.Attrs().ParentIndex != link.Attrs().Index {
		return nil, err
	}
	if inside, err := n.otherEndInside(end); err != nil || !inside {
		return nil, err
	}
	return end, nil
}

// linuxBridge gives the bridge that the host's interface is in, nil for none.
func (n *Network) linuxBridge(link netlink.Link) (netlink.Link, error) {
	if link.Attrs().MasterIndex == 0 {
		return nil, nil
	}
	master, err := linkAt(n.host, link.Attrs().MasterIndex)
	if err != nil || master == nil || master.Type() != bridgeType {
		return nil, err
	}
	return master, nil
}

// firstAddresses gives the first global address of each of the container's interfaces, by index.
func (n *Network) firstAddresses() (map[int]string, error) {
	all, err := dump(func() ([]netlink.Addr, error) { return n.inside.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list the container's addresses: %w", err)
	}
	first := make(map[int]string)
	for _, a := range all {
		if _, known := first[a.LinkIndex]; !known && a.Scope == unix.RT_SCOPE_UNIVERSE {
			first[a.LinkIndex] = a.IPNet.String()
		}
	}
	return first, nil
}

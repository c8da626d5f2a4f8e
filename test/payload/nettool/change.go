//go:build linux

package nettool

import (
	"errors"
	"fmt"
	"net"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Add makes an interface that is up: bridge, ifb, or veth, whose other end is called NAMEp. A bridge gets an address of its own,
// since otherwise it has that of one of its ports.
func Add(kind, name string) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	var link netlink.Link
	switch kind {
	case "bridge":
		attrs.HardwareAddr = net.HardwareAddr{2, 0, 0, 0xbb, 0, name[len(name)-1]}
		link = &netlink.Bridge{LinkAttrs: attrs}
	case "ifb":
		link = &netlink.Ifb{LinkAttrs: attrs}
	case "veth":
		link = &netlink.Veth{LinkAttrs: attrs, PeerName: name + "p"}
	default:
		return fmt.Errorf("kind %q: want bridge, ifb or veth", kind)
	}
	return AddLink(link)
}

// AddLink makes an interface that is up.
func AddLink(link netlink.Link) error {
	if err := netlink.LinkAdd(link); err != nil {
		return fmt.Errorf("add %s %s: %w", link.Type(), link.Attrs().Name, err)
	}
	return netlink.LinkSetUp(link)
}

// Change does something to the interface of this name.
func Change(name string, change func(link netlink.Link) error) error {
	link, err := netlink.LinkByName(name)
	if err == nil {
		err = change(link)
	}
	if err != nil {
		return fmt.Errorf("change interface %s: %w", name, err)
	}
	return nil
}

// Rename also works on kernels that rename only what is down.
func Rename(name, newName string) error {
	return Change(name, func(link netlink.Link) error {
		for _, step := range []func() error{
			func() error { return netlink.LinkSetDown(link) },
			func() error { return netlink.LinkSetName(link, newName) },
			func() error { return netlink.LinkSetUp(link) },
		} {
			if err := step(); err != nil {
				return err
			}
		}
		return nil
	})
}

// ForgetNeighbours drops what the namespace remembers of the hardware addresses of others.
func ForgetNeighbours() error {
	found, err := complete(func() ([]netlink.Neigh, error) { return netlink.NeighList(0, netlink.FAMILY_ALL) })
	if err != nil {
		return fmt.Errorf("list neighbours: %w", err)
	}
	for _, n := range found {
		if n.State&(netlink.NUD_PERMANENT|netlink.NUD_NOARP) != 0 {
			continue
		}
		if err := netlink.NeighDel(&n); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("forget neighbour %s: %w", n.IP, err)
		}
	}
	return nil
}

// AddAddress gives an interface an address that works at once.
func AddAddress(name, cidr string) error {
	address, err := netlink.ParseAddr(cidr)
	if err != nil {
		return err
	}
	if address.IP.To4() == nil {
		address.Flags = unix.IFA_F_NODAD
	}
	return Change(name, func(link netlink.Link) error { return netlink.AddrAdd(link, address) })
}

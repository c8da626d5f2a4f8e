//go:build linux

// Package nettool is what tests see of the network namespace that they call it in, and do to it: the test itself on the host, and
// the payload in a container.
package nettool

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Link is a network interface.
type Link struct {
	Name     string
	Kind     string // as in ip -d link: veth, bridge, …; "device" for one that has none
	MAC      string
	MTU      int
	QueueLen int
	Up       bool
	Master   string // bridge that it is in
	Alias    string
	AltNames []string
	// Addresses are without those that the kernel gives by itself, and takes its time for: link-local ones.
	Addresses []string
	Index     int
	Peer      int // index of a veth's other end, or of the interface that a macvlan is on, in their namespace
}

// Links lists the interfaces by name.
func Links() ([]Link, error) { return LinksOf(&netlink.Handle{}) }

// LinksOf is Links for the namespace that the handle was opened in.
func LinksOf(handle *netlink.Handle) ([]Link, error) {
	found, err := complete(handle.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	names := make(map[int]string, len(found))
	for _, link := range found {
		names[link.Attrs().Index] = link.Attrs().Name
	}
	addresses, err := addressesOf(handle)
	if err != nil {
		return nil, err
	}
	links := make([]Link, 0, len(found))
	for _, link := range found {
		a := link.Attrs()
		links = append(links, Link{
			Name: a.Name, Kind: link.Type(), MAC: a.HardwareAddr.String(), MTU: a.MTU, QueueLen: a.TxQLen,
			Up: a.RawFlags&unix.IFF_UP != 0, Master: names[a.MasterIndex], Alias: a.Alias, AltNames: a.AltNames,
			Addresses: addresses[a.Index], Index: a.Index, Peer: a.ParentIndex,
		})
	}
	slices.SortFunc(links, func(a, b Link) int { return strings.Compare(a.Name, b.Name) })
	return links, nil
}

func addressesOf(handle *netlink.Handle) (map[int][]string, error) {
	found, err := complete(func() ([]netlink.Addr, error) { return handle.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	addresses := map[int][]string{}
	for _, a := range found {
		if !a.IP.IsLinkLocalUnicast() {
			addresses[a.LinkIndex] = append(addresses[a.LinkIndex], a.IPNet.String())
		}
	}
	return addresses, nil
}

// Routes lists the routes of the main table as ip route prints them, sorted, without those to link-local addresses.
func Routes() ([]string, error) {
	found, err := complete(func() ([]netlink.Route, error) { return netlink.RouteList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	var routes []string
	for _, r := range found {
		if r.Dst != nil && (r.Dst.IP.IsLinkLocalUnicast() || r.Dst.IP.IsMulticast()) {
			continue
		}
		link, err := netlink.LinkByIndex(r.LinkIndex)
		if err != nil {
			return nil, fmt.Errorf("interface of route %s: %w", r, err)
		}
		text := fmt.Sprint(r.Dst)
		if r.Gw != nil {
			text += fmt.Sprint(" via ", r.Gw)
		}
		text += " dev " + link.Attrs().Name
		if r.Src != nil {
			text += fmt.Sprint(" src ", r.Src)
		}
		routes = append(routes, text)
	}
	slices.Sort(routes)
	return routes, nil
}

// complete repeats a listing that others have changed under its hands.
func complete[T any](list func() ([]T, error)) ([]T, error) {
	for range 20 {
		if found, err := list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			return found, err
		}
	}
	return list()
}

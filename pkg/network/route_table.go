//go:build linux

package network

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// metric6 is what the kernel gives an IPv6 route that is added without one, IP6_RT_PRIO_USER. An IPv4 one has 0.
const metric6 = 1024

// collides tells whether the kernel takes the entry and the route for the same one: it would not add it.
func (p parsedRoute) collides(e netlink.Route) bool {
	metric := 0
	if p.dest.Addr().Is6() {
		metric = metric6
	}
	return destOf(e) == p.dest && e.Priority == metric && e.Tos == 0
}

// is tells whether the entry does all that the route asks for. Who has added it does not matter; a route that the kernel makes
// together with an address always prefers that address.
func (p parsedRoute) is(e netlink.Route) bool {
	src := addrOf(e.Src)
	return p.collides(e) && isPlain(e) && gatewayOf(e) == p.gateway && (p.index == 0 || p.index == e.LinkIndex) &&
		(src == p.src || !p.src.IsValid() && e.Protocol == unix.RTPROT_KERNEL)
}

// presentIn tells whether the route is among the entries. Another one in its place is an error.
func (p parsedRoute) presentIn(entries []netlink.Route) (bool, error) {
	taken := false
	for _, e := range entries {
		if p.is(e) {
			return true, nil
		}
		taken = taken || p.collides(e)
	}
	if taken {
		return false, errors.New("the container has another route to this destination; delete that one first")
	}
	return false, nil
}

// isPlain tells whether the entry is one that a Route can describe.
func isPlain(e netlink.Route) bool {
	return e.Type == unix.RTN_UNICAST && len(e.MultiPath) == 0 && e.LinkIndex != 0 && e.Encap == nil
}

// routesTo gives the entries of the main table to the same destinations.
func (n *Network) routesTo(routes []parsedRoute) (map[netip.Prefix][]netlink.Route, error) {
	found := make(map[netip.Prefix][]netlink.Route, len(routes))
	is4, is6 := false, false
	for _, p := range routes {
		found[p.dest] = nil
		is4, is6 = is4 || p.dest.Addr().Is4(), is6 || p.dest.Addr().Is6()
	}
	var families []int
	if is4 {
		families = append(families, netlink.FAMILY_V4)
	}
	if is6 {
		families = append(families, netlink.FAMILY_V6)
	}
	entries, err := n.entries(families, func(e netlink.Route) bool {
		_, wanted := found[destOf(e)]
		return wanted
	})
	for _, e := range entries {
		found[destOf(e)] = append(found[destOf(e)], e)
	}
	return found, err
}

// entries gives those of the container's main table that are wanted; the whole of it may be large.
func (n *Network) entries(families []int, wanted func(netlink.Route) bool) ([]netlink.Route, error) {
	if n.inside == nil {
		return nil, errNoNamespace
	}
	var all []netlink.Route
	for _, family := range families {
		entries, err := dump(func() (entries []netlink.Route, err error) {
			err = n.inside.RouteListFilteredIter(family, &netlink.Route{}, 0, func(e netlink.Route) bool {
				if wanted(e) {
					entries = append(entries, e)
				}
				return true
			})
			return entries, err
		})
		if err != nil {
			return nil, fmt.Errorf("list the container's routes: %w", err)
		}
		all = append(all, entries...)
	}
	return all, nil
}

// dump repeats a listing that came out inconsistent because of a change meanwhile. A container that changes something all the
// time does not hold it for ever.
func dump[T any](list func() (T, error)) (T, error) {
	const tries = 20
	for range tries - 1 {
		if result, err := list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			return result, err
		}
	}
	return list()
}

// newRoute asks as ip-route(8) does. The answer comes with the kernel's own words.
func (n *Network) newRoute(p parsedRoute) error {
	if n.inside == nil {
		return errNoNamespace
	}
	request := n.insidePlace().request(unix.RTM_NEWROUTE)
	request.Flags |= unix.NLM_F_CREATE | unix.NLM_F_EXCL
	message := nl.NewRtMsg()
	message.Family = familyOf(p.dest.Addr())
	if !p.gateway.IsValid() {
		message.Scope = unix.RT_SCOPE_LINK
	}
	request.AddData(message)
	if p.dest.Bits() > 0 {
		message.Dst_len = uint8(p.dest.Bits())
		request.AddData(nl.NewRtAttr(unix.RTA_DST, p.dest.Addr().AsSlice()))
	}
	if p.src.IsValid() {
		request.AddData(nl.NewRtAttr(unix.RTA_PREFSRC, p.src.AsSlice()))
	}
	switch {
	case !p.gateway.IsValid():
	case p.gateway.Is4() == p.dest.Addr().Is4():
		request.AddData(nl.NewRtAttr(unix.RTA_GATEWAY, p.gateway.AsSlice()))
	default: // struct rtvia
		family := nl.Uint16Attr(uint16(familyOf(p.gateway)))
		request.AddData(nl.NewRtAttr(unix.RTA_VIA, append(family, p.gateway.AsSlice()...)))
	}
	if p.index != 0 {
		request.AddData(nl.NewRtAttr(unix.RTA_OIF, nl.Uint32Attr(uint32(p.index))))
	}
	_, err := request.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// deleteRoute removes this very entry. What is gone already, perhaps with its interface, is no error.
func (n *Network) deleteRoute(e netlink.Route) error {
	err := n.inside.RouteDel(&netlink.Route{
		Dst: e.Dst, Gw: e.Gw, Via: e.Via, Src: e.Src, LinkIndex: e.LinkIndex, Priority: e.Priority, Protocol: e.Protocol,
		Type: e.Type, Scope: e.Scope,
	})
	if err != nil && !errors.Is(err, unix.ESRCH) && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("delete route %s: %w", routeOf(e, ""), err)
	}
	return nil
}

// routeOf describes a plain entry so that parse understands it the same way.
func routeOf(e netlink.Route, device string) Route {
	r := Route{Dest: "default", Device: device}
	dest, src, gateway := destOf(e), addrOf(e.Src), gatewayOf(e)
	if inferred, err := parseDest(r.Dest, src, gateway); err != nil || inferred != dest {
		r.Dest = dest.String()
	}
	if src.IsValid() {
		r.Src = src.String()
	}
	if gateway.IsValid() {
		r.Gateway = gateway.String()
	}
	return r
}

// destOf gives the zero value for what is neither IPv4 nor IPv6.
func destOf(e netlink.Route) netip.Prefix {
	if e.Dst == nil {
		return netip.Prefix{}
	}
	ip := e.Dst.IP
	if e.Family == netlink.FAMILY_V4 {
		ip = ip.To4()
	}
	address, _ := netip.AddrFromSlice(ip)
	bits, _ := e.Dst.Mask.Size()
	return netip.PrefixFrom(address, bits)
}

func gatewayOf(e netlink.Route) netip.Addr {
	if via, ok := e.Via.(*netlink.Via); ok {
		return addrOf(via.Addr)
	}
	return addrOf(e.Gw)
}

func addrOf(ip net.IP) netip.Addr {
	address, _ := netip.AddrFromSlice(ip)
	return address
}

func familyOf(address netip.Addr) uint8 {
	if address.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

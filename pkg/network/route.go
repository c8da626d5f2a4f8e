//go:build linux

package network

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Route is a route of a container: what `ip route add DEST via GATEWAY dev DEVICE src SRC` makes, in the main table and with
// the kernel's metric.
type Route struct {
	Dest    string `json:"dest,omitempty"`    // IPv4 or IPv6 prefix, like 10.1.0.0/16; "" or "default" for every address
	Src     string `json:"src,omitempty"`     // address of the container's that it prefers there; "" for the kernel's choice
	Gateway string `json:"gateway,omitempty"` // next hop, of an IPv4 route also an IPv6 one; "" for none
	Device  string `json:"device,omitempty"`  // interface in the container; "" for the one that reaches the gateway
}

// String writes the route like ip-route(8).
func (r Route) String() string {
	s := "default"
	if r.Dest != "" {
		s = printable(r.Dest)
	}
	for _, word := range []struct{ key, value string }{{"via", r.Gateway}, {"dev", r.Device}, {"src", r.Src}} {
		if word.value != "" {
			s += " " + word.key + " " + printable(word.value)
		}
	}
	return s
}

// printable quotes what cannot be part of a route, so that it cannot pass for a message of its own.
func printable(s string) string {
	const longest = 60
	if len(s) <= longest && strconv.Quote(s) == `"`+s+`"` {
		return s
	}
	return fmt.Sprintf("%.*q", longest, s)
}

// Check tells what is wrong with the route, whatever the container is like.
func (r Route) Check() error {
	_, err := r.parse()
	return err
}

// parsedRoute is a Route as the kernel takes it. The zero value of an address is none.
type parsedRoute struct {
	dest         netip.Prefix
	src, gateway netip.Addr
	index        int // of the device; 0 for the kernel's choice
}

// parse leaves the index to others.
func (r Route) parse() (p parsedRoute, err error) {
	switch {
	case r.Src == "" && r.Gateway == "" && r.Device == "":
		return p, errors.New("it has no src, no gateway and no device; give a gateway or a device")
	case r.Gateway == "" && r.Device == "":
		return p, errors.New("src alone does not say where it leads; give a gateway or a device")
	}
	if r.Device != "lo" {
		err = checkName(r.Device)
	}
	if err == nil {
		p.src, err = parseHost("src", r.Src)
	}
	if err == nil {
		p.gateway, err = parseHost("gateway", r.Gateway)
	}
	if err == nil {
		p.dest, err = parseDest(r.Dest, p.src, p.gateway)
	}
	if err != nil {
		return p, err
	}
	return p, p.check(r.Device)
}

// check tells what is wrong with the parts together.
func (p parsedRoute) check(device string) error {
	is4 := p.dest.Addr().Is4()
	switch {
	case p.src.IsValid() && p.src.Is4() != is4:
		return fmt.Errorf("src %s is not of the family of the dest %s", p.src, p.dest)
	case p.gateway.IsValid() && p.gateway.Is4() && !is4:
		return fmt.Errorf("gateway %s is an IPv4 one, and the dest %s is not", p.gateway, p.dest)
	case p.gateway.Is6() && p.gateway.IsLinkLocalUnicast() && device == "":
		return fmt.Errorf("gateway %s is link-local: give the device as well", p.gateway)
	}
	return nil
}

// parseHost takes "" and what can be the address of one host.
func parseHost(what, s string) (netip.Addr, error) {
	if s == "" {
		return netip.Addr{}, nil
	}
	address, err := netip.ParseAddr(s)
	switch {
	case err != nil || address.Zone() != "":
		return netip.Addr{}, fmt.Errorf("%s %.60q: want an IP address, like 10.0.0.1", what, s)
	case address.IsUnspecified() || address.IsMulticast() || address.Is4In6(),
		address == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return netip.Addr{}, fmt.Errorf("%s %s: not the address of one host", what, s)
	}
	return address, nil
}

// parseDest takes a prefix as the kernel does: it masks an IPv6 one, and refuses an IPv4 one with more bits than its length. A
// default route is of the family of its other parts.
func parseDest(s string, src, gateway netip.Addr) (netip.Prefix, error) {
	if s == "" || s == "default" {
		if src.Is6() || gateway.Is6() && !src.Is4() {
			return netip.PrefixFrom(netip.IPv6Unspecified(), 0), nil
		}
		return netip.PrefixFrom(netip.IPv4Unspecified(), 0), nil
	}
	prefix, err := netip.ParsePrefix(s)
	if err != nil || prefix.Addr().Is4In6() {
		return netip.Prefix{}, fmt.Errorf("dest %.60q: want an IP address and a prefix length, like 10.1.0.0/16, or default", s)
	}
	if prefix.Addr().Is4() && prefix != prefix.Masked() {
		return netip.Prefix{}, fmt.Errorf("dest %s: the address has bits beyond the prefix length; want %s", s, prefix.Masked())
	}
	return prefix.Masked(), nil
}

// PlanRoutes works out which of the routes AddRoutes would add once the interfaces that are coming are attached, and changes
// nothing. A route that is there already is left out. One whose device is neither there nor coming is skipped. One that cannot be
// added is an error: a bad value, a device given by an alternative name, a second route to one destination, or another one to it
// in the container.
func (n *Network) PlanRoutes(routes []Route, coming []Attachment) (toAdd, skipped []Route, err error) {
	there := make(map[string]int, len(coming))
	for _, a := range coming {
		there[a.Name] = notYet
	}
	var remaining []Route
	var wanted []parsedRoute
	dests := make(map[netip.Prefix]bool, len(routes))
	for _, r := range routes {
		p, err := n.planRoute(r, there)
		switch {
		case errors.Is(err, errNoDevice):
			skipped = append(skipped, r)
			continue
		case err != nil:
			return nil, nil, fmt.Errorf("route %s: %w", r, err)
		case dests[p.dest]:
			return nil, nil, fmt.Errorf("route %s: another one has the same dest", r)
		}
		dests[p.dest] = true
		remaining, wanted = append(remaining, r), append(wanted, p)
	}
	found, err := n.routesTo(wanted)
	if err != nil {
		return nil, nil, err
	}
	for i, r := range remaining {
		present, err := wanted[i].presentIn(found[wanted[i].dest])
		if err != nil {
			return nil, nil, fmt.Errorf("route %s: %w", r, err)
		}
		if !present {
			toAdd = append(toAdd, r)
		}
	}
	return toAdd, skipped, nil
}

// notYet is the index of an interface that is still to be attached.
const notYet = -1

var (
	errNoDevice    = errors.New("the container has no such interface")
	errNoNamespace = errors.New("the container's network namespace is gone")
)

// planRoute finds the device. there are the indexes that are known, and those it looks up.
func (n *Network) planRoute(r Route, there map[string]int) (parsedRoute, error) {
	p, err := r.parse()
	if err != nil || r.Device == "" {
		return p, err
	}
	index, known := there[r.Device]
	if !known {
		if index, err = n.deviceOf(r); err != nil {
			return p, err
		}
		there[r.Device] = index
	}
	p.index = index
	return p, nil
}

// deviceOf gives the index of the route's device. The container can make any of its interfaces answer to an alternative name.
func (n *Network) deviceOf(r Route) (int, error) {
	if r.Device == "" {
		return 0, nil
	}
	if n.inside == nil {
		return 0, errNoNamespace
	}
	link, err := lookUp(n.inside.LinkByName(r.Device))
	switch {
	case err != nil:
		return 0, fmt.Errorf("look for interface %s: %w", r.Device, err)
	case link == nil:
		return 0, errNoDevice
	case link.Attrs().Name != r.Device:
		return 0, fmt.Errorf("device %s is an alternative name of %s: give that one", r.Device, link.Attrs().Name)
	}
	return link.Attrs().Index, nil
}

// AddRoutes adds the routes, in this order. One that is there already stays as it is. After an error those that it has added are
// removed again.
func (n *Network) AddRoutes(routes []Route) error {
	for _, r := range routes {
		if err := r.Check(); err != nil {
			return fmt.Errorf("add route %s: %w", r, err)
		}
	}
	var added []Route
	for _, r := range routes {
		isNew, err := n.addRoute(r)
		if err != nil {
			return errors.Join(fmt.Errorf("add route %s: %w", r, err), n.DeleteRoutes(added))
		}
		if isNew {
			added = append(added, r)
		}
	}
	return nil
}

// addRoute tells whether the route was not there before.
func (n *Network) addRoute(r Route) (bool, error) {
	p, err := r.parse()
	if err == nil {
		p.index, err = n.deviceOf(r)
	}
	if err != nil {
		return false, err
	}
	err = n.newRoute(p)
	if err == nil {
		return true, nil
	}
	if !errors.Is(err, unix.EEXIST) {
		return false, advise(err)
	}
	found, errFound := n.routesTo([]parsedRoute{p})
	if errFound != nil {
		return false, errFound
	}
	present, errPresent := p.presentIn(found[p.dest])
	if errPresent == nil && !present { // gone since
		errPresent = err
	}
	return false, errPresent
}

// advise says what can be done about the kernel's answer.
func advise(err error) error {
	switch {
	case errors.Is(err, unix.ENETUNREACH), errors.Is(err, unix.EHOSTUNREACH):
		return fmt.Errorf("%w (no interface of the container reaches the gateway: is there an address of its network?)", err)
	case errors.Is(err, unix.ENETDOWN):
		return fmt.Errorf("%w (the interface has to be up)", err)
	}
	return err
}

// DeleteRoutes removes the routes, the last one first. One that is not there, or whose device is not, is no error. A route to the
// same destination that is another one stays, and so does one that the kernel made together with an address.
func (n *Network) DeleteRoutes(routes []Route) error {
	var errs []error
	var wanted []parsedRoute
	for _, r := range slices.Backward(routes) {
		p, err := r.parse()
		if err == nil && n.inside != nil {
			p.index, err = n.deviceOf(r)
		}
		switch {
		case errors.Is(err, errNoDevice):
		case err != nil:
			errs = append(errs, fmt.Errorf("delete route %s: %w", r, err))
		default:
			wanted = append(wanted, p)
		}
	}
	if n.inside == nil || len(wanted) == 0 {
		return errors.Join(errs...)
	}
	found, err := n.routesTo(wanted)
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	for _, p := range wanted {
		for _, entry := range found[p.dest] {
			if p.is(entry) && entry.Protocol != unix.RTPROT_KERNEL {
				errs = append(errs, n.deleteRoute(entry))
			}
		}
	}
	return errors.Join(errs...)
}

// Routes lists the container's routes of the main table, but not those that the kernel made together with an address, nor those
// that a Route cannot describe: with several next hops, or that refuse what they match. The metric of a route is not told.
func (n *Network) Routes() ([]Route, error) {
	entries, err := n.entries([]int{netlink.FAMILY_V4, netlink.FAMILY_V6}, func(e netlink.Route) bool {
		return isPlain(e) && e.Protocol != unix.RTPROT_KERNEL
	})
	if err != nil {
		return nil, err
	}
	names := make(map[int]string)
	routes := make([]Route, 0, len(entries))
	for _, e := range entries {
		if _, known := names[e.LinkIndex]; !known {
			link, err := linkAt(n.inside, e.LinkIndex)
			if err != nil {
				return nil, err
			}
			if link == nil { // its routes have gone with it
				continue
			}
			names[e.LinkIndex] = link.Attrs().Name
		}
		routes = append(routes, routeOf(e, names[e.LinkIndex]))
	}
	return routes, nil
}

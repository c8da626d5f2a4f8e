//go:build linux

package network

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

func limitsOf(link netlink.Link) Limits {
	attrs := link.Attrs()
	return Limits{attrs.GSOMaxSize, attrs.GSOMaxSegs, attrs.GROMaxSize, attrs.GSOIPv4MaxSize, attrs.GROIPv4MaxSize}
}

// restoreLimits sets back what a container can set to keep an interface from working: the limits of large packets, and what
// holds it down although it is set up. That comes last, since some interfaces do not have it.
func (p place) restoreLimits(index int, to Limits) error {
	request, _ := p.setLink(index)
	for _, limit := range []struct {
		kind  int
		value uint32
	}{
		{unix.IFLA_GSO_MAX_SIZE, to.GSOSize}, // first, since it changes the one for IPv4 as well
		{unix.IFLA_GSO_MAX_SEGS, to.GSOSegments},
		{unix.IFLA_GRO_MAX_SIZE, to.GROSize},
		{unix.IFLA_GSO_IPV4_MAX_SIZE, to.GSOIPv4Size},
		{unix.IFLA_GRO_IPV4_MAX_SIZE, to.GROIPv4Size},
	} {
		if limit.value != 0 {
			request.AddData(nl.NewRtAttr(limit.kind, nl.Uint32Attr(limit.value)))
		}
	}
	const linkModeDefault = 0
	request.AddData(nl.NewRtAttr(unix.IFLA_LINKMODE, []byte{linkModeDefault}))
	reason := nl.NewRtAttr(unix.IFLA_PROTO_DOWN_REASON|unix.NLA_F_NESTED, nil)
	reason.AddRtAttr(unix.IFLA_PROTO_DOWN_REASON_MASK, nl.Uint32Attr(^uint32(0)))
	reason.AddRtAttr(unix.IFLA_PROTO_DOWN_REASON_VALUE, nl.Uint32Attr(0))
	request.AddData(reason)
	request.AddData(nl.NewRtAttr(unix.IFLA_PROTO_DOWN, []byte{0}))
	_, err := request.Execute(unix.NETLINK_ROUTE, 0)
	if err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("restore limits: %w", err)
	}
	return nil
}

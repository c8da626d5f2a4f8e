//go:build linux

package network

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

const vethType = "veth" // what the kernel calls one

// planVeth sees to the name on the host. taken are the names that this plan gives to interfaces of the host.
func (n *Network) planVeth(a *Attachment, taken map[string]bool) error {
	var err error
	if a.HostName != "" {
		err = refuseTaken(n.host, a.HostName)
	} else {
		a.HostName, err = n.freeName(a.Name, taken)
	}
	if err != nil {
		return fmt.Errorf("on the host: %w", err)
	}
	taken[a.HostName] = true
	return nil
}

// freeName derives a name on the host that is free from the one in the container, the same one at every start if it can.
func (n *Network) freeName(name string, taken map[string]bool) (string, error) {
	const tries, digits = 16, 6
	stem := name[:min(len(name), unix.IFNAMSIZ-1-digits-1)]
	for i := range tries {
		sum := sha256.Sum256(fmt.Appendf(nil, "%s/%s/%d", n.id, name, i))
		candidate := stem + "-" + hex.EncodeToString(sum[:])[:digits]
		err := refuseTaken(n.host, candidate)
		if err == nil && !taken[candidate] {
			return candidate, nil
		}
		if err != nil && !errors.Is(err, ErrExist) {
			return "", err
		}
	}
	return "", fmt.Errorf("no name free that is derived from %s; give one", name)
}

// attachVeth makes the pair with one message: where a name is taken, nothing is made. The container's end needs its other one to
// go up, so it follows.
func (n *Network) attachVeth(a *Attachment) error {
	err := n.makeVeth(a)
	if err == nil {
		err = addAddress(n.inside, a.Index, a.Address)
	}
	if err == nil {
		err = n.inside.LinkSetUp(linkOf(a.Index))
	}
	if err == nil {
		err = errors.Join(switchOnOffloads(n.hostSocket, a.HostName), switchOnOffloads(n.insideSocket, a.Name))
	}
	return err
}

func (n *Network) makeVeth(a *Attachment) error {
	mac, err := parseMAC(a.MAC)
	if err != nil {
		return err
	}
	if mac == nil {
		mac = n.ownMAC(a.Name)
	}
	request := n.hostPlace().request(unix.RTM_NEWLINK)
	request.Flags |= unix.NLM_F_CREATE | unix.NLM_F_EXCL | unix.NLM_F_ECHO
	up := nl.NewIfInfomsg(unix.AF_UNSPEC)
	up.Flags, up.Change = unix.IFF_UP, unix.IFF_UP
	request.AddData(up)
	request.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(a.HostName)))
	request.AddData(nl.NewRtAttr(unix.IFLA_MTU, nl.Uint32Attr(uint32(a.MTU))))
	request.AddData(nl.NewRtAttr(unix.IFLA_TXQLEN, nl.Uint32Attr(uint32(a.QueueLen))))
	if a.bridge != 0 {
		request.AddData(nl.NewRtAttr(unix.IFLA_MASTER, nl.Uint32Attr(uint32(a.bridge))))
	}
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated(vethType))
	peer := info.AddRtAttr(nl.IFLA_INFO_DATA, nil).AddRtAttr(nl.VETH_INFO_PEER, nil)
	nl.NewIfInfomsgChild(peer, unix.AF_UNSPEC)
	peer.AddRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(a.Name))
	peer.AddRtAttr(unix.IFLA_MTU, nl.Uint32Attr(uint32(a.MTU)))
	peer.AddRtAttr(unix.IFLA_TXQLEN, nl.Uint32Attr(uint32(a.QueueLen)))
	peer.AddRtAttr(unix.IFLA_NET_NS_FD, nl.Uint32Attr(uint32(n.ns.Fd())))
	peer.AddRtAttr(unix.IFLA_ADDRESS, mac)
	request.AddData(info)
	answers, err := request.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWLINK)
	if err != nil {
		return fmt.Errorf("make veth %s: %w", a.HostName, err)
	}
	var link netlink.Link
	if len(answers) > 0 {
		link, err = netlink.LinkDeserialize(nil, answers[0])
	} else { // Linux 6.2 tells what it has made
		link, err = linkNamed(n.host, a.HostName)
	}
	if err == nil && link == nil {
		err = unix.ENODEV
	}
	if err != nil {
		return fmt.Errorf("look at the new veth %s: %w", a.HostName, err)
	}
	a.HostIndex, a.Index = link.Attrs().Index, link.Attrs().ParentIndex
	return nil
}

// ownMAC gives an interface the same locally administered address at every start: with another one, the host's neighbours would
// not reach it until they have forgotten the old one.
func (n *Network) ownMAC(name string) net.HardwareAddr {
	sum := sha256.Sum256([]byte(n.id + "/" + name))
	mac := net.HardwareAddr(sum[:6])
	mac[0] = mac[0]&^1 | 2
	return mac
}

// detachVeths removes the host ends, and with them the other ends. The kernel waits for all its readers whenever it removes
// interfaces, once for as many as one message names: so several become a group.
func (n *Network) detachVeths(attachments []Attachment) error {
	own := make(map[int]bool)
	var errs []error
	for _, a := range attachments {
		links, err := n.ownVeths(a)
		if err != nil {
			errs = append(errs, fmt.Errorf("remove interface %s: %w", a, err))
		}
		for _, link := range links {
			own[link.Attrs().Index] = true
		}
	}
	if err := n.deleteLinks(slices.Sorted(maps.Keys(own))); err != nil {
		errs = append(errs, fmt.Errorf("remove interfaces: %w", err))
	}
	return errors.Join(errs...)
}

// ownVeths gives the host's end of a pair: the one that was noted, which may be renamed by now, and the one with the name, which
// another program may have made in its place, or this one before it was killed. Neither the index nor the name is proof: another
// interface may have come to either. The container's namespace at the other end is; without that namespace, both together.
func (n *Network) ownVeths(a Attachment) ([]netlink.Link, error) {
	noted, err := linkAt(n.host, a.HostIndex)
	named, namedErr := linkNamed(n.host, a.HostName)
	if err := errors.Join(err, namedErr); err != nil {
		return nil, err
	}
	var own []netlink.Link
	for _, link := range []netlink.Link{noted, named} {
		if link == nil || link.Type() != vethType {
			continue
		}
		inside, err := n.otherEndInside(link)
		if err != nil {
			return nil, err
		}
		if inside || n.ns == nil && link.Attrs().Index == a.HostIndex && link.Attrs().Name == a.HostName {
			own = append(own, link)
		}
	}
	return own, nil
}

// otherEndInside tells whether the other end of the host's veth is in the container's namespace.
func (n *Network) otherEndInside(link netlink.Link) (bool, error) {
	there := link.Attrs().NetNsID
	if n.ns == nil || there < 0 { // both ends on the host
		return false, nil
	}
	id, err := n.host.GetNetNsIdByFd(int(n.ns.Fd()))
	if err != nil {
		return false, fmt.Errorf("ask for the id of the network namespace: %w", err)
	}
	return there == id, nil
}

func (n *Network) deleteLinks(indexes []int) error {
	if len(indexes) < 2 {
		for _, index := range indexes {
			if err := ignoreGone(n.host.LinkDel(linkOf(index))); err != nil {
				return err
			}
		}
		return nil
	}
	group := newGroup()
	for _, index := range indexes {
		if err := ignoreGone(n.host.LinkSetGroup(linkOf(index), group)); err != nil {
			return err
		}
	}
	request := n.hostPlace().request(unix.RTM_DELLINK)
	request.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	request.AddData(nl.NewRtAttr(unix.IFLA_GROUP, nl.Uint32Attr(uint32(group))))
	_, err := request.Execute(unix.NETLINK_ROUTE, 0)
	return ignoreGone(err)
}

// newGroup gives a number that no group of interfaces has: those of administrators are small, and this one is random.
func newGroup() int { return 1<<30 + rand.IntN(1<<30) }

func ignoreGone(err error) error {
	if errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}

// linkOf names an interface by its index.
func linkOf(index int) netlink.Link {
	return &netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: index}}
}

// Find gives what another program has attached, so that Detach takes it back as well: those of the interfaces that are provably
// the container's. known are attachments that are known already. An Open vSwitch port whose interface has gone is found as well.
func (n *Network) Find(ctx context.Context, interfaces []Interface, known ...Attachment) ([]Attachment, error) {
	var found []Attachment
	var errs []error
	for _, i := range interfaces {
		var a *Attachment
		var err error
		if i.Kind == Physical {
			a, err = n.findPhysical(i, slices.Concat(known, found)...)
		} else {
			a, err = n.findVeth(ctx, i)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("look for interface %s: %w", i, err))
		}
		if a != nil {
			found = append(found, *a)
		}
	}
	return found, errors.Join(errs...)
}

// namedHostEnd gives the interface that has the name of the host's end; without a name, the other end of the one in the container.
func (n *Network) namedHostEnd(i Interface) (netlink.Link, error) {
	if i.HostName != "" {
		return linkNamed(n.host, i.HostName)
	}
	if n.inside == nil {
		return nil, nil
	}
	end, err := linkNamed(n.inside, i.Name)
	if err != nil || end == nil || end.Type() != vethType {
		return nil, err
	}
	link, err := linkAt(n.host, end.Attrs().ParentIndex)
	if err != nil || link == nil || link.Attrs().ParentIndex != end.Attrs().Index {
		return nil, err
	}
	return link, nil
}

func (n *Network) findVeth(ctx context.Context, i Interface) (*Attachment, error) {
	link, err := n.namedHostEnd(i)
	if err != nil {
		return nil, err
	}
	a := &Attachment{Interface: i}
	if link != nil {
		a.HostName = link.Attrs().Name
		if link.Type() != vethType {
			return nil, nil
		}
		if inside, err := n.otherEndInside(link); err != nil || !inside {
			return nil, err
		}
		a.HostIndex, a.Index = link.Attrs().Index, link.Attrs().ParentIndex
	}
	if i.Bridge != "" {
		a.OVS, err = n.inOVSOnce(ctx, i.Bridge)
	}
	if link == nil && !a.OVS {
		return nil, err
	}
	return a, err
}

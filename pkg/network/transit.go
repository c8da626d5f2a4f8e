//go:build linux

package network

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"isula.org/syscontainer-hooks/internal/kernel"
	"isula.org/syscontainer-hooks/internal/thread"
)

// transitDir has a bind mount of each transit namespace, under the container's id. Virtual interfaces die with their namespace:
// what a killed process leaves in one is found there.
const transitDir = "/run/syscontainer-tools/transit"

// place is a network namespace, as seen through sockets in it.
type place struct {
	handle *netlink.Handle
	socket *nl.NetlinkSocket
}

// transit is a namespace between the host's and the container's. An interface is renamed and changed there, where no name is
// taken, nobody else can interfere, and nothing on the host can mistake it for another one.
type transit struct {
	place
	ns *os.File
}

// openTransit opens the container's transit namespace, nil when there is none.
func (n *Network) openTransit() (*transit, error) {
	ns, err := openPinned(transitDir, n.id)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("open transit namespace: %w", err)
	}
	return newTransit(ns)
}

// makeTransit opens it as well, and makes it when there is none. It is pinned before anything can be moved into it.
func (n *Network) makeTransit() (*transit, error) {
	t, err := n.openTransit()
	if t != nil || err != nil {
		return t, err
	}
	ns, err := makeNamespace()
	if err != nil {
		return nil, fmt.Errorf("make transit namespace: %w", err)
	}
	if err := pinNamespace(transitDir, n.id, ns); err != nil {
		ns.Close()
		return nil, fmt.Errorf("pin transit namespace: %w", err)
	}
	return newTransit(ns)
}

func newTransit(ns *os.File) (*transit, error) {
	handle, socket, err := openSockets(ns)
	if err != nil {
		ns.Close()
		return nil, fmt.Errorf("open sockets in transit namespace: %w", err)
	}
	return &transit{place{handle, socket}, ns}, nil
}

// makeNamespace makes a network namespace that lives as long as the handle.
func makeNamespace() (ns *os.File, err error) {
	err = thread.Own(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("unshare network namespace: %w", err)
		}
		ns, err = kernel.Open("/proc/thread-self/ns/net", unix.O_RDONLY)
		return err
	})
	return ns, err
}

// leaveTransit closes the handles, and lets the namespace go when nothing is in it. Without a namespace it removes what a process
// left that was killed before it mounted the pin, or after.
func (n *Network) leaveTransit(t *transit) error {
	if t != nil {
		links, err := t.links()
		t.handle.Close()
		t.socket.Close()
		t.ns.Close()
		if err != nil || len(links) > 0 {
			return err
		}
	}
	if err := unpinNamespace(transitDir, n.id); err != nil {
		return fmt.Errorf("unpin transit namespace: %w", err)
	}
	return nil
}

// links gives the interfaces that were moved here.
func (t *transit) links() ([]netlink.Link, error) {
	links, err := t.all()
	if err != nil {
		return nil, fmt.Errorf("list what is in transit: %w", err)
	}
	return slices.DeleteFunc(links, isBorn), nil
}

// bornNames are the interfaces that the kernel puts into every new network namespace when the modules for tunnels are there. They
// stay where they are, on the host as well.
var bornNames = []string{
	"tunl0", "gre0", "gretap0", "erspan0", "ip_vti0", "ip6_vti0", "sit0", "ip6tnl0", "ip6gre0",
}

var bornTypes = []string{"ipip", "gre", "gretap", "erspan", "vti", "vti6", "sit", "ip6tnl", "ip6gre"}

func isBorn(link netlink.Link) bool {
	attrs := link.Attrs()
	return attrs.RawFlags&unix.IFF_LOOPBACK != 0 ||
		slices.Contains(bornNames, attrs.Name) && slices.Contains(bornTypes, link.Type())
}

// transitIndexes are the indexes from this one on. An interface on its way home gets one of them at random, so that no other one
// in any namespace has the same. Interfaces have small ones otherwise.
const transitIndexes = 1 << 30

func transitIndex() int { return transitIndexes + rand.IntN(transitIndexes) }

// move moves an interface to another namespace. It gets the index wanted there; EBUSY means that another one has that. Linux
// before 5.13 does not know of it, and then, or when it is 0, the interface keeps its index if that is free.
func (p place) move(index int, to *os.File, wanted int) error {
	request, _ := p.setLink(index)
	request.AddData(nl.NewRtAttr(unix.IFLA_NET_NS_FD, nl.Uint32Attr(uint32(to.Fd()))))
	if wanted != 0 {
		request.AddData(nl.NewRtAttr(unix.IFLA_NEW_IFINDEX, nl.Uint32Attr(uint32(wanted))))
	}
	_, err := request.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// nextIndex gives an index that is free, after those of all interfaces.
func (p place) nextIndex() (int, error) {
	links, err := p.all()
	last := 0
	for _, link := range links {
		if index := link.Attrs().Index; index < transitIndexes {
			last = max(last, index)
		}
	}
	return last + 1, err
}

// receive moves the interface index of another namespace here, and gives the index that it has got, which is the wanted one if
// that can be had. A name that is taken leaves it where it was.
func (t *transit) receive(from place, index, wanted int) (int, error) {
	before, err := t.links()
	if err != nil {
		return 0, err
	}
	if err := from.move(index, t.ns, wanted); err != nil {
		return 0, err
	}
	after, err := t.links()
	if err != nil {
		return 0, err
	}
	for _, link := range after {
		arrived := link.Attrs().Index
		if !slices.ContainsFunc(before, func(l netlink.Link) bool { return l.Attrs().Index == arrived }) {
			return arrived, nil
		}
	}
	return 0, unix.ENODEV
}

// all lists the interfaces of the namespace.
func (p place) all() ([]netlink.Link, error) { return dump(p.handle.LinkList) }

//go:build linux

package network

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"isula.org/syscontainer-hooks/internal/kernel"
)

// ErrHostNamespace is the cause when the container has the network namespace of the host.
var ErrHostNamespace = errors.New("the container has the network namespace of the host")

// answerTimeout is how long the kernel may take for one request. Others may hold its lock on all interfaces for long.
const answerTimeout = 10 * time.Second

// Network is the network of one container, and the host's around it.
type Network struct {
	id     string
	hostNS *os.File
	host   *netlink.Handle
	ns     *os.File        // the container's, nil when it is gone
	inside *netlink.Handle // sockets in it, nil when it is gone

	hostSocket, insideSocket *nl.NetlinkSocket // for what the handles cannot say

	stalePorts []string             // of Open vSwitch, that a plan has found left over
	ovsAnswers map[string]ovsAnswer // by bridge, see inOVSOnce
}

// Open opens sockets in the network namespace ns of the container id and in the caller's, which counts as the host's. The
// handle ns stays the caller's and has to stay open. With a nil ns, when the namespace is gone, only what is left on the host can
// be removed.
func Open(id string, ns *os.File) (_ *Network, err error) {
	n := &Network{id: id, ns: ns, ovsAnswers: make(map[string]ovsAnswer)}
	defer func() {
		if err != nil {
			n.Close()
		}
	}()
	if n.hostNS, err = kernel.Open("/proc/thread-self/ns/net", unix.O_RDONLY); err != nil {
		return nil, err
	}
	if n.host, n.hostSocket, err = openSockets(n.hostNS); err != nil {
		return nil, fmt.Errorf("network of the host: %w", err)
	}
	if ns == nil {
		return n, nil
	}
	if err := n.check(); err != nil {
		return nil, err
	}
	if n.inside, n.insideSocket, err = openSockets(ns); err != nil {
		return nil, fmt.Errorf("network of the container: %w", err)
	}
	return n, nil
}

// Close closes the sockets.
func (n *Network) Close() {
	for _, handle := range []*netlink.Handle{n.host, n.inside} {
		if handle != nil {
			handle.Close()
		}
	}
	for _, socket := range []*nl.NetlinkSocket{n.hostSocket, n.insideSocket} {
		if socket != nil {
			socket.Close()
		}
	}
	if n.hostNS != nil {
		n.hostNS.Close()
	}
}

// check makes sure that ns is a network namespace and not the host's.
func (n *Network) check() error {
	kind, err := unix.IoctlRetInt(int(n.ns.Fd()), unix.NS_GET_NSTYPE)
	if err != nil || kind != unix.CLONE_NEWNET {
		return fmt.Errorf("%s is no network namespace", n.ns.Name())
	}
	same, err := sameFile(n.ns, n.hostNS)
	if err == nil && same {
		err = ErrHostNamespace
	}
	return err
}

func openSockets(ns *os.File) (*netlink.Handle, *nl.NetlinkSocket, error) {
	at := netns.NsHandle(ns.Fd())
	handle, err := netlink.NewHandleAt(at, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, nil, err
	}
	err = handle.SetSocketTimeout(answerTimeout)
	if err == nil {
		var socket *nl.NetlinkSocket
		if socket, err = openSocket(at); err == nil {
			return handle, socket, nil
		}
	}
	handle.Close()
	return nil, nil, err
}

func openSocket(at netns.NsHandle) (*nl.NetlinkSocket, error) {
	socket, err := nl.GetNetlinkSocketAt(at, netns.None(), unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	timeout := unix.NsecToTimeval(answerTimeout.Nanoseconds())
	err = errors.Join(socket.SetSendTimeout(&timeout), socket.SetReceiveTimeout(&timeout), socket.SetExtAck(true))
	if err != nil {
		socket.Close()
		return nil, err
	}
	return socket, nil
}

func sameFile(a, b *os.File) (bool, error) {
	var statA, statB unix.Stat_t
	if err := errors.Join(unix.Fstat(int(a.Fd()), &statA), unix.Fstat(int(b.Fd()), &statB)); err != nil {
		return false, err
	}
	return statA.Dev == statB.Dev && statA.Ino == statB.Ino, nil
}

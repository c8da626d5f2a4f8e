//go:build linux

package network

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ErrUnsettled is the cause when an interface of the host has left the container's namespace, but is not all that it was: its name
// was taken on the host, for example, so that it came home under another one.
var ErrUnsettled = errors.New("it has left the container, but is not what it was")

// ErrElsewhere is the cause when hardware of the host is in the namespace of somebody else, another container perhaps: nothing of
// it is left in this container, and nothing can be done but to wait until it comes back to the host.
var ErrElsewhere = errors.New("neither in the container nor on the host")

// detachPhysical brings the interface home from wherever it is. Nowhere means that it has gone, like a virtual function that was
// taken away, and is no error.
func (n *Network) detachPhysical(a Attachment) (err error) {
	if a.Original == nil { // it was never planned
		return nil
	}
	t, err := n.openTransit()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, n.leaveTransit(t)) }()
	for deadline := time.Now().Add(returnTimeout); ; time.Sleep(returnPoll) {
		done, err := n.bringHome(a, &t)
		if done && err != nil {
			return fmt.Errorf("%w: %w", ErrUnsettled, err)
		}
		if done || err != nil || a.Original.vanished() {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s is %w: its namespace is gone or hidden, and the host gets it when that ends",
				a.Original.Device, ErrElsewhere)
		}
	}
}

// The kernel returns hardware to the host when a namespace ends, but takes its time.
const (
	returnTimeout = 2 * time.Second
	returnPoll    = 20 * time.Millisecond
)

// vanished tells whether an interface that is nowhere to be seen has gone for good. Hardware that is there has an interface in
// some namespace.
func (o *Original) vanished() bool {
	if o.Device == "" {
		return true
	}
	_, err := os.Stat(filepath.Join("/sys/bus", filepath.Dir(o.Device), "devices", filepath.Base(o.Device), "net"))
	return err != nil
}

// bringHome tells whether it has found the interface.
func (n *Network) bringHome(a Attachment, t **transit) (bool, error) {
	link, err := n.findAtHome(a)
	if err != nil {
		return false, err
	}
	if link != nil {
		return true, n.settle(a, link)
	}
	if link, err = n.findInside(a); err != nil {
		return false, err
	}
	if link != nil {
		if *t == nil {
			if *t, err = n.makeTransit(); err != nil {
				return false, err
			}
		}
		upperErr := n.removeUppers(link.Attrs().Index)
		index, err := n.takeOut(a, link, *t)
		if errors.Is(err, unix.ENODEV) {
			return false, nil
		}
		if err != nil {
			return false, errors.Join(fmt.Errorf("take it out of the container: %w", err), upperErr)
		}
		return true, errors.Join(n.sendHome(a, index, *t), upperErr)
	}
	if *t == nil {
		return false, nil
	}
	if link, err = (*t).find(a); err != nil || link == nil {
		return false, err
	}
	return true, n.sendHome(a, link.Attrs().Index, *t)
}

// takeOut moves the interface from the container to the transit namespace, and gives its index there. A container that still
// runs may rename it at the same time, even to lo, or give it such an alternative name.
func (n *Network) takeOut(a Attachment, link netlink.Link, t *transit) (int, error) {
	const tries = 64
	index := link.Attrs().Index
	for try := 0; ; try++ {
		stripErr := n.insidePlace().change(link, settings{
			mtu: link.Attrs().MTU, queueLen: link.Attrs().TxQLen, mac: link.Attrs().HardwareAddr,
			flags: link.Attrs().RawFlags & settableFlags, group: link.Attrs().Group, name: stageName(a.HostName),
		})
		arrived, err := t.receive(n.insidePlace(), index, transitIndex())
		if err == nil {
			return arrived, nil
		}
		if !errors.Is(err, unix.EEXIST) || try == tries {
			return 0, errors.Join(err, stripErr)
		}
		if link, err = linkAt(n.inside, index); err != nil || link == nil {
			return 0, errors.Join(err, unix.ENODEV)
		}
	}
}

// removeUppers removes what the container has put on the interface, like a VLAN: the kernel would leave it there, with a
// connection to the host's network. Not all of it can be known: a macvlan that is made on a macvlan sits on what that one sits
// on, and looks like one that the container was given. Such ones stay until the container's namespace ends.
func (n *Network) removeUppers(index int) error {
	uppers, err := n.insidePlace().uppers(index)
	for _, upper := range uppers {
		if e := ignoreGone(n.inside.LinkDel(linkOf(upper.Attrs().Index))); e != nil {
			err = errors.Join(err, fmt.Errorf("remove %s %s from it: %w", upper.Type(), upper.Attrs().Name, e))
		}
	}
	return err
}

// stageName gives an interface a name that is free, and by which it is known in transit.
func stageName(hostName string) string {
	return stagePrefix(hostName) + hex.EncodeToString(randomBytes(3))
}

func stagePrefix(hostName string) string {
	sum := sha256.Sum256([]byte(hostName))
	return "t" + hex.EncodeToString(sum[:4])
}

func randomBytes(size int) []byte {
	b := make([]byte, size)
	for i := range b {
		b[i] = byte(rand.IntN(256))
	}
	return b
}

// freeHomePrefix begins the name under which an interface comes home when another one has its own.
func freeHomePrefix(hostName string) string {
	return hostName[:min(len(hostName), unix.IFNAMSIZ-1-5)] + "-"
}

// sendHome makes the interface in transit what it was, and moves it to the host. What it could not restore is an error, but does
// not keep it from coming home.
func (n *Network) sendHome(a Attachment, index int, t *transit) error {
	link, err := linkAt(t.handle, index)
	if err != nil || link == nil {
		return err
	}
	wanted := a.Original.settings()
	wanted.alias, wanted.altNames, wanted.up, wanted.name = "", nil, false, stageName(a.HostName)
	changeErr := errors.Join(t.removePrograms(t.ns, link), t.restoreLimits(index, a.Original.Limits), t.change(link, wanted))
	name, err := n.moveHome(a, index, t)
	if err != nil {
		return errors.Join(fmt.Errorf("move it to the host: %w; it is kept in %s", err, filepath.Join(transitDir, n.id)), changeErr)
	}
	link, err = linkNamed(n.host, name)
	if err != nil || link == nil {
		return errors.Join(err, changeErr)
	}
	wanted = a.Original.settings()
	wanted.name, wanted.up = name, a.Original.Up && name == a.HostName
	err = n.hostPlace().change(link, wanted)
	if name != a.HostName {
		err = errors.Join(nameTaken(a.HostName, name), err)
	}
	return errors.Join(changeErr, err)
}

func nameTaken(wanted, name string) error {
	return fmt.Errorf("on the host, %s: %w: it came home as %s; rename it when that name is free, and set it up",
		wanted, ErrExist, name)
}

// moveHome gives the name under which the interface has come home. It has its old index again if that is free.
func (n *Network) moveHome(a Attachment, index int, t *transit) (string, error) {
	const tries = 16
	name, wanted := a.HostName, a.Original.Index
	for try := 0; ; try++ {
		var err error
		if wanted == 0 {
			wanted, err = n.hostPlace().nextIndex()
		}
		if err == nil {
			err = t.handle.LinkSetName(linkOf(index), name)
		}
		if err == nil {
			err = t.move(index, n.hostNS, wanted)
		}
		switch {
		case err == nil:
			return name, nil
		case errors.Is(err, unix.EEXIST) && try < tries:
			name = freeHomePrefix(a.HostName) + hex.EncodeToString(randomBytes(2))
		case errors.Is(err, unix.EBUSY) && try < tries:
			wanted = 0
		default:
			return "", err
		}
	}
}

// settle restores an interface that is on the host: it came home only just before a process was killed, or was returned by the
// kernel. One that is up or in a bridge or bond is left alone: it never left, is all that it was, since to be set up is the last
// that happens to it, or was brought home by another program and has another life now.
func (n *Network) settle(a Attachment, link netlink.Link) error {
	if link.Attrs().MasterIndex != 0 || link.Attrs().RawFlags&unix.IFF_UP != 0 {
		return nil
	}
	wanted := a.Original.settings()
	wanted.name = a.HostName
	name := link.Attrs().Name
	if name != a.HostName {
		switch err := refuseTaken(n.host, a.HostName); {
		case errors.Is(err, ErrExist) && !slices.Contains(link.Attrs().AltNames, a.HostName):
			wanted.name, wanted.up = name, false
		case err != nil && !errors.Is(err, ErrExist):
			return err
		}
	}
	host := n.hostPlace()
	err := errors.Join(host.removePrograms(n.hostNS, link), host.restoreLimits(link.Attrs().Index, a.Original.Limits),
		host.change(link, wanted))
	if wanted.name != a.HostName {
		err = errors.Join(nameTaken(a.HostName, name), err)
	}
	return err
}

// settings are what change makes of an interface.
type settings struct {
	name     string
	mac      net.HardwareAddr
	mtu      int
	queueLen int
	flags    uint32
	group    uint32
	alias    string
	altNames []string
	up       bool
}

func (o *Original) settings() settings {
	mac, _ := net.ParseMAC(o.MAC) // what has none keeps what it has
	return settings{"", mac, o.MTU, o.QueueLen, o.Flags, o.Group, o.Alias, o.AltNames, o.Up}
}

// settableFlags are those of netdevice(7) that can be set and stay with an interface, but for IFF_UP.
const settableFlags = unix.IFF_PROMISC | unix.IFF_ALLMULTI | unix.IFF_NOARP | unix.IFF_MULTICAST

// change makes the interface what it is to be, and leaves alone what it is already. It goes on after errors.
func (p place) change(link netlink.Link, to settings) error {
	is, h := link.Attrs(), p.handle
	var errs []error
	do := func(what string, err error) {
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", what, err))
		}
	}
	changesMAC := to.mac != nil && to.mac.String() != is.HardwareAddr.String()
	if is.RawFlags&unix.IFF_UP != 0 && (!to.up || is.Name != to.name || changesMAC) {
		do("set down", h.LinkSetDown(link))
		is.RawFlags &^= unix.IFF_UP
	}
	for _, name := range is.AltNames {
		if !slices.Contains(to.altNames, name) {
			do("remove alternative name "+name, h.LinkDelAltName(link, name))
		}
	}
	if is.Name != to.name {
		do("rename to "+to.name, h.LinkSetName(link, to.name))
	}
	if is.RawFlags&settableFlags != to.flags {
		do("restore flags", p.setFlags(is.Index, to.flags))
	}
	if changesMAC {
		do("set mac "+to.mac.String(), h.LinkSetHardwareAddr(link, to.mac))
	}
	if is.MTU != to.mtu {
		do(fmt.Sprintf("set mtu %d", to.mtu), h.LinkSetMTU(link, to.mtu))
	}
	if is.TxQLen != to.queueLen {
		do(fmt.Sprintf("set queue length %d", to.queueLen), h.LinkSetTxQLen(link, to.queueLen))
	}
	if is.Group != to.group {
		do("set group", h.LinkSetGroup(link, int(to.group)))
	}
	if is.Alias != to.alias {
		do("set alias", h.LinkSetAlias(link, to.alias))
	}
	for _, name := range to.altNames {
		if !slices.Contains(is.AltNames, name) {
			do("add alternative name "+name, h.LinkAddAltName(link, name))
		}
	}
	if to.up && is.RawFlags&unix.IFF_UP == 0 {
		do("set up", h.LinkSetUp(link))
	}
	return errors.Join(errs...)
}

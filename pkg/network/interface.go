//go:build linux

package network

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Kind says what an interface of a container is.
type Kind string

// The kinds of interfaces.
const (
	Veth     Kind = "veth" // one end of a pair, the other one on the host
	Physical Kind = "eth"  // an interface of the host, moved in; Original tells what it loses
)

// Interface is a network interface of a container.
type Interface struct {
	Kind     Kind   `json:"kind"`
	Name     string `json:"name"`               // in the container
	HostName string `json:"hostName,omitempty"` // of the host's end of a Veth, "" for a free one; of a Physical one on the host
	Bridge   string `json:"bridge,omitempty"`   // that a Veth's host end is in, a Linux or an Open vSwitch one; "" for none
	MAC      string `json:"mac,omitempty"`      // in the container, like 02:00:00:00:00:01; "" for one of its own, see Attach
	MTU      int    `json:"mtu"`                // bytes, of both ends; 68 or more
	QueueLen int    `json:"queueLen"`           // packets, of both ends
	Address  string `json:"address"`            // IPv4 or IPv6 address and prefix length, like 10.0.0.2/24
}

// String names the interface as messages do.
func (i Interface) String() string { return fmt.Sprintf("%s (%s)", i.Name, i.Kind) }

// Attachment is what attaching one interface changes. It can be kept as JSON, for a Detach by another process.
type Attachment struct {
	Interface
	OVS       bool `json:"ovs,omitempty"`       // the bridge is an Open vSwitch one
	HostIndex int  `json:"hostIndex,omitempty"` // of the host's end of a Veth, once it is made
	Index     int  `json:"index,omitempty"`     // in the container, once it is there
	// Original is what a Physical interface is on the host.
	Original *Original `json:"original,omitempty"`

	bridge int // index of the Linux bridge; only within one process
}

// Original is what an interface of the host was before it was moved, and what it is to be again. Its addresses, routes,
// neighbours, queueing disciplines, filters and sysctls are lost, as with every move to another namespace; link mode and
// protodown become the kernel's defaults. What a container has set by ethtool(8), such as offloads, and the carrier of a dummy
// stay as they are.
type Original struct {
	Index        int      `json:"index"`
	Type         string   `json:"type"` // the kernel's name for what it is, as in `ip -d link`: "device", "macvlan"
	MAC          string   `json:"mac"`
	PermanentMAC string   `json:"permanentMAC,omitempty"`
	MTU          int      `json:"mtu"`
	QueueLen     int      `json:"queueLen"`
	Up           bool     `json:"up,omitempty"`
	Alias        string   `json:"alias,omitempty"`
	AltNames     []string `json:"altNames,omitempty"`
	Flags        uint32   `json:"flags,omitempty"`     // of netdevice(7): promiscuous, all multicast, ARP off, multicast
	Group        uint32   `json:"group,omitempty"`     // that it is in, as in `ip link set group`
	Lower        int      `json:"lower,omitempty"`     // index of the interface that it sits on, of a veth the other end
	VLAN         int      `json:"vlan,omitempty"`      // id of a VLAN interface
	LowerAway    bool     `json:"lowerAway,omitempty"` // Lower is in a third namespace, neither the host's nor the container's
	Device       string   `json:"device,omitempty"`    // the hardware, like pci/0000:00:03.0
	Limits       Limits   `json:"limits"`
}

// Limits are those of the large packets that the kernel hands to an interface or makes of what it receives, as in `ip -d link`:
// bytes and segments. 0 is for one that is not known.
type Limits struct {
	GSOSize     uint32 `json:"gsoSize,omitempty"`
	GSOSegments uint32 `json:"gsoSegments,omitempty"`
	GROSize     uint32 `json:"groSize,omitempty"`     // Linux 5.19
	GSOIPv4Size uint32 `json:"gsoIPv4Size,omitempty"` // Linux 6.3
	GROIPv4Size uint32 `json:"groIPv4Size,omitempty"` // Linux 6.3
}

const (
	minMTU        = 68   // of IPv4, RFC 791
	minMTU6       = 1280 // of IPv6, RFC 8200; with less the kernel takes all IPv6 addresses away
	maxNumber     = 1<<31 - 1
	maxInterfaces = 128 // that a container can be given, a limit of the record
)

// Check tells what is wrong with the interface, whatever the host and the container are like.
func (i Interface) Check() error {
	switch {
	case i.Kind != Veth && i.Kind != Physical:
		return fmt.Errorf("kind %q: want %s or %s", i.Kind, Veth, Physical)
	case i.Name == "":
		return errors.New("it has no name in the container")
	case i.Kind == Physical && i.HostName == "":
		return errors.New("it has no name on the host")
	case i.Kind == Physical && i.Bridge != "":
		return errors.New("an interface of the host that is moved cannot be in a bridge")
	case i.MTU < minMTU || i.MTU > maxNumber:
		return fmt.Errorf("mtu %d: want %d or more", i.MTU, minMTU)
	case i.QueueLen < 0 || i.QueueLen > maxNumber:
		return fmt.Errorf("queue length %d: want 0 or more", i.QueueLen)
	}
	for _, name := range []string{i.Name, i.HostName, i.Bridge} {
		if err := checkName(name); err != nil {
			return err
		}
	}
	if _, err := parseMAC(i.MAC); err != nil {
		return err
	}
	prefix, err := parseAddress(i.Address)
	if err == nil && prefix.Addr().Is6() && i.MTU < minMTU6 {
		err = fmt.Errorf("mtu %d: an IPv6 address needs %d or more", i.MTU, minMTU6)
	}
	return err
}

// checkName takes "" and names that no program mistakes for something else: the kernel also accepts "veth%d", which it
// completes, and "-x".
func checkName(name string) error {
	const alphanumeric = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
	switch {
	case name == "":
		return nil
	case len(name) >= unix.IFNAMSIZ || strings.Trim(name, alphanumeric+"._-") != "" || !strings.Contains(alphanumeric, name[:1]),
		name == "lo", name == "all", name == "default":
		return fmt.Errorf("interface name %.40q: want up to %d letters, digits and ._-, the first a letter or digit",
			name, unix.IFNAMSIZ-1)
	}
	return nil
}

// parseMAC gives the address of one interface, nil for "".
func parseMAC(s string) (net.HardwareAddr, error) {
	if s == "" {
		return nil, nil
	}
	mac, err := net.ParseMAC(s)
	if err != nil || len(mac) != 6 {
		return nil, fmt.Errorf("mac %.40q: want six bytes like 02:00:00:00:00:01", s)
	}
	if mac[0]&1 != 0 || bytes.Equal(mac, make([]byte, 6)) {
		return nil, fmt.Errorf("mac %s: not the address of one interface", s)
	}
	return mac, nil
}

// parseAddress takes addresses that one interface can have.
func parseAddress(s string) (netip.Prefix, error) {
	prefix, err := netip.ParsePrefix(s)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("address %.60q: want an IP address and a prefix length, like 10.0.0.2/24", s)
	}
	address := prefix.Addr()
	if address.IsUnspecified() || address.IsMulticast() || address.IsLoopback() || address.Is4In6() ||
		address == netip.AddrFrom4([4]byte{255, 255, 255, 255}) {
		return netip.Prefix{}, fmt.Errorf("address %s: not the address of one interface", s)
	}
	return prefix, nil
}

// addAddress gives the interface index an address. IPv6 does not wait for duplicate address detection, RFC 4862: a container that
// starts cannot.
func addAddress(handle *netlink.Handle, index int, s string) error {
	prefix, err := parseAddress(s)
	if err != nil {
		return err
	}
	address := &netlink.Addr{LinkIndex: index, IPNet: ipNet(prefix)}
	if prefix.Addr().Is6() {
		address.Flags = unix.IFA_F_NODAD
	}
	switch err := handle.AddrAdd(nil, address); {
	case err == nil || errors.Is(err, unix.EEXIST):
		return nil
	case errors.Is(err, unix.EACCES):
		return fmt.Errorf("add address %s: IPv6 is disabled in the container (sysctl disable_ipv6): %w", s, err)
	default:
		return fmt.Errorf("add address %s: %w", s, err)
	}
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

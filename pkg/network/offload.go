//go:build linux

package network

import (
	"fmt"
	"runtime"
	"unsafe"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// offload is something that the interface can do instead of the kernel, by the commands of ethtool(8) that ask for it and set it,
// <linux/ethtool.h>.
type offload struct {
	name     string
	get, set uint32
}

var offloads = []offload{
	{"tx checksum", 0x16, 0x17},
	{"scatter-gather", 0x18, 0x19},
	{"tcp segmentation", 0x1e, 0x1f},
}

type ethtoolValue struct{ command, data uint32 }

// ethtoolRequest is struct ifreq of netdevice(7).
type ethtoolRequest struct {
	name [unix.IFNAMSIZ]byte
	data unsafe.Pointer
	_    [16]byte
}

// switchOnOffloads switches on what the interface has off. A veth has all on from the start, so that it is seldom more than
// asking.
func switchOnOffloads(socket *nl.NetlinkSocket, name string) error {
	for _, o := range offloads {
		on, err := ethtool(socket, name, o.get, 0)
		if err == nil && on == 0 {
			_, err = ethtool(socket, name, o.set, 1)
		}
		if err != nil {
			return fmt.Errorf("switch on %s offload of %s: %w", o.name, name, err)
		}
	}
	return nil
}

// ethtool asks in the namespace of the socket; any socket will do.
func ethtool(socket *nl.NetlinkSocket, name string, command, data uint32) (uint32, error) {
	value := ethtoolValue{command, data}
	request := ethtoolRequest{data: unsafe.Pointer(&value)}
	copy(request.name[:unix.IFNAMSIZ-1], name)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(socket.GetFd()), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request)))
	runtime.KeepAlive(&value)
	if errno != 0 {
		return 0, errno
	}
	return value.data, nil
}

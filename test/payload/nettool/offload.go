//go:build linux

package nettool

import (
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// offloads are the commands of <linux/ethtool.h> that ask for one each.
var offloads = []struct {
	name    string
	command uint32
}{{"tx-checksumming", 0x16}, {"scatter-gather", 0x18}, {"tcp-segmentation-offload", 0x1e}}

// Offloads tells which of the three an interface has on, by the names of ethtool -k.
func Offloads(name string) ([]string, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	on := []string{}
	for _, o := range offloads {
		value := [2]uint32{o.command, 0}
		request := struct { // ifreq, netdevice(7)
			name [unix.IFNAMSIZ]byte
			data unsafe.Pointer
			_    [16]byte
		}{data: unsafe.Pointer(&value)}
		copy(request.name[:unix.IFNAMSIZ-1], name)
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request)))
		runtime.KeepAlive(&value)
		if errno != 0 {
			return nil, fmt.Errorf("ask %s for %s: %w", name, o.name, errno)
		}
		if value[1] != 0 {
			on = append(on, o.name)
		}
	}
	return on, nil
}

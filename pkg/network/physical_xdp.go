//go:build linux

package network

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// request is a request to this namespace. Its errors come with the kernel's own words.
func (p place) request(kind int) *nl.NetlinkRequest {
	request := nl.NewNetlinkRequest(kind, unix.NLM_F_ACK)
	request.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: {Seq: request.Seq, Socket: p.socket}}
	return request
}

// setLink is a request to change an interface, still without what is to be changed.
func (p place) setLink(index int) (*nl.NetlinkRequest, *nl.IfInfomsg) {
	request, info := p.request(unix.RTM_SETLINK), nl.NewIfInfomsg(unix.AF_UNSPEC)
	info.Index = int32(index)
	request.AddData(info)
	return request, info
}

// setFlags gives the interface those of the settable flags.
func (p place) setFlags(index int, flags uint32) error {
	request, info := p.setLink(index)
	info.Flags, info.Change = flags, settableFlags
	_, err := request.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// removePrograms removes what sees each packet before the host does, and stays with the interface when it is moved.
func (p place) removePrograms(ns *os.File, link netlink.Link) error {
	return errors.Join(p.removeXDP(link), removeTCX(ns, link.Attrs().Index))
}

// removeXDP leaves what a link of bpf(2) holds, where the index does not tell whose that is.
func (p place) removeXDP(link netlink.Link) error {
	if xdp := link.Attrs().Xdp; xdp == nil || !xdp.Attached {
		return nil
	}
	index := link.Attrs().Index
	var errs []error
	for _, mode := range []uint32{unix.XDP_FLAGS_SKB_MODE, unix.XDP_FLAGS_DRV_MODE, unix.XDP_FLAGS_HW_MODE} {
		err := p.detachXDP(index, mode)
		if errors.Is(err, unix.EBUSY) && index >= transitIndexes { // a link holds it: it is attached until that is detached
			err = detachXDPLinks(index)
		}
		errs = append(errs, err)
	}
	now, err := linkAt(p.handle, index)
	if err == nil && (now == nil || now.Attrs().Xdp == nil || !now.Attrs().Xdp.Attached) {
		return nil // what a driver says about a mode that it does not have does not matter
	}
	return fmt.Errorf("remove xdp program, which is still there and has to be detached: %w", errors.Join(append(errs, err)...))
}

func (p place) detachXDP(index int, mode uint32) error {
	request, _ := p.setLink(index)
	xdp := nl.NewRtAttr(unix.IFLA_XDP|unix.NLA_F_NESTED, nil)
	xdp.AddRtAttr(unix.IFLA_XDP_FD, nl.Uint32Attr(^uint32(0))) // -1
	xdp.AddRtAttr(unix.IFLA_XDP_FLAGS, nl.Uint32Attr(mode))
	request.AddData(xdp)
	_, err := request.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// linkInfo is the beginning of struct bpf_link_info of <linux/bpf.h>, as far as it tells about an XDP link.
type linkInfo struct {
	kind, id, program, _ uint32
	index                uint32
	_                    [64]byte // the kernel writes no more than it is told
}

// detachXDPLinks detaches the links that hold programs on interfaces with this index. The kernel does not tell in which
// namespace, so it has to be one that nobody else's interface has.
func detachXDPLinks(index int) error {
	for id := uint32(0); ; {
		next, err := nextLink(id)
		if errors.Is(err, unix.ENOENT) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("list bpf links: %w", err)
		}
		id = next
		if err := detachXDPLink(id, index); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("detach bpf link %d: %w", id, err)
		}
	}
}

func nextLink(id uint32) (uint32, error) {
	attr := struct{ start, next, flags uint32 }{start: id}
	_, err := bpf(unix.BPF_LINK_GET_NEXT_ID, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	return attr.next, err
}

func detachXDPLink(id uint32, index int) error {
	fd, err := openBPF(unix.BPF_LINK_GET_FD_BY_ID, id)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var info linkInfo
	query := struct {
		fd, size uint32
		info     unsafe.Pointer
	}{uint32(fd), uint32(unsafe.Sizeof(info)), unsafe.Pointer(&info)}
	_, err = bpf(unix.BPF_OBJ_GET_INFO_BY_FD, unsafe.Pointer(&query), unsafe.Sizeof(query))
	runtime.KeepAlive(&info)
	if err != nil || info.kind != unix.BPF_LINK_TYPE_XDP || info.index != uint32(index) {
		return err
	}
	return detachLink(fd)
}

// openBPF opens a link or a program by its id.
func openBPF(command int, id uint32) (int, error) {
	attr := struct{ id, next, flags uint32 }{id: id}
	return bpf(command, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
}

func detachLink(fd int) error {
	attr := struct{ fd uint32 }{uint32(fd)}
	_, err := bpf(unix.BPF_LINK_DETACH, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	return err
}

func bpf(command int, attr unsafe.Pointer, size uintptr) (int, error) {
	result, _, errno := unix.Syscall(unix.SYS_BPF, uintptr(command), uintptr(attr), size)
	if errno != 0 {
		return 0, errno
	}
	return int(result), nil
}

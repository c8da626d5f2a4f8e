//go:build linux

package network

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"isula.org/syscontainer-hooks/internal/thread"
)

// tcxDirections are those in which programs of tcx see packets, Linux 6.6. In each direction an interface can have maxTCX.
var tcxDirections = []uint32{unix.BPF_TCX_INGRESS, unix.BPF_TCX_EGRESS}

const maxTCX = 64

// tcxProgram is one that an interface has, by the ids of bpf(2). The link that holds it is 0 for none.
type tcxProgram struct{ direction, id, link uint32 }

// tcxQuery is the part of union bpf_attr of <linux/bpf.h> for BPF_PROG_QUERY.
type tcxQuery struct {
	index, direction, _, _ uint32
	programs               unsafe.Pointer
	count, _               uint32
	_                      uint64
	links                  unsafe.Pointer
	_, _                   uint64
}

// inNamespace runs f on a thread in the network namespace: bpf(2) knows interfaces by their index in that of its caller.
func inNamespace(ns *os.File, f func() error) error {
	return thread.Own(func() error {
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace: %w", err)
		}
		return f()
	})
}

// tcxPrograms gives all that an interface has.
func tcxPrograms(ns *os.File, index int) (all []tcxProgram, err error) {
	err = inNamespace(ns, func() error {
		for _, direction := range tcxDirections {
			programs, err := queryTCX(index, direction)
			if err != nil {
				return err
			}
			all = append(all, programs...)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list tcx programs: %w", err)
	}
	return all, nil
}

func queryTCX(index int, direction uint32) ([]tcxProgram, error) {
	var ids, links [maxTCX]uint32
	query := tcxQuery{
		index: uint32(index), direction: direction, programs: unsafe.Pointer(&ids), count: maxTCX, links: unsafe.Pointer(&links),
	}
	_, err := bpf(unix.BPF_PROG_QUERY, unsafe.Pointer(&query), unsafe.Sizeof(query))
	runtime.KeepAlive(&ids)
	runtime.KeepAlive(&links)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.ENOENT) {
		return nil, nil // the kernel has no tcx, no bpf(2), or this interface no program
	}
	if err != nil {
		return nil, err
	}
	programs := make([]tcxProgram, 0, query.count)
	for i, id := range ids[:min(query.count, maxTCX)] {
		programs = append(programs, tcxProgram{direction, id, links[i]})
	}
	return programs, nil
}

// refuseTCX refuses an interface with programs of the host: they would be removed on the way home.
func (n *Network) refuseTCX(link netlink.Link) error {
	programs, err := tcxPrograms(n.hostNS, link.Attrs().Index)
	if err != nil || len(programs) == 0 {
		return err
	}
	return fmt.Errorf("%s has a tcx program of the host, which would not come home; detach it first", link.Attrs().Name)
}

// removeTCX removes all programs of tcx that an interface has.
func removeTCX(ns *os.File, index int) error {
	programs, err := tcxPrograms(ns, index)
	if err != nil || len(programs) == 0 {
		return err
	}
	return inNamespace(ns, func() error {
		var errs []error
		for _, program := range programs {
			if err := program.detach(index); err != nil && !errors.Is(err, unix.ENOENT) {
				errs = append(errs, fmt.Errorf("detach tcx program %d: %w", program.id, err))
			}
		}
		return errors.Join(errs...)
	})
}

func (p tcxProgram) detach(index int) error {
	command, id := unix.BPF_PROG_GET_FD_BY_ID, p.id
	if p.link != 0 {
		command, id = unix.BPF_LINK_GET_FD_BY_ID, p.link
	}
	fd, err := openBPF(command, id)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if p.link != 0 {
		return detachLink(fd)
	}
	attr := struct{ index, program, direction, flags uint32 }{uint32(index), uint32(fd), p.direction, 0}
	_, err = bpf(unix.BPF_PROG_DETACH, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	return err
}

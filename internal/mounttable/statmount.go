//go:build linux

package mounttable

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// mountRequest is struct mnt_id_req of statmount(2), in its first version.
type mountRequest struct {
	size  uint32
	_     uint32
	mount uint64
	param uint64
}

// mountStatus is the part of struct statmount that is asked for here; the kernel takes any size of 512 bytes and more.
type mountStatus struct {
	_         [8]byte
	mask      uint64
	_         [64]byte
	peerGroup uint64
	_         [424]byte
}

const mountBasic = 0x2 // STATMOUNT_MNT_BASIC

// statPeerGroup gives the peer group that the mount of the handle sends its events to, 0 when it is not shared. It is
// errors.ErrUnsupported before Linux 6.8, and where a filter of system calls does not know statmount(2).
func statPeerGroup(f *os.File) (int, error) {
	var stat unix.Statx_t
	if err := unix.Statx(int(f.Fd()), "", unix.AT_EMPTY_PATH, unix.STATX_MNT_ID_UNIQUE, &stat); err != nil {
		return 0, &os.PathError{Op: "statx", Path: f.Name(), Err: err}
	}
	if stat.Mask&unix.STATX_MNT_ID_UNIQUE == 0 {
		return 0, errors.ErrUnsupported
	}
	request := mountRequest{mount: stat.Mnt_id, param: mountBasic}
	request.size = uint32(unsafe.Sizeof(request))
	var status mountStatus
	_, _, errno := unix.Syscall6(unix.SYS_STATMOUNT, uintptr(unsafe.Pointer(&request)), uintptr(unsafe.Pointer(&status)),
		unsafe.Sizeof(status), 0, 0, 0)
	switch {
	case errno == unix.ENOSYS || errno == unix.EPERM || errno == unix.EINVAL:
		return 0, errors.ErrUnsupported
	case errno != 0:
		return 0, &os.PathError{Op: "statmount", Path: f.Name(), Err: errno}
	case status.mask&mountBasic == 0:
		return 0, fmt.Errorf("statmount %s: %w", f.Name(), errors.ErrUnsupported)
	}
	return int(status.peerGroup), nil
}

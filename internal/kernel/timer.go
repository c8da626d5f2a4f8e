//go:build linux

package kernel

import (
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// sigevent is the kernel's struct sigevent. x/sys/unix knows neither it nor the calls.
type sigevent struct {
	value         uintptr
	signo, notify int32
	_             [64]byte // what other kinds of notification use
}

const sigevSignal = 0 // SIGEV_SIGNAL: the whole process gets the signal

// KillAfter makes the kernel kill this process after d, timer_create(2). Unlike a timer of the Go runtime it needs no thread, and
// it strikes when all threads hang. It cannot be taken back. Programs that are started do not inherit it.
func KillAfter(d time.Duration) error {
	event := sigevent{signo: int32(unix.SIGKILL), notify: sigevSignal}
	var id int32
	_, _, errno := unix.RawSyscall(unix.SYS_TIMER_CREATE, unix.CLOCK_MONOTONIC,
		uintptr(unsafe.Pointer(&event)), uintptr(unsafe.Pointer(&id)))
	if errno != 0 {
		return os.NewSyscallError("timer_create", errno)
	}
	when := unix.ItimerSpec{Value: unix.NsecToTimespec(max(d, 1).Nanoseconds())}
	_, _, errno = unix.RawSyscall6(unix.SYS_TIMER_SETTIME, uintptr(id), 0, uintptr(unsafe.Pointer(&when)), 0, 0, 0)
	if errno != 0 {
		return os.NewSyscallError("timer_settime", errno)
	}
	return nil
}

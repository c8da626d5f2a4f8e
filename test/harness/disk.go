//go:build linux

package harness

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// LoopDevices says why there are no loop devices, nil where there are.
func LoopDevices() error {
	if err := unix.Access("/dev/loop-control", unix.R_OK|unix.W_OK); err != nil {
		return fmt.Errorf("needs loop devices: /dev/loop-control: %w", err)
	}
	return nil
}

// LoopDevice makes a loop device that has the text as its first bytes, and skips the test where the kernel has none.
func LoopDevice(t Skipper, text string) string {
	t.Helper()
	if err := LoopDevices(); err != nil {
		Skip(t, err.Error())
	}
	return NewLoop(t, text, 1<<20)
}

// NewLoop makes a loop device of this size that has the text as its first bytes. It is in memory: its speed is not that of the
// machine's disk.
func NewLoop(tb TB, text string, size int64) string {
	tb.Helper()
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	Fatal(tb, err, "make loop device")
	tb.Cleanup(func() { control.Close() })
	fd, err := unix.MemfdCreate("loop", unix.MFD_CLOEXEC)
	Fatal(tb, err, "image of the loop device")
	file := os.NewFile(uintptr(fd), "image")
	defer file.Close()
	_, err = file.WriteString(text)
	Fatal(tb, err, "image of the loop device")
	Fatal(tb, file.Truncate(size), "image of the loop device")
	before := glob(tb, "/dev/loop[0-9]*")
	for range 16 { // another process may take the free number first
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		Fatal(tb, err, "free loop device")
		path := fmt.Sprintf("/dev/loop%d", n)
		loop, err := os.OpenFile(path, os.O_RDWR, 0)
		Fatal(tb, err, "open loop device")
		err = unix.IoctlLoopConfigure(int(loop.Fd()), &unix.LoopConfig{Fd: uint32(file.Fd())})
		if errors.Is(err, unix.EBUSY) {
			loop.Close()
			continue
		}
		Fatal(tb, err, "configure loop device")
		tb.Cleanup(func() {
			Fatal(tb, unix.IoctlSetInt(int(loop.Fd()), unix.LOOP_CLR_FD, 0), "release loop device")
			Fatal(tb, loop.Close(), "close loop device")
			if slices.Contains(before, path) {
				return
			}
			// It was made for this. Another process may have it by now.
			if err := unix.IoctlSetInt(int(control.Fd()), unix.LOOP_CTL_REMOVE, n); !errors.Is(err, unix.EBUSY) {
				Fatal(tb, err, "remove loop device")
			}
		})
		return path
	}
	Fatal(tb, unix.EBUSY, "free loop device")
	return ""
}

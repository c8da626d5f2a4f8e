//go:build linux

package udev

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"isula.org/syscontainer-hooks/internal/kernel"
)

// WholeDisk gives the kernel's name of a block device, and whether it is a whole disk: what lsblk(8) calls `disk`. Partitions are
// none, nor are loop devices, those of device-mapper and md, and what is of another SCSI type (a CD-ROM). It reads sysfs and
// opens no device. A device that the host does not have is fs.ErrNotExist.
func WholeDisk(major, minor uint32) (name string, whole bool, err error) {
	return wholeDisk("/sys", major, minor)
}

func wholeDisk(sys string, major, minor uint32) (name string, whole bool, err error) {
	dir := fmt.Sprintf("%s/dev/block/%d:%d", sys, major, minor)
	target, err := os.Readlink(dir)
	if err != nil {
		return "", false, fmt.Errorf("look up block device %d:%d: %w", major, minor, err)
	}
	name = filepath.Base(target)
	for _, other := range []string{"loop", "dm-", "md"} {
		if strings.HasPrefix(name, other) {
			return name, false, nil
		}
	}
	switch _, err := os.Lstat(dir + "/partition"); {
	case err == nil:
		return name, false, nil
	case !errors.Is(err, fs.ErrNotExist):
		return "", false, fmt.Errorf("look up disk %s: %w", name, err)
	}
	whole, err = diskByType(dir + "/device/type")
	if err != nil {
		return "", false, fmt.Errorf("look up type of disk %s: %w", name, err)
	}
	return name, whole, nil
}

// otherTypes are the SCSI peripheral device types that lsblk(8) has a name of their own for.
var otherTypes = []int{1, 2, 3, 4, 5, 6, 7, 8, 9, 0x0c, 0x0d, 0x0e, 0x11, 0x7f}

// diskByType is true without a type, and where it is not a SCSI one: that of an SD card is a word.
func diskByType(path string) (bool, error) {
	f, err := kernel.Open(path, unix.O_RDONLY)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, 64))
	if err != nil {
		return false, err
	}
	number, err := strconv.Atoi(strings.TrimSpace(string(text)))
	return err != nil || !slices.Contains(otherTypes, number), nil
}

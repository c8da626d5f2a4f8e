//go:build linux

package device

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"isula.org/syscontainer-hooks/internal/kernel"
)

// diskID is the number of a block device.
type diskID struct{ major, minor uint32 }

func (l Limit) disk() diskID { return diskID{l.Major, l.Minor} }

func (d diskID) String() string {
	s := strconv.AppendUint(make([]byte, 0, 24), uint64(d.major), 10)
	return string(strconv.AppendUint(append(s, ':'), uint64(d.minor), 10))
}

func parseDiskID(major, minor string) (diskID, error) {
	first, err := strconv.ParseUint(major, 10, 32)
	if err != nil {
		return diskID{}, err
	}
	second, err := strconv.ParseUint(minor, 10, 32)
	return diskID{uint32(first), uint32(second)}, err
}

// disks is the host's directory of block devices, by number: /sys/dev/block.
type disks struct{ *os.File }

func openDisks(sys string) (*disks, error) {
	dir, err := kernel.Open(sys+"/dev/block", unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return nil, fmt.Errorf("look at disks: %w", err)
	}
	return &disks{dir}, nil
}

func (d *disks) has(path string) bool {
	return kernel.Do(func() error { return unix.Faccessat(int(d.Fd()), path, unix.F_OK, 0) }) == nil
}

// checkWhole makes sure that the numbers are those of a whole disk.
func (d *disks) checkWhole(disk diskID) error {
	number := disk.String()
	switch {
	case d.has(number + "/queue"): // partitions share the one of their disk
		return nil
	case d.has(number + "/partition"):
		whole, err := d.readFile(number + "/../dev")
		if err != nil {
			return fmt.Errorf("it is a partition; limit the whole disk: %w", err)
		}
		return fmt.Errorf("it is a partition; limit the whole disk, %s", bytes.TrimSpace(whole))
	case d.has(number):
		return nil
	case d.has("../char/" + number):
		return errors.New("it is a char device; only whole disks have limits")
	default:
		return errors.New("the host has no such disk")
	}
}

// name describes a limit: its kind, its value and its disk.
func (d *disks) name(limit Limit) string {
	return fmt.Sprintf("%s %d of disk %s (%s)", limit.Kind, limit.Value, d.kernelName(limit.disk()), limit.disk())
}

// name is for errors, where it does not matter what a look costs.
func (c *IOCgroup) name(limit Limit) string {
	disks, err := openDisks(c.sys)
	if err != nil {
		return fmt.Sprintf("%s %d of disk %s", limit.Kind, limit.Value, limit.disk())
	}
	defer disks.Close()
	return disks.name(limit)
}

// kernelName is the disk's name in /sys/block, or "unknown".
func (d *disks) kernelName(disk diskID) string {
	link, err := os.Readlink(filepath.Join(d.Name(), disk.String()))
	if err != nil {
		return "unknown"
	}
	return filepath.Base(link)
}

func (d *disks) readFile(path string) ([]byte, error) {
	return os.ReadFile(d.Name() + "/" + path) // not cleaned: ".." goes up from behind a link
}

// scheduler is the I/O scheduler that the disk has, "" where it cannot have one.
func (d *disks) scheduler(disk diskID) (string, error) {
	list, err := d.readFile(disk.String() + "/queue/scheduler")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	_, list, _ = bytes.Cut(list, []byte("["))
	chosen, _, _ := bytes.Cut(list, []byte("]"))
	return string(chosen), nil
}

// checkWeight refuses a weight that the disk's scheduler does not know.
func (c *IOCgroup) checkWeight(limit Limit, disks *disks) error {
	f, err := c.open(Weight, unix.O_PATH)
	needed := "bfq"
	if err == nil {
		defer f.Close()
		if filepath.Base(f.Name()) == cfqWeights {
			needed = "cfq"
		}
	}
	scheduler, readErr := disks.scheduler(limit.disk())
	if readErr != nil {
		return fmt.Errorf("I/O limit %s: %w", disks.name(limit), readErr)
	}
	switch {
	case scheduler == "":
		return fmt.Errorf("I/O limit %s: it has no I/O scheduler, so that it can have no weight", disks.name(limit))
	case scheduler != needed:
		return fmt.Errorf("I/O limit %s: its I/O scheduler is %s, which knows no weights; choose %s first: "+
			"echo %s > /sys/block/%s/queue/scheduler",
			disks.name(limit), scheduler, needed, needed, disks.kernelName(limit.disk()))
	case err != nil:
		return fmt.Errorf("I/O limit %s: %w", disks.name(limit), err)
	default:
		return nil
	}
}

// explainWeight says why the kernel refused a weight.
func (c *IOCgroup) explainWeight(limit Limit, cause error) error {
	disks, err := openDisks(c.sys)
	if err == nil {
		defer disks.Close()
		if err = c.checkWeight(limit, disks); err == nil {
			err = fmt.Errorf("I/O limit %s", disks.name(limit))
		}
	}
	return fmt.Errorf("%w: %w", err, cause)
}

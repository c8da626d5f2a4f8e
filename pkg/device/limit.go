//go:build linux

package device

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"isula.org/syscontainer-hooks/internal/kernel"
)

// LimitKind says what a Limit is about. Its names are those of the lists in a container's record.
type LimitKind string

// The kinds of limits, blkio-controller.rst in the kernel's documentation of cgroup v1.
const (
	ReadIOPS  LimitKind = "readIops"    // operations per second
	WriteIOPS LimitKind = "writeIops"   // operations per second
	ReadBPS   LimitKind = "readBps"     // bytes per second
	WriteBPS  LimitKind = "writeBps"    // bytes per second
	Weight    LimitKind = "blkioWeight" // share of a busy disk, in proportion to the weights of others
)

// limitKinds gives all kinds, in the order in which their files are written.
func limitKinds() []LimitKind { return []LimitKind{ReadIOPS, WriteIOPS, ReadBPS, WriteBPS, Weight} }

// bounds are the values that a limit of the kind can have, besides 0 for none. The kernel cuts operations to 32 bits without a
// word, and takes the largest number for none.
func (k LimitKind) bounds() (low, high uint64) {
	switch k {
	case ReadIOPS, WriteIOPS:
		return 1, math.MaxUint32 - 1
	case ReadBPS, WriteBPS:
		return 1, math.MaxUint64 - 1
	default:
		return 10, 1000
	}
}

// Limit is an I/O limit of a cgroup on a whole disk of the host.
type Limit struct {
	Kind  LimitKind `json:"kind"`
	Major uint32    `json:"major"`
	Minor uint32    `json:"minor"`
	Value uint64    `json:"value"` // operations/s, bytes/s or weight; 0 for none
}

// LimitChange is what Set writes, and what was there.
type LimitChange struct {
	Limit
	Before uint64 `json:"before"`
}

// Limit gives the limit of this device, which has to be a block device. Whether it is a whole disk is for Plan to see.
func (h *Host) Limit(kind LimitKind, value uint64) (Limit, error) {
	if h.Type != Block {
		return Limit{}, fmt.Errorf("limit I/O: %s is no block device; only whole disks have limits", h.Path)
	}
	return Limit{Kind: kind, Major: h.Major, Minor: h.Minor, Value: value}, nil
}

// check looks at what needs no look at the host.
func (l Limit) check() error {
	if !slices.Contains(limitKinds(), l.Kind) {
		return fmt.Errorf("unknown kind of I/O limit, want one of %q", limitKinds())
	}
	if low, high := l.Kind.bounds(); l.Value != 0 && (l.Value < low || l.Value > high) {
		return fmt.Errorf("want %d to %d, or 0 for no limit", low, high)
	}
	return nil
}

// key is the same for all values of a limit.
func (l Limit) key() Limit {
	l.Value = 0
	return l
}

// limitTable has the values of limits by their keys. A cgroup can also have a value of 0: nothing passes then.
type limitTable map[Limit]uint64

func (t limitTable) holds(limit Limit) bool {
	value, there := t[limit.key()]
	return value == limit.Value && there == (limit.Value != 0)
}

// IOCgroup is a container's cgroup as far as it limits I/O. Today that is a cgroup of the version 1 blkio controller; version 2
// gets the same methods.
//
// In version 1 a limit is for the processes in this very cgroup, not for those in cgroups below it: a container that can make
// one there can get away from it. Of writes, it is for those that go to the disk directly or at an fsync(2), since the kernel
// writes the others back on its own account.
type IOCgroup struct {
	dir *os.File
	sys string // where sysfs is
}

// OpenIOCgroup takes the handle of a container's cgroup directory, which stays the caller's. A version 2 cgroup is ErrCgroupV2.
func OpenIOCgroup(dir *os.File) (*IOCgroup, error) {
	if err := checkCgroup(dir); err != nil {
		return nil, err
	}
	return &IOCgroup{dir, "/sys"}, nil
}

// Limits gives all limits that the cgroup has, by kind.
func (c *IOCgroup) Limits() ([]Limit, error) {
	var limits []Limit
	for _, kind := range limitKinds() {
		more, err := c.read(kind)
		if err != nil {
			return nil, err
		}
		limits = append(limits, more...)
	}
	return limits, nil
}

// Plan works out what is missing for limits to hold, and changes nothing. A limit that holds already is not part of it. Only
// whole disks that are there have limits: the kernel has none for a partition. A weight needs a disk whose I/O scheduler knows
// weights. The same limit with two values is an error.
func (c *IOCgroup) Plan(limits []Limit) ([]LimitChange, error) {
	if len(limits) == 0 {
		return nil, nil
	}
	disks, err := openDisks(c.sys)
	if err != nil {
		return nil, err
	}
	defer disks.Close()
	if limits, err = checkLimits(limits, disks); err != nil {
		return nil, err
	}
	present, err := c.present(limits)
	if err != nil {
		return nil, err
	}
	changes := make([]LimitChange, 0, len(limits))
	for _, limit := range limits {
		if present.holds(limit) {
			continue
		}
		if limit.Kind == Weight && limit.Value != 0 {
			if err := c.checkWeight(limit, disks); err != nil {
				return nil, err
			}
		}
		changes = append(changes, LimitChange{Limit: limit, Before: present[limit.key()]})
	}
	return changes, nil
}

// checkLimits refuses what could not be set, or only in part, and gives each limit once.
func checkLimits(limits []Limit, disks *disks) ([]Limit, error) {
	unique := make([]Limit, 0, len(limits))
	values := make(limitTable, len(limits))
	whole := make(map[diskID]bool)
	for _, limit := range limits {
		err := limit.check()
		value, twice := values[limit.key()]
		if err == nil && twice && value != limit.Value {
			err = fmt.Errorf("it is also to be %d; leave one of them", value)
		}
		if disk := limit.disk(); err == nil && !whole[disk] {
			err = disks.checkWhole(disk)
			whole[disk] = true
		}
		if err != nil {
			return nil, fmt.Errorf("I/O limit %s: %w", disks.name(limit), err)
		}
		if !twice {
			values[limit.key()] = limit.Value
			unique = append(unique, limit)
		}
	}
	return unique, nil
}

// present reads the limits of all kinds that limits has.
func (c *IOCgroup) present(limits []Limit) (limitTable, error) {
	table := make(limitTable, len(limits))
	for _, kind := range limitKinds() {
		if !slices.ContainsFunc(limits, func(l Limit) bool { return l.Kind == kind }) {
			continue
		}
		present, err := c.read(kind)
		if err != nil {
			return nil, err
		}
		for _, limit := range present {
			table[limit.key()] = limit.Value
		}
	}
	return table, nil
}

// Set makes the changes, and reads back that the kernel has them. It can be repeated. When it fails, Reset takes back what it
// has done. A limit counts from the next request on, for processes that run as well.
func (c *IOCgroup) Set(changes []LimitChange) error {
	for _, change := range changes {
		if err := change.check(); err != nil {
			return fmt.Errorf("I/O limit %s: %w", c.name(change.Limit), err)
		}
	}
	for _, kind := range limitKinds() {
		if limits := ofKind(kind, changes, func(c LimitChange) Limit { return c.Limit }); len(limits) > 0 {
			if err := c.setKind(kind, limits); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c *IOCgroup) setKind(kind LimitKind, limits []Limit) error {
	f, err := c.open(kind, unix.O_WRONLY)
	if err != nil {
		return err
	}
	defer f.Close()
	for _, limit := range limits {
		if err := c.write(f, limit); err != nil {
			return err
		}
	}
	return c.verify(limits)
}

// Reset puts back what was there before the changes, whether all, some or none of them have been made. It can be repeated. What
// is gone has no limits: neither a disk nor a cgroup that is not there any more is an error. It goes on after an error.
func (c *IOCgroup) Reset(changes []LimitChange) error {
	var errs []error
	for _, kind := range limitKinds() {
		before := ofKind(kind, changes, func(c LimitChange) Limit {
			c.Value = c.Before
			return c.Limit
		})
		if len(before) == 0 {
			continue
		}
		err := c.resetKind(kind, before)
		if gone := errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV); !gone {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func (c *IOCgroup) resetKind(kind LimitKind, before []Limit) error {
	present, err := c.present(before)
	if err != nil {
		return err
	}
	before = slices.DeleteFunc(before, present.holds)
	if len(before) == 0 {
		return nil
	}
	f, err := c.open(kind, unix.O_WRONLY)
	if err != nil {
		return err
	}
	defer f.Close()
	var errs []error
	written := before[:0]
	for _, limit := range before {
		err := c.write(f, limit)
		switch {
		case err == nil:
			written = append(written, limit)
		case !errors.Is(err, unix.ENODEV): // the disk is there
			errs = append(errs, err)
		}
	}
	return errors.Join(append(errs, c.verify(written))...)
}

// ofKind picks from the changes of one kind.
func ofKind(kind LimitKind, changes []LimitChange, pick func(LimitChange) Limit) []Limit {
	var limits []Limit
	for _, change := range changes {
		if change.Kind == kind {
			limits = append(limits, pick(change))
		}
	}
	return limits
}

// write writes one limit: the kernel takes one in a write.
func (c *IOCgroup) write(f *os.File, limit Limit) error {
	line := limit.line(f.Name())
	_, err := kernel.Value(func() (int, error) { return unix.Write(int(f.Fd()), line) })
	gone := errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EOPNOTSUPP)
	switch {
	case err == nil, gone && limit.Value == 0: // what cannot have a limit has none; reading it back makes sure
		return nil
	case errors.Is(err, unix.EOPNOTSUPP) && limit.Kind == Weight:
		return c.explainWeight(limit, err)
	default:
		return fmt.Errorf("set I/O limit %s: write %s: %w", c.name(limit), f.Name(), err)
	}
}

// verify compares the limits with what the cgroup has.
func (c *IOCgroup) verify(limits []Limit) error {
	present, err := c.present(limits)
	if err != nil {
		return err
	}
	for _, limit := range limits {
		if !present.holds(limit) {
			has := "none"
			if value, there := present[limit.key()]; there {
				has = fmt.Sprint(value)
			}
			return fmt.Errorf("set I/O limit %s: the kernel has %s afterwards", c.name(limit), has)
		}
	}
	return nil
}

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

// The files of weights: of the scheduler bfq, Linux 5.4 and newer, and of cfq, before 5.0.
const (
	bfqWeights = "blkio.bfq.weight_device"
	cfqWeights = "blkio.weight_device"
)

// files gives the names that the kind's file can have.
func (k LimitKind) files() []string {
	switch k {
	case ReadIOPS:
		return []string{"blkio.throttle.read_iops_device"}
	case WriteIOPS:
		return []string{"blkio.throttle.write_iops_device"}
	case ReadBPS:
		return []string{"blkio.throttle.read_bps_device"}
	case WriteBPS:
		return []string{"blkio.throttle.write_bps_device"}
	default:
		return []string{bfqWeights, cfqWeights}
	}
}

// open opens the kind's file, the first that the cgroup has.
func (c *IOCgroup) open(kind LimitKind, flags int) (*os.File, error) {
	var f *os.File
	err := fs.ErrNotExist
	for _, name := range kind.files() {
		if f, err = kernel.OpenAt(c.dir, name, flags|unix.O_NOFOLLOW, 0); !errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: the cgroup is gone or not one of blkio, or the kernel does not have %s", err, kind)
	}
	return f, err
}

// read gives the limits of one kind. Without a file for weights there are no weights.
func (c *IOCgroup) read(kind LimitKind) ([]Limit, error) {
	f, err := c.open(kind, unix.O_RDONLY)
	if kind == Weight && errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var data bytes.Buffer
	data.Grow(os.Getpagesize())
	if _, err := data.ReadFrom(f); err != nil {
		return nil, err
	}
	limits, err := parseLimits(kind, data.Bytes())
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", f.Name(), err)
	}
	return limits, nil
}

// parseLimits reads lines of "major:minor value". The file of bfq's weights also has one that starts with "default".
func parseLimits(kind LimitKind, data []byte) ([]Limit, error) {
	limits := make([]Limit, 0, bytes.Count(data, []byte("\n"))+1)
	for line := range bytes.Lines(data) {
		limit, err := parseLimit(kind, bytes.Fields(line))
		if err != nil {
			return nil, fmt.Errorf("entry %q: %w", line, err)
		}
		if limit != nil {
			limits = append(limits, *limit)
		}
	}
	return limits, nil
}

// parseLimit gives nil for the default.
func parseLimit(kind LimitKind, fields [][]byte) (*Limit, error) {
	if len(fields) != 2 {
		return nil, errors.New("want a disk and a value")
	}
	if kind == Weight && string(fields[0]) == "default" {
		return nil, nil
	}
	value, err := strconv.ParseUint(string(fields[1]), 10, 64)
	if err != nil {
		return nil, err
	}
	major, minor, _ := bytes.Cut(fields[0], []byte(":"))
	id, err := parseDiskID(string(major), string(minor))
	return &Limit{Kind: kind, Major: id.major, Minor: id.minor, Value: value}, err
}

// line is what the file takes.
func (l Limit) line(file string) []byte {
	line := append(make([]byte, 0, 48), l.disk().String()...)
	line = append(line, ' ')
	if l.Value == 0 && filepath.Base(file) == bfqWeights {
		line = append(line, "default"...) // 0 is out of its range
	} else {
		line = strconv.AppendUint(line, l.Value, 10)
	}
	return append(line, '\n')
}

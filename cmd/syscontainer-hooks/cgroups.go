//go:build linux

package main

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"isula.org/syscontainer-hooks/internal/atroot"
	"isula.org/syscontainer-hooks/internal/hookstate"
	"isula.org/syscontainer-hooks/internal/kernel"
)

// cgroupRef is a cgroup in which something is changed, as the journal knows it.
type cgroupRef struct {
	Cgroup string `json:"cgroup"` // directory on the host
	Inode  uint64 `json:"inode"`  // of it: a cgroup of the same name that comes later is another one
}

func refer(cgroup *hookstate.Cgroup) (cgroupRef, error) {
	stat, err := atroot.Stat(cgroup.File)
	if err != nil {
		return cgroupRef{}, err
	}
	return cgroupRef{cgroup.Path, stat.Ino}, nil
}

func (r cgroupRef) open() (*os.File, error) {
	dir, err := kernel.Open(r.Cgroup, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW)
	if err != nil {
		return nil, err
	}
	stat, err := atroot.Stat(dir)
	if err == nil && stat.Ino != r.Inode {
		err = fmt.Errorf("cgroup %s: %w: another one has its name now", r.Cgroup, os.ErrNotExist)
	}
	if err != nil {
		dir.Close()
		return nil, err
	}
	return dir, nil
}

// cgroupGone tells that a cgroup is not there any more, and with it all that was changed in it.
func cgroupGone(err error) bool {
	return errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENODEV)
}

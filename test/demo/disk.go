//go:build linux

package main

import (
	"fmt"
	"math"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"isula.org/syscontainer-hooks/test/harness"
)

const (
	diskLimit  = 10 << 20 // bytes per second
	diskBlock  = 128 << 10
	diskBlocks = 80 // what the limit lets pass in a second
)

// diskRows make a disk, which the container is to have and not to read at its full speed.
func (s *scene) diskRows() []row {
	if err := harness.LoopDevices(); err != nil || !harness.V1Devices() {
		fmt.Print("No disk in this demonstration: it needs loop devices and cgroup v1.\n\n")
		return nil
	}
	disk := harness.NewLoop(s.tb, "", 16<<20)
	var st unix.Stat_t
	harness.Fatal(s.tb, unix.Stat(disk, &st), "look at the disk")
	number := fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
	return []row{
		{
			list: "deviceToAdd", resource: "device /dev/disk",
			record: fmt.Sprintf(`{"Type":"b","Minor":0,"Major":0,"PathOnHost":%q,"PathInContainer":"/dev/disk",`+
				`"CgroupPermissions":"rw","Parent":""}`, disk),
			look: s.disk, want: "b " + number,
		},
		{
			list: "readBps", resource: fmt.Sprintf("limit %d MiB/s on %s", diskLimit>>20, filepath.Base(disk)),
			record: fmt.Sprintf(`{"major":0,"minor":0,"path":%q,"value":"%d"}`, disk, diskLimit),
			look:   s.readDisk, fits: nearLimit,
		},
	}
}

func (s *scene) disk() string {
	st := s.c.TryExec("stat", "/dev/disk")
	if st.Code != 0 {
		return missing(st)
	}
	return strings.Join(strings.Fields(st.Stdout)[:2], " ")
}

// readDisk measures how fast the container reads. What is too slow is tried again: the machine may be busy.
func (s *scene) readDisk() string {
	const tries = 3
	measured := ""
	for range tries {
		r := s.c.TryExec("direct", "read", "/dev/disk", strconv.Itoa(diskBlock), strconv.Itoa(diskBlocks))
		if r.Code != 0 {
			return missing(r)
		}
		took, err := strconv.Atoi(text(r))
		harness.Fatal(s.tb, err, "time of reading")
		bytes := diskBlock * diskBlocks * 3 / 4 // the first quarter is not in the time
		rate := float64(bytes) / float64(took) * 1e6
		measured = fmt.Sprintf("reads %.1f MiB/s", rate/(1<<20))
		if rate > 0.75*diskLimit {
			break
		}
	}
	return measured
}

func nearLimit(measured string) bool {
	var rate float64
	_, err := fmt.Sscanf(measured, "reads %f MiB/s", &rate)
	return err == nil && math.Abs(rate/(diskLimit>>20)-1) < 0.25
}

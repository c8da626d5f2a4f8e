//go:build linux

package vm

import (
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"isula.org/syscontainer-hooks/test/harness"
)

const (
	rulesFile = "/etc/udev/rules.d/99-syscontainer-tools.rules"
	wrapper   = "/lib/udev/syscontainer-tools_wrapper"
	callsFile = "/run/calls"

	waitLimit = 30 * time.Second
)

// disks are devices of QEMU: of virtio, one of them known by a link; of SCSI, with a drive for compact discs; and namespaces of
// NVMe, where the name of the first is the beginning of the tenth's.
func disks() Machine {
	m := Machine{
		Drives: []string{"plain", "linked", "scsi", "nvme1", "nvme10"},
		Devices: []string{
			"virtio-blk-pci,drive=plain", "virtio-blk-pci,drive=linked,serial=linked",
			"virtio-scsi-pci,id=hba", "scsi-hd,drive=scsi,bus=hba.0", "scsi-cd,bus=hba.0",
			"nvme,id=nvme,serial=nvme", "nvme-ns,bus=nvme,nsid=1,drive=nvme1",
		},
	}
	for nsid := 2; nsid <= 10; nsid++ {
		drive := fmt.Sprintf("nvme%d", nsid)
		if nsid < 10 {
			m.Drives = append(m.Drives, drive)
		}
		m.Devices = append(m.Devices, fmt.Sprintf("nvme-ns,bus=nvme,nsid=%d,drive=%s", nsid, drive))
	}
	return m
}

// TestPartitionsFollowARestart has a container with whole disks, and udevd: what comes and goes on them is told to the helper
// script of syscontainer-tools as long as the container runs, and again after a restart.
func TestPartitionsFollowARestart(t *testing.T) {
	for _, program := range []string{"runc", "udevadm"} {
		if _, err := exec.LookPath(program); err != nil {
			harness.Skip(t, err.Error())
		}
	}
	if !Inside(t, disks()) {
		return
	}
	mountDevicesCgroup(t)
	startUdevd(t)
	script := fmt.Sprintf("#!/bin/sh\necho \"$*\" >>%s\n", callsFile)
	require.NoError(t, os.WriteFile(wrapper, []byte(script), 0o755))

	disks := []disk{
		{host: "/dev/vda", name: "vda", container: "/dev/plain", partition: "vda1"},
		{host: "/dev/disk/by-id/virtio-linked", name: "vdb", container: "/dev/linked", partition: "vdb1"},
		{host: "/dev/sda", name: "sda", container: "/dev/scsi", partition: "sda1"},
		{host: "/dev/nvme0n1", name: "nvme0n1", container: "/dev/nvme", partition: "nvme0n1p1"},
	}
	c := newContainer(t, append(disks, disk{host: "/dev/sr0", container: "/dev/cd"}))
	strangers := []disk{{host: "/dev/nvme0n10", partition: "nvme0n10p1"}}

	for range 2 {
		c.Start()
		requireRules(t, c, disks)
		change(t, append(disks, strangers...), 1)
		requireCalls(t, c, "add", disks)
		change(t, append(disks, strangers...), 0)
		requireCalls(t, c, "remove", disks)

		c.Stop()
		requireRules(t, c, nil)
		for _, partitions := range []int{1, 0} {
			change(t, append(disks, strangers...), partitions)
			require.Empty(t, lastCalls(t))
		}
	}
}

// disk is one of the host, and the partition that comes and goes on it.
type disk struct{ host, name, container, partition string }

// mountDevicesCgroup gives the guest the controller that the hook and the runtime ask for.
func mountDevicesCgroup(t *testing.T) {
	require.NoError(t, unix.Mount("cgroups", "/sys/fs/cgroup", "tmpfs", 0, "mode=0755"))
	for _, controller := range []string{"devices", "blkio", "freezer"} {
		dir := filepath.Join("/sys/fs/cgroup", controller)
		require.NoError(t, os.Mkdir(dir, 0o755))
		require.NoError(t, unix.Mount("cgroup", dir, "cgroup", 0, controller))
	}
}

// startUdevd starts the daemon as the host does early, and lets it look at the disks.
func startUdevd(t *testing.T) {
	udevd := exec.Command("/lib/systemd/systemd-udevd")
	udevd.Stdout, udevd.Stderr = os.Stdout, os.Stderr
	require.NoError(t, udevd.Start())
	require.Eventually(t, func() bool {
		_, err := os.Stat("/run/udev/control")
		return err == nil
	}, waitLimit, 10*time.Millisecond)
	trigger := []string{"udevadm", "trigger", "--settle", "--action=add"}
	for _, subsystem := range []string{"pci", "virtio", "scsi", "block"} { // drivers load, and bring the next
		run(t, append(trigger, "--subsystem-match="+subsystem)...)
		run(t, "udevadm", "settle")
	}
}

func newContainer(t *testing.T, disks []disk) *harness.Container {
	rt, err := harness.FindRuntime("runc")
	require.NoError(t, err)
	c := harness.New(t, harness.Config{Runtime: rt, Tools: Tools(), Stage: "prestart"})
	c.ID = strings.Repeat("1f2e3d4c", 8)
	c.WriteSpec()
	var devices []string
	for _, d := range disks {
		var st unix.Stat_t
		require.NoError(t, unix.Stat(d.host, &st), d.host)
		devices = append(devices, fmt.Sprintf(
			`{"Type":"b","Major":%d,"Minor":%d,"PathOnHost":%q,"PathInContainer":%q,"CgroupPermissions":"rwm","Parent":""}`,
			unix.Major(st.Rdev), unix.Minor(st.Rdev), d.host, d.container))
	}
	c.WriteRecord(`{"deviceToAdd":[` + strings.Join(devices, ",") + `]}`)
	return c
}

// requireRules looks for one rule of each disk, and no other.
func requireRules(t *testing.T, c *harness.Container, disks []disk) {
	t.Helper()
	text, err := os.ReadFile(rulesFile)
	require.NoError(t, err)
	var rules int
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, "KERNEL") {
			rules++
		}
	}
	require.Equal(t, len(disks), rules, "%s", text)
	for _, d := range disks {
		require.Contains(t, string(text), fmt.Sprintf(`%s $env{ACTION} %.8s $name %s %s"`, wrapper, c.ID, d.container, d.name))
	}
}

// change writes a partition table with one partition or none, has the kernel read it, and waits for udevd to be done with it.
func change(t *testing.T, disks []disk, partitions int) {
	t.Helper()
	if err := os.Remove(callsFile); err != nil {
		require.ErrorIs(t, err, os.ErrNotExist)
	}
	for _, d := range disks {
		f, err := os.OpenFile(d.host, os.O_RDWR|unix.O_CLOEXEC, 0)
		require.NoError(t, err)
		_, err = f.WriteAt(bootRecord(partitions), 0)
		require.NoError(t, err)
		require.EventuallyWithT(t, func(t *assert.CollectT) { // EBUSY while udevd looks at a partition
			require.NoError(t, unix.IoctlSetInt(int(f.Fd()), unix.BLKRRPART, 0))
		}, waitLimit, 10*time.Millisecond, d.host)
		require.NoError(t, f.Close())
	}
	run(t, "udevadm", "settle")
	for _, d := range disks {
		require.EventuallyWithT(t, func(t *assert.CollectT) { // udevd reads once more what has been written, and then all comes again
			_, err := os.Stat("/dev/" + d.partition)
			require.Equal(t, partitions == 1, err == nil, "%v", err)
		}, waitLimit, 10*time.Millisecond, d.partition)
	}
}

// bootRecord is a partition table as personal computers have it.
func bootRecord(partitions int) []byte {
	record := make([]byte, 512)
	copy(record[510:], "\x55\xaa")
	if partitions == 1 {
		entry := record[446:]
		entry[4] = 0x83                                   // Linux
		binary.LittleEndian.PutUint32(entry[8:], 2048)    // first sector
		binary.LittleEndian.PutUint32(entry[12:], 2*2048) // sectors
	}
	return record
}

// requireCalls looks at the last call for each partition: udevd has the kernel read a table again that has changed, at a time of
// its own, and then partitions go and come once more.
func requireCalls(t *testing.T, c *harness.Container, action string, disks []disk) {
	t.Helper()
	want := map[string]string{}
	for _, d := range disks {
		want[d.partition] = fmt.Sprintf("%s %.8s %s %s %s", action, c.ID, d.partition, d.container, d.name)
	}
	require.EventuallyWithT(t, func(t *assert.CollectT) { require.Equal(t, want, lastCalls(t)) }, waitLimit, 10*time.Millisecond)
}

// lastCalls are those of the helper script by partition.
func lastCalls(t require.TestingT) map[string]string {
	text, err := os.ReadFile(callsFile)
	if err != nil {
		require.ErrorIs(t, err, os.ErrNotExist)
	}
	last := map[string]string{}
	for line := range strings.Lines(string(text)) {
		call := strings.TrimSpace(line)
		require.Len(t, strings.Fields(call), 5)
		last[strings.Fields(call)[2]] = call
	}
	return last
}

func run(t *testing.T, args ...string) {
	t.Helper()
	require.NoError(t, harness.Command("", args...).Err(), args)
}

//go:build linux

package udev

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestWholeDisk(t *testing.T) {
	t.Parallel()
	for name, row := range map[string]struct {
		device string            // below sys/devices
		files  map[string]string // in its directory
		whole  bool
	}{
		"SCSI disk":           {"pci0000:00/host0/block/sda", map[string]string{"device/type": "0\n"}, true},
		"its partition":       {"pci0000:00/host0/block/sda/sda1", map[string]string{"partition": "1\n"}, false},
		"CD-ROM":              {"pci0000:00/host1/block/sr0", map[string]string{"device/type": "5\n"}, false},
		"tape":                {"host1/block/st0", map[string]string{"device/type": "1\n"}, false},
		"no unit":             {"host1/block/sdz", map[string]string{"device/type": "127\n"}, false},
		"unknown type":        {"host1/block/sdy", map[string]string{"device/type": "20\n"}, true},
		"empty type":          {"host1/block/sdx", map[string]string{"device/type": ""}, true},
		"SD card":             {"mmc0/block/mmcblk0", map[string]string{"device/type": "SD\n"}, true},
		"NVMe":                {"nvme0/nvme0n1", map[string]string{"device/model": "x\n"}, true},
		"its partition p1":    {"nvme0/nvme0n1/nvme0n1p1", map[string]string{"partition": "1\n"}, false},
		"virtio":              {"virtio3/block/vda", map[string]string{"device/device": "0x0002\n"}, true},
		"network block":       {"virtual/block/nbd0", nil, true},
		"compressed memory":   {"virtual/block/zram0", nil, true},
		"loop":                {"virtual/block/loop0", nil, false},
		"partition of a loop": {"virtual/block/loop0/loop0p1", map[string]string{"partition": "1\n"}, false},
		"mapped":              {"virtual/block/dm-0", nil, false},
		"RAID":                {"virtual/block/md127", nil, false},
		"array of a card":     {"host2/block/cciss!c0d0", nil, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			sys := t.TempDir()
			dir := filepath.Join(sys, "devices", row.device)
			require.NoError(t, os.MkdirAll(dir, 0o755))
			for file, text := range row.files {
				require.NoError(t, os.MkdirAll(filepath.Dir(filepath.Join(dir, file)), 0o755))
				require.NoError(t, os.WriteFile(filepath.Join(dir, file), []byte(text), 0o600))
			}
			require.NoError(t, os.MkdirAll(sys+"/dev/block", 0o755))
			require.NoError(t, os.Symlink("../../devices/"+row.device, sys+"/dev/block/8:16"))
			disk, whole, err := wholeDisk(sys, 8, 16)
			require.NoError(t, err)
			require.Equal(t, filepath.Base(row.device), disk)
			require.Equal(t, row.whole, whole)
			_, _, err = wholeDisk(sys, 8, 17)
			require.ErrorIs(t, err, fs.ErrNotExist)
		})
	}
}

func TestWholeDiskAsLsblk(t *testing.T) {
	t.Parallel()
	requireAsLsblk(t)
	_, _, err := WholeDisk(4095, 1<<20-1)
	require.ErrorIs(t, err, fs.ErrNotExist)
}

// requireAsLsblk compares all block devices of the machine. Other programs may make and remove some meanwhile.
func requireAsLsblk(t *testing.T) (types map[string]string) {
	t.Helper()
	out, err := exec.Command("/usr/bin/lsblk", "--all", "--list", "--noheadings", "--output", "MAJ:MIN,TYPE,KNAME").Output()
	require.NoError(t, err)
	types = make(map[string]string)
	for line := range strings.Lines(string(out)) {
		var major, minor uint32
		var kind, name string
		_, err := fmt.Sscanf(line, "%d:%d %s %s", &major, &minor, &kind, &name)
		require.NoError(t, err, line)
		disk, whole, err := WholeDisk(major, minor)
		if _, gone := os.Stat("/sys/class/block/" + name); gone != nil {
			continue
		}
		require.NoError(t, err, line)
		require.Equal(t, name, disk)
		require.Equal(t, kind == "disk", whole, line)
		types[name] = kind
	}
	require.NotEmpty(t, types)
	return types
}

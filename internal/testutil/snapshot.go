//go:build linux

package testutil

import (
	"crypto/sha256"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moby/sys/mountinfo"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// Tree describes what is below the directories, a line each: path, mode, owner, device numbers or content. It stays on the
// file system of each directory, and a missing one has no lines.
func Tree(tb testing.TB, dirs ...string) []string {
	tb.Helper()
	var lines []string
	for _, dir := range dirs {
		var top unix.Stat_t
		if err := unix.Lstat(dir, &top); err != nil {
			require.ErrorIs(tb, err, unix.ENOENT)
			continue
		}
		require.NoError(tb, filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			line, dev := describe(tb, path)
			lines = append(lines, line)
			if dev != top.Dev {
				return filepath.SkipDir
			}
			return nil
		}))
	}
	return lines
}

func describe(tb testing.TB, path string) (line string, dev uint64) {
	tb.Helper()
	var stat unix.Stat_t
	require.NoError(tb, unix.Lstat(path, &stat))
	line = fmt.Sprintf("%s %o %d:%d %d:%d", path, stat.Mode, stat.Uid, stat.Gid, unix.Major(stat.Rdev), unix.Minor(stat.Rdev))
	switch stat.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		data, err := os.ReadFile(path)
		require.NoError(tb, err)
		line += fmt.Sprintf(" %x", sha256.Sum256(data))
	case unix.S_IFLNK:
		target, err := os.Readlink(path)
		require.NoError(tb, err)
		line += " -> " + target
	}
	return line, stat.Dev
}

// Mounts describes the mounts of a process's mount namespace, "self" or a pid, without the numbers that differ every time:
// mount point, root, options, and whether it is shared or a slave.
func Mounts(tb testing.TB, pid string) []string {
	tb.Helper()
	f, err := os.Open(filepath.Join("/proc", pid, "mountinfo"))
	require.NoError(tb, err)
	defer f.Close()
	mounts, err := mountinfo.GetMountsFromReader(f, nil)
	require.NoError(tb, err)
	lines := make([]string, 0, len(mounts))
	for _, m := range mounts {
		var peers []string
		for field := range strings.FieldsSeq(m.Optional) {
			kind, _, _ := strings.Cut(field, ":")
			peers = append(peers, kind)
		}
		lines = append(lines, fmt.Sprintf("%s %s %s %v %s", m.Mountpoint, m.Root, m.Options, peers, m.FSType))
	}
	return lines
}

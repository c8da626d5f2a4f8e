//go:build linux

package mounttable

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"isula.org/syscontainer-hooks/internal/testutil"
)

func TestMain(m *testing.M) { os.Exit(testutil.Main(m)) }

const sample = `22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw,discard
40 27 0:36 / /a\040b\011c\012d\134e ro,nosuid shared:3 master:2 propagate_from:1 - tmpfs none rw
41 27 0:36 /x /m rw master:7 unbindable - tmpfs none rw
`

func TestRead(t *testing.T) {
	t.Parallel()
	table, err := Read(strings.NewReader(sample))
	require.NoError(t, err)
	require.Len(t, table, 4)
	require.Equal(t, "/a b\tc\nd\\e", table[2].Mountpoint)
	require.Equal(t, []int{0, 1, 3, 0}, []int{PeerGroup(table[0]), PeerGroup(table[1]), PeerGroup(table[2]), PeerGroup(table[3])})
	require.Equal(t, map[int]bool{1: true, 3: true}, table.PeerGroups())
}

func TestFindAndID(t *testing.T) {
	testutil.RequireRoot(t)
	dir := t.TempDir()
	require.NoError(t, unix.Mount("t", dir, "tmpfs", 0, ""))
	t.Cleanup(func() { require.NoError(t, unix.Unmount(dir, 0)) })
	require.NoError(t, os.Mkdir(dir+"/sub", 0o755))
	file, err := os.Open("/proc/self/mountinfo")
	require.NoError(t, err)
	defer file.Close()
	table, err := Read(file)
	require.NoError(t, err)
	for path, isRoot := range map[string]bool{dir: true, dir + "/sub": false} {
		f, err := os.OpenFile(path, unix.O_PATH, 0)
		require.NoError(t, err)
		_, root, err := ID(f)
		require.NoError(t, err)
		require.Equal(t, isRoot, root)
		m, err := table.Find(f)
		require.NoError(t, err)
		require.Equal(t, dir, m.Mountpoint)
		f.Close()
	}
}

func TestRefuseShared(t *testing.T) {
	testutil.RequireRoot(t)
	dir := t.TempDir()
	require.NoError(t, unix.Mount("t", dir, "tmpfs", 0, "")) // shared, since / is
	t.Cleanup(func() { require.NoError(t, unix.Unmount(dir, 0)) })
	proc, err := openProc()
	require.NoError(t, err)
	defer proc.close()
	f, err := os.OpenFile(dir, unix.O_PATH, 0)
	require.NoError(t, err)
	defer f.Close()
	require.ErrorContains(t, refuseShared([]*os.File{f}, proc), "shared with the host")
	require.ErrorIs(t, refuseShared([]*os.File{f}, nil), errNeedsProc)
	checkPeerGroup(t, f)
	require.NoError(t, unix.Mount("", dir, "", unix.MS_PRIVATE, ""))
	require.NoError(t, refuseShared([]*os.File{f}, proc))
	checkPeerGroup(t, f)
}

// checkPeerGroup compares what statmount(2) says with mountinfo.
func checkPeerGroup(t *testing.T, f *os.File) {
	t.Helper()
	group, err := statPeerGroup(f)
	if errors.Is(err, errors.ErrUnsupported) {
		return
	}
	require.NoError(t, err)
	info, err := os.Open("/proc/self/mountinfo")
	require.NoError(t, err)
	defer info.Close()
	table, err := Read(info)
	require.NoError(t, err)
	m, err := table.Find(f)
	require.NoError(t, err)
	require.Equal(t, PeerGroup(m), group)
}

func FuzzRead(f *testing.F) {
	f.Add(sample)
	f.Add("1 2 3:4 / / rw - a b c\n")
	f.Fuzz(func(_ *testing.T, data string) {
		table, err := Read(strings.NewReader(data))
		if err != nil {
			return
		}
		for _, m := range table {
			PeerGroup(m)
		}
		table.PeerGroups()
	})
}

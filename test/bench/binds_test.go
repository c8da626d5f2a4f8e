//go:build linux

package bench

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"isula.org/syscontainer-hooks/pkg/bind"
)

// binds are directories of the host, and a container to share them with.
type binds struct {
	*container
	transfer *bind.Transfer
	target   bind.Container
	specs    []bind.Spec
	hexes    []string // names of the transfer entries
	wanted   []string // what all ways come to, once one of them has
}

func newBinds(tb testing.TB, n int) *binds {
	tb.Helper()
	b := &binds{container: newContainer(tb, 0)}
	b.start()
	b.target = bind.Container{HostRoot: openPath(tb, b.rootfs), MountNS: b.open("ns/mnt", os.O_RDONLY)}
	b.target.Root = b.open("root"+b.rootfs, unix.O_PATH|unix.O_DIRECTORY)
	var err error
	b.transfer, err = bind.NewTransfer(b.id)
	require.NoError(tb, err)
	for i := range n {
		spec := bind.Spec{
			Source: fmt.Sprintf("%s/host/dir%02d", b.dir, i), Target: fmt.Sprintf("/mnt/dir%02d", i),
			ReadOnly: i%2 == 1, Propagation: bind.RSlave,
		}
		require.NoError(tb, os.MkdirAll(spec.Source, 0o755))
		sum := sha256.Sum256([]byte(spec.Source))
		b.specs, b.hexes = append(b.specs, spec), append(b.hexes, hex.EncodeToString(sum[:]))
	}
	return b
}

// entries is the list for a record.
func (b *binds) entries() []string {
	var list []string
	for _, spec := range b.specs {
		access := "rw"
		if spec.ReadOnly {
			access = "ro"
		}
		list = append(list, spec.Source+":"+spec.Target+":"+access+",rslave")
	}
	return list
}

// bindsRound shares the directories through package bind and with bare system calls.
func bindsRound(tb testing.TB, n int) func(m *meter) {
	tb.Helper()
	b := newBinds(tb, n)
	return func(m *meter) {
		m.inTurn(
			func() { b.measure(m, "bare", b.bare) },
			func() { b.measure(m, "hook", b.attach) },
		)
	}
}

// measure starts with the empty transfer layout in its place, and leaves nothing.
func (b *binds) measure(m *meter, name string, way func() error) {
	b.tb.Helper()
	planned, err := b.transfer.Plan(b.target, b.specs)
	require.NoError(b.tb, err)
	base, err := b.transfer.PlanBase(b.target)
	require.NoError(b.tb, err)
	require.NoError(b.tb, b.transfer.Prepare(context.Background()))
	require.NoError(b.tb, b.transfer.AttachBase(b.target))
	m.time(name, way)
	if m.check {
		b.compare(name)
	}
	require.NoError(b.tb, b.target.Detach(planned))
	require.NoError(b.tb, b.target.Detach([]bind.Attachment{*base}))
	require.NoError(b.tb, b.transfer.Remove())
}

// compare looks at the mounts and mount points that are there now.
func (b *binds) compare(name string) {
	b.tb.Helper()
	// The transfer entries of the host appear in the container as well, since its root is not yet its own.
	got := append(mounts(b.tb, "thread-self", b.id), mounts(b.tb, strconv.Itoa(b.pid), b.id)...)
	for _, dir := range []string{b.rootfs + "/mnt", "/.sharedpath/midpath/" + b.id, "/.sharedpath/master/" + b.id} {
		entries, err := os.ReadDir(dir)
		require.NoError(b.tb, err)
		for _, entry := range entries {
			info, err := entry.Info()
			require.NoError(b.tb, err)
			got = append(got, dir+"/"+entry.Name()+" "+info.Mode().String())
		}
	}
	require.Greater(b.tb, len(got), 6*len(b.specs))
	if b.wanted == nil {
		b.wanted = got
		return
	}
	require.ElementsMatch(b.tb, b.wanted, got, name)
}

// attach is the way of the hook.
func (b *binds) attach() error {
	planned, err := b.transfer.Plan(b.target, b.specs)
	if err != nil {
		return err
	}
	return b.transfer.Attach(b.target, planned)
}

// bare is the way without any check: it takes it that nothing is in the way and all is known.
func (b *binds) bare() error {
	mid, err := unix.Open("/.sharedpath/midpath/"+b.id, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(mid)
	master, err := unix.Open("/.sharedpath/master/"+b.id, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(master)
	for i, spec := range b.specs {
		if err := bareMount(unix.AT_FDCWD, spec.Source, mid, b.hexes[i], spec.ReadOnly); err != nil {
			return err
		}
		if err := bareMount(mid, b.hexes[i], master, b.hexes[i], spec.ReadOnly); err != nil {
			return err
		}
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread stays in the container
		done <- b.bareInside()
	}()
	return <-done
}

func (b *binds) bareInside() error {
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return err
	}
	if err := unix.Setns(int(b.target.MountNS.Fd()), unix.CLONE_NEWNS); err != nil {
		return err
	}
	for i, spec := range b.specs {
		err := bareMount(int(b.target.Root.Fd()), ".sharedpath/"+b.hexes[i], int(b.target.Root.Fd()), spec.Target[1:], spec.ReadOnly)
		if err != nil {
			return err
		}
	}
	return nil
}

// bareMount makes the directory and mounts a copy of the mount on it.
func bareMount(fromDir int, from string, toDir int, to string, readOnly bool) error {
	if err := unix.Mkdirat(toDir, to, 0o755); err != nil {
		return fmt.Errorf("mkdir %s: %w", to, err)
	}
	tree, err := unix.OpenTree(fromDir, from, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return fmt.Errorf("open_tree %s: %w", from, err)
	}
	attr := unix.MountAttr{Propagation: unix.MS_SLAVE}
	if readOnly {
		attr.Attr_set = unix.MOUNT_ATTR_RDONLY
	}
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		return fmt.Errorf("mount_setattr: %w", err)
	}
	if err := unix.MoveMount(tree, "", toDir, to, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("move_mount to %s: %w", to, err)
	}
	return unix.Close(tree)
}

// toolBindsRound shares the directories with the system's programs, one after the other.
func toolBindsRound(tb testing.TB, n int) func(m *meter) {
	tb.Helper()
	b := newBinds(tb, n)
	return func(m *meter) {
		b.measure(m, "hook", b.attach)
		b.wanted = nil // read-only comes after the mount has propagated, and stays away from the copy
		b.measure(m, "tools", b.tools)
		b.wanted = nil
	}
}

func (b *binds) tools() error {
	inside := []string{"nsenter", fmt.Sprintf("--mount=/proc/%d/ns/mnt", b.pid)}
	for i, spec := range b.specs {
		mid := filepath.Join("/.sharedpath/midpath", b.id, b.hexes[i])
		master := filepath.Join("/.sharedpath/master", b.id, b.hexes[i])
		hostMount := []string{"mount", "--make-slave", "--make-shared"}
		containerMount := slices.Concat(inside, []string{"mount", "--make-slave"})
		for _, step := range []struct {
			mount    []string
			from, to string
		}{
			{hostMount, spec.Source, mid},
			{hostMount, mid, master},
			{containerMount, filepath.Join(b.rootfs, ".sharedpath", b.hexes[i]), b.rootfs + spec.Target},
		} {
			if err := toolMount(step.mount, step.from, step.to, spec.ReadOnly); err != nil {
				return err
			}
		}
	}
	return nil
}

func toolMount(mount []string, from, to string, readOnly bool) error {
	if err := os.Mkdir(to, 0o755); err != nil {
		return err
	}
	steps := [][]string{append(slices.Clone(mount), "--bind", from, to)}
	if readOnly {
		steps = append(steps, append(slices.Clone(mount), "-o", "remount,bind,ro", to))
	}
	for _, args := range steps {
		if err := tool(args...); err != nil {
			return fmt.Errorf("%q: %w", args, err)
		}
	}
	return nil
}

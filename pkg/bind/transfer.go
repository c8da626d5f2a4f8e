//go:build linux

package bind

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"isula.org/syscontainer-hooks/internal/atomicfile"
	"isula.org/syscontainer-hooks/internal/atroot"
	"isula.org/syscontainer-hooks/internal/kernel"
	"isula.org/syscontainer-hooks/internal/mounttable"
)

// Dir is where the transfer layout is, on the host and in every container.
const Dir = "/.sharedpath"

// maxDepth is how many directories in each other are removed below a transfer entry.
const maxDepth = 64

// Transfer is one container's part of the transfer layout on the host.
type Transfer struct{ id string }

// NewTransfer names the part of the container id, which has to be a plain file name.
func NewTransfer(id string) (*Transfer, error) {
	if id == "" || id == "." || id == ".." || filepath.Base(id) != id {
		return nil, fmt.Errorf("container id %q is no file name", id)
	}
	return &Transfer{id}, nil
}

func (t *Transfer) masterPath() string { return filepath.Join(Dir, "master", t.id) }
func (t *Transfer) midPath() string    { return filepath.Join(Dir, "midpath", t.id) }

// Prepare makes the container's transfer directories, and the tmpfs for all containers if it is not there yet. What is there
// already is checked and left alone; a tmpfs that does not propagate is made to. Other users of the host see none of it.
func (t *Transfer) Prepare(ctx context.Context) error {
	base, err := prepareBase(ctx)
	if err != nil {
		return fmt.Errorf("prepare %s: %w", Dir, err)
	}
	defer base.Close() // and with it the lock, which keeps two prestarts from mounting two tmpfs
	master, err := prepareMaster(base)
	if err != nil {
		return fmt.Errorf("prepare %s/master: %w", Dir, err)
	}
	defer master.Close()
	mid, err := atroot.Mkdir(base, "midpath", atroot.Owner{})
	if err != nil {
		return err
	}
	defer mid.Close()
	for _, parent := range []*os.File{master, mid} {
		dir, err := atroot.Mkdir(parent, t.id, atroot.Owner{})
		if err != nil {
			return err
		}
		dir.Close()
	}
	return nil
}

func prepareBase(ctx context.Context) (*os.File, error) {
	base, err := atomicfile.OpenDir(Dir)
	if errors.Is(err, fs.ErrNotExist) {
		if err := os.Mkdir(Dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, err
		}
		base, err = atomicfile.OpenDir(Dir)
	}
	if err != nil {
		return nil, err
	}
	err = atomicfile.LockDir(ctx, base)
	if err == nil {
		err = keepOut(base)
	}
	if err != nil {
		base.Close()
		return nil, err
	}
	return base, nil
}

// keepOut closes a directory to other users, whom an older one may let in, to hold the lock for example.
func keepOut(dir *os.File) error {
	stat, err := atroot.Stat(dir)
	if err != nil || stat.Mode&0o7777 == 0o700 {
		return err
	}
	return dir.Chmod(0o700)
}

// prepareMaster gives a handle on the tmpfs, which it mounts unless it is there.
func prepareMaster(base *os.File) (*os.File, error) {
	master, err := atroot.Mkdir(base, "master", atroot.Owner{})
	if err != nil {
		return nil, err
	}
	_, mounted, err := mounttable.ID(master)
	if err == nil && !mounted {
		err = mountMaster(master)
		master.Close()
		if err != nil {
			return nil, err
		}
		if master, err = atroot.Mkdir(base, "master", atroot.Owner{}); err != nil {
			return nil, err
		}
	}
	if err == nil {
		err = checkMaster(master)
	}
	if err == nil {
		// A no-op on a mount that is shared already.
		err = unix.MountSetattr(int(master.Fd()), "", unix.AT_EMPTY_PATH, &unix.MountAttr{Propagation: unix.MS_SHARED})
	}
	if err != nil {
		master.Close()
		return nil, err
	}
	return master, nil
}

func mountMaster(dir *os.File) error {
	config, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return fmt.Errorf("open tmpfs: %w", err)
	}
	defer unix.Close(config)
	for _, option := range [][2]string{{"source", "tmpfs"}, {"size", "16m"}, {"mode", "0755"}} {
		if err := unix.FsconfigSetString(config, option[0], option[1]); err != nil {
			return fmt.Errorf("tmpfs option %s=%s: %w", option[0], option[1], err)
		}
	}
	if err := unix.FsconfigCreate(config); err != nil {
		return fmt.Errorf("create tmpfs: %w", err)
	}
	fd, err := unix.Fsmount(config, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("mount tmpfs: %w", err)
	}
	defer unix.Close(fd)
	return moveTree(fd, int(dir.Fd()), "")
}

func checkMaster(master *os.File) error {
	var statfs unix.Statfs_t
	if err := unix.Fstatfs(int(master.Fd()), &statfs); err != nil {
		return err
	}
	if statfs.Type != unix.TMPFS_MAGIC {
		return fmt.Errorf("file system magic %#x where a tmpfs should be; unmount it", statfs.Type)
	}
	stat, err := atroot.Stat(master)
	if err != nil {
		return err
	}
	if stat.Uid != 0 {
		return fmt.Errorf("owner %d: others than root can write it; unmount it", stat.Uid)
	}
	if stat.Mode&0o022 != 0 { // syscontainer-tools leaves it a tmpfs's default mode
		return atroot.Own(master, atroot.Owner{}, 0o755)
	}
	return nil
}

func sameInode(a, b *os.File) bool {
	statA, errA := atroot.Stat(a)
	statB, errB := atroot.Stat(b)
	return errA == nil && errB == nil && statA.Dev == statB.Dev && statA.Ino == statB.Ino
}

// Exists tells whether Remove would find anything.
func (t *Transfer) Exists() bool {
	var stat unix.Stat_t
	return unix.Lstat(t.masterPath(), &stat) == nil || unix.Lstat(t.midPath(), &stat) == nil
}

// Remove unmounts the container's entries and removes them and both directories. It never goes into a mount: that is the
// shared directory itself. What is gone already is no error.
func (t *Transfer) Remove() error {
	return errors.Join(removeEntries(t.masterPath()), removeEntries(t.midPath()))
}

func removeEntries(path string) error {
	dir, err := kernel.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	errs := []error{err}
	for _, name := range names {
		errs = append(errs, removeEntry(dir, name))
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// removeEntry takes all mounts off the entry name of dir and removes it. The container may have replaced the entry with anything:
// nothing is followed.
func removeEntry(dir *os.File, name string) error {
	err := kernel.DetachAll(filepath.Join(dir.Name(), name))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	}
	return removePlanted(dir, name, maxDepth)
}

// removePlanted removes the entry name of dir. It is empty unless the container made its part writable and put something there.
// That is on the same tmpfs, with nothing mounted in it: where it were not, opening the directory would fail.
func removePlanted(dir *os.File, name string, depth int) error {
	err := unix.Unlinkat(int(dir.Fd()), name, 0)
	if errors.Is(err, unix.EISDIR) {
		err = unix.Unlinkat(int(dir.Fd()), name, unix.AT_REMOVEDIR)
	}
	if errors.Is(err, unix.ENOTEMPTY) && depth > 0 {
		if err := removeContent(dir, name, depth-1); err != nil {
			return err
		}
		err = unix.Unlinkat(int(dir.Fd()), name, unix.AT_REMOVEDIR)
	}
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return &fs.PathError{Op: "remove", Path: filepath.Join(dir.Name(), name), Err: err}
	}
	return nil
}

func removeContent(dir *os.File, name string, depth int) error {
	content, err := atroot.OpenContent(dir, name)
	if err != nil {
		return err
	}
	defer content.Close()
	names, err := content.Readdirnames(-1)
	errs := []error{err}
	for _, name := range names {
		errs = append(errs, removePlanted(content, name, depth))
	}
	return errors.Join(errs...)
}

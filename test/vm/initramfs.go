//go:build linux

package vm

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"isula.org/syscontainer-hooks/test/vm/job"
)

// writeInitramfs writes the file system that the guest starts with: its first process, the modules, and what to do.
func writeInitramfs(path, initPath string, modules []string, j job.Job) error {
	var a archive
	a.add("dev", unix.S_IFDIR|0o755, 0, nil)
	a.add("dev/console", unix.S_IFCHR|0o600, unix.Mkdev(5, 1), nil) // Go wants three open descriptors
	a.add(job.ModuleDir[1:], unix.S_IFDIR|0o755, 0, nil)
	for i, file := range modules {
		text, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		a.add(fmt.Sprintf("%s/%02d-%s", job.ModuleDir[1:], i, filepath.Base(file)), unix.S_IFREG|0o644, 0, text)
	}
	text, err := json.Marshal(j)
	if err != nil {
		return err
	}
	a.add(job.File[1:], unix.S_IFREG|0o644, 0, text)
	if text, err = os.ReadFile(initPath); err != nil {
		return err
	}
	a.add("init", unix.S_IFREG|0o755, 0, text)
	a.add("TRAILER!!!", 0, 0, nil)
	return os.WriteFile(path, a.Bytes(), 0o644)
}

// archive is in the format "newc" of cpio, Documentation/driver-api/early-userspace/buffer-format.rst of the kernel.
type archive struct{ bytes.Buffer }

func (a *archive) add(name string, mode uint32, rdev uint64, data []byte) {
	fmt.Fprintf(a, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		0, mode, 0, 0, 1, 0, len(data), 0, 0, unix.Major(rdev), unix.Minor(rdev), len(name)+1, 0, name)
	a.pad()
	a.Write(data)
	a.pad()
}

func (a *archive) pad() { a.Write(make([]byte, -a.Len()&3)) }

//go:build linux

package vm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// metaPackage depends on the newest kernel that Debian builds for virtual machines: small, and with what a host may have as a
// module.
const metaPackage = "linux-image-cloud-amd64"

// kernel is what the guest boots.
type kernel struct {
	image   string
	modules string // directory, named for the kernel's release
}

// findKernel looks for the kernel in the user's cache, and downloads it when it is not there. What is there is never changed, so
// that several tests may do this at the same time.
func findKernel() (kernel, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return kernel{}, err
	}
	name, deb, err := latestPackage()
	if err != nil {
		return kernel{}, fmt.Errorf("look for a kernel: %w", err)
	}
	dir := filepath.Join(cache, "syscontainer-hooks-vm", strings.TrimSuffix(deb, ".deb"))
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		err = fetch(name, deb, dir)
		if err != nil {
			return kernel{}, fmt.Errorf("get kernel: %w", err)
		}
	}
	release := strings.TrimPrefix(name, "linux-image-")
	return kernel{image: dir + "/boot/vmlinuz-" + release, modules: dir + "/lib/modules/" + release}, nil
}

// latestPackage is the package that has the kernel, and the name of its file, which has the version. The lists of packages that
// the machine already has tell that.
func latestPackage() (name, deb string, err error) {
	depends, err := output("", "apt-cache", "depends", "--important", metaPackage)
	if err != nil {
		return "", "", err
	}
	_, name, ok := strings.Cut(depends, "Depends: ")
	if name = strings.TrimSpace(name); !ok || strings.ContainsAny(name, " \n/") {
		return "", "", fmt.Errorf("%s does not depend on one kernel: %q", metaPackage, depends)
	}
	uris, err := output("", "apt-get", "download", "--print-uris", name)
	if err != nil {
		return "", "", err
	}
	fields := strings.Fields(uris) // 'URI' file size hash
	if len(fields) != 4 || strings.Contains(fields[1], "/") {
		return "", "", fmt.Errorf("no file of package %s: %q", name, uris)
	}
	return name, fields[1], nil
}

// fetch downloads the package and unpacks it into dir, which appears when all is there.
func fetch(name, deb, dir string) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	work, err := os.MkdirTemp(filepath.Dir(dir), "new")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work) //nolint:errcheck // nothing or temporary files
	if _, err := output(work, "apt-get", "download", name); err != nil {
		return err
	}
	if _, err := output(work, "dpkg-deb", "--extract", deb, "tree"); err != nil {
		return err
	}
	if _, err := output(work, "depmod", "--basedir", "tree", strings.TrimPrefix(name, "linux-image-")); err != nil {
		return err
	}
	err = os.Rename(filepath.Join(work, "tree"), dir)
	if errors.Is(err, fs.ErrExist) || errors.Is(err, unix.ENOTEMPTY) { // another test was faster
		return nil
	}
	return err
}

// earlyModules are the files of the modules that the guest needs to see the machine's file system, in the order of loading.
func (k kernel) earlyModules() ([]string, error) {
	base, release := strings.TrimSuffix(k.modules, "/lib/modules/"+filepath.Base(k.modules)), filepath.Base(k.modules)
	list, err := output("", "modprobe", "--all", "--show-depends", "--dirname", base, "--set-version", release,
		"virtio_pci", "virtiofs", "overlay")
	if err != nil {
		return nil, fmt.Errorf("modules of the kernel: %w", err)
	}
	var files []string
	for line := range strings.Lines(list) {
		file, ok := strings.CutPrefix(strings.TrimSpace(line), "insmod ")
		if ok && !slices.Contains(files, file) { // what is no file is built in
			files = append(files, file)
		}
	}
	return files, nil
}

// output runs a program of the machine to its end.
func output(dir string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), prepareLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "LC_ALL=C")
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(stderr.Bytes()))
	}
	return stdout.String(), nil
}

//go:build linux

package hookstate

import (
	"errors"
	"fmt"
	"path/filepath"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"isula.org/syscontainer-hooks/internal/atomicfile"
	"isula.org/syscontainer-hooks/internal/kernel"
	"isula.org/syscontainer-hooks/internal/strictjson"
)

// maxSpec is how large a bundle's config.json may be.
const maxSpec = 10 << 20

// Spec is the part of the bundle's config.json that the hook uses.
type Spec struct {
	Root    SpecRoot    `json:"root"`
	Process SpecProcess `json:"process"`
	Linux   SpecLinux   `json:"linux"`
}

// SpecRoot is the specification's root.
type SpecRoot struct {
	Path string `json:"path"`
}

// SpecProcess is the specification's process.
type SpecProcess struct {
	Env []string `json:"env"`
}

// SpecLinux is the specification's linux section.
type SpecLinux struct {
	UIDMappings []specs.LinuxIDMapping `json:"uidMappings"`
	GIDMappings []specs.LinuxIDMapping `json:"gidMappings"`
	CgroupsPath string                 `json:"cgroupsPath"`
	MountLabel  string                 `json:"mountLabel"`
	Sysctl      map[string]string      `json:"sysctl"`
}

// LoadSpec reads the specification of the bundle. Root.Path comes back absolute.
func LoadSpec(bundle string) (*Spec, error) {
	if bundle == "" {
		return nil, errors.New("the state names no bundle")
	}
	dir, err := kernel.Open(bundle, unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return nil, fmt.Errorf("open bundle: %w", err)
	}
	defer dir.Close()
	// Whoever may write it has the runtime's ear already, and with it any hook it likes.
	data, err := atomicfile.ReadAnyones(dir, "config.json", maxSpec)
	if err != nil {
		return nil, fmt.Errorf("read specification: %w", err)
	}
	spec, err := parseSpec(data)
	if err != nil {
		return nil, fmt.Errorf("specification %s/config.json: %w", bundle, err)
	}
	if !filepath.IsAbs(spec.Root.Path) {
		spec.Root.Path = filepath.Join(bundle, spec.Root.Path)
	}
	return spec, nil
}

func parseSpec(data []byte) (*Spec, error) {
	var spec Spec
	if err := strictjson.Unmarshal(data, &spec); err != nil {
		return nil, err
	}
	if spec.Root.Path == "" {
		return nil, errors.New("root.path is empty")
	}
	return &spec, nil
}

//go:build linux

package bind

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"isula.org/syscontainer-hooks/internal/atroot"
)

// Propagation tells whether mounts that the host makes later below a shared path appear in the container.
type Propagation string

// The kinds of propagation. A shared path is one mount, not a tree, so the recursive kinds mean the same as the others; they
// are told apart because records are.
const (
	RSlave   Propagation = "rslave" // they do
	Private  Propagation = "private"
	RPrivate Propagation = "rprivate"
)

// Spec is a host path and where it is in a container.
type Spec struct {
	Source      string      `json:"source"` // absolute path on the host, as written: it names the transfer entry
	Target      string      `json:"target"` // absolute path in the container
	ReadOnly    bool        `json:"readOnly,omitempty"`
	Propagation Propagation `json:"propagation"`
}

// reserved are the container paths that nothing can be shared at, nor below all but /dev.
var reserved = []string{"/", "/dev", "/proc", "/sys", Dir}

func (s Spec) String() string { return s.Source + " on " + s.Target }

// entry is the name of the source in the transfer directories.
func (s Spec) entry() string {
	sum := sha256.Sum256([]byte(s.Source))
	return hex.EncodeToString(sum[:])
}

func (s Spec) private() bool { return s.Propagation == Private || s.Propagation == RPrivate }

// Check refuses a spec whose paths cannot be shared: not absolute, with ".." or control characters, or a container path that
// belongs to the kernel or to the transfer layout.
func (s Spec) Check() error {
	for _, path := range []string{s.Source, s.Target} {
		if slices.Contains(strings.Split(path, "/"), "..") {
			return fmt.Errorf("path %q has \"..\" in it", path)
		}
		if err := atroot.CheckPath(filepath.Clean(path)); err != nil {
			return err
		}
	}
	target := filepath.Clean(s.Target)
	for _, path := range reserved {
		if target == path || strings.HasPrefix(target, path+"/") && path != "/dev" {
			return fmt.Errorf("container path %s is reserved", s.Target)
		}
	}
	switch s.Propagation {
	case RSlave, Private, RPrivate:
		return nil
	default:
		return fmt.Errorf("unknown propagation %q", s.Propagation)
	}
}

// checkSpecs checks each spec, and that no container path stands twice and no host path with different options.
func checkSpecs(specs []Spec) error {
	targets := make(map[string]bool)
	sources := make(map[string]Spec)
	for _, spec := range specs {
		if err := spec.Check(); err != nil {
			return err
		}
		target := filepath.Clean(spec.Target)
		if targets[target] {
			return fmt.Errorf("container path %s stands twice", spec.Target)
		}
		targets[target] = true
		other, ok := sources[spec.Source]
		if ok && (other.ReadOnly != spec.ReadOnly || other.private() != spec.private()) {
			return fmt.Errorf("host path %s stands twice with different options", spec.Source)
		}
		sources[spec.Source] = spec
	}
	return nil
}

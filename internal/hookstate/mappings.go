//go:build linux

package hookstate

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// wholeRange is how many ids the kernel knows: all 32 bits but the last one.
const wholeRange = 1<<32 - 1

// readMappings finds the host's ids of the container's root user. The kernel's tables are the truth; the specification has to
// agree, since it is what the operator meant.
func (c *Container) readMappings() error {
	ns, err := c.openNamespace("user")
	if err != nil {
		return err
	}
	if ns == nil {
		if len(c.Spec.Linux.UIDMappings)+len(c.Spec.Linux.GIDMappings) > 0 {
			return errors.New("the specification maps ids, but the container has no user namespace of its own")
		}
		return nil
	}
	ns.Close()
	c.UserNS = true
	if c.RootUID, err = c.rootID("uid_map", c.Spec.Linux.UIDMappings); err != nil {
		return err
	}
	c.RootGID, err = c.rootID("gid_map", c.Spec.Linux.GIDMappings)
	return err
}

func (c *Container) rootID(table string, specified []specs.LinuxIDMapping) (int, error) {
	data, err := c.readProc(table)
	if err != nil {
		return 0, err
	}
	mappings, err := parseMappings(data)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", table, err)
	}
	id, err := mappedRoot(mappings)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", table, err)
	}
	if len(specified) > 0 {
		want, err := mappedRoot(specified)
		if err != nil {
			return 0, fmt.Errorf("specification, %s: %w", table, err)
		}
		if want != id {
			return 0, fmt.Errorf("%s: root is %d on the host, %d in the specification", table, id, want)
		}
	}
	return id, nil
}

func parseMappings(data []byte) ([]specs.LinuxIDMapping, error) {
	var mappings []specs.LinuxIDMapping
	for line := range bytes.Lines(data) {
		fields := strings.Fields(string(line))
		if len(fields) != 3 {
			return nil, fmt.Errorf("line %.100q: want three numbers", line)
		}
		var n [3]uint32
		for i, field := range fields {
			v, err := strconv.ParseUint(field, 10, 32)
			if err != nil {
				return nil, err
			}
			n[i] = uint32(v)
		}
		mappings = append(mappings, specs.LinuxIDMapping{ContainerID: n[0], HostID: n[1], Size: n[2]})
	}
	return mappings, nil
}

// mappedRoot gives the host's id of the container's id 0. What the hook makes belongs to it, so it must not be the host's own
// root user; and no other user of the container may be that one either, or file systems that the container mounted would take
// device nodes from the host which work for nobody.
func mappedRoot(mappings []specs.LinuxIDMapping) (int, error) {
	root := -1
	for _, m := range mappings {
		switch {
		case m.Size == 0:
			return 0, errors.New("a mapping of no ids")
		case uint64(m.HostID)+uint64(m.Size) > wholeRange || uint64(m.ContainerID)+uint64(m.Size) > wholeRange:
			return 0, errors.New("a mapping beyond the last id")
		case m.HostID == 0:
			return 0, errors.New("a mapping to the root user of the host")
		case m.ContainerID == 0:
			root = int(m.HostID)
		}
	}
	if root < 0 {
		return 0, errors.New("no mapping for the root user")
	}
	return root, nil
}

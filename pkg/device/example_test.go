//go:build linux

package device_test

import (
	"errors"
	"fmt"
	"log"
	"os"

	"isula.org/syscontainer-hooks/pkg/device"
)

func ExampleLookup() {
	host, err := device.Lookup("/dev/null")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(host.Type, host.Major, host.Minor)
	// Output: c 1 3
}

// Give a running container a device of the host: the node, and the permission to use it.
func ExampleContainer_Create() {
	host, err := device.Lookup("/dev/disk/by-id/data")
	if err != nil {
		log.Fatal(err)
	}
	dir, err := os.Open("/sys/fs/cgroup/devices/isulad/1f2e3d4c")
	if err != nil {
		log.Fatal(err)
	}
	defer dir.Close()
	cgroup, err := device.OpenCgroup(dir)
	if err != nil {
		log.Fatal(err)
	}
	grant, err := cgroup.Plan([]device.Rule{
		{Type: host.Type, Major: host.Major, Minor: host.Minor, Access: device.Read | device.Write},
	})
	if err != nil {
		log.Fatal(err)
	}
	if err := cgroup.Allow(grant); err != nil {
		log.Fatal(err)
	}

	root, err := os.Open("/proc/4711/root")
	if err != nil {
		log.Fatal(err)
	}
	defer root.Close()
	container := device.Container{Root: root}
	err = container.Create(device.Node{
		Path: "/dev/data", Type: host.Type, Major: host.Major, Minor: host.Minor, Mode: host.Mode,
	})
	if err != nil {
		log.Fatal(err)
	}
}

// Let a running container read no more than 10 MB a second from a disk.
func ExampleIOCgroup_Set() {
	host, err := device.Lookup("/dev/disk/by-id/data")
	if err != nil {
		log.Fatal(err)
	}
	limit, err := host.Limit(device.ReadBPS, 10_000_000)
	if err != nil {
		log.Fatal(err)
	}
	dir, err := os.Open("/sys/fs/cgroup/blkio/isulad/1f2e3d4c")
	if err != nil {
		log.Fatal(err)
	}
	defer dir.Close()
	cgroup, err := device.OpenIOCgroup(dir)
	if err != nil {
		log.Fatal(err)
	}
	changes, err := cgroup.Plan([]device.Limit{limit})
	if err != nil {
		log.Fatal(err)
	}
	if err := cgroup.Set(changes); err != nil {
		log.Fatal(errors.Join(err, cgroup.Reset(changes)))
	}
	limits, err := cgroup.Limits()
	if err != nil {
		log.Fatal(err)
	}
	for _, limit := range limits {
		fmt.Println(limit.Kind, limit.Major, limit.Minor, limit.Value)
	}
}

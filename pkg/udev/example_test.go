//go:build linux

package udev_test

import (
	"context"
	"log"

	"isula.org/syscontainer-hooks/pkg/udev"
)

// Let a running container know about the partitions of a disk that it gets, if it is a whole one.
func ExampleAdd() {
	disk, whole, err := udev.WholeDisk(8, 16)
	if err != nil {
		log.Fatal(err)
	}
	if !whole {
		return
	}
	rule := udev.Rule{Disk: disk, Path: "/dev/sdx", ID: "1f2e3d4c5b6a79881f2e3d4c5b6a79881f2e3d4c5b6a79881f2e3d4c5b6a7988"}
	if err := udev.Add(context.Background(), rule); err != nil {
		log.Fatal(err)
	}
}

// A container that has stopped has no rules.
func ExampleSet() {
	if _, err := udev.Set(context.Background(), "web-prod-1", nil); err != nil {
		log.Fatal(err)
	}
}

//go:build linux

package store_test

import (
	"context"
	"fmt"
	"log"
	"os"

	"isula.org/syscontainer-hooks/pkg/store"
)

// Add a device to a container's record, under the lock that every writer takes.
func ExampleStore_Update() {
	dir, err := os.MkdirTemp("", "container")
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	s, err := store.Open(dir) // /var/lib/isulad/engines/lcr/<id>
	if err != nil {
		log.Fatal(err)
	}
	defer s.Close()
	err = s.Update(context.Background(), func(record *store.Record) error {
		record.Devices = append(record.Devices, store.Device{
			Type: "c", Major: 1, Minor: 5, PathOnHost: "/dev/zero", PathInContainer: "/dev/zero0", CgroupPermissions: "rwm",
		})
		return nil
	})
	if err != nil {
		log.Fatal(err)
	}
	record, err := s.Load()
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(len(record.Devices), record.Devices[0].PathInContainer)
	// Output: 1 /dev/zero0
}

func ExampleParseBind() {
	bind, err := store.ParseBind("/srv/share:/mnt/share:ro,rslave")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%+v\n", bind)
	// Output: {HostPath:/srv/share ContainerPath:/mnt/share ReadOnly:true Propagation:rslave}
}

//go:build linux

package bind_test

import (
	"context"
	"fmt"
	"log"
	"os"

	"isula.org/syscontainer-hooks/pkg/bind"
)

// Share a directory with a running container, and stop sharing it.
func Example() {
	transfer, err := bind.NewTransfer("1f2e3d4c")
	if err != nil {
		log.Fatal(err)
	}
	pid := 4711 // of the container's first process
	root, err := os.Open(fmt.Sprintf("/proc/%d/root", pid))
	if err != nil {
		log.Fatal(err)
	}
	defer root.Close()
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/mnt", pid))
	if err != nil {
		log.Fatal(err)
	}
	defer ns.Close()
	container := bind.Container{Root: root, MountNS: ns}

	if err := transfer.Prepare(context.Background()); err != nil {
		log.Fatal(err)
	}
	attachments, err := transfer.Plan(container, []bind.Spec{
		{Source: "/srv/data", Target: "/mnt/data", ReadOnly: true, Propagation: bind.RSlave},
	})
	if err != nil {
		log.Fatal(err)
	}
	if err := container.MakeSources(attachments); err != nil {
		log.Fatal(err)
	}
	if err := transfer.Attach(container, attachments); err != nil {
		log.Fatal(err)
	}
	if err := container.Detach(attachments); err != nil {
		log.Fatal(err)
	}
}

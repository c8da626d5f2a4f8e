//go:build linux

package network_test

import (
	"context"
	"fmt"
	"log"
	"os"

	"isula.org/syscontainer-hooks/pkg/network"
)

// open opens the network of a running container.
func open() (*network.Network, *os.File) {
	pid := 4711 // of the container's first process
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err != nil {
		log.Fatal(err)
	}
	n, err := network.Open("1f2e3d4c", ns)
	if err != nil {
		log.Fatal(err)
	}
	return n, ns
}

// Give a running container an interface in a bridge, and a route through it; and take both back.
func Example() {
	n, ns := open()
	defer ns.Close()
	defer n.Close()
	ctx := context.Background()

	attachments, err := n.Plan(ctx, []network.Interface{{
		Kind: network.Veth, Name: "eth1", Bridge: "br0", MTU: 1500, QueueLen: 1000, Address: "10.0.0.2/24",
	}})
	if err != nil {
		log.Fatal(err)
	}
	routes, skipped, err := n.PlanRoutes([]network.Route{
		{Gateway: "10.0.0.1"},
		{Dest: "10.1.0.0/16", Gateway: "10.0.0.254", Device: "eth1"},
	}, attachments)
	if err != nil {
		log.Fatal(err)
	}
	for _, r := range skipped {
		log.Printf("route %s: the container has no such interface", r)
	}
	err = n.Attach(ctx, attachments)
	if err == nil {
		err = n.AddRoutes(routes)
	}
	if err != nil {
		log.Print(n.Detach(ctx, attachments))
		log.Fatal(err)
	}

	if err := n.DeleteRoutes(routes); err != nil {
		log.Fatal(err)
	}
	if err := n.Detach(ctx, attachments); err != nil {
		log.Fatal(err)
	}
}

// Change an interface of a running container: its address, and the bridge on the host. All the rest stays.
func ExampleNetwork_Update() {
	n, ns := open()
	defer ns.Close()
	defer n.Close()

	recorded := network.Interface{
		Kind: network.Veth, Name: "eth1", HostName: "veth1", Bridge: "br0", MTU: 1500, QueueLen: 1000, Address: "10.0.0.2/24",
	}
	updated, err := n.Update(context.Background(), recorded, network.Change{
		Address: new("10.0.0.3/24"),
		Bridge:  new("br1"),
	})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(updated.Address) // to be recorded
}

// Show what a running container has.
func ExampleNetwork_List() {
	n, ns := open()
	defer ns.Close()
	defer n.Close()

	attachments, err := n.List()
	if err != nil {
		log.Fatal(err)
	}
	for _, a := range attachments {
		fmt.Println(a.Name, a.Kind, a.Address, a.HostName, a.Bridge)
	}
	routes, err := n.Routes()
	if err != nil {
		log.Fatal(err)
	}
	for _, r := range routes {
		fmt.Println(r)
	}
}

// A route without a device goes where the gateway is. An IPv4 one may have an IPv6 gateway.
func ExampleRoute() {
	for _, r := range []network.Route{
		{Gateway: "10.0.0.1"},
		{Dest: "10.1.0.0/16", Gateway: "fe80::1", Device: "eth1"},
		{Dest: "10.1.2.3/16", Device: "eth1"},
	} {
		fmt.Println(r, r.Check())
	}
	// Output:
	// default via 10.0.0.1 <nil>
	// 10.1.0.0/16 via fe80::1 dev eth1 <nil>
	// 10.1.2.3/16 dev eth1 dest 10.1.2.3/16: the address has bits beyond the prefix length; want 10.1.0.0/16
}

//go:build linux

package main

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"strconv"

	"github.com/vishvananda/netlink"

	"isula.org/syscontainer-hooks/test/payload/nettool"
)

const networkUsage = ` | links | routes | offloads NIC | echo ADDRESS BYTES | add KIND NIC | rename NIC NEWNAME` +
	` | address NIC CIDR | alias NIC TEXT | altname NIC NAME | mac NIC MAC | mtu NIC MTU`

// network is run for what looks at the network and changes it.
func network(args []string) error {
	switch {
	case match(args, "links", 0):
		return printLinks()
	case match(args, "routes", 0):
		return printLines(nettool.Routes())
	case match(args, "offloads", 1):
		return printLines(nettool.Offloads(args[1]))
	case match(args, "echo", 2):
		size, err := strconv.Atoi(args[2])
		if err != nil {
			return err
		}
		return nettool.Echo(args[1], size)
	case match(args, "add", 2):
		return nettool.Add(args[1], args[2])
	case match(args, "rename", 2):
		return nettool.Rename(args[1], args[2])
	case match(args, "address", 2):
		return nettool.AddAddress(args[1], args[2])
	}
	if len(args) == 3 {
		return nettool.Change(args[1], func(link netlink.Link) error { return change(link, args[0], args[2]) })
	}
	return errUsage
}

func change(link netlink.Link, what, value string) error {
	switch what {
	case "alias":
		return netlink.LinkSetAlias(link, value)
	case "altname":
		return netlink.LinkAddAltName(link, value)
	case "mac":
		mac, err := net.ParseMAC(value)
		if err != nil {
			return err
		}
		return netlink.LinkSetHardwareAddr(link, mac)
	case "mtu":
		mtu, err := strconv.Atoi(value)
		if err != nil {
			return err
		}
		return netlink.LinkSetMTU(link, mtu)
	}
	return errUsage
}

// printLinks prints them as the harness reads them.
func printLinks() error {
	links, err := nettool.Links()
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(links)
}

func printLines(lines []string, err error) error {
	for _, line := range lines {
		fmt.Println(line)
	}
	return err
}

// serve is an init that also answers at a TCP address.
func serve(address string) error {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	go nettool.Serve(listener)
	return initProcess()
}

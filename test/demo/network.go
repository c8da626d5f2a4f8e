//go:build linux

package main

import (
	"fmt"
	"net"
	"slices"
	"strings"

	"isula.org/syscontainer-hooks/test/harness"
	"isula.org/syscontainer-hooks/test/payload/nettool"
)

// Names and addresses on the demonstration's host, whose network is as much its own as its files are.
const (
	bridge      = "demobr0"
	bridgeCIDR  = "10.88.0.1/24"
	nicCIDR     = "10.88.0.2/24"
	behind      = "192.0.2.1"
	behindRoute = "192.0.2.0/24 via 10.88.0.1 dev eth0"
)

// networkRows make a bridge, and an address that a container reaches only by a route.
func (s *scene) networkRows() []row {
	harness.Fatal(s.tb, nettool.Add("bridge", bridge), "make bridge")
	harness.Fatal(s.tb, nettool.AddAddress(bridge, bridgeCIDR), "address of the bridge")
	harness.Fatal(s.tb, nettool.AddAddress("lo", behind+"/32"), "address behind the bridge")
	return []row{
		{
			list: "networkInterfaces", resource: "interface eth0 on bridge " + bridge,
			record: fmt.Sprintf(`{"Ip":%q,"Mac":"","Mtu":1400,"Qlen":500,"Type":"veth","Bridge":%q,`+
				`"HostNicName":"demo0","CtrNicName":"eth0"}`, nicCIDR, bridge),
			look: s.nic, want: nicCIDR + " mtu 1400, TCP to the bridge works",
		},
		{
			list: "networkRoute", resource: "route to 192.0.2.0/24",
			record: `{"dest":"192.0.2.0/24","src":"","gw":"10.88.0.1","dev":"eth0"}`,
			look:   s.route, want: "via 10.88.0.1, TCP to " + behind + " works",
		},
	}
}

func (s *scene) nic() string {
	links := s.c.Links()
	i := slices.IndexFunc(links, func(l nettool.Link) bool { return l.Name == "eth0" })
	if i < 0 {
		return absent
	}
	return fmt.Sprintf("%s mtu %d, TCP to the bridge %s", strings.Join(links[i].Addresses, " "), links[i].MTU, s.talk("10.88.0.1"))
}

func (s *scene) route() string {
	if !slices.Contains(strings.Split(s.c.Exec("routes"), "\n"), behindRoute) {
		return absent
	}
	return fmt.Sprintf("via 10.88.0.1, TCP to %s %s", behind, s.talk(behind))
}

// talk has the container send a megabyte to an address of the host and get it back.
func (s *scene) talk(address string) string {
	listener, err := net.Listen("tcp", address+":0")
	harness.Fatal(s.tb, err, "listen")
	defer listener.Close()
	go nettool.Serve(listener)
	if r := s.c.TryExec("echo", listener.Addr().String(), fmt.Sprint(1<<20)); r.Code != 0 {
		return "fails: " + text(r)
	}
	return "works"
}

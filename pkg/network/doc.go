// Package network gives a container network interfaces and routes, and takes them back.
//
// A veth pair is made by one netlink message, with the container's end in its namespace under its final name; the host's end
// may be in a Linux bridge or in an Open vSwitch one. An interface of the host is moved in, and comes home as what it was.
// All that happens in the container's namespace goes through sockets that were opened there: no thread moves. An interface is
// known again by what it is, never by its name alone, which the container can change.
//
// Every operation exists in both directions and can be repeated. See rtnetlink(7), veth(4), network_namespaces(7). The
// package needs Linux 5.12; nothing in it needs a newer one.
package network

// Package device gives a container devices of the host: it finds them, makes their nodes in the container, and sets what the
// container's cgroup lets it do with them. It also limits the container's I/O on disks of the host.
//
// Every operation exists in both directions and can be repeated. Those that change something come in two parts: Plan works out
// the change, as a value that can be written down first, and the rest carries it out or takes it back. So a program that is
// killed half-way leaves enough for the next one to clean up.
//
// The package changes a container that exists. To have a runtime make devices in a new one, put them in its specification
// instead (linux.devices and linux.resources.devices).
package device

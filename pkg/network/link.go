//go:build linux

package network

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ErrExist is the cause when another interface has the name, or has it as an alternative one.
var ErrExist = errors.New("an interface of this name exists")

// linkNamed gives the interface with this very name, nil when there is none. The kernel would also find one by an alternative
// name.
func linkNamed(handle *netlink.Handle, name string) (netlink.Link, error) {
	link, err := lookUp(handle.LinkByName(name))
	if err != nil {
		return nil, fmt.Errorf("look for interface %s: %w", name, err)
	}
	if link == nil || link.Attrs().Name != name {
		return nil, nil
	}
	return link, nil
}

// linkAt gives the interface with this index, nil when there is none. No interface has the index 0.
func linkAt(handle *netlink.Handle, index int) (netlink.Link, error) {
	if index == 0 {
		return nil, nil
	}
	link, err := lookUp(handle.LinkByIndex(index))
	if err != nil {
		return nil, fmt.Errorf("look for interface %d: %w", index, err)
	}
	return link, nil
}

// refuseTaken makes sure that no interface answers to the name.
func refuseTaken(handle *netlink.Handle, name string) error {
	link, err := lookUp(handle.LinkByName(name))
	switch {
	case err != nil:
		return fmt.Errorf("look for interface %s: %w", name, err)
	case link == nil:
		return nil
	case link.Attrs().Name == name:
		return fmt.Errorf("%s: %w", name, ErrExist)
	}
	return fmt.Errorf("%s: %w: it is an alternative name of %s", name, ErrExist, link.Attrs().Name)
}

func lookUp(link netlink.Link, err error) (netlink.Link, error) {
	var notFound netlink.LinkNotFoundError
	if errors.As(err, &notFound) || errors.Is(err, unix.ENODEV) {
		return nil, nil
	}
	return link, err
}

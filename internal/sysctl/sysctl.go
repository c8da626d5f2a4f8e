//go:build linux

// Package sysctl sets kernel parameters in the network and IPC namespaces of a container, and nowhere else.
package sysctl

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

const (
	maxKey   = 255
	maxValue = 4095
)

// Setting is a kernel parameter and the value that it shall have. The key is written with dots or slashes, as for sysctl(8).
type Setting struct{ Key, Value string }

// Parse checks a specification's linux.sysctl. The settings come in an order in which one that is for all interfaces does not
// overwrite one that is for a single interface.
func Parse(sysctl map[string]string) ([]Setting, error) {
	targets := make([]target, 0, len(sysctl))
	for _, key := range slices.Sorted(maps.Keys(sysctl)) {
		t, err := newTarget(Setting{Key: key, Value: sysctl[key]})
		if err != nil {
			return nil, err
		}
		targets = append(targets, t)
	}
	slices.SortStableFunc(targets, func(a, b target) int {
		return cmp.Or(cmp.Compare(a.reach(), b.reach()), cmp.Compare(a.path, b.path))
	})
	settings := make([]Setting, len(targets))
	for i, t := range targets {
		if i > 0 && t.path == targets[i-1].path {
			return nil, fmt.Errorf("sysctl %q is %q as well: leave one of them", t.Key, targets[i-1].Key)
		}
		settings[i] = t.Setting
	}
	return settings, nil
}

// target is a setting with the file that it is for.
type target struct {
	Setting
	path string // below /proc/sys
	kind kind
}

// kind is what a parameter belongs to.
type kind int

const (
	wholeHost kind = iota
	network
	ipc
)

func newTarget(s Setting) (target, error) {
	path, err := pathOf(s.Key)
	if err == nil {
		err = checkValue(s.Value)
	}
	t := target{Setting: s, path: path, kind: kindOf(path)}
	if err == nil && t.kind == wholeHost {
		err = errors.New("not namespaced, a container cannot have it to itself: only net.*, kernel.shm*, kernel.msg*, kernel.sem " +
			"and fs.mqueue.* are possible; remove it from linux.sysctl, and set it on the host if need be")
	}
	if err != nil {
		return target{}, fmt.Errorf("sysctl %.*q: %w", maxKey, s.Key, err)
	}
	return t, nil
}

// pathOf gives the file of a key below /proc/sys. The first separator of a key is the one that it uses, the other one is part of
// a name: eth0.100 is an interface.
func pathOf(key string) (string, error) {
	path := key
	if i := strings.IndexAny(key, "./"); i >= 0 && key[i] == '.' {
		path = strings.Map(func(r rune) rune {
			switch r {
			case '.':
				return '/'
			case '/':
				return '.'
			}
			return r
		}, key)
	}
	if len(key) > maxKey {
		return "", fmt.Errorf("the key is longer than %d bytes", maxKey)
	}
	if strings.ContainsFunc(key, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return "", errors.New("the key has a control character")
	}
	for name := range strings.SplitSeq(path, "/") {
		if name == "" || name == "." || name == ".." {
			return "", fmt.Errorf("the key has a part %q", name)
		}
	}
	return path, nil
}

func checkValue(value string) error {
	switch {
	case len(value) > maxValue:
		return fmt.Errorf("the value is longer than %d bytes", maxValue)
	case strings.ContainsAny(value, "\x00\n"):
		return errors.New("the value is not on one line")
	}
	return nil
}

// kindOf is the list of what is namespaced on each kernel. Of net there is more that is not. Those show when they are written, but
// for one: each network namespace has a file of it, with one value behind all of them that cannot be taken back.
func kindOf(path string) kind {
	parts := strings.Split(path, "/")
	switch {
	case path == "net/netfilter/nf_hooks_lwtunnel":
		return wholeHost
	case len(parts) > 1 && parts[0] == "net":
		return network
	case len(parts) == 3 && parts[0] == "fs" && parts[1] == "mqueue":
		return ipc
	case len(parts) != 2 || parts[0] != "kernel":
		return wholeHost
	}
	name := parts[1]
	if strings.HasPrefix(name, "shm") || strings.HasPrefix(name, "msg") || name == "sem" {
		return ipc
	}
	return wholeHost
}

// reach orders the parameters that change others: net.ipv4.ip_forward and conf.all change each interface's, conf.default those
// of interfaces to come.
func (t target) reach() int {
	parts := strings.Split(t.path, "/")
	if len(parts) != 5 || parts[0] != "net" {
		return 0
	}
	switch parts[3] {
	case "all":
		return 1
	case "default":
		return 2
	}
	return 3
}

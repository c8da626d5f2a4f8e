package store

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/go-json-experiment/json/jsontext"

	"isula.org/syscontainer-hooks/internal/strictjson"
)

// Limits of a record. The first two are the writer's own.
const (
	MaxBinds      = 128
	MaxInterfaces = 128
	maxEntries    = 4096    // of any other list
	maxSize       = 1 << 20 // bytes of JSON

	maxIOPS = 1<<32 - 2 // the kernel has 32 bits, and the largest number stands for no limit
	maxBPS  = 1<<64 - 2 // it has 64
)

// Record is what was added to a container, in the order in which it was added.
type Record struct {
	Binds             []string           `json:"bindToAdd,omitempty"` // see ParseBind
	Devices           []Device           `json:"deviceToAdd,omitempty"`
	ReadIOPS          []Limit            `json:"readIops,omitempty"`
	WriteIOPS         []Limit            `json:"writeIops,omitempty"`
	ReadBPS           []Limit            `json:"readBps,omitempty"`
	WriteBPS          []Limit            `json:"writeBps,omitempty"`
	Weights           []Limit            `json:"blkioWeight,omitempty"`
	NetworkInterfaces []NetworkInterface `json:"networkInterfaces,omitempty"`
	NetworkRoutes     []NetworkRoute     `json:"networkRoute,omitempty"`

	Unknown jsontext.Value `json:",embed"` // members of a newer version, kept as they are
}

// Device is a device of the host and the path of its node in the container.
type Device struct {
	Type              string `json:"Type"` // "c" or "b"
	Minor             int64  `json:"Minor"`
	Major             int64  `json:"Major"` // both are a cache: the truth is the node at PathOnHost now
	PathOnHost        string `json:"PathOnHost"`
	PathInContainer   string `json:"PathInContainer"`
	CgroupPermissions string `json:"CgroupPermissions"` // letters out of "rwm"
	Parent            string `json:"Parent"`            // host path of the whole disk when this is a partition, else ""

	Unknown jsontext.Value `json:",embed"`
}

// Limit is an I/O limit of a block device, in operations or bytes per second, or a weight.
type Limit struct {
	Major int64  `json:"major"`
	Minor int64  `json:"minor"`
	Path  string `json:"path"`  // of the device on the host
	Value string `json:"value"` // decimal

	Unknown jsontext.Value `json:",embed"`
}

// NetworkInterface is an interface of the container and where it comes from.
type NetworkInterface struct {
	IP          string `json:"Ip"`  // CIDR
	MAC         string `json:"Mac"` // may be ""
	MTU         int64  `json:"Mtu"`
	Qlen        int64  `json:"Qlen"`
	Type        string `json:"Type"` // "veth", "" for veth, or "eth"
	Bridge      string `json:"Bridge"`
	HostNicName string `json:"HostNicName"`
	CtrNicName  string `json:"CtrNicName"`

	Unknown jsontext.Value `json:",embed"`
}

// NetworkRoute is a route in the container. At least one of Src, Gw and Dev is set.
type NetworkRoute struct {
	Dest string `json:"dest"` // CIDR, "" or "default"
	Src  string `json:"src"`
	Gw   string `json:"gw"`
	Dev  string `json:"dev"` // name of an interface in the container

	Unknown jsontext.Value `json:",embed"`
}

// Bind is a host path shared with the container.
type Bind struct {
	HostPath      string
	ContainerPath string
	ReadOnly      bool
	Propagation   string // "rslave", "private" or "rprivate"
}

// ParseBind reads "hostPath:containerPath:options". The options are a comma list out of ro, rw, private, rprivate and rslave,
// at most one of each kind; what is missing of them is rw and rslave.
func ParseBind(s string) (Bind, error) {
	parts := strings.Split(s, ":")
	if len(parts) != 2 && len(parts) != 3 {
		return Bind{}, fmt.Errorf("bind %q: want hostPath:containerPath:options", abbreviate(s))
	}
	bind := Bind{HostPath: parts[0], ContainerPath: parts[1], Propagation: "rslave"}
	for _, path := range parts[:2] {
		if err := checkPath(path); err != nil {
			return Bind{}, fmt.Errorf("bind %q: %w", abbreviate(s), err)
		}
	}
	if len(parts) == 2 {
		return bind, nil
	}
	var access, propagation bool
	for option := range strings.SplitSeq(parts[2], ",") {
		seen := &propagation
		switch option {
		case "ro", "rw":
			seen = &access
			bind.ReadOnly = option == "ro"
		case "rslave", "private", "rprivate":
			bind.Propagation = option
		default:
			return Bind{}, fmt.Errorf("bind %q: unknown option %q", abbreviate(s), abbreviate(option))
		}
		if *seen {
			return Bind{}, fmt.Errorf("bind %q: option %q comes on top of another", abbreviate(s), option)
		}
		*seen = true
	}
	return bind, nil
}

// ParsedBinds is ParseBind for all of them.
func (r *Record) ParsedBinds() ([]Bind, error) {
	binds := make([]Bind, 0, len(r.Binds))
	for _, line := range r.Binds {
		bind, err := ParseBind(line)
		if err != nil {
			return nil, err
		}
		binds = append(binds, bind)
	}
	return binds, nil
}

// Parse decodes and validates a record.
func Parse(data []byte) (*Record, error) {
	if len(data) > maxSize {
		return nil, fmt.Errorf("%d bytes, %d are the limit", len(data), maxSize)
	}
	var record Record
	if err := strictjson.Unmarshal(data, &record); err != nil {
		return nil, err
	}
	if err := record.Validate(); err != nil {
		return nil, err
	}
	return &record, nil
}

// Marshal encodes the record as the writer does: one line, empty lists left out.
func (r *Record) Marshal() ([]byte, error) {
	data, err := strictjson.Marshal(r)
	if err == nil && len(data) > maxSize {
		err = fmt.Errorf("%d bytes, %d are the limit", len(data), maxSize)
	}
	return data, err
}

// Validate checks every member that this version knows. It does not ask whether what a member names exists.
func (r *Record) Validate() error {
	if len(r.Binds) > MaxBinds {
		return fmt.Errorf("bindToAdd has %d entries, %d are the limit", len(r.Binds), MaxBinds)
	}
	if _, err := r.ParsedBinds(); err != nil {
		return err
	}
	if err := validateAll("deviceToAdd", r.Devices, maxEntries, Device.validate); err != nil {
		return err
	}
	for _, limits := range []struct {
		name     string
		list     []Limit
		min, max uint64
	}{
		{"readIops", r.ReadIOPS, 0, maxIOPS},
		{"writeIops", r.WriteIOPS, 0, maxIOPS},
		{"readBps", r.ReadBPS, 0, maxBPS},
		{"writeBps", r.WriteBPS, 0, maxBPS},
		{"blkioWeight", r.Weights, 10, 1000},
	} {
		validate := func(l Limit) error { return l.validate(limits.min, limits.max) }
		if err := validateAll(limits.name, limits.list, maxEntries, validate); err != nil {
			return err
		}
	}
	if err := validateAll("networkInterfaces", r.NetworkInterfaces, MaxInterfaces, NetworkInterface.validate); err != nil {
		return err
	}
	return validateAll("networkRoute", r.NetworkRoutes, maxEntries, NetworkRoute.validate)
}

func validateAll[T any](name string, entries []T, limit int, validate func(T) error) error {
	if len(entries) > limit {
		return fmt.Errorf("%s has %d entries, %d are the limit", name, len(entries), limit)
	}
	for i, entry := range entries {
		if err := validate(entry); err != nil {
			return fmt.Errorf("%s[%d]: %w", name, i, err)
		}
	}
	return nil
}

func (d Device) validate() error {
	if d.Type != "c" && d.Type != "b" {
		return fmt.Errorf("type %q: want c or b", abbreviate(d.Type))
	}
	if err := checkNumbers(d.Major, d.Minor); err != nil {
		return err
	}
	if err := checkPath(d.PathOnHost); err != nil {
		return fmt.Errorf("PathOnHost: %w", err)
	}
	if err := checkPath(d.PathInContainer); err != nil {
		return fmt.Errorf("PathInContainer: %w", err)
	}
	if d.Parent != "" {
		if err := checkPath(d.Parent); err != nil {
			return fmt.Errorf("parent: %w", err)
		}
	}
	letters := []rune(d.CgroupPermissions)
	slices.Sort(letters)
	if len(letters) == 0 || strings.Trim(d.CgroupPermissions, "rwm") != "" || len(slices.Compact(letters)) != len(d.CgroupPermissions) {
		return fmt.Errorf("CgroupPermissions %q: want letters out of rwm, each once", abbreviate(d.CgroupPermissions))
	}
	return nil
}

// validate takes a value in the range, and 0, which stands for no limit.
func (l Limit) validate(least, most uint64) error {
	if err := checkNumbers(l.Major, l.Minor); err != nil {
		return err
	}
	if err := checkPath(l.Path); err != nil {
		return fmt.Errorf("path: %w", err)
	}
	n, err := strconv.ParseUint(l.Value, 10, 64)
	if err != nil || n != 0 && (n < least || n > most) {
		return fmt.Errorf("value %q: want a number from %d to %d", abbreviate(l.Value), least, most)
	}
	return nil
}

func (n NetworkInterface) validate() error {
	if n.Type != "" && n.Type != "veth" && n.Type != "eth" {
		return fmt.Errorf("type %q: want veth or eth", abbreviate(n.Type))
	}
	if _, err := netip.ParsePrefix(n.IP); err != nil {
		return fmt.Errorf("ip: %w", err)
	}
	if n.MTU < 68 || n.MTU > 1<<31-1 {
		return fmt.Errorf("mtu %d: want 68 or more", n.MTU)
	}
	if n.Qlen < 0 || n.Qlen > 1<<31-1 {
		return fmt.Errorf("qlen %d: want 0 or more", n.Qlen)
	}
	if n.CtrNicName == "" {
		return errors.New("CtrNicName is empty")
	}
	for _, name := range []string{n.Bridge, n.HostNicName, n.CtrNicName} {
		if err := checkNicName(name); err != nil {
			return err
		}
	}
	return checkMAC(n.MAC)
}

func (r NetworkRoute) validate() error {
	if r.Src == "" && r.Gw == "" && r.Dev == "" {
		return fmt.Errorf("route to %q: none of src, gw and dev", abbreviate(r.Dest))
	}
	if r.Dest != "" && r.Dest != "default" {
		if _, err := netip.ParsePrefix(r.Dest); err != nil {
			return fmt.Errorf("dest: %w", err)
		}
	}
	for _, address := range []string{r.Src, r.Gw} {
		if address == "" {
			continue
		}
		if parsed, err := netip.ParseAddr(address); err != nil || parsed.Zone() != "" {
			return fmt.Errorf("address %q: want an IP address", abbreviate(address))
		}
	}
	return checkNicName(r.Dev)
}

// checkNumbers takes what the kernel's 12 and 20 bits can hold.
func checkNumbers(major, minor int64) error {
	if major < 0 || major >= 1<<12 || minor < 0 || minor >= 1<<20 {
		return fmt.Errorf("device number %d:%d is out of range", major, minor)
	}
	return nil
}

func checkPath(path string) error {
	if !filepath.IsAbs(path) {
		return fmt.Errorf("path %q is not absolute", abbreviate(path))
	}
	if strings.ContainsFunc(path, unicode.IsControl) {
		return fmt.Errorf("path %q has a control character", abbreviate(path))
	}
	if len(path) >= 4096 {
		return fmt.Errorf("path %q is too long", abbreviate(path))
	}
	return nil
}

// checkNicName takes "" and names of interfaces that no program mistakes for something else: the kernel also accepts "veth%d",
// which it completes, and "-x".
func checkNicName(name string) error {
	const alphanumeric = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
	switch {
	case name == "":
		return nil
	case len(name) > 15 || strings.Trim(name, alphanumeric+"._-") != "" || !strings.Contains(alphanumeric, name[:1]),
		name == "lo", name == "all", name == "default":
		return fmt.Errorf("interface name %q: want up to 15 letters, digits and ._-, the first a letter or digit", abbreviate(name))
	}
	return nil
}

// checkMAC takes "" and six bytes in hexadecimal.
func checkMAC(mac string) error {
	parts := strings.Split(mac, ":")
	for _, part := range parts {
		if _, err := strconv.ParseUint(part, 16, 8); mac != "" && (err != nil || len(part) != 2 || len(parts) != 6) {
			return fmt.Errorf("mac %q: want six bytes like 02:00:00:00:00:01", abbreviate(mac))
		}
	}
	return nil
}

// abbreviate keeps messages short whatever a record holds.
func abbreviate(s string) string {
	const most = 120
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "…"
}

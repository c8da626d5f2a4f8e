//go:build linux

package network

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"isula.org/syscontainer-hooks/internal/command"
)

const (
	// ovsTag is the key in a port's external_ids whose value is the container's id. It outlives the host's interfaces: the
	// switch keeps its database over a restart of the host.
	ovsTag = "syscontainer-hooks"

	ovsTimeout       = 10 * time.Second
	ovsRemoveTimeout = 5 * time.Second // at most, see removeTimeout
	ovsKillDelay     = time.Second     // that ovs-vsctl gets to end by itself
	ovsBusyDelay     = 20 * time.Millisecond
)

var (
	errNoOVS       = errors.New("no ovs-vsctl on the host: is Open vSwitch installed?")
	errNoOVSBridge = errors.New("no such bridge in Open vSwitch")
	errOVSSilent   = errors.New("no answer in time: do ovsdb-server and ovs-vswitchd run?")
)

// planBridges finds out what the bridges are. Only what cannot be a Linux bridge costs a subprocess.
func (n *Network) planBridges(ctx context.Context, attachments []Attachment) error {
	indexes := make(map[string]int)
	for i := range attachments {
		a := &attachments[i]
		if a.Bridge == "" {
			continue
		}
		index, known := indexes[a.Bridge]
		if !known {
			var err error
			if index, err = n.findBridge(ctx, a.Bridge); err != nil {
				return fmt.Errorf("interface %s: %w", a, err)
			}
			indexes[a.Bridge] = index
		}
		a.bridge, a.OVS = index, index == 0
	}
	return n.refuseTakenPorts(ctx, attachments)
}

// findBridge gives the index of a Linux bridge, 0 for one of Open vSwitch.
func (n *Network) findBridge(ctx context.Context, name string) (int, error) {
	link, err := lookUp(n.host.LinkByName(name))
	missing := fmt.Errorf("bridge %s does not exist", name)
	switch {
	case err != nil:
		return 0, fmt.Errorf("look for bridge %s: %w", name, err)
	case link == nil: // the switch may not run yet, or keep its interfaces elsewhere
	case link.Attrs().Name != name:
		return 0, fmt.Errorf("bridge %s: it is an alternative name of %s: give that one", name, link.Attrs().Name)
	case link.Type() == "bridge":
		return link.Attrs().Index, nil
	default:
		missing = fmt.Errorf("%s is no bridge but a %s", name, link.Type())
		if kind := link.Type(); kind != "openvswitch" && kind != "tuntap" { // with the datapath in the kernel, or in user space
			return 0, missing
		}
	}
	ovs, err := ovsBridge(ctx, ovsTimeout, name)
	if err == nil && !ovs {
		err = missing
	} else if err != nil {
		err = fmt.Errorf("bridge %s is no Linux one; look for it in Open vSwitch: %w", name, err)
	}
	return 0, err
}

// ovsBridge tells whether Open vSwitch has a bridge of this name. A host without Open vSwitch has none.
func ovsBridge(ctx context.Context, timeout time.Duration, name string) (bool, error) {
	_, _, err := vsctl(ctx, timeout, "br-exists", name)
	if errors.Is(err, errNoOVS) || errors.Is(err, errNoOVSBridge) {
		return false, nil
	}
	return err == nil, err
}

// inOVS tells whether a bridge belongs to Open vSwitch, without asking it about a Linux one.
func (n *Network) inOVS(ctx context.Context, timeout time.Duration, bridge string) (bool, error) {
	link, err := linkNamed(n.host, bridge)
	if err != nil || link != nil && link.Type() == bridgeType {
		return false, err
	}
	return ovsBridge(ctx, timeout, bridge)
}

// ovsAnswer is what inOVS has said.
type ovsAnswer struct {
	is  bool
	err error
}

// inOVSOnce is inOVS for a clean-up, which asks for each interface. It keeps an error as well: a switch that hangs would take as
// long to each question.
func (n *Network) inOVSOnce(ctx context.Context, bridge string) (bool, error) {
	answer, known := n.ovsAnswers[bridge]
	if !known {
		answer.is, answer.err = n.inOVS(ctx, removeTimeout(ctx), bridge)
		if ctx.Err() == nil {
			n.ovsAnswers[bridge] = answer
		}
	}
	return answer.is, answer.err
}

// refuseTakenPorts makes sure that the ports are free, or are left over from this container. The switch keeps its ports over a
// power cut: one without a tag is left over when the host's end is still to be made, since then no interface has its name.
func (n *Network) refuseTakenPorts(ctx context.Context, attachments []Attachment) error {
	names := ovsNames(attachments)
	if len(names) == 0 {
		return nil
	}
	ports, err := ovsPorts(ctx, ovsTimeout, named(names)...)
	if err != nil {
		return fmt.Errorf("look for ports in Open vSwitch: %w", err)
	}
	unmade := slices.DeleteFunc(slices.Clone(attachments), func(a Attachment) bool { return a.HostIndex != 0 })
	if n.stalePorts, err = n.ownOf(ctx, ports, unmade); err != nil {
		return fmt.Errorf("look for ports in Open vSwitch: %w", err)
	}
	for _, port := range ports {
		if slices.Contains(n.stalePorts, port.name) {
			continue
		}
		owner := "another program"
		if port.tagged {
			owner = "container " + port.owner
		}
		return fmt.Errorf("port %s exists in Open vSwitch and belongs to %s: give another name on the host, or remove it with "+
			"ovs-vsctl del-port %[1]s", port.name, owner)
	}
	return nil
}

// addPorts makes the host ends that belong to Open vSwitch bridges ports of them, all in one call. What is left over goes in the
// same step: it may be in another bridge, or have settings.
func (n *Network) addPorts(ctx context.Context, attachments []Attachment) error {
	names := ovsNames(attachments)
	if len(names) == 0 {
		return nil
	}
	var args []string
	for _, a := range attachments {
		if !a.OVS {
			continue
		}
		if slices.Contains(n.stalePorts, a.HostName) {
			args = append(args, "--", "--if-exists", "del-port", a.HostName)
		}
		args = append(args, "--", "--may-exist", "add-port", a.Bridge, a.HostName, "--", "set", "Port", a.HostName, n.tag())
	}
	n.stalePorts = nil
	_, stderr, err := vsctl(ctx, ovsTimeout, args...)
	if err == nil && stderr != "" { // a port whose interface the switch cannot use still counts as added
		err = portErrors(ctx, names)
	}
	if err != nil {
		return fmt.Errorf("add ports to Open vSwitch: %w", err)
	}
	return nil
}

// portErrors tells what the switch finds wrong with interfaces.
func portErrors(ctx context.Context, names []string) error {
	rows, err := ovsFind(ctx, ovsTimeout, "Interface", "error", named(names)...)
	errs := []error{err}
	for _, row := range rows {
		var message string
		if json.Unmarshal(row.value, &message) == nil && message != "" { // otherwise the empty set
			errs = append(errs, fmt.Errorf("port %s: %.300s", row.name, message))
		}
	}
	return errors.Join(errs...)
}

// removePorts removes those ports from the switch's database, all in one call, and all others that have the container's tag.
func (n *Network) removePorts(ctx context.Context, attachments []Attachment) error {
	if len(ovsNames(attachments)) == 0 {
		return nil
	}
	ports, err := n.ownPorts(ctx, attachments)
	if errors.Is(err, errNoOVS) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look for ports in Open vSwitch: %w", err)
	}
	if len(ports) == 0 {
		return nil
	}
	var args []string
	for _, port := range ports {
		args = append(args, "--", "--if-exists", "del-port", port)
	}
	if _, _, err := vsctl(ctx, removeTimeout(ctx), args...); err != nil {
		// The database may have changed, and only the switch be late to follow it.
		if left, again := n.ownPorts(ctx, attachments); again != nil || len(left) != 0 {
			return fmt.Errorf("remove ports %s from Open vSwitch: %w", strings.Join(ports, ", "), err)
		}
	}
	return nil
}

// removeTimeout leaves time for the rest of a clean-up when the switch hangs.
func removeTimeout(ctx context.Context) time.Duration {
	timeout := ovsRemoveTimeout
	if deadline, ok := ctx.Deadline(); ok {
		timeout = min(timeout, (time.Until(deadline) / 2).Truncate(time.Second))
	}
	return max(timeout, time.Second)
}

// ownPorts are the ports with the container's tag, and those of the attachments that nobody has tagged.
func (n *Network) ownPorts(ctx context.Context, attachments []Attachment) ([]string, error) {
	ports, err := ovsPorts(ctx, removeTimeout(ctx), append(named(ovsNames(attachments)), n.tag())...)
	if err != nil {
		return nil, err
	}
	own, err := n.ownOf(ctx, ports, attachments)
	slices.Sort(own)
	return slices.Compact(own), err
}

// ownOf gives those of the ports that have the container's tag. A port that nobody has tagged counts as well when it is in the
// bridge of its attachment, as another program adds it to a running container.
func (n *Network) ownOf(ctx context.Context, ports []ovsPort, attachments []Attachment) ([]string, error) {
	var own, untagged []string
	for _, port := range ports {
		if port.ownedBy(n.id) {
			own = append(own, port.name)
		} else if !port.tagged {
			untagged = append(untagged, port.name)
		}
	}
	if len(untagged) == 0 {
		return own, nil
	}
	untagged, err := systemPorts(ctx, untagged)
	if err != nil {
		return nil, err
	}
	inBridge := make(map[string][]string)
	for _, a := range attachments {
		if !a.OVS || !slices.Contains(untagged, a.HostName) {
			continue
		}
		names, known := inBridge[a.Bridge]
		if !known {
			if names, err = bridgePorts(ctx, a.Bridge); err != nil {
				return nil, err
			}
			inBridge[a.Bridge] = names
		}
		if slices.Contains(names, a.HostName) {
			own = append(own, a.HostName)
		}
	}
	return own, nil
}

// systemPorts gives those of the ports whose interface is one of the host's. A tunnel, say, has none there, and is in use all the
// same.
func systemPorts(ctx context.Context, names []string) ([]string, error) {
	rows, err := ovsFind(ctx, removeTimeout(ctx), "Interface", "type", named(names)...)
	var system []string
	for _, row := range rows {
		if kind := string(row.value); kind == `""` || kind == `"system"` {
			system = append(system, row.name)
		}
	}
	return system, err
}

// bridgePorts gives the names of a bridge's ports, none for a bridge that is not there.
func bridgePorts(ctx context.Context, bridge string) ([]string, error) {
	out, _, err := vsctl(ctx, removeTimeout(ctx), "br-exists", bridge, "--", "list-ports", bridge)
	if errors.Is(err, errNoOVSBridge) {
		return nil, nil
	}
	return strings.Fields(out), err
}

// tag is the container's tag as a condition or to be set.
func (n *Network) tag() string { return "external_ids:" + ovsTag + "=" + quoted(n.id) }

// ovsNames are the names of the ports that belong to Open vSwitch bridges.
func ovsNames(attachments []Attachment) []string {
	var names []string
	for _, a := range attachments {
		if a.OVS {
			names = append(names, a.HostName)
		}
	}
	return names
}

// named gives conditions for records with these names. Given as they are, ovs-vsctl would also take them for the beginning of
// a record's number.
func named(names []string) []string {
	var conditions []string
	for _, name := range names {
		conditions = append(conditions, "name="+quoted(name))
	}
	return conditions
}

// quoted is a string as the database takes it, whatever is in it.
func quoted(s string) string {
	text, _ := json.Marshal(s) // a string cannot fail
	return string(text)
}

type ovsPort struct {
	name   string
	tagged bool
	owner  string // id of the container that the tag names
}

func (p ovsPort) ownedBy(id string) bool { return p.tagged && p.owner == id }

// ovsPorts gives the ports that meet one of the conditions.
func ovsPorts(ctx context.Context, timeout time.Duration, conditions ...string) ([]ovsPort, error) {
	rows, err := ovsFind(ctx, timeout, "Port", "external_ids", conditions...)
	ports := make([]ovsPort, 0, len(rows))
	for _, row := range rows {
		var kind string
		var pairs [][2]string
		if err := json.Unmarshal(row.value, &[2]any{&kind, &pairs}); err != nil {
			return nil, fmt.Errorf("understand ovs-vsctl: external_ids of port %s: %w", row.name, err)
		}
		port := ovsPort{name: row.name}
		for _, pair := range pairs {
			if pair[0] == ovsTag {
				port.tagged, port.owner = true, pair[1]
			}
		}
		ports = append(ports, port)
	}
	return ports, err
}

type ovsRow struct {
	name  string
	value json.RawMessage
}

// ovsFind asks for one column of the records that meet one of the conditions. The answer is a document for each of those, with
// values as in RFC 7047.
func ovsFind(ctx context.Context, timeout time.Duration, table, column string, conditions ...string) ([]ovsRow, error) {
	args := []string{"--format=json"}
	for _, condition := range conditions {
		args = append(args, "--", "--columns=name,"+column, "find", table, condition)
	}
	out, _, err := vsctl(ctx, timeout, args...)
	if err != nil {
		return nil, err
	}
	var rows []ovsRow
	for decoder := json.NewDecoder(strings.NewReader(out)); decoder.More(); {
		var answer struct{ Data [][2]json.RawMessage }
		if err := decoder.Decode(&answer); err != nil {
			return nil, fmt.Errorf("understand ovs-vsctl: %w", err)
		}
		for _, data := range answer.Data {
			row := ovsRow{value: data[1]}
			if err := json.Unmarshal(data[0], &row.name); err != nil {
				return nil, fmt.Errorf("understand ovs-vsctl: name of a record: %w", err)
			}
			rows = append(rows, row)
		}
	}
	return rows, nil
}

// vsctl runs ovs-vsctl, and once more when the database has more callers than it lets wait: ovs-vsctl gives up then, or with
// its own option for that waits for seconds, and also for a database that is not there.
func vsctl(ctx context.Context, timeout time.Duration, args ...string) (stdout, stderr string, err error) {
	for start := time.Now(); ; {
		stdout, stderr, err = runVsctl(ctx, timeout, args)
		busy := strings.HasSuffix(stderr, "database connection failed (Protocol error)")
		if err == nil || !busy || time.Since(start) > timeout || ctx.Err() != nil {
			return stdout, stderr, err
		}
		time.Sleep(ovsBusyDelay + rand.N(ovsBusyDelay))
	}
}

// runVsctl runs it once. It may take as long as timeout, and ends itself then, so that it does not outlive a killed hook for long.
// The caller's thread must be in the host's namespaces.
func runVsctl(ctx context.Context, timeout time.Duration, args []string) (stdout, stderr string, err error) {
	args = append([]string{fmt.Sprintf("--timeout=%d", timeout/time.Second), "-vconsole:off"}, args...)
	stdout, stderr, err = command.Run(ctx, timeout+ovsKillDelay, "ovs-vsctl", args...)
	return stdout, strings.TrimPrefix(stderr, "ovs-vsctl: "), ovsError(err)
}

// ovsError tells what an error of ovs-vsctl means.
func ovsError(err error) error {
	failed, ended := errors.AsType[*command.Error](err)
	switch {
	case errors.Is(err, command.ErrNotFound):
		return errNoOVS
	case errors.Is(err, command.ErrTimeout),
		ended && failed.Status.Signaled() && failed.Status.Signal() == unix.SIGALRM: // its own timeout
		return fmt.Errorf("run ovs-vsctl: %w", errOVSSilent)
	case ended && failed.Status.ExitStatus() == 2: // of br-exists alone
		return fmt.Errorf("run ovs-vsctl: %w", errNoOVSBridge)
	}
	return err
}

//go:build linux

package hostile

import (
	"bytes"
	"maps"
	"net"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"isula.org/syscontainer-hooks/internal/testutil"
)

// Interfaces of the host that most rows have: a bridge, and stand-ins for physical interfaces. The bridge has a MAC address and
// an MTU of its own, since else it takes over the lowest ones of its ports.
const (
	bridge = `ip link add br0 address 02:b0:00:00:00:01 type bridge; ip link set br0 mtu 1400; ip link set br0 mtu 1500
		ip link set br0 up; ip address add 10.9.0.1/24 dev br0; ip address add fd09::1/64 dev br0 nodad
		until ip -6 route show table local | grep -q '^local fd09::1 '; do sleep .01; done # a route that the kernel adds later
		`
	nicIFB = `ip link add nic0 address 02:a0:00:00:00:01 mtu 1450 txqueuelen 33 type ifb; ip link set nic0 up
		`
	nicVeth = `ip link add name nic0 address 02:a0:00:00:00:01 mtu 1450 txqueuelen 33 type veth peer name nic0p
		ip link set nic0p up; ip link set nic0 up
		`
	nicMacvlan = `ip link add name low type veth peer name lowp; ip link set lowp up; ip link set low up
		ip link add nic0 link low address 02:a0:00:00:00:01 mtu 1450 txqueuelen 33 type macvlan; ip link set nic0 up
		`
)

// netList is what describes the network namespace that ip(8) is started in.
const netList = "link show\naddress show\nroute show table all\nrule show\n"

// nic is an entry of networkInterfaces.
func nic(kind, name, host, bridge, address string) object {
	return object{
		"Type": kind, "CtrNicName": name, "HostNicName": host, "Bridge": bridge, "Ip": address, "Mac": "", "Mtu": 1400, "Qlen": 500,
	}
}

func veth(name, host, address string) object { return nic("veth", name, host, "br0", address) }

func eth(name, host, address string) object { return nic("eth", name, host, "", address) }

func nics(list ...object) object { return object{"networkInterfaces": list} }

// with gives a copy of an entry with one member changed.
func with(entry object, key string, value any) object {
	changed := maps.Clone(entry)
	changed[key] = value
	return changed
}

// route is an entry of networkRoute.
func route(dest, gw, src, dev string) object {
	return object{"dest": dest, "gw": gw, "src": src, "dev": dev}
}

// netHost, netRecord and netInside are a record with all there is, the host that it needs, and what comes of it.
const netHost = bridge + nicIFB + `ip link add name nic1 type veth peer name nic1p; ip link set nic1p up
	`

func netRecord(w *world) any {
	w.links = []string{"c0h", "nic0", "nic1", "nic1p"}
	w.freeNames = true
	return object{
		"networkInterfaces": []object{
			veth("c0", "c0h", "10.9.0.2/24"), eth("ceth0", "nic0", "10.10.0.2/24"), veth("c1", "", "fd09::2/64"),
			eth("ceth1", "nic1", "10.11.0.2/24"),
		},
		"networkRoute": []object{
			route("default", "10.9.0.1", "", ""), route("10.66.0.0/16", "", "", "ceth0"), route("fd0a::/64", "fd09::1", "", ""),
		},
	}
}

func netInside(w *world) {
	w.t.Helper()
	for _, name := range []string{"c0", "c1", "ceth0", "ceth1"} {
		w.hasLink(name, ",UP", " mtu 1400 ", " qlen 500")
	}
	w.hasNet("10.9.0.2/24", "10.10.0.2/24", "10.11.0.2/24", "fd09::2/64", "default via 10.9.0.1 dev c0", "10.66.0.0/16 dev ceth0",
		"fd0a::/64 via fd09::1 dev c1")
	require.NotEmpty(w.t, w.hostNet()["host link c0h"], "the host's end")
}

// beginNet is begin for containers with a network namespace.
func beginNet(t *testing.T) {
	t.Helper()
	testutil.RequireRoot(t)
	require.NoError(t, prepareHost())
	hookBinary(t)
	require.Empty(t, warmed())
	// Link-local addresses come and go with the carrier.
	require.NoError(t, os.WriteFile("/proc/sys/net/ipv6/conf/default/addr_gen_mode", []byte("1"), 0))
	warmNet(t)
	begin(t, true)
}

// warmNet starts and stops a container with interfaces: directories of all containers are made for the first one.
func warmNet(t *testing.T) {
	t.Helper()
	w := newWorld(t, variant{net: true})
	w.hostSh(netHost)
	w.record(netRecord(w))
	w.start()
	res := w.prestart()
	require.Zero(t, res.code, "a good record: %s", res)
	require.Zero(t, w.poststop().code)
	w.stop()
	w.remove()
}

// runNet runs rows with containers that have a network namespace, in the variants that matter there.
func runNet(t *testing.T, rows []row, variants ...variant) {
	t.Helper()
	beginNet(t)
	for _, r := range rows {
		r.net = true
		t.Run(r.id, func(t *testing.T) {
			for _, v := range variants {
				v.net = true
				t.Run(v.name, func(t *testing.T) { r.play(t, v) })
			}
		})
	}
}

// plain is for values that the kind of container cannot change.
var plain = []variant{{name: "plain"}}

func netVariants() []variant {
	short := []variant{{name: "plain"}, {name: "user", user: true}, {name: "twice", twice: true}}
	if !full() {
		return short
	}
	return append(short, variant{name: "user+twice", user: true, twice: true}, variant{name: "one-cpu", oneCPU: true},
		variant{name: "few-caps", fewCaps: true})
}

var (
	freeName = regexp.MustCompile(`^.+-[0-9a-f]{6}$`) // as the hook chooses it
	number   = regexp.MustCompile(`^\d+: `)
	linkLine = regexp.MustCompile(`^(\d+): ([^:@ ]+)(@\S+)?: (.*)$`)
	// What the kernel changes by itself: timers of bridges, their limits of offloads, and what depends on the carrier.
	volatile = regexp.MustCompile(`\w+_timer +[0-9.]+ |NO-CARRIER,|,LOWER_UP|,M-DOWN| state \w+| linkdown| tso_max_\w+ \d+`)
	// What an interface that goes away and comes back cannot keep: its number, and how others name it meanwhile.
	netnsID = regexp.MustCompile(` link-netnsid \d+`)
)

// netLines turns what ip(8) prints into a snapshot, with a line for each interface, address, route and rule.
func netLines(name string, out []byte, moving []string) snapshot {
	all := snapshot{}
	for text := range strings.Lines(string(out)) {
		text = strings.TrimSpace(volatile.ReplaceAllString(text, ""))
		m := linkLine.FindStringSubmatch(text)
		switch {
		case text == "", strings.HasPrefix(text, "multicast ff00::/8 dev "): // the latter comes with the first carrier
		case m == nil:
			all[name+" "+strings.Join(strings.Fields(number.ReplaceAllString(text, "")), " ")] = ""
		case slices.Contains(moving, m[2]):
			all[name+" link "+m[2]] = netnsID.ReplaceAllString(m[4], "")
		default:
			all[name+" link "+m[2]] = m[1] + m[3] + " " + m[4]
		}
	}
	return all
}

// hostNet describes the host's network: HOST's `ip -d -o link`, and routes of both families.
func (w *world) hostNet() snapshot {
	w.t.Helper()
	cmd := exec.Command("/sbin/ip", "-d", "-o", "-batch", "-")
	cmd.Stdin = strings.NewReader(netList)
	out, err := cmd.CombinedOutput()
	require.NoError(w.t, err, "%s", out)
	require.True(w.t, bytes.HasPrefix(out, []byte("1: lo: ")), "%s", out)
	return netLines("host", out, w.links)
}

// inNet describes the container's network.
func (w *world) inNet() snapshot {
	w.t.Helper()
	return netLines("net", []byte(w.in("sh", "printf '"+netList+"' | ip -d -o -batch -")), nil)
}

// ownLink says whether a line of the host's network is about an interface of the container's.
func (w *world) ownLink(key string) bool {
	if !strings.HasPrefix(key, "host ") {
		return false
	}
	words := strings.Fields(key)
	return slices.ContainsFunc(words, func(word string) bool {
		return slices.Contains(w.links, word) || w.freeNames && freeName.MatchString(word)
	})
}

// hasLink asserts that the container has the interface, and that what ip(8) says of it has all the parts.
func (w *world) hasLink(name string, parts ...string) {
	w.t.Helper()
	line, ok := w.inNet()["net link "+name]
	require.True(w.t, ok, "the container has no interface %s", name)
	for _, part := range parts {
		require.Contains(w.t, line, part, name)
	}
}

// hasNet asserts that each part is in the container's addresses and routes.
func (w *world) hasNet(parts ...string) {
	w.t.Helper()
	for _, part := range parts {
		require.True(w.t, w.netHas(part), "%s is not in the container: %v", part, w.inNet())
	}
}

func (w *world) netHas(part string) bool {
	w.t.Helper()
	for line := range w.inNet() {
		if strings.Contains(line, part) {
			return true
		}
	}
	return false
}

// hostLinks are the interfaces of the host but the one that each has.
func hostLinks(tb testing.TB) []string {
	tb.Helper()
	list, err := net.Interfaces()
	require.NoError(tb, err)
	var names []string
	for _, link := range list {
		if link.Name != "lo" {
			names = append(names, link.Name)
		}
	}
	return names
}

// dropLinks removes them; one end of a pair takes the other one along.
func dropLinks(tb testing.TB) {
	tb.Helper()
	for _, name := range hostLinks(tb) {
		_ = exec.Command("/sbin/ip", "link", "delete", "dev", name).Run()
	}
	require.Empty(tb, hostLinks(tb), "interfaces that cannot be removed")
}

// nextIndex is the number that the next new interface of the host gets; it counts up whatever becomes of the interfaces.
func (w *world) nextIndex() int {
	w.t.Helper()
	w.hostSh("ip link add probe type ifb")
	link, err := net.InterfaceByName("probe")
	require.NoError(w.t, err)
	w.hostSh("ip link delete probe")
	return link.Index + 1
}

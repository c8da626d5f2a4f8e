//go:build linux

package hostile

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// badRecord is a record that must be found wrong before the first interface is made.
type badRecord struct {
	id     string
	record object
}

// bad puts the entries behind good ones, so that whoever makes interfaces one after another has made some.
func bad(id string, entries ...object) badRecord {
	return badRecord{id, nics(append([]object{veth("good", "goodh", "10.9.0.9/24")}, entries...)...)}
}

func badRoutes(id string, routes ...object) badRecord {
	b := bad("NET-08/" + id)
	b.record["networkRoute"] = append([]object{route("10.70.0.0/16", "", "", "good")}, routes...)
	return b
}

// runBad starts one container over and over: nothing may ever change.
func runBad(t *testing.T, host string, list []badRecord) {
	beginNet(t)
	w := newWorld(t, variant{net: true})
	w.hostSh(bridge + nicIFB + host)
	w.start()
	next, before, canary := w.nextIndex(), w.clean(), w.canary()
	for _, b := range list {
		t.Run(b.id, func(t *testing.T) {
			old := w.t
			w.t = t
			defer func() { w.t = old }()
			w.record(b.record)
			res := w.prestart()
			w.failed(res, "", 2*time.Second)
			withRecord := before
			withRecord["bundle/device_hook.json"] = describe(t, w.recordFile(), false)
			require.Empty(t, w.settled(withRecord, w.clean), "CLEAN: %s", res)
			stop := w.poststop()
			require.Zero(t, stop.code, stop)
			require.Empty(t, w.settled(withRecord, w.clean), "CLEAN after poststop")
		})
	}
	require.Empty(t, diff(canary, w.canary()), "CANARY")
	require.Equal(t, next+1, w.nextIndex(), "an interface was made before all was validated")
}

// TestNetworkNames is NET-05 and NET-14.
func TestNetworkNames(t *testing.T) {
	var list []badRecord
	for i, name := range []string{
		"veth%d", "%d", "-x", "--help", "a b", "a/b", "..", ".", "sixteen-letters1", strings.Repeat("a", 1<<16), "é", "lo", "all",
		"default", "a\nb", "a\tb", "a:b", "a@b", "a\x00b", `a\b`, "$(id)", "a;b", "_x", ".x",
	} {
		for side, entry := range map[string]object{
			"container":     veth(name, "c0h", "10.9.0.2/24"),
			"host":          veth("c0", name, "10.9.0.2/24"),
			"bridge":        nic("veth", "c0", "c0h", name, "10.9.0.2/24"),
			"eth-container": eth(name, "nic0", "10.10.0.2/24"),
			"eth-host":      eth("ceth0", name, "10.10.0.2/24"),
		} {
			list = append(list, bad(fmt.Sprintf("NET-05/%s-%d", side, i), entry))
		}
	}
	list = append(list,
		bad("NET-05/container-empty", veth("", "c0h", "10.9.0.2/24")),
		bad("NET-05/eth-container-empty", eth("", "nic0", "10.10.0.2/24")),
		bad("NET-05/eth-host-empty", eth("ceth0", "", "10.10.0.2/24")),
		bad("NET-05/eth-in-a-bridge", nic("eth", "ceth0", "nic0", "br0", "10.10.0.2/24")),
		bad("NET-05/type", nic("tun", "ceth0", "nic0", "", "10.10.0.2/24")),
		bad("NET-05/type-in-capitals", nic("VETH", "c0", "c0h", "br0", "10.9.0.2/24")),
		bad("NET-14/veth", veth("c0", "ens1234567890abc", "10.9.0.2/24")),
		bad("NET-14/eth", eth("ceth0", "ens1234567890abc", "10.10.0.2/24")),
	)
	const other = "ens1234567890ab" // what a name of 16 characters would be cut to
	runBad(t, "ip link add name "+other+" type veth peer name p; ethtool -K "+other+" tx off sg off >/dev/null", list)
}

// TestNetworkOffloads is the other half of NET-14: offloads are switched on for the container's interface and no other.
func TestNetworkOffloads(t *testing.T) {
	runNet(t, []row{{
		id: "NET-14/offloads", want: okIn,
		host: hostSh(bridge + `ip link add name ens1234567890ab type veth peer name p
			ethtool -K ens1234567890ab tx off sg off >/dev/null; ethtool -k ens1234567890ab >k`),
		record: func(w *world) any {
			w.links = []string{"ens1234567890"}
			return nics(veth("c0", "ens1234567890", "10.9.0.2/24"))
		},
		inside: func(w *world) {
			w.hostSh(`ethtool -k ens1234567890ab | cmp - k
				for f in tx-checksumming scatter-gather tcp-segmentation-offload; do ethtool -k ens1234567890 | grep -q "^$f: on"; done`)
		},
	}, {
		id: "NET-05/host-empty", want: okIn, host: hostSh(bridge), // the format asks for it: a free name is derived
		record: func(w *world) any { w.freeNames = true; return nics(veth("c0", "", "10.9.0.2/24")) },
		inside: func(w *world) { w.t.Helper(); w.hasLink("c0", " veth ") },
	}}, netVariants()...)
}

// TestNetworkValues is NET-07. IPv6 addresses are not among the bad values of this table: the hook restores them.
func TestNetworkValues(t *testing.T) {
	c0 := veth("c0", "c0h", "10.9.0.2/24")
	c0["Mac"] = "02:00:00:00:00:01"
	var list []badRecord
	for key, values := range map[string][]any{
		"Mtu":  {0, -1, 67, 1 << 31, 1 << 32, int64(1) << 62, "1500", 1.5, nil, true},
		"Qlen": {-1, 1 << 31, int64(1) << 62, "x", nil},
		"Mac": {
			"01:00:00:00:00:01", "ff:ff:ff:ff:ff:ff", "00:00:00:00:00:00", "02:00:00:00:00", "02:00:00:00:00:01:02:03",
			"02-00-00-00-00-01",
			"0200.0000.0001", "garbage", "02:00:00:00:00:0g", " 02:00:00:00:00:01", "2:0:0:0:0:1",
		},
		"Ip": {
			"", "10.9.0.2", "10.9.0.2/33", "10.9.0.2/-1", "10.9.0.2/024", "10.9.0.2/255.255.255.0", "10.9.0/24", "0.0.0.0/0", "0.0.0.0/24",
			"::/0", "255.255.255.255/32", "224.0.0.1/24", "ff02::1/64", "127.0.0.1/8", "::1/128", "::ffff:10.9.0.2/120", "fd09::2/129",
			"fe80::1%eth0/64", "fd09::2", "10.9.0.2/24,10.9.0.3/24", "10.9.0.2/24 ", "010.9.0.2/24", nil,
		},
	} {
		for i, value := range values {
			list = append(list, bad(fmt.Sprintf("NET-07/%s-%d", key, i), with(c0, key, value)))
		}
	}
	other := veth("c1", "c1h", "10.9.0.3/24")
	list = append(list,
		bad("NET-07/name-twice", c0, with(other, "CtrNicName", "c0")),
		bad("NET-07/host-name-twice", c0, with(other, "HostNicName", "c0h")),
		bad("NET-07/nic-twice", eth("a", "nic0", "10.10.0.2/24"), eth("b", "nic0", "10.10.0.3/24")),
		bad("NET-07/host-name-of-a-nic", eth("a", "nic0", "10.10.0.2/24"), with(other, "HostNicName", "nic0")),
		bad("NET-07/address-twice", c0, with(other, "Ip", "10.9.0.2/24")),
		bad("NET-07/address-twice-other-prefix", c0, with(other, "Ip", "10.9.0.2/16")),
		bad("NET-07/address-twice-v6", with(c0, "Ip", "fd09::2/64"), with(other, "Ip", "fd09:0::0002/64")),
		bad("NET-07/mac-twice", c0, with(other, "Mac", "02:00:00:00:00:01")),
		bad("NET-07/mac-twice-other-case", with(c0, "Mac", "02:00:00:00:00:ab"), with(other, "Mac", "02:00:00:00:00:AB")),
		bad("NET-07/129", many(128)...), // and the good one
		bad("NET-07/10000", many(10000)...),
	)
	runBad(t, "", list)
}

// TestNetworkLimits is what is just good enough.
func TestNetworkLimits(t *testing.T) {
	c0, other := veth("c0", "c0h", "10.9.0.2/24"), veth("c1", "c1h", "10.9.0.3/24")
	runNet(t, []row{
		{
			id: "NET-07/v6", want: okIn, host: hostSh(bridge),
			record: func(w *world) any { w.links = []string{"c0h"}; return nics(with(c0, "Ip", "fd09::2/64")) },
			inside: func(w *world) { w.t.Helper(); w.hasNet("c0 inet6 fd09::2/64") },
		},
		{
			id: "NET-07/128", want: okIn, host: hostSh(bridge),
			record: func(w *world) any {
				w.links = nil
				for i := range 128 {
					w.links = append(w.links, fmt.Sprintf("h%d", i))
				}
				return nics(many(128)...)
			},
			inside: func(w *world) { w.t.Helper(); w.hasLink("c0"); w.hasLink("c127") },
		},
		{ // only the driver knows its limit, so that comes late and has to be taken back
			id: "NET-07/mtu-of-the-driver", host: hostSh(bridge), name: "c1",
			record: func(*world) any { return nics(c0, with(other, "Mtu", 70000)) },
		},
	}, plain...)
}

func many(n int) []object {
	list := make([]object, n)
	for i := range list {
		list[i] = veth(fmt.Sprintf("c%d", i), fmt.Sprintf("h%d", i), fmt.Sprintf("10.%d.%d.2/24", 20+i/250, i%250))
	}
	return list
}

// TestNetworkBadRoutes is what of NET-08 can be known before.
func TestNetworkBadRoutes(t *testing.T) {
	many := make([]object, 5000)
	for i := range many {
		many[i] = route(fmt.Sprintf("10.%d.%d.0/24", 80+i/250, i%250), "10.9.0.1", "", "")
	}
	runBad(t, "", []badRecord{
		badRoutes("gw-garbage", route("10.71.0.0/16", "garbage", "", "")),
		badRoutes("gw-zone", route("fd0b::/64", "fe80::1%good", "", "")),
		badRoutes("gw-prefix", route("10.71.0.0/16", "10.9.0.1/24", "", "")),
		badRoutes("src-short", route("10.71.0.0/16", "", "1.2.3", "")),
		badRoutes("dest-no-prefix", route("1.2.3.4", "10.9.0.1", "", "")),
		badRoutes("dest-33", route("1.2.3.4/33", "10.9.0.1", "", "")),
		badRoutes("dest-host-bits", route("10.71.0.1/16", "10.9.0.1", "", "")),
		badRoutes("dest-garbage", route("all", "10.9.0.1", "", "")),
		badRoutes("nothing", route("10.71.0.0/16", "", "", "")),
		badRoutes("nothing-default", route("", "", "", "")),
		badRoutes("dev-option", route("10.71.0.0/16", "", "", "-x")),
		badRoutes("dev-long", route("10.71.0.0/16", "", "", "sixteen-letters1")),
		badRoutes("default-twice", route("default", "10.9.0.1", "", ""), route("default", "10.9.0.3", "", "")),
		badRoutes("default-and-empty", route("default", "10.9.0.1", "", ""), route("", "10.9.0.3", "", "")),
		badRoutes("default-and-zero", route("default", "10.9.0.1", "", ""), route("0.0.0.0/0", "10.9.0.3", "", "")),
		badRoutes("dest-twice", route("10.71.0.0/16", "10.9.0.1", "", ""), route("10.71.0.0/16", "10.9.0.3", "", "")),
		badRoutes("families", route("10.71.0.0/16", "", "fd09::2", "good")),
		badRoutes("families-gw", route("fd0b::/64", "10.9.0.1", "", "")),
		badRoutes("5000", many...),
	})
}

// TestNetworkRoutes is the rest of NET-08: no part of the routes is left, and what the container had itself stays.
func TestNetworkRoutes(t *testing.T) {
	// Only the kernel refuses these, when the interfaces and the first route are there.
	late := func(id string, bad object) row {
		b := badRoutes(id, bad)
		return row{id: b.id, host: hostSh(bridge), record: func(*world) any { return b.record }}
	}
	runNet(t, []row{
		late("gw-unreachable", route("10.71.0.0/16", "192.0.2.1", "", "")),
		late("src-of-nobody", route("10.71.0.0/16", "", "192.0.2.9", "good")),
		{
			id: "NET-08/dev-altname", want: either, host: hostSh(bridge), mounts: sh("ip link property add dev lo altname alt0"),
			record: func(w *world) any {
				w.links = []string{"c0h"}
				return object{
					"networkInterfaces": []object{veth("c0", "c0h", "10.9.0.2/24")},
					"networkRoute":      []object{route("10.71.0.0/16", "", "", "alt0")},
				}
			},
			after: func(w *world) {
				require.False(w.t, w.netHas("10.71.0.0/16"), "a route over an interface of another name")
			},
		},
		{
			id: "NET-08/dev-missing", want: okIn, host: hostSh(bridge), // remove-nic leaves such routes in the record
			record: func(w *world) any {
				w.links = []string{"c0h"}
				return object{
					"networkInterfaces": []object{veth("c0", "c0h", "10.9.0.2/24")},
					"networkRoute":      []object{route("10.71.0.0/16", "", "", "gone0"), route("default", "10.9.0.1", "", "")},
				}
			},
			inside: func(w *world) {
				w.t.Helper()
				w.hasNet("default via 10.9.0.1 dev c0")
				require.False(w.t, w.netHas("10.71.0.0/16"))
			},
		},
		{
			id: "NET-08/container-has-another", host: hostSh(bridge), name: "10.71.0.0/16",
			mounts: sh(`ip link add own type ifb; ip link set own up; ip address add 10.50.0.1/24 dev own
				ip route add 10.71.0.0/16 dev own`),
			record: func(*world) any {
				return object{
					"networkInterfaces": []object{veth("c0", "c0h", "10.9.0.2/24")},
					"networkRoute":      []object{route("10.72.0.0/16", "10.9.0.1", "", ""), route("10.71.0.0/16", "10.9.0.1", "", "")},
				}
			},
		},
		{
			id: "NET-08/container-has-the-same", want: okIn, host: hostSh(bridge),
			mounts: sh(`ip link add own type ifb; ip link set own up; ip address add 10.50.0.1/24 dev own
				ip route add 10.71.0.0/16 dev own`),
			record: func(*world) any { return object{"networkRoute": []object{route("10.71.0.0/16", "", "", "own")}} },
			inside: func(w *world) { w.t.Helper(); w.hasNet("10.71.0.0/16 dev own") },
		},
	}, netVariants()...)
}

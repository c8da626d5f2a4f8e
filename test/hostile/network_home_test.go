//go:build linux

package hostile

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// stands are interfaces of the host that a row moves into the container: none of them is a physical one, but the kernel moves all
// alike.
var stands = []struct{ name, script string }{{"ifb", nicIFB}, {"veth", nicVeth}, {"macvlan", nicMacvlan}}

func ownsNIC(w *world) any {
	w.links = []string{"nic0", "nic0p", "ceth0h"}
	return nics(eth("ceth0", "nic0", "10.10.0.2/24"), veth("c0", "ceth0h", "10.9.0.2/24"))
}

// away renames the interface so that both of its names are free in the container.
const away = "ip link set ceth0 down; ip link set ceth0 name x; "

// plants makes another interface under a name that the hook knows, the second word of each script.
var plants = map[string]string{
	"veth":    "ip link add name $n type veth peer name p$n; ip link set $n up; ip link set p$n up",
	"ifb":     "ip link add name $n type ifb; ip link set $n up",
	"bridge":  "ip link add name $n type bridge; ip link set $n up",
	"tap":     "ip tuntap add dev $n mode tap",
	"tun":     "ip tuntap add dev $n mode tun",
	"macvlan": "ip link set x up; ip link add name $n link x type macvlan; ip link set $n up",
	"vxlan":   "ip link add name $n type vxlan id 7 dev x dstport 4789; ip link set $n up",
	"altname": "ip link property add dev x altname $n",
	"copy":    "ip link add name $n address 02:a0:00:00:00:01 mtu 1400 type ifb",
}

// TestNetworkHome is NET-03: the container did with its interface whatever it could. It comes home as what it was, and nothing
// else does.
func TestNetworkHome(t *testing.T) {
	attacks := map[string]string{
		"nothing": "",
		// Not every stand-in can have another MTU or address.
		"values": "ip link set ceth0 down; ip link set ceth0 mtu 1000 || :; ip link set ceth0 txqueuelen 7; " +
			"ip link set ceth0 address 02:00:00:00:00:77 || :; ip link set ceth0 up; ip address flush dev ceth0",
		"altname-and-alias": away + "ip link property add dev x altname br0 altname nic0 altname ceth0; " +
			"ip link set x alias '$(id)'",
		"flags": "ip link set ceth0 promisc on allmulticast on arp off; ip link set ceth0 multicast off",
		"qdisc": "tc qdisc add dev ceth0 clsact; tc qdisc replace dev ceth0 root tbf rate 1mbit burst 10k latency 50ms; " +
			"tc filter add dev ceth0 ingress protocol all u32 match u32 0 0 action mirred egress redirect dev c0",
		"in-a-bridge":         away + "ip link add name b type bridge; ip link set x master b; ip link set dev b up",
		"macvlan-passthru":    "! ip link add name m link ceth0 type macvlan mode passthru || ip link set dev m up",
		"addresses":           "ip address add fd0c::1/64 dev c0; for i in $(seq 9); do ip address add 10.10.1.$i/24 dev ceth0; done",
		"name-like-an-option": away + "ip link set dev x name -x",
		"renamed-to-lo-like":  away + "ip link set lo down; ip link set lo name low; ip link set x name lo",
		"veth-renamed":        "ip link set c0 down; ip link set c0 name ceth1; ip link add c0 type ifb",
		"swapped":             away + "ip link set c0 down; ip link set c0 name ceth0; ip link set x name c0",
	}
	for kind, script := range plants {
		attacks["planted-"+kind] = away + "n=ceth0; " + script
	}
	attacks["planted-all"] = away + "n=ceth0; " + plants["veth"] + "; n=nic0; " + plants["copy"] + "; n=br0; " + plants["bridge"]
	beginNet(t)
	n := 0
	for _, stand := range stands {
		for _, name := range slices.Sorted(maps.Keys(attacks)) {
			n++
			for _, dead := range []bool{false, true} {
				variants := netVariants()
				if !full() { // each attack comes once on each stand-in, by one owner or the other, who lives or not
					if dead == (n%2 == 0) {
						continue
					}
					variants = variants[n/2%2:][:1]
				}
				r := homeRow(stand.script, attacks[name], dead)
				for _, v := range variants {
					v.net = true
					t.Run(fmt.Sprintf("NET-03/%s-%s-dead=%v/%s", stand.name, name, dead, v.name), func(t *testing.T) { r.play(t, v) })
				}
			}
		}
	}
}

func homeRow(stand, attack string, dead bool) row {
	return row{
		want: okIn, record: ownsNIC,
		host: func(w *world) {
			w.hostSh(bridge + stand + "ip link property add dev nic0 altname uplink0; ip link set nic0 alias 'to the switch'")
			w.put("devices.allow", "c 10:200 rw") // of /dev/net/tun
		},
		inside: func(w *world) {
			w.t.Helper()
			w.hasLink("ceth0", ",UP", " mtu 1400 ")
			w.sh(attack)
			if dead {
				w.kill()
			}
		},
	}
}

// TestNetworkLost has interfaces that cannot come home any more. The others do.
func TestNetworkLost(t *testing.T) {
	nested := otherNS + `echo $p >$RF/tmp/pid; ip link set ceth0 netns $p; `
	beginNet(t)
	for name, attack := range map[string]string{
		"deleted":           "ip link delete ceth0",
		"veth-deleted":      "ip link delete ceth0; ip link delete c0",
		"moved-on":          nested + "kill -9 $p",
		"moved-on-and-kept": nested,
		"moved-on-planted":  nested + "ip link add name ceth0 type veth peer name p",
	} {
		t.Run("NET-03/lost-"+name, func(t *testing.T) {
			w := newWorld(t, variant{net: true})
			w.hostSh(bridge + nicIFB + "ip link add name nic1 type ifb; ip link set nic1 up")
			w.links = []string{"nic0", "nic1", "c0h"}
			w.record(nics(eth("ceth0", "nic0", "10.10.0.2/24"), eth("ceth1", "nic1", "10.11.0.2/24"), veth("c0", "c0h", "10.9.0.2/24")))
			w.start()
			host := w.host(true)
			res := w.prestart()
			require.Zero(t, res.code, res)
			w.sh("exec >/dev/null 2>&1; " + attack)
			w.kill()
			stop := w.poststop()
			require.Zero(t, stop.code, stop)
			require.Less(t, stop.took, 10*time.Second)
			require.Empty(t, w.settled(without(host, "nic0"), func() snapshot { return without(w.host(true), "nic0") }), "HOST")
			require.NotContains(t, hostLinks(t), "p", "what was planted is on the host")
			w.start()
			w.hostSh("ip link show nic0 >/dev/null 2>&1 || ip link add nic0 type ifb")
			res = w.prestart()
			require.Zero(t, res.code, "the next start: %s", res)
			require.Zero(t, w.poststop().code)
			w.hostSh("[ ! -e $RF/tmp/pid ] || kill -9 $(cat $RF/tmp/pid) || :")
		})
	}
}

// without leaves out what is about one interface of the host.
func without(all snapshot, name string) snapshot {
	rest := snapshot{}
	for k, v := range all {
		if !slices.Contains(strings.Fields(k), name) {
			rest[k] = v
		}
	}
	return rest
}

// TestNetworkTaken is NET-06 and the first half of NET-12: the name is taken in the container.
func TestNetworkTaken(t *testing.T) {
	var rows []row
	for _, stand := range stands {
		for name, script := range map[string]string{
			"altname-of-lo": "ip link property add dev lo altname ceth0",
			"ifb":           "ip link add ceth0 type ifb",
			"veth":          "ip link add name ceth0 type veth peer name ceth1",
			"lo-renamed":    "ip link set lo down; ip link set lo name ceth0",
			"altname-ifb":   "ip link add own type ifb; ip link property add dev own altname ceth0",
		} {
			rows = append(rows, row{
				id: "NET-06/" + stand.name + "-" + name, name: "ceth0", host: hostSh(bridge + stand.script), mounts: sh(script),
				record: func(*world) any {
					return nics(veth("c0", "c0h", "10.9.0.2/24"), eth("ceth0", "nic0", "10.10.0.2/24"))
				},
			})
		}
	}
	for name, script := range map[string]string{
		"altname-of-lo": "ip link property add dev lo altname c1", "ifb": "ip link add c1 type ifb",
	} {
		rows = append(rows, row{
			id: "NET-06/our-veth-" + name, name: "c1", host: hostSh(bridge + nicIFB), mounts: sh(script),
			record: func(*world) any {
				return nics(eth("ceth0", "nic0", "10.10.0.2/24"), veth("c1", "c1h", "10.9.0.2/24"))
			},
		})
	}
	rows = append(rows, row{ // the name on the host is taken in the container: that is nobody's business
		id: "NET-06/host-name-in-the-container", want: okIn, host: hostSh(bridge + nicIFB), record: ownsNIC,
		mounts: sh("ip link add nic0 type ifb; ip link add ceth0h type ifb; ip link add br0 type bridge"),
		inside: func(w *world) { w.t.Helper(); w.hasLink("ceth0"); w.hasLink("nic0"); w.kill() },
	})
	runNet(t, rows, netVariants()...)
}

// TestNetworkTakenRace is the other half of NET-12: the name gets taken at any time, so the kernel refuses it in the middle.
func TestNetworkTakenRace(t *testing.T) {
	beginNet(t)
	for _, kind := range []string{"eth", "veth"} {
		for _, how := range []string{"name", "altname"} {
			t.Run("NET-12/"+kind+"-"+how, func(t *testing.T) { takenRace(t, kind, how) })
		}
	}
}

func takenRace(t *testing.T, kind, how string) {
	w := newWorld(t, variant{net: true})
	w.hostSh(bridge + nicIFB)
	w.record(nics(map[string]object{
		"eth": eth("ceth0", "nic0", "10.10.0.2/24"), "veth": veth("ceth0", "c0h", "10.9.0.2/24"),
	}[kind]))
	w.start()
	w.sh("ip link add own type ifb")
	host := w.host(true)
	stop := flipName(w, how)
	good := 0
	for range scaled(40, 400) {
		res := w.prestart()
		if res.code == 0 {
			good++
			require.Zero(t, w.poststop().code)
		} else {
			w.failed(res, "ceth0", 0)
		}
		w.sameHost(host, res.String())
	}
	stop()
	names := []string{"net link lo", "net link own"}
	for k := range w.inNet() {
		if len(k) > 9 && k[:9] == "net link " {
			require.Contains(t, names, k, "an interface of the hook is left in the container")
		}
	}
	t.Logf("%d runs got the name", good)
}

// flipName gives and takes the container's own interface the name, as fast as it can, until the returned function is called.
func flipName(w *world, how string) (stop func()) {
	w.t.Helper()
	ns, err := netns.GetFromPid(w.pid)
	require.NoError(w.t, err)
	handle, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	require.NoError(w.t, err)
	link, err := handle.LinkByName("own")
	require.NoError(w.t, err)
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case <-done:
				return
			default:
			}
			if how == "name" { // it fails while the hook's interface has the name
				_ = handle.LinkSetName(link, "ceth0")
				time.Sleep(200 * time.Microsecond)
				_ = handle.LinkSetName(link, "own")
			} else {
				_ = handle.LinkAddAltName(link, "ceth0")
				time.Sleep(200 * time.Microsecond)
				_ = handle.LinkDelAltName(link, "ceth0")
			}
			time.Sleep(time.Millisecond)
		}
	}()
	return func() {
		close(done)
		<-ended
		handle.Close()
		require.NoError(w.t, ns.Close())
	}
}

// TestNetworkInUse is NET-13: interfaces that the host needs itself. Bonds are not among them only because kernels without the
// module cannot have one; a bridge's port stands for all that have a master.
func TestNetworkInUse(t *testing.T) {
	const address = "ip address add 10.44.0.1/24 dev nic0; ip address add fd44::1/64 dev nic0 nodad\n" +
		"until ip -6 route show table local | grep -q '^local fd44::1 '; do sleep .01; done\n"
	var rows []row
	for name, script := range map[string]string{
		"default-route":     address + "ip route add default via 10.44.0.2",
		"default-on-link":   address + "ip route add default dev nic0",
		"default-v6":        address + "ip route add default via fd44::2 dev nic0",
		"default-in-table":  address + "ip route add default via 10.44.0.2 table 100",
		"default-metric":    address + "ip route add default via 10.44.0.2 metric 4000",
		"default-multipath": address + "ip route add default nexthop via 10.9.0.2 dev br0 nexthop via 10.44.0.2 dev nic0",
		"bridge-port":       "ip link set nic0 master br0",
		"missing":           "ip link delete nic0",
		"only-an-altname":   "ip link set nic0 down; ip link set nic0 name nic9; ip link property add dev nic9 altname nic0",
	} {
		for _, stand := range stands[:2] {
			rows = append(rows, row{
				id: "NET-13/" + name + "-" + stand.name, name: "nic0", host: hostSh(bridge + stand.script + script),
				record: func(*world) any {
					return nics(veth("c0", "c0h", "10.9.0.2/24"), eth("ceth0", "nic0", "10.10.0.2/24"))
				},
			})
		}
	}
	rows = append(rows, row{
		id: "NET-13/a-bridge", name: "br0", host: hostSh(bridge),
		record: func(*world) any { return nics(eth("ceth0", "br0", "10.10.0.2/24")) },
	})
	runNet(t, rows, netVariants()[:2]...)
}

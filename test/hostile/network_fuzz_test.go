//go:build linux

package hostile

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Values of random records. The first ones are good in many records.
var (
	poolKinds = []string{"veth", "veth", "veth", "", "eth", "eth", "tun", "VETH"}
	poolNames = []string{
		"c0", "c1", "c2", "c3", "ceth0", "ceth1", "eth0", "own", "alt0", "lo", "a.b", "br0", "nic0", "-x", "%d", "",
	}
	poolHosts = []string{
		"", "", "c0h", "c1h", "c2h", "nic0", "nic0", "nic1", "nic2", "low", "br0", "port0", "keepme", "c0", "uplink0", "lo",
	}
	poolBridges = []string{"br0", "br0", "br0", "", "", "nobr", "nic0", "alt1", "-t", "own"}
	poolIPs     = []string{
		"10.9.0.%d/24", "10.9.0.%d/24", "fd09::%d/64", "10.%[1]d.0.1/16", "192.0.2.%d/32", "10.9.0.2/24", "0.0.0.%d/8", "x%d",
	}
	poolMACs = []string{
		"", "", "", "", "02:00:00:00:00:%02x", "02:00:00:00:00:%02X", "01:00:00:00:00:%02x", "02:a0:00:00:00:01", "x%d",
	}
	poolMTUs  = []any{1500, 1400, 1280, 9000, 68, 65535, 65536, 67, 1000}
	poolQlens = []any{0, 1000, 500, 1, 1 << 30, -1}
	poolDests = []string{
		"", "default", "10.66.0.0/16", "10.67.0.0/16", "fd0a::/64", "10.9.0.0/24", "::/0", "10.66.0.1/16", "224.0.0.0/4", "x",
	}
	poolGWs  = []string{"", "", "10.9.0.1", "10.9.0.1", "fd09::1", "10.9.0.77", "192.0.2.1", "127.0.0.1", "0.0.0.0", "x"}
	poolSrcs = []string{"", "", "", "10.9.0.2", "10.9.0.3", "192.0.2.9", "fd09::2", "x"}
	poolDevs = []string{"", "", "c0", "c1", "ceth0", "own", "alt0", "gone0", "-x"}
)

func pick[T any](r *rand.Rand, pool []T) T { return pool[r.IntN(len(pool))] }

func numbered(r *rand.Rand, pool []string, n int) string {
	s := pick(r, pool)
	if strings.Contains(s, "%") {
		return fmt.Sprintf(s, n)
	}
	return s
}

// tame gives a pool's good values most of the time: an entry of nasty values only is always refused.
func tame[T any](r *rand.Rand, good int, pool []T) T {
	if r.IntN(12) > 0 {
		return pick(r, pool[:good])
	}
	return pick(r, pool)
}

func randomRecord(r *rand.Rand) object {
	var list, routes []object
	for i := range r.IntN(5) {
		entry := object{
			"Type": tame(r, 5, poolKinds), "CtrNicName": poolNames[min(i+r.IntN(2), 3)], "HostNicName": tame(r, 5, poolHosts),
			"Bridge": tame(r, 5, poolBridges), "Ip": numbered(r, []string{tame(r, 5, poolIPs)}, 2+i),
			"Mac": numbered(r, []string{tame(r, 6, poolMACs)}, i), "Mtu": tame(r, 4, poolMTUs), "Qlen": tame(r, 4, poolQlens),
		}
		if r.IntN(10) == 0 {
			entry["CtrNicName"] = pick(r, poolNames)
		}
		if entry["Type"] == "eth" && r.IntN(8) > 0 {
			entry["Bridge"], entry["HostNicName"] = "", pick(r, []string{"nic0", "nic1", "nic2"})
		}
		list = append(list, entry)
	}
	for range r.IntN(3) {
		routes = append(routes, route(tame(r, 5, poolDests), tame(r, 5, poolGWs), tame(r, 3, poolSrcs), tame(r, 5, poolDevs)))
	}
	rec := object{}
	if list != nil {
		rec["networkInterfaces"] = list
	}
	if routes != nil {
		rec["networkRoute"] = routes
	}
	return rec
}

// mischief is what a container may do with what it has got.
var mischief = []string{
	"", "", "for l in $all; do ip link set $l down; ip link set $l name x$l; done",
	"for l in $all; do ip link set $l down; ip link set $l name x$l; ip link add name $l type veth peer name p$l; done",
	"for l in $all; do ip link set $l down; ip link set $l address 02:00:00:00:00:99; ip link set $l mtu 1300; done",
	"for l in $all; do ip link property add dev $l altname br0$l; done; ip link set own alias br0",
	"for l in $all; do ip link set $l alias x; ip address flush dev $l; ip link set $l promisc on; done; ip route flush table main",
	"for l in $all; do ip link set $l down; done; ip link add name b type bridge; for l in $all; do ip link set $l master b; done",
}

// TestNetworkRandom has random records, and what random containers do next: each run either fails and leaves all as it was, or
// succeeds, and poststop leaves the host as it was. HOSTILE_SEED repeats a failed test.
func TestNetworkRandom(t *testing.T) {
	beginNet(t)
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("HOSTILE_SEED"); s != "" {
		var err error
		seed, err = strconv.ParseUint(s, 10, 64)
		require.NoError(t, err)
	}
	t.Logf("HOSTILE_SEED=%d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	good := 0
	for i := range scaled(200, 5000) {
		rec, attack, dead, v := randomRecord(r), pick(r, mischief), r.IntN(2) == 0, variant{net: true, user: r.IntN(3) == 0}
		t.Run(fmt.Sprintf("random-%d", i), func(t *testing.T) {
			if randomRun(t, v, rec, attack, dead) {
				good++
			}
		})
		if t.Failed() {
			t.Fatalf("HOSTILE_SEED=%d", seed)
		}
	}
	t.Logf("%d records were restored", good)
	require.Positive(t, good, "no record was good")
}

func randomRun(t *testing.T, v variant, rec object, attack string, dead bool) bool {
	w := newWorld(t, v)
	w.hostSh(netHost + `ip link add name low type veth peer name lowp; ip link add nic2 link low type macvlan
		ip link add port0 type ifb; ip link set port0 master br0; ip link add keepme type bridge
		ip link property add dev nic1 altname uplink0; ip link property add dev br0 altname alt1`)
	w.links = []string{"nic0", "nic1", "nic1p", "nic2", "low", "lowp", "c0h", "c1h", "c2h", "c0"}
	w.freeNames = true
	w.record(rec)
	w.start()
	w.sh("ip link set lo up; ip link add own type ifb; ip link set own up; ip link property add dev own altname alt0")
	before, host, canary := w.clean(), w.host(true), w.canary()
	res := w.prestart()
	require.Empty(t, diff(canary, w.canary()), "CANARY after prestart")
	if res.code != 0 {
		w.failed(res, "", 0)
		require.Empty(t, w.settled(before, w.clean), "CLEAN: %v: %s", rec, res)
	} else {
		require.Empty(t, w.settled(w.others(host), func() snapshot { return w.host(false) }), "HOST after prestart: %v", rec)
		w.pinned()
		w.sh("set +e; all=$(ip -o link | sed 's/^[0-9]*: //; s/[:@].*//' | grep -v -e '^lo$' -e '^own$') \n" + attack + "\n:")
	}
	if dead {
		w.kill()
	}
	stop := w.poststop()
	require.Zero(t, stop.code, "%v: %s", rec, stop)
	w.sameHost(host, fmt.Sprintf("HOST after poststop: %v, then %q: %s", rec, attack, stop))
	require.Empty(t, w.pins())
	return res.code == 0
}

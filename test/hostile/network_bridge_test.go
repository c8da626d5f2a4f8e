//go:build linux

package hostile

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// otherNS starts a process p in a network namespace of its own.
const otherNS = "unshare -n sleep 60 >/dev/null 2>&1 & p=$!\n" +
	`while [ "$(readlink /proc/$p/ns/net)" = "$(readlink /proc/$$/ns/net)" ]; do sleep .01; done; `

// strangers are interfaces of the host that have a name which the record lists, and that are not the container's.
var strangers = map[string]string{
	"bridge":  "ip link add keepme type bridge",
	"ifb":     "ip link add keepme type ifb",
	"veth":    "ip link add name keepme type veth peer name keepmep",
	"tap":     "ip tuntap add dev keepme mode tap",
	"macvlan": "ip link add keepme link nic0 type macvlan",
	"altname": "ip link property add dev nic0 altname keepme",
	"port":    "ip link add keepme type ifb; ip link set keepme master br0",
	"remote":  otherNS + "echo $p >pid; ip link add name keepme type veth peer name c0 netns $p",
}

// TestNetworkStranger is NET-02: prestart fails, and poststop deletes nothing, whoever made the interface and whenever.
func TestNetworkStranger(t *testing.T) {
	var rows []row
	for name, script := range strangers {
		if name == "remote" {
			continue // its process would have to end with each variant
		}
		rows = append(rows, row{
			id: "NET-02/" + name, name: "keepme", host: hostSh(bridge + nicIFB + script),
			record: func(*world) any {
				return nics(veth("c1", "c1h", "10.9.0.3/24"), veth("c0", "keepme", "10.9.0.2/24"))
			},
		})
	}
	runNet(t, rows, netVariants()...)
	for name, script := range strangers {
		t.Run("NET-02/only-in-the-record-"+name, func(t *testing.T) {
			w := newWorld(t, variant{net: true})
			w.start()
			w.hostSh(bridge + nicIFB)
			res := w.prestart()
			require.Zero(t, res.code, res)
			w.record(nics(veth("c0", "keepme", "10.9.0.2/24"))) // as the companion tool would write it
			stranger(t, w, script)
		})
		t.Run("NET-02/replaced-"+name, func(t *testing.T) {
			w := newWorld(t, variant{net: true})
			w.record(nics(veth("c0", "keepme", "10.9.0.2/24")))
			w.hostSh(bridge + nicIFB)
			w.start()
			res := w.prestart()
			require.Zero(t, res.code, res)
			w.hostSh("ip link delete keepme")
			stranger(t, w, script)
		})
	}
	t.Run("NET-02/replaced-same-index", func(t *testing.T) { // name, kind and number are right, the other end is not
		w := newWorld(t, variant{net: true})
		w.record(nics(veth("c0", "keepme", "10.9.0.2/24")))
		w.hostSh(bridge)
		w.start()
		require.Zero(t, w.prestart().code)
		link, err := net.InterfaceByName("keepme")
		require.NoError(t, err)
		w.hostSh("ip link delete keepme")
		stranger(t, w, fmt.Sprintf("ip link add name keepme index %d type veth peer name keepmep", link.Index))
	})
	t.Run("NET-02/renamed", func(t *testing.T) { // the container's own end under another name goes, the stranger stays
		w := newWorld(t, variant{net: true})
		w.record(nics(veth("c0", "keepme", "10.9.0.2/24")))
		w.hostSh(bridge)
		w.start()
		require.Zero(t, w.prestart().code)
		w.hostSh("ip link set keepme down; ip link set keepme name mine; ip link add keepme type ifb")
		w.kill()
		stop := w.poststop()
		require.Zero(t, stop.code, stop)
		require.Contains(t, hostLinks(t), "keepme")
		require.NotContains(t, hostLinks(t), "mine")
	})
}

// stranger makes the interface, and asserts that poststop of the ended container leaves it alone.
func stranger(t *testing.T, w *world, script string) {
	t.Helper()
	w.hostSh(script)
	t.Cleanup(func() { w.hostSh("[ ! -e pid ] || kill -9 $(cat pid)") })
	host := w.others(w.host(true))
	w.kill()
	stop := w.poststop()
	require.Zero(t, stop.code, stop)
	w.sameHost(host, "HOST")
}

const ovsTool = "/usr/bin/ovs-vsctl"

// stubTool puts a script in the place of ovs-vsctl until the end of the test. It notes its arguments, environment and descriptors
// in the file that is returned, and goes on with the script given.
func stubTool(t *testing.T, script string) (log string) {
	t.Helper()
	require.FileExists(t, ovsTool, "the tests of this package need it")
	dir := filepath.Join(base, "stub")
	require.NoError(t, os.Mkdir(dir, 0o755))
	log = dir + "/log"
	text := fmt.Sprintf("#!/bin/sh\n{ echo call; for a; do printf 'arg %%s\\n' \"$a\"; done\n"+
		"tr '\\0' '\\n' </proc/$$/environ | sed 's/^/env /'\n"+
		"for f in /proc/$$/fd/*; do echo \"fd ${f##*/} $(readlink $f)\"; done; } >>%s\n%s\n", log, script)
	require.NoError(t, os.WriteFile(dir+"/ovs-vsctl", []byte(text), 0o755))
	require.NoError(t, unix.Mount(dir+"/ovs-vsctl", ovsTool, "", unix.MS_BIND, ""))
	t.Cleanup(func() {
		require.NoError(t, unix.Unmount(ovsTool, unix.MNT_DETACH))
		require.NoError(t, os.RemoveAll(dir))
	})
	return log
}

// ovsOptions are what the hook itself gives.
var ovsOptions = []string{"--", "--timeout", "--may-exist", "--if-exists", "--columns", "--format", "-vconsole:off"}

// checkCalls asserts that the tool got nothing but what the hook means for it, and gives the number of calls.
func checkCalls(t *testing.T, w *world, log string) int {
	t.Helper()
	b, err := os.ReadFile(log)
	if os.IsNotExist(err) {
		return 0
	}
	require.NoError(t, err)
	calls := 0
	for line := range strings.Lines(string(b)) {
		kind, text, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		switch kind {
		case "call":
			calls++
		case "arg":
			if strings.HasPrefix(text, "-") {
				option, _, _ := strings.Cut(text, "=")
				require.Contains(t, ovsOptions, option, "%s", b)
			}
			require.NotContains(t, text, "tcp:")
			require.NotContains(t, text, w.hd)
		case "env":
			name, _, _ := strings.Cut(text, "=")
			require.Contains(t, []string{"PATH", "LC_ALL", "PWD", "OLDPWD", "_", "SHLVL"}, name, "%s", b)
			require.NotContains(t, text, w.dir)
		case "fd":
			require.NotContains(t, text, w.dir, "an open file of the container's: %s", b)
			require.NotContains(t, text, "net:[", "an open network namespace: %s", b)
		}
	}
	return calls
}

// TestNetworkBridges is NET-11.
func TestNetworkBridges(t *testing.T) {
	beginNet(t)
	for name, c := range map[string]struct{ bridge, script, tool string }{
		"option-db":         {bridge: "--db=tcp:h:1"},
		"option-t":          {bridge: "-t"},
		"option-t-lying":    {bridge: "-t", tool: "exit 0"},
		"separator":         {bridge: "--"},
		"missing":           {bridge: "nobr"},
		"missing-tool-ok":   {bridge: "nobr", tool: "echo garbage; exit 0"},
		"missing-tool-dies": {bridge: "nobr", tool: "kill -9 $$"},
		"missing-tool-loud": {bridge: "nobr", tool: "head -c 100000000 /dev/zero; head -c 100000000 /dev/zero >&2; exit 1"},
		"no-bridge-ifb":     {bridge: "notbr", script: "ip link add notbr type ifb"},
		"no-bridge-veth":    {bridge: "notbr", script: "ip link add name notbr type veth peer name x"},
		"no-bridge-tap":     {bridge: "notbr", script: "ip tuntap add dev notbr mode tap"},
		"no-bridge-port":    {bridge: "notbr", script: "ip link add notbr type ifb; ip link set notbr master br0"},
		"own-end":           {bridge: "c0h"},
		"nic":               {bridge: "nic0"},
		"altname":           {bridge: "alt0", script: "ip link property add dev br0 altname alt0"},
		"only-in-container": {bridge: "inner"},
	} {
		t.Run("NET-11/"+name, func(t *testing.T) {
			w := newWorld(t, variant{net: true})
			tool := c.tool
			if tool == "" {
				tool = "exit 2"
			}
			log := stubTool(t, tool)
			w.hostSh(bridge + nicIFB + c.script)
			w.record(nics(veth("good", "goodh", "10.9.0.9/24"), nic("veth", "c0", "c0h", c.bridge, "10.9.0.2/24")))
			w.start()
			w.sh("ip link add inner type bridge")
			before, canary := w.clean(), w.canary()
			res := w.hook("prestart", run{limit: 30 * time.Second, env: []string{
				"PATH=" + w.rf + ":.", "OVS_RUNDIR=" + w.hd, "OVS_DBDIR=" + w.hd, "LD_PRELOAD=" + w.rf + "/x.so", "TMPDIR=" + w.hd,
			}})
			w.failed(res, "", 0)
			require.Empty(t, w.settled(before, w.clean), "CLEAN: %s", res)
			stop := w.poststop()
			require.Zero(t, stop.code, stop)
			require.Empty(t, w.settled(before, w.clean), "CLEAN after poststop")
			require.Empty(t, diff(canary, w.canary()), "CANARY")
			calls := checkCalls(t, w, log)
			if strings.HasPrefix(c.bridge, "-") {
				require.Zero(t, calls, "the tool was asked about an option")
			}
		})
	}
	t.Run("NET-11/linux-bridge-needs-no-tool", func(t *testing.T) {
		w := newWorld(t, variant{net: true})
		log := stubTool(t, "exit 1")
		w.hostSh(bridge)
		w.record(nics(veth("c0", "c0h", "10.9.0.2/24")))
		w.start()
		res := w.prestart()
		require.Zero(t, res.code, res)
		require.Zero(t, w.poststop().code)
		require.Zero(t, checkCalls(t, w, log))
	})
	t.Run("STA-10/tool", func(t *testing.T) { // what the hook has inherited is not the tool's business
		w := newWorld(t, variant{net: true})
		log := stubTool(t, "exit 2")
		w.record(nics(nic("veth", "c0", "c0h", "nobr", "10.9.0.2/24")))
		w.start()
		var files []*os.File
		for _, p := range []string{w.hd, w.hd + "/file", "/proc/self/ns/net", fmt.Sprintf("/proc/%d/ns/net", w.pid)} {
			f, err := os.Open(p)
			require.NoError(t, err)
			defer f.Close()
			files = append(files, f)
		}
		w.failed(w.hook("prestart", run{files: files}), "nobr", 0)
		require.Equal(t, 1, checkCalls(t, w, log))
	})
	t.Run("NET-11/tool-hangs", func(t *testing.T) { toolHangs(t) })
	t.Run("NET-11/path", func(t *testing.T) { // the tool is not looked for
		w := newWorld(t, variant{net: true})
		stubTool(t, "exit 2")
		w.hostSh("mkdir $RF/bin; cp $HD/exec $RF/bin/ovs-vsctl; cp $HD/exec $RF/ovs-vsctl")
		w.record(nics(nic("veth", "c0", "c0h", "nobr", "10.9.0.2/24")))
		w.start()
		res := w.hook("prestart", run{dir: w.rf, env: []string{"PATH=" + w.rf + "/bin:."}})
		w.failed(res, "nobr", 0)
		notRun(w)
	})
}

// toolHangs has a tool that never ends, and has started another process, which has its output open.
func toolHangs(t *testing.T) {
	w := newWorld(t, variant{net: true})
	pids := w.dir + "/pids"
	stubTool(t, "exec 3>>"+pids+"; echo $$ >&3; sleep 300 & echo $! >&3; trap '' TERM INT HUP; sleep 301 & echo $! >&3; wait; wait")
	w.hostSh(bridge)
	w.record(nics(veth("good", "goodh", "10.9.0.9/24"), nic("veth", "c0", "c0h", "nobr", "10.9.0.2/24")))
	w.start()
	before := w.clean()
	res := w.hook("prestart", run{args: []string{"-timeout", "3s"}, limit: 30 * time.Second})
	w.failed(res, "", 20*time.Second)
	require.Empty(t, w.settled(before, w.clean), "CLEAN: %s", res)
	b, err := os.ReadFile(pids)
	require.NoError(t, err)
	for pid := range strings.FieldsSeq(string(b)) {
		require.Eventually(t, func() bool {
			line, err := os.ReadFile("/proc/" + pid + "/stat") // gone, or a zombie that nobody has waited for
			return err != nil || strings.Contains(string(line), ") Z ")
		}, time.Second, 10*time.Millisecond, "process %s of the tool is left", pid)
	}
	require.Zero(t, w.poststop().code)
}

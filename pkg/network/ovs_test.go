//go:build linux

package network

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"isula.org/syscontainer-hooks/internal/testutil"
	"isula.org/syscontainer-hooks/internal/thread"
)

const findTagged = `external_ids:syscontainer-hooks`

// newPair makes a veth pair with the container's end up, as attachVeth leaves it.
func newPair(t testing.TB, n *Network, hostName, address string) {
	t.Helper()
	host(t, "/sbin/ip", "link", "add", hostName, "up", "type", "veth", "peer", "name", "ceth0")
	t.Cleanup(func() { host(t, "/sbin/ip", "link", "del", hostName) })
	link, err := n.host.LinkByName("ceth0")
	require.NoError(t, err)
	require.NoError(t, n.host.LinkSetNsFd(link, int(n.ns.Fd())))
	inside(t, n, "/sbin/ip", "addr", "add", address, "dev", "ceth0", "nodad")
	inside(t, n, "/sbin/ip", "link", "set", "ceth0", "up")
}

func ovsVeth(hostName, bridge string) Attachment {
	return Attachment{Interface: Interface{Kind: Veth, Name: "ceth0", HostName: hostName, Bridge: bridge}, OVS: true}
}

// talk sends more over TCP than fits into one packet, and gets it back.
func talk(t testing.TB, from, to *Network, address string) {
	t.Helper()
	var listener net.Listener
	require.NoError(t, in(to, func() (err error) {
		listener, err = net.Listen("tcp", net.JoinHostPort(address, "0"))
		return err
	}))
	defer listener.Close()
	go func() {
		if conn, err := listener.Accept(); err == nil {
			_, _ = io.Copy(conn, conn)
			_ = conn.Close()
		}
	}()
	var conn net.Conn
	require.NoError(t, in(from, func() (err error) {
		conn, err = net.DialTimeout("tcp", listener.Addr().String(), 5*time.Second)
		return err
	}))
	defer conn.Close()
	require.NoError(t, conn.SetDeadline(time.Now().Add(5*time.Second)))
	sent, got := bytes.Repeat([]byte("0123456789abcdef"), 1<<13), make([]byte, 1<<17)
	go func() { _, _ = conn.Write(sent) }()
	_, err := io.ReadFull(conn, got)
	require.NoError(t, err)
	require.Equal(t, sent, got)
}

// in calls f in the container's network namespace.
func in(n *Network, f func() error) error {
	return thread.Own(func() error {
		if err := unix.Setns(int(n.ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return err
		}
		return f()
	})
}

func TestOVSPorts(t *testing.T) {
	n, other := newNetwork(t, "c.1"), newNetwork(t, "c.2")
	testutil.StartOVS(t)
	testutil.AddOVSBridge(t, "ovsbr0")
	newPair(t, n, "heth0", "10.9.0.1/24")
	newPair(t, other, "heth1", "10.9.0.2/24")
	inside(t, n, "/sbin/ip", "addr", "add", "fd00:9::1/64", "dev", "ceth0", "nodad")
	inside(t, other, "/sbin/ip", "addr", "add", "fd00:9::2/64", "dev", "ceth0", "nodad")

	first, second := []Attachment{ovsVeth("heth0", "ovsbr0")}, []Attachment{ovsVeth("heth1", "ovsbr0")}
	first[0].OVS = false
	require.NoError(t, n.planBridges(t.Context(), first))
	require.True(t, first[0].OVS)
	require.Zero(t, first[0].bridge)
	for range 2 {
		require.NoError(t, n.addPorts(t.Context(), first))
		require.NoError(t, other.addPorts(t.Context(), second))
	}
	require.Equal(t, "heth0\nheth1\n", testutil.OVS(t, "list-ports", "ovsbr0"))
	require.Equal(t, "heth0\n", testutil.OVS(t, "--bare", "--columns=name", "find", "Port", findTagged+"=c.1"))
	talk(t, n, other, "10.9.0.2")
	talk(t, other, n, "fd00:9::1")

	for range 2 {
		require.NoError(t, n.removePorts(t.Context(), first))
	}
	require.Equal(t, "heth1\n", testutil.OVS(t, "list-ports", "ovsbr0"))
	require.NoError(t, other.removePorts(t.Context(), second))
	for _, table := range []string{"Port", "Interface"} {
		require.Equal(t, "ovsbr0\n", testutil.OVS(t, "--bare", "--columns=name", "list", table))
	}
}

func TestOVSPortOfOther(t *testing.T) {
	n := newNetwork(t, "c.1")
	testutil.StartOVS(t)
	testutil.AddOVSBridge(t, "ovsbr0")
	testutil.AddOVSBridge(t, "ovsbr1")
	testutil.OVS(t, "--no-wait", "add-port", "ovsbr0", "untagged", "--", "add-port", "ovsbr1", "elsewhere", "--", "add-port", "ovsbr0", "foreign", "--",
		"set", "Port", "foreign", findTagged+"=c.2", "--", "add-port", "ovsbr0", "own", "--", "set", "Port", "own", findTagged+"=c.1")
	for name, want := range map[string]string{
		"untagged":  "",
		"elsewhere": "port elsewhere exists in Open vSwitch and belongs to another program",
		"foreign":   "port foreign exists in Open vSwitch and belongs to container c.2",
		"own":       "",
		"none":      "",
	} {
		attachments := []Attachment{ovsVeth(name, "ovsbr0")}
		err := n.planBridges(t.Context(), attachments)
		if want == "" {
			require.NoError(t, err)
		} else {
			require.ErrorContains(t, err, want)
		}
	}
	err := n.addPorts(t.Context(), []Attachment{ovsVeth("foreign", "ovsbr1")})
	require.ErrorContains(t, err, "foreign is actually attached to bridge ovsbr0")
	require.Equal(t, "elsewhere\n", testutil.OVS(t, "list-ports", "ovsbr1"))
}

func TestOVSRemovesOnlyOwn(t *testing.T) {
	n := newNetwork(t, "c.1")
	testutil.StartOVS(t)
	testutil.AddOVSBridge(t, "ovsbr0")
	testutil.AddOVSBridge(t, "ovsbr1")
	args := []string{"--no-wait"}
	for _, port := range []struct{ name, bridge, tag string }{
		{"listed", "ovsbr0", "c.1"},
		{"unlisted", "ovsbr0", "c.1"},
		{"moved", "ovsbr1", "c.1"},
		{"live", "ovsbr0", ""},
		{"livemoved", "ovsbr1", ""},
		{"admins", "ovsbr0", ""},
		{"others", "ovsbr0", "c.10"},
	} {
		args = append(args, "--", "add-port", port.bridge, port.name)
		if port.tag != "" {
			args = append(args, "--", "set", "Port", port.name, findTagged+"="+port.tag)
		}
	}
	testutil.OVS(t, args...)
	var attachments []Attachment
	for _, name := range []string{"listed", "moved", "live", "livemoved", "others", "absent"} {
		attachments = append(attachments, ovsVeth(name, "ovsbr0"))
	}
	attachments = append(attachments, ovsVeth("livegone", "nobridge"))
	plain := []Attachment{ovsVeth("admins", "ovsbr0")}
	plain[0].OVS = false
	attachments = append(attachments, plain...)

	require.NoError(t, n.removePorts(t.Context(), plain))
	require.Len(t, strings.Fields(testutil.OVS(t, "list-ports", "ovsbr0")), 5)
	require.NoError(t, n.removePorts(t.Context(), attachments))
	require.Equal(t, "admins\nothers\n", testutil.OVS(t, "list-ports", "ovsbr0"))
	require.Equal(t, "livemoved\n", testutil.OVS(t, "list-ports", "ovsbr1"))
}

func TestOVSPortFails(t *testing.T) {
	n := newNetwork(t, "c.1")
	testutil.StartOVS(t)
	testutil.AddOVSBridge(t, "ovsbr0")
	newPair(t, n, "heth0", "10.9.0.1/24")
	attachments := []Attachment{ovsVeth("heth0", "ovsbr0"), ovsVeth("heth9", "ovsbr0")}
	err := n.addPorts(t.Context(), attachments)
	require.ErrorContains(t, err, "add ports to Open vSwitch: port heth9: could not open network device heth9")
	require.NotContains(t, err.Error(), "heth0")
	require.NoError(t, n.removePorts(t.Context(), attachments))
	require.Empty(t, testutil.OVS(t, "list-ports", "ovsbr0"))
}

// stopDaemon holds a daemon of the switch.
func stopDaemon(t *testing.T, name string) (goOn func()) {
	t.Helper()
	text, err := os.ReadFile("/run/openvswitch/" + name + ".pid")
	require.NoError(t, err)
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	require.NoError(t, err)
	require.NoError(t, unix.Kill(pid, unix.SIGSTOP))
	goOn = func() { _ = unix.Kill(pid, unix.SIGCONT) }
	t.Cleanup(goOn)
	return goOn
}

// shortly leaves a second for each of the calls of a clean-up.
func shortly(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func TestRemoveTimeout(t *testing.T) {
	for left, want := range map[time.Duration]time.Duration{
		0: time.Second, 4 * time.Second: time.Second, 5 * time.Second: 2 * time.Second, time.Minute: ovsRemoveTimeout,
	} {
		ctx, cancel := context.WithTimeout(t.Context(), left)
		require.Equal(t, want, removeTimeout(ctx), left)
		cancel()
	}
	require.Equal(t, ovsRemoveTimeout, removeTimeout(t.Context()))
}

func TestOVSSilent(t *testing.T) {
	n := newNetwork(t, "c.1")
	attachments := []Attachment{ovsVeth("heth0", "ovsbr0")}
	t.Run("none", func(t *testing.T) {
		_, err := ovsBridge(t.Context(), ovsTimeout, "ovsbr0")
		require.ErrorContains(t, err, "database connection failed")
		require.ErrorContains(t, n.removePorts(t.Context(), attachments), "database connection failed")
	})
	t.Run("switch", func(t *testing.T) {
		testutil.StartOVS(t)
		testutil.AddOVSBridge(t, "ovsbr0")
		newPair(t, n, "heth0", "10.9.0.1/24")
		require.NoError(t, n.addPorts(t.Context(), attachments))
		goOn := stopDaemon(t, "ovs-vswitchd")
		require.NoError(t, n.removePorts(shortly(t), attachments), "what counts is the database")
		require.Empty(t, testutil.OVS(t, "list-ports", "ovsbr0"))
		goOn()
	})
	t.Run("database", func(t *testing.T) {
		testutil.StartOVS(t)
		goOn := stopDaemon(t, "ovsdb-server")
		_, _, err := vsctl(t.Context(), time.Second, "br-exists", "ovsbr0")
		require.ErrorIs(t, err, errOVSSilent)
		require.ErrorIs(t, n.removePorts(shortly(t), attachments), errOVSSilent)
		goOn()
	})
}

// stub puts a script in the place of ovs-vsctl.
func stub(t testing.TB, script string) {
	t.Helper()
	testutil.RequireRoot(t)
	file := filepath.Join(t.TempDir(), "ovs-vsctl")
	require.NoError(t, os.WriteFile(file, []byte("#!/bin/sh\n"+script), 0o755))
	require.NoError(t, os.Chmod(file, 0o755))
	const place = "/usr/bin/ovs-vsctl"
	if _, err := os.Lstat(place); err != nil {
		require.NoError(t, os.WriteFile(place, nil, 0o755))
		t.Cleanup(func() { require.NoError(t, os.Remove(place)) })
	}
	require.NoError(t, unix.Mount(file, place, "", unix.MS_BIND, ""))
	t.Cleanup(func() { require.NoError(t, unix.Unmount(place, unix.MNT_DETACH)) })
}

func TestOVSHangs(t *testing.T) {
	pids := filepath.Join(t.TempDir(), "pids")
	stub(t, "trap '' TERM ALRM INT HUP\nsleep 100 &\necho $$ $! >"+pids+"\nwait\n")
	for range 2 { // with more than the shell, and with a cause
		cause := fmt.Errorf("enough")
		ctx, cancel := context.WithTimeoutCause(t.Context(), 500*time.Millisecond, cause)
		start := time.Now()
		_, err := ovsBridge(ctx, ovsTimeout, "ovsbr0")
		cancel()
		require.ErrorIs(t, err, cause)
		require.Less(t, time.Since(start), 3*time.Second)
		text, err := os.ReadFile(pids)
		require.NoError(t, err)
		for field := range strings.FieldsSeq(string(text)) {
			pid, err := strconv.Atoi(field)
			require.NoError(t, err)
			require.Eventually(t, func() bool { return ended(pid) }, 5*time.Second, time.Millisecond, "process %d", pid)
		}
	}
}

// ended also takes a process that waits for the machine's first one to look at it.
func ended(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err != nil || strings.Contains(string(stat), ") Z ")
}

func TestOVSAsStub(t *testing.T) {
	tests := []struct{ name, script, stdout, err string }{
		{"surroundings", `echo "$PWD $LC_ALL $HOME $(readlink /proc/self/fd/0) $1"`, "/ C  /dev/null --timeout=10\n", ""},
		{"own timeout", "kill -ALRM $$", "", errOVSSilent.Error()},
		{"no bridge", "exit 2", "", errNoOVSBridge.Error()},
		{"failure", "echo 'ovs-vsctl: no such\n  thing' >&2; exit 1", "", "run /usr/bin/ovs-vsctl: exit status 1: ovs-vsctl: no such thing"},
		{"silent failure", "exit 1", "", "run /usr/bin/ovs-vsctl: exit status 1"},
		{"much", "head -c 2000000 /dev/zero", "", "it says more than 1048576 bytes"},
		{"much about failure", "head -c 2000000 /dev/zero | tr '\\0' x >&2; exit 1", "", strings.Repeat("x", 300)},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			stub(t, test.script)
			out, _, err := vsctl(t.Context(), ovsTimeout)
			if test.err != "" {
				require.ErrorContains(t, err, test.err)
				require.Less(t, len(err.Error()), 400)
				return
			}
			require.NoError(t, err)
			require.Equal(t, test.stdout, out)
		})
	}
	for _, answer := range []string{"x", `{"data":[[1,1]]}`, `{"data":[["a",["map",[1]]]]}`, `{"data":[["a"]]}`, `{"data":1}`} {
		t.Run(answer, func(t *testing.T) {
			stub(t, "echo '"+answer+"'")
			_, err := ovsPorts(t.Context(), ovsTimeout, "name=a")
			require.ErrorContains(t, err, "understand ovs-vsctl")
		})
	}
}

// Many containers that start at once are more callers than the database lets wait.
func TestOVSBusy(t *testing.T) {
	calls := filepath.Join(t.TempDir(), "calls")
	stub(t, "echo >>"+calls+"\n[ $(wc -l <"+calls+") -gt 3 ] && exit\n"+
		"echo 'ovs-vsctl: unix:/run/openvswitch/db.sock: database connection failed (Protocol error)' >&2; exit 1")
	exists, err := ovsBridge(t.Context(), ovsTimeout, "ovsbr0")
	require.NoError(t, err)
	require.True(t, exists)
	text, err := os.ReadFile(calls)
	require.NoError(t, err)
	require.Len(t, text, 4)

	require.NoError(t, os.Truncate(calls, 0))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = ovsBridge(ctx, ovsTimeout, "ovsbr0")
	require.ErrorIs(t, err, context.Canceled)
}

func TestOVSOfAnyone(t *testing.T) {
	stub(t, "exit 0")
	require.NoError(t, os.Chmod("/usr/bin/ovs-vsctl", 0o775))
	_, err := ovsBridge(t.Context(), ovsTimeout, "ovsbr0")
	require.ErrorContains(t, err, "it has to be a file of root's that nobody else can write")
	require.NoError(t, os.Chmod("/usr/bin/ovs-vsctl", 0o755))
	require.NoError(t, os.Chown("/usr/bin/ovs-vsctl", 1000, 0))
	_, err = ovsBridge(t.Context(), ovsTimeout, "ovsbr0")
	require.ErrorContains(t, err, "it has to be a file of root's that nobody else can write")
}

// hideOVS takes ovs-vsctl from the host of the tests.
func hideOVS(t *testing.T) {
	t.Helper()
	const place = "/usr/bin/ovs-vsctl"
	if err := os.Rename(place, place+".hidden"); err == nil {
		t.Cleanup(func() { require.NoError(t, os.Rename(place+".hidden", place)) })
	}
}

func TestFindBridge(t *testing.T) {
	n := newNetwork(t, "c.1")
	newBridge(t, "br0")
	host(t, "/sbin/ip", "link", "property", "add", "dev", "br0", "altname", "alternative")
	host(t, "/sbin/ip", "link", "add", "ifb9", "type", "ifb")
	t.Cleanup(func() { host(t, "/sbin/ip", "link", "del", "ifb9") })
	host(t, "/sbin/ip", "tuntap", "add", "tap9", "mode", "tap")
	t.Cleanup(func() { host(t, "/sbin/ip", "link", "del", "tap9") })
	called := filepath.Join(t.TempDir(), "called")
	tests := []struct {
		name, bridge, script string // no script: without Open vSwitch
		want                 string // error, or "linux", "ovs"
		calls                int
	}{
		{"linux", "br0", "exit 0", "linux", 0},
		{"linux alone", "br0", "", "linux", 0},
		{"alternative name", "alternative", "exit 0", "alternative name of br0: give that one", 0},
		{"no bridge", "ifb9", "exit 0", "ifb9 is no bridge but a ifb", 0},
		{"tap", "tap9", "exit 2", "tap9 is no bridge but a tuntap", 1},
		{"tap without ovs", "tap9", "", "tap9 is no bridge but a tuntap", 0},
		{"missing", "nobr", "exit 2", "interface ceth0 (veth): bridge nobr does not exist", 1},
		{"missing without ovs", "nobr", "", "interface ceth0 (veth): bridge nobr does not exist", 0},
		{"broken", "nobr", "echo broken >&2; exit 1", "bridge nobr is no Linux one; look for it in Open vSwitch: run /usr/bin/", 1},
		{"ovs", "tap9", "exit 0", "ovs", 2}, // and the ports
		{"ovs without interface", "nobr", "exit 0", "ovs", 2},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if test.script == "" {
				hideOVS(t)
			} else {
				stub(t, "echo >>"+called+"\n"+test.script)
			}
			t.Cleanup(func() { _ = os.Remove(called) })
			a := ovsVeth("heth0", test.bridge)
			a.OVS = false
			attachments := []Attachment{a, a, {Interface: Interface{Kind: Veth, HostName: "heth1"}}}
			err := n.planBridges(t.Context(), attachments)
			text, _ := os.ReadFile(called)
			require.Len(t, text, test.calls)
			switch test.want {
			case "linux", "ovs":
				require.NoError(t, err)
				for _, a := range attachments[:2] {
					require.Equal(t, test.want == "ovs", a.OVS)
					require.Equal(t, test.want == "linux", a.bridge != 0)
				}
				require.False(t, attachments[2].OVS)
			default:
				require.ErrorContains(t, err, test.want)
			}
		})
	}
}

// Names that ovs-vsctl could take for options, or for the end of a command, never get there.
func TestOVSOperands(t *testing.T) {
	n := newNetwork(t, "c.1")
	argv := filepath.Join(t.TempDir(), "argv")
	stub(t, `for arg; do echo "$arg"; done >>`+argv)
	for _, name := range []string{"--db=tcp:h:1", "-t", "--", "-", "a b", "a\n--", "é", "sixteenletters16"} {
		bad := []Interface{veth("ceth0", "heth0", "10.9.0.2/24"), veth("ceth0", name, "10.9.0.2/24")}
		bad[0].Bridge, bad[1].Bridge = name, "nobr"
		for _, i := range bad {
			_, err := n.Plan(t.Context(), []Interface{i})
			require.ErrorContains(t, err, "interface name")
		}
	}
	require.NoFileExists(t, argv)

	attachments := []Attachment{ovsVeth("heth0", "nobr"), ovsVeth("cafe0", "nobr")}
	require.NoError(t, n.planBridges(t.Context(), attachments))
	require.NoError(t, n.addPorts(t.Context(), attachments))
	require.NoError(t, n.removePorts(t.Context(), attachments))
	text, err := os.ReadFile(argv)
	require.NoError(t, err)
	const find = "--timeout=%d -vconsole:off --format=json" +
		` -- --columns=name,external_ids find Port name="heth0" -- --columns=name,external_ids find Port name="cafe0"`
	const tag = `external_ids:syscontainer-hooks="c.1"`
	want := "--timeout=10 -vconsole:off br-exists nobr " + fmt.Sprintf(find, 10) + " --timeout=10 -vconsole:off" +
		" -- --may-exist add-port nobr heth0 -- set Port heth0 " + tag + " -- --may-exist add-port nobr cafe0 -- set Port cafe0 " + tag +
		" " + fmt.Sprintf(find, 5) + " -- --columns=name,external_ids find Port " + tag
	require.Equal(t, want, strings.Join(strings.Fields(string(text)), " "))
}

func TestOVSTag(t *testing.T) {
	testutil.StartOVS(t)
	testutil.AddOVSBridge(t, "ovsbr0")
	for i, id := range []string{"c", "c.1", "0123456789abcdef", "1", "true", `a"b\`, "a,b=c", "[x]", "{}", "ä <&>"} {
		n, port := &Network{id: id}, fmt.Sprint("port", i)
		testutil.OVS(t, "--no-wait", "add-port", "ovsbr0", port, "--", "set", "Port", port, n.tag())
		ports, err := ovsPorts(t.Context(), ovsTimeout, n.tag())
		require.NoError(t, err)
		require.Equal(t, []ovsPort{{name: port, tagged: true, owner: id}}, ports)
	}
}

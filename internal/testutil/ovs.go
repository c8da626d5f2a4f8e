//go:build linux

package testutil

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const (
	ovsDir    = "/run/openvswitch" // where ovs-vsctl looks for the database when it is not told
	ovsSchema = "/usr/share/openvswitch/vswitch.ovsschema"
	ovsPath   = "PATH=/usr/sbin:/usr/bin:/sbin:/bin"
)

// ovsScript runs the switch until the end of standard input, which also comes when the test is killed; a daemon that has ended
// before is a failure. The datapath is the one in user space, which needs no kernel module. Only with segmentation offload does it
// complete checksums that a veth has left to the hardware.
const ovsScript = `
cd ` + ovsDir + ` && ovsdb-tool create conf.db ` + ovsSchema + ` || exit
trap 'kill $switch; wait $switch; kill $db; wait $db' EXIT
ovsdb-server conf.db --remote=punix:db.sock --pidfile --unixctl=db.ctl --no-chdir -vsyslog:off -vconsole:warn &
db=$!
until [ -S db.sock ]; do kill -0 $db || exit; sleep 0.01; done
ovs-vsctl --timeout=10 --no-wait init -- set Open_vSwitch . other_config:userspace-tso-enable=true || exit
ovs-vswitchd --pidfile --unixctl=switch.ctl --no-chdir --disable-system -vsyslog:off -vconsole:warn &
switch=$!
until [ -S switch.ctl ]; do kill -0 $switch || exit; sleep 0.01; done
echo ready
read -r end
kill -0 $db && kill -0 $switch
`

// StartOVS runs Open vSwitch until the end of the test, where ovs-vsctl finds it without arguments. The test has to be on a host of
// its own, and only one test at a time can have the switch. Bridges have to have the datapath of AddOVSBridge.
func StartOVS(tb testing.TB) {
	tb.Helper()
	RequireRoot(tb)
	require.True(tb, Isolated(), "only on a host of the test's own: see Main")
	requireOVS(tb)
	require.NoError(tb, os.Mkdir(ovsDir, 0o755), "another test has the switch")
	log, err := os.Create(filepath.Join(tb.TempDir(), "log"))
	require.NoError(tb, err)
	cmd := exec.Command("/bin/sh", "-c", ovsScript)
	cmd.Env = []string{ovsPath}
	cmd.Stderr = log
	stdin, err := cmd.StdinPipe()
	require.NoError(tb, err)
	stdout, err := cmd.StdoutPipe()
	require.NoError(tb, err)
	require.NoError(tb, cmd.Start())
	tb.Cleanup(func() {
		_ = stdin.Close()
		if err := cmd.Wait(); err != nil {
			tb.Error("end of Open vSwitch: ", err)
		}
		if tb.Failed() {
			text, _ := os.ReadFile(log.Name())
			tb.Logf("Open vSwitch says:\n%s", text)
		}
		_ = log.Close()
		_ = os.RemoveAll(ovsDir)
	})
	line := make([]byte, len("ready\n"))
	_, err = stdout.Read(line)
	require.NoError(tb, err, "start of Open vSwitch")
}

// requireOVS skips a test without Open vSwitch as RequireRoot does it.
func requireOVS(tb testing.TB) {
	tb.Helper()
	for _, file := range []string{"/usr/bin/ovs-vsctl", "/usr/sbin/ovsdb-server", "/usr/sbin/ovs-vswitchd", ovsSchema} {
		if _, err := os.Stat(file); err == nil {
			continue
		}
		if os.Getenv("REQUIRE_ROOT") == "1" {
			tb.Fatalf("needs %s of openvswitch-switch, and REQUIRE_ROOT=1 forbids to skip", file)
		}
		tb.Skipf("needs %s of openvswitch-switch", file)
	}
}

// AddOVSBridge makes a bridge of the switch that StartOVS runs, until the end of the test. The bridge's own interface is down.
func AddOVSBridge(tb testing.TB, name string) {
	tb.Helper()
	OVS(tb, "add-br", name, "--", "set", "Bridge", name, "datapath_type=netdev")
	tb.Cleanup(func() { OVS(tb, "--if-exists", "del-br", name) })
}

// OVS calls ovs-vsctl and returns what it prints.
func OVS(tb testing.TB, args ...string) string {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/usr/bin/ovs-vsctl", append([]string{"--timeout=15"}, args...)...)
	cmd.Env = []string{ovsPath}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	require.NoError(tb, err, "ovs-vsctl %q: %s", args, &stderr)
	return string(out)
}

//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"isula.org/syscontainer-hooks/internal/pipeline"
	"isula.org/syscontainer-hooks/internal/testutil"
)

// faultEnv makes the test binary the hook itself, with a fault at a step: "kind:name of the step". With an empty value it is
// the hook as it is.
const faultEnv = "SYSCONTAINER_HOOKS_TEST_FAULT"

func TestMain(m *testing.M) {
	if fault, ok := os.LookupEnv(faultEnv); ok {
		p := &program{}
		if fault != "" {
			p.interpose = func(steps []pipeline.Step) []pipeline.Step { return withFault(steps, fault) }
		}
		os.Exit(p.run(os.Args, os.Stdin, os.Stdout, os.Stderr))
	}
	os.Exit(testutil.Main(m))
}

var errInjected = errors.New("injected fault")

// withFault puts the fault before or after what the named step does.
func withFault(steps []pipeline.Step, fault string) []pipeline.Step {
	kind, name, _ := strings.Cut(fault, ":")
	strike := func() error {
		switch kind {
		case "kill before", "kill after":
			_ = unix.Kill(os.Getpid(), unix.SIGKILL)
			select {}
		case "panic after":
			panic(errInjected)
		default:
			return errInjected
		}
	}
	for i := range steps {
		if steps[i].Name != name {
			continue
		}
		do := steps[i].Do
		steps[i].Do = func(ctx context.Context) error {
			if strings.HasSuffix(kind, " before") {
				return strike()
			}
			if err := do(ctx); err != nil {
				return err
			}
			return strike()
		}
	}
	return steps
}

// result is what became of a hook process.
type result struct {
	code   int // -1 when a signal ended it
	stderr string
}

// hook runs the program in a process of its own.
func hook(t testing.TB, fault, stdin string, args ...string) result {
	t.Helper()
	cmd := hookCommand(t, fault, stdin, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return result{cmd.ProcessState.ExitCode(), stderr.String()}
}

func hookCommand(t testing.TB, fault, stdin string, args ...string) *exec.Cmd {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, "/proc/self/exe", args...)
	cmd.Env = []string{faultEnv + "=" + fault, "GOCOVERDIR=" + os.Getenv("GOCOVERDIR")}
	cmd.Stdin = strings.NewReader(stdin)
	return cmd
}

// scene is a container, what was added to it, and the host around it.
type scene struct {
	*testutil.Container
	t      *testing.T
	source string
	log    string
}

// newScene lists in the record: devices with numbers that are right, one in a new directory, one in the place of another, one
// on the root file system, a whole disk with I/O limits; shared paths, of a directory twice, of a file, of a directory that is to be made, in one another.
func newScene(t *testing.T, userns bool) *scene {
	testutil.RequireRoot(t)
	s := &scene{Container: testutil.NewContainer(t, userns), t: t, source: t.TempDir()}
	s.log = filepath.Join(t.TempDir(), "hook.log")
	for _, dir := range []string{"d", "d/sub"} {
		require.NoError(t, os.Mkdir(filepath.Join(s.source, dir), 0o755))
	}
	require.NoError(t, os.WriteFile(s.source+"/d/hello", []byte("hello"), 0o644))
	require.NoError(t, os.WriteFile(s.source+"/f", []byte("file"), 0o644))
	require.NoError(t, os.WriteFile(s.Root+"/mnt/occupied", []byte("of the image"), 0o600))
	device := func(path, inContainer, access string, major, minor int) string {
		kind := "c"
		if path == disk {
			kind = "b"
		}
		return fmt.Sprintf(`{"Type":%q,"Minor":%d,"Major":%d,"PathOnHost":%q,"PathInContainer":%q,"CgroupPermissions":%q,"Parent":""}`,
			kind, minor, major, path, inContainer, access)
	}
	prefix := fmt.Sprintf("s%d", scenes.Add(1))
	addHostLinks(t, prefix)
	nics := strings.ReplaceAll(`"networkInterfaces":[`+
		`{"Ip":"10.9.0.2/24","Mac":"02:00:00:00:09:02","Mtu":1400,"Qlen":500,"Type":"veth","Bridge":"PREFIXbr","HostNicName":"PREFIX0","CtrNicName":"eth0"},`+
		`{"Ip":"fd00:9::2/64","Mac":"","Mtu":1500,"Qlen":1000,"Type":"","Bridge":"PREFIXbr","HostNicName":"","CtrNicName":"eth1"},`+
		`{"Ip":"10.10.0.2/24","Mac":"02:00:00:00:0a:02","Mtu":1400,"Qlen":500,"Type":"eth","Bridge":"","HostNicName":"PREFIXnic","CtrNicName":"eth2"}],`+
		`"networkRoute":[{"dest":"default","src":"","gw":"10.9.0.1","dev":"eth0"},{"dest":"fd00:a::/64","src":"","gw":"fd00:9::1","dev":""},`+
		`{"dest":"192.0.2.0/24","src":"","gw":"","dev":"gone0"},{"dest":"198.51.100.0/24","src":"10.10.0.2","gw":"","dev":"eth2"}]`, "PREFIX", prefix)
	diskMajor, diskMinor := diskNumbers(t)
	for list, value := range map[string]int{"readIops": 1000, "writeIops": 2000, "readBps": 3000, "writeBps": 4000} {
		nics += fmt.Sprintf(`,%q:[{"major":%d,"minor":%d,"path":%q,"value":"%d"}]`, list, diskMajor, diskMinor, disk, value)
	}
	s.addSysctls()
	record := fmt.Sprintf(`{`+nics+`,"bindToAdd":["%[1]s/d:/mnt/d:rw","%[1]s/d:/mnt/new/d:rw","%[1]s/f:/etc/f:ro,rslave","%[1]s/made/here:/mnt/made",`+
		`"%[1]s/f:/mnt/d/sub/f:ro,rslave"],"deviceToAdd":[%s]}`, s.source, strings.Join([]string{
		device("/dev/zero", "/dev/zero", "rwm", 1, 5),
		device("/dev/full", "/dev/new/full", "r", 1, 7),
		device("/dev/null", "/mnt/occupied", "rw", 1, 3),
		device("/dev/random", "/mnt/dev/random", "r", 1, 8),
		device(disk, "/dev/sdx", "r", diskMajor, diskMinor),
	}, ","))
	require.NoError(t, os.WriteFile(filepath.Join(s.Bundle, "device_hook.json"), []byte(record), 0o600))
	return s
}

// disk is a whole disk that is there on machines without another one to spare.
const disk = "/dev/zram0"

func diskNumbers(t *testing.T) (major, minor int) {
	t.Helper()
	var stat unix.Stat_t
	require.NoError(t, unix.Stat(disk, &stat))
	return int(unix.Major(stat.Rdev)), int(unix.Minor(stat.Rdev))
}

// testSysctls are of the network and the IPC namespace, and of an interface that the hook attaches.
var testSysctls = map[string]string{"net.ipv4.ip_forward": "1", "kernel.shmmni": "1234", "net.ipv4.conf.eth0.rp_filter": "2"}

// addSysctls adds them to the specification. Without a user namespace they are none of the hook's business.
func (s *scene) addSysctls() {
	s.t.Helper()
	path := filepath.Join(s.Bundle, "config.json")
	text, err := os.ReadFile(path)
	require.NoError(s.t, err)
	var spec map[string]any
	require.NoError(s.t, json.Unmarshal(text, &spec))
	spec["linux"].(map[string]any)["sysctl"] = testSysctls
	text, err = json.Marshal(spec)
	require.NoError(s.t, err)
	require.NoError(s.t, os.WriteFile(path, text, 0o600))
}

// sysctls gives the values that the container has.
func (s *scene) sysctls() []string {
	s.t.Helper()
	var values []string
	for _, key := range slices.Sorted(maps.Keys(testSysctls)) {
		path := "/proc/sys/" + strings.ReplaceAll(key, ".", "/")
		cmd := exec.Command("nsenter", "--net", "--ipc", "--target", fmt.Sprint(s.Pid), "cat", path)
		value, _ := cmd.Output() // there may be no such interface
		values = append(values, key+" = "+strings.TrimSpace(string(value)))
	}
	return values
}

// limits are the I/O limits of the container's cgroup.
func (s *scene) limits() []string {
	s.t.Helper()
	files, err := filepath.Glob(s.IO + "/blkio.throttle.*_device")
	require.NoError(s.t, err)
	require.Len(s.t, files, 4)
	var limits []string
	for _, file := range files {
		text, err := os.ReadFile(file)
		require.NoError(s.t, err)
		limits = append(limits, filepath.Base(file)+" "+string(text))
	}
	return limits
}

// addHostLinks makes a bridge, and what stands for an interface of the host that moves in.
func addHostLinks(t *testing.T, prefix string) {
	t.Helper()
	ip(t, "link", "add", prefix+"br", "address", "02:00:00:00:00:fe", "up", "type", "bridge")
	ip(t, "link", "add", prefix+"nic", "address", "02:00:00:00:00:01", "mtu", "1450", "txqueuelen", "77", "up", "type", "veth",
		"peer", "name", prefix+"far", "address", "02:00:00:00:00:02")
	t.Cleanup(func() {
		ip(t, "link", "del", prefix+"br")
		ip(t, "link", "del", prefix+"nic")
	})
}

var scenes atomic.Int32

// ip runs ip(8) beside the test and gives what it prints.
func ip(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command("/sbin/ip", args...).CombinedOutput()
	require.NoError(t, err, "ip %q: %s", args, out)
	return string(out)
}

// changing is what differs from one making of an interface to the next: indexes, addresses that the kernel has made up, and the
// state of a bridge that learns of its ports.
var changing = regexp.MustCompile(`^\d+: |@if\d+|link-netns(id)? \S+|(valid|preferred)_lft \S+|state \S+|NO-CARRIER,|,LOWER_UP|` +
	`link/ether ([^0]|0[^2]|02:[^0]|02:0[^0]|02:00:[^0])\S+|net:\[\d+\]`)

// showNetwork is what ip(8) shows of a namespace.
func showNetwork(t *testing.T, args ...string) []string {
	t.Helper()
	var lines []string
	for _, what := range [][]string{{"-o", "link"}, {"-o", "addr"}, {"-o", "route"}, {"-o", "-6", "route"}} {
		for line := range strings.Lines(ip(t, append(slices.Clone(args), what...)...)) {
			if line = changing.ReplaceAllString(line, ""); !strings.Contains(line, "fe80::") {
				lines = append(lines, line)
			}
		}
	}
	slices.Sort(lines)
	return lines
}

func (s *scene) hook(fault, stage string) result {
	s.t.Helper()
	return hook(s.t, fault, s.State(), "-log", s.log, "-state", stage)
}

// host is all that the hook may change outside of the container's namespaces, and its cgroup.
func (s *scene) host() map[string][]string {
	s.t.Helper()
	mounts := testutil.Mounts(s.t, "self")
	for i := range mounts {
		mounts[i] = changing.ReplaceAllString(mounts[i], "")
	}
	return map[string][]string{
		"mounts": mounts,
		"files":  testutil.Tree(s.t, s.Bundle, s.source, "/.sharedpath/midpath", "/.sharedpath/master", journalDir),
		"cgroup": s.Allowed(),
		"links":  showNetwork(s.t),
		"limits": s.limits(),
		"rules":  testutil.Tree(s.t, "/etc/udev/rules.d"),
	}
}

// inside is what the container sees.
func (s *scene) inside() map[string][]string {
	s.t.Helper()
	var mounts []string
	for _, line := range testutil.Mounts(s.t, fmt.Sprint(s.Pid)) {
		if strings.HasPrefix(line, s.Root) {
			mounts = append(mounts, line)
		}
	}
	slices.Sort(mounts)
	files := testutil.Tree(s.t, s.Path("/"), s.Path("/dev"), s.Path("/mnt/d"), s.Path("/mnt/made"))
	for i := range files {
		files[i] = strings.TrimPrefix(files[i], s.Path("/")) // it has the pid
	}
	return map[string][]string{"mounts": mounts, "files": files, "links": s.links(), "sysctls": s.sysctls()}
}

// links are the interfaces, addresses and routes of the container.
func (s *scene) links() []string {
	s.t.Helper()
	name := s.ID
	require.NoError(s.t, os.MkdirAll("/run/netns", 0o755))
	link := filepath.Join("/run/netns", name)
	require.NoError(s.t, os.Symlink(fmt.Sprintf("/proc/%d/ns/net", s.Pid), link))
	defer func() { _ = os.Remove(link) }()
	return showNetwork(s.t, "-n", name)
}

// warm makes what stays for all containers, so that snapshots do not differ by it.
func warm(t *testing.T) {
	t.Helper()
	s := &scene{Container: testutil.NewContainer(t, false), t: t, log: filepath.Join(t.TempDir(), "log")}
	major, minor := diskNumbers(t)
	record := fmt.Sprintf(`{"deviceToAdd":[{"Type":"b","Minor":%d,"Major":%d,"PathOnHost":%q,"PathInContainer":"/dev/sdx",`+
		`"CgroupPermissions":"r","Parent":""}]}`, minor, major, disk)
	require.NoError(t, os.WriteFile(filepath.Join(s.Bundle, "device_hook.json"), []byte(record), 0o600))
	require.Equal(t, result{}, s.hook("", "prestart"))
	require.Equal(t, result{}, s.hook("", "poststop"))
}

func stepNames(steps []pipeline.Step) []string {
	names := make([]string, len(steps))
	for i, step := range steps {
		names[i] = step.Name
	}
	return names
}

//go:build linux

package hookstate

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"isula.org/syscontainer-hooks/internal/testutil"
)

func TestMain(m *testing.M) { os.Exit(testutil.Main(m)) }

// Each runtime's dialect.
func TestParseState(t *testing.T) {
	t.Parallel()
	for data, want := range map[string]State{
		`{"ociVersion":"","id":"X","pid":777,"root":"/g/mnt/rootfs","bundle":"/g/engines/lcr/X"}`: {
			ID: "X", Pid: 777, Root: "/g/mnt/rootfs", Bundle: "/g/engines/lcr/X",
		},
		`{"ociVersion":"1.0.2-dev","id":"X","status":"creating","pid":29094,"bundle":"/b","annotations":{"a":"b"}}`: {
			ID: "X", Pid: 29094, Bundle: "/b",
		},
		`{"ociVersion":"1.0","id":"X","pid":3,"root":"rootfs","bundle":"/b","status":"created","annotations":{}}`: {
			ID: "X", Pid: 3, Root: "rootfs", Bundle: "/b",
		},
		`{"id":"X","pid":-1,"bundlePath":"/b"}`:                        {ID: "X", Pid: -1, Bundle: "/b", BundlePath: "/b"},
		`{"id":"` + strings.Repeat("a", 128) + `","status":"stopped"}`: {ID: strings.Repeat("a", 128)},
	} {
		got, err := ParseState([]byte(data))
		require.NoError(t, err, data)
		require.Equal(t, &want, got)
	}
	for _, data := range []string{
		``, `null`, `[]`, `{`, `{}`, `{}{}`, `{"id":"a"}x`, `{"id":""}`, `{"id":"."}`, `{"id":".."}`, `{"id":"../.."}`,
		`{"id":"a/b"}`, `{"id":"a\nb"}`, `{"id":"-a"}`, `{"id":"é"}`, `{"id":"` + strings.Repeat("a", 129) + `"}`,
		`{"id":"a","ID":"b"}`, `{"id":"a","id":"b"}`, `{"id":"a","Root":"/"}`, `{"id":"a","pid":"1"}`, `{"id":"a","pid":1.5}`,
		`{"id":"a","pid":99999999999999999999}`, `{"id":"a","bundle":"relative"}`, `{"id":5}`,
	} {
		_, err := ParseState([]byte(data))
		require.Error(t, err, data)
	}
}

func TestReadState(t *testing.T) {
	t.Parallel()
	r, w, err := os.Pipe()
	require.NoError(t, err)
	defer r.Close()
	defer w.Close()
	go func(w *os.File) { _, _ = w.WriteString(`{"id":"` + strings.Repeat("x", maxState)) }(w)
	_, err = ReadState(t.Context(), r)
	require.ErrorContains(t, err, "1 MiB")

	r, w, err = os.Pipe()
	require.NoError(t, err)
	defer r.Close()
	go func(w *os.File) {
		_, _ = w.WriteString(`{"id":`)
		time.Sleep(time.Millisecond)
		_, _ = w.WriteString(`"abc"}`)
		w.Close()
	}(w)
	require.NoError(t, unix.SetNonblock(int(r.Fd()), true))
	state, err := ReadState(t.Context(), r)
	require.NoError(t, err)
	require.Equal(t, "abc", state.ID)

	r, w, err = os.Pipe() // never closed
	require.NoError(t, err)
	defer r.Close()
	defer w.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	_, err = ReadState(ctx, r)
	require.ErrorIs(t, err, context.DeadlineExceeded)
}

func TestParseSpec(t *testing.T) {
	t.Parallel()
	spec, err := parseSpec([]byte(`{"process":{"terminal":true,"env":["A=b","c"],"rlimits":[]},"root":{"path":"r"},` +
		`"linux":{"sysctl":{"kernel.sem":"1 2 3 4","net/ipv4/x":""}}}`))
	require.NoError(t, err)
	require.Equal(t, []string{"A=b", "c"}, spec.Process.Env)
	require.Equal(t, map[string]string{"kernel.sem": "1 2 3 4", "net/ipv4/x": ""}, spec.Linux.Sysctl)
	spec, err = parseSpec([]byte(`{"process":null,"root":{"path":"r"},"linux":{"sysctl":null}}`))
	require.NoError(t, err)
	require.Equal(t, &Spec{Root: SpecRoot{Path: "r"}}, spec)
	for _, data := range []string{
		`{"root":{"path":""}}`, `{"root":{"path":"r"},"process":{"env":"A=b"}}`, `{"root":{"path":"r"},"process":{"env":[null]}}`,
		`{"root":{"path":"r"},"linux":{"sysctl":{"a":1}}}`, `{"root":{"path":"r"},"linux":{"sysctl":{"a":"1","a":"2"}}}`,
		`{"root":{"path":"r"},"process":{"Env":[]}}`,
	} {
		_, err := parseSpec([]byte(data))
		require.Error(t, err, data)
	}
}

func TestParseStat(t *testing.T) {
	t.Parallel()
	state, start, err := parseStat([]byte("42 (a) R b) S 1 42 42 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 12345 1 1 1"))
	require.NoError(t, err)
	require.EqualValues(t, 'S', state)
	require.EqualValues(t, 12345, start)
	for _, data := range []string{"", "1", "1 (x)", "1 (y) S 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 x 1 1"} {
		_, _, err := parseStat([]byte(data))
		require.Error(t, err, data)
	}
}

func TestMappedRoot(t *testing.T) {
	t.Parallel()
	id, err := mappedRoot([]specs.LinuxIDMapping{{ContainerID: 1, HostID: 5, Size: 2}, {ContainerID: 0, HostID: 7, Size: 1}})
	require.NoError(t, err)
	require.Equal(t, 7, id)
	for name, mapping := range map[string]specs.LinuxIDMapping{
		"no ids":         {ContainerID: 0, HostID: 100000, Size: 0},
		"wraps":          {ContainerID: 0, HostID: 1<<32 - 1, Size: 2},
		"none for root":  {ContainerID: 1, HostID: 100000, Size: 1},
		"root of host":   {ContainerID: 0, HostID: 0, Size: 1},
		"user is root":   {ContainerID: 5, HostID: 0, Size: 1},
		"ends at no uid": {ContainerID: 0, HostID: 1<<32 - 2, Size: 2},
	} {
		_, err := mappedRoot([]specs.LinuxIDMapping{mapping})
		require.Error(t, err, name)
	}
	_, err = mappedRoot(nil)
	require.Error(t, err)
}

func TestCgroupPath(t *testing.T) {
	t.Parallel()
	const data = "9:name=systemd:/\n5:devices,freezer:/isulad/abc\n4:cpu:/a:b\n0::/unified\n"
	for controller, want := range map[string]string{"devices": "/isulad/abc", "freezer": "/isulad/abc", "cpu": "/a:b", "": "/unified"} {
		path, ok := cgroupPath([]byte(data), controller)
		require.True(t, ok, controller)
		require.Equal(t, want, path)
	}
	_, ok := cgroupPath([]byte(data), "blkio")
	require.False(t, ok)
}

func TestMatchCgroup(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ path, configured, want string }{
		{"/isulad/abc", "/isulad/abc", "/isulad/abc"},
		{"/isulad/abc-1", "/isulad/abc", "/isulad/abc-1"},
		{"/isulad/abc/own/sub", "/isulad/abc", "/isulad/abc"},
		{"/outer/abc", "abc", "/outer/abc"},
		{"/docker/x/isulad/abc", "/isulad/abc", "/docker/x/isulad/abc"},
		{"/system.slice/isulad-abc.scope", "system.slice:isulad:abc", "/system.slice/isulad-abc.scope"},
		{"/system.slice/isulad-abc.scope/container", "system.slice:isulad:abc", "/system.slice/isulad-abc.scope"},
		{"/user.slice/abc.scope", "user.slice::abc", "/user.slice/abc.scope"},
		{"/a.slice/abc.slice", "a.slice::abc.slice", "/a.slice/abc.slice"},
		{"/abc", "", "/abc"},
		{"/machine/libpod-abc.scope/x", "", "/machine/libpod-abc.scope"},
		{"/abc/x/abc", "", "/abc/x/abc"},
	} {
		got, err := matchCgroup(test.path, test.configured, "abc")
		require.NoError(t, err, test)
		require.Equal(t, test.want, got, test)
	}
	for _, test := range []struct{ path, configured string }{
		{"/isulad/abcd", "/isulad/abc"},
		{"/isulad/abc-1x", "/isulad/abc"},
		{"/isulad/abc-", "/isulad/abc"},
		{"/isulad/other", "/isulad/abc"},
		{"/abc", "/isulad/abc"},
		{"/../abc", "/abc"},
		{"/../abc", ""},
		{"/abc", "/../.."},
		{"/abc", "a/../../abc"},
		{"/abc", "//"},
		{"/abc", "/"},
		{"/abc", strings.Repeat("/abc", 2000)},
		{"/x.slice/abc.scope", "x.slice:../..:y"},
		{"/x.slice/abc.scope", "x.slice:abc"},
		{"/x.slice/abc.scope", "x.slice::"},
		{"/other", ""},
		{"/abcd", ""},
		{"/system.slice/abc.service", ""},
		{"/system.slice/x-abc", ""},
	} {
		_, err := matchCgroup(test.path, test.configured, "abc")
		require.Error(t, err, test)
	}
}

func openContainer(t *testing.T, c *testutil.Container) *Container {
	t.Helper()
	state, err := ParseState([]byte(c.State()))
	require.NoError(t, err)
	spec, err := LoadSpec(c.Bundle)
	require.NoError(t, err)
	opened, err := Open(state, spec)
	require.NoError(t, err)
	t.Cleanup(opened.Close)
	return opened
}

func TestOpen(t *testing.T) {
	testutil.RequireRoot(t)
	for _, userns := range []bool{false, true} {
		c := testutil.NewContainer(t, userns)
		opened := openContainer(t, c)
		require.Equal(t, []any{userns, c.RootID(), c.RootID()}, []any{opened.UserNS, opened.RootUID, opened.RootGID})
		require.EqualValues(t, c.Pid, opened.Instance.Pid)
		cgroup, err := opened.Cgroup("devices")
		require.NoError(t, err)
		require.Equal(t, c.Cgroup, cgroup.Path)
		cgroup.Close()
		require.NotNil(t, opened.NetNS)
		ipc, err := opened.IPCNamespace()
		require.NoError(t, err)
		require.NotNil(t, ipc)
		var own, theirs unix.Stat_t
		require.NoError(t, unix.Fstat(int(ipc.Fd()), &own))
		require.NoError(t, unix.Stat(fmt.Sprintf("/proc/%d/ns/ipc", c.Pid), &theirs))
		require.Equal(t, theirs.Ino, own.Ino)
		ipc.Close()

		c.Stop()
		_, err = opened.IPCNamespace()
		require.ErrorIs(t, err, ErrGone)
		_, err = opened.startTime()
		require.ErrorIs(t, err, ErrGone)
		_, err = opened.Cgroup("devices")
		require.ErrorIs(t, err, ErrGone)
		first := opened.Instance
		c.HostNetwork = true
		c.Start()
		again := openContainer(t, c)
		require.NotEqual(t, first, again.Instance)
		require.Nil(t, again.NetNS)
	}
}

func TestHostIPCNamespace(t *testing.T) {
	t.Parallel()
	self, err := os.Open("/proc/self")
	require.NoError(t, err)
	c := &Container{proc: self}
	defer c.Close()
	ipc, err := c.IPCNamespace()
	require.NoError(t, err)
	require.Nil(t, ipc)
}

func TestOpenRefuses(t *testing.T) {
	testutil.RequireRoot(t)
	c := testutil.NewContainer(t, false)
	spec, err := LoadSpec(c.Bundle)
	require.NoError(t, err)
	for name, test := range map[string]struct {
		state State
		want  string
	}{
		"no pid":         {State{Pid: 0}, "not a pid"},
		"stopped":        {State{Pid: -1}, "not a pid"},
		"init":           {State{Pid: 1}, "not a pid"},
		"too large":      {State{Pid: 1 << 31}, "not a pid"},
		"own":            {State{Pid: int64(os.Getpid())}, "mount namespace of the host"},
		"dead":           {State{Pid: 1 << 22}, "has ended"},
		"root of host":   {State{Pid: int64(c.Pid), Root: "/"}, ""},
		"no mount":       {State{Pid: int64(c.Pid), Root: c.Root + "/etc"}, "is no mount"},
		"up and away":    {State{Pid: int64(c.Pid), Root: c.Root + "/../../"}, ""},
		"other mount":    {State{Pid: int64(c.Pid), Root: "/proc"}, "not the directory"},
		"missing":        {State{Pid: int64(c.Pid), Root: "/nowhere"}, "no such"},
		"relative":       {State{Pid: int64(c.Pid), Root: ".", Bundle: c.Bundle}, "is no mount"},
		"no such as yet": {State{Pid: int64(c.Pid), Root: c.Root + ":x"}, "no such"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Open(&test.state, spec)
			require.ErrorContains(t, err, test.want)
		})
	}
	mapped := *spec
	mapped.Linux.UIDMappings = []specs.LinuxIDMapping{{ContainerID: 0, HostID: 100000, Size: 1}}
	_, err = Open(&State{Pid: int64(c.Pid)}, &mapped)
	require.ErrorContains(t, err, "user namespace")
}

func TestOpenThread(t *testing.T) {
	testutil.RequireRoot(t)
	c := testutil.NewContainer(t, false)
	spec, err := LoadSpec(c.Bundle)
	require.NoError(t, err)
	tasks, err := os.ReadDir("/proc/self/task")
	require.NoError(t, err)
	refused := 0
	for _, task := range tasks {
		var tid int64
		for _, digit := range task.Name() {
			tid = tid*10 + int64(digit-'0')
		}
		if int(tid) != os.Getpid() {
			_, err := Open(&State{Pid: tid}, spec)
			require.ErrorContains(t, err, "not the leader of a process")
			refused++
		}
	}
	require.Positive(t, refused)
}

func FuzzParseState(f *testing.F) {
	f.Add([]byte(`{"ociVersion":"1.0","id":"X","pid":30941,"root":"rootfs","bundle":"/b","status":"created","annotations":{}}`))
	f.Add([]byte(`{"id":"X","pid":-1,"bundlePath":"/b"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		state, err := ParseState(data)
		if err == nil && (state.ID == "" || strings.ContainsAny(state.ID, "/\n\x00") || state.ID[0] == '.') {
			t.Fatalf("id %q taken", state.ID)
		}
	})
}

func FuzzParseSpec(f *testing.F) {
	f.Add([]byte(`{"root":{"path":"rootfs"},"linux":{"cgroupsPath":"/a","uidMappings":[{"containerID":0,"hostID":1,"size":2}]}}`))
	f.Add([]byte(`{"root":{"path":"r"},"process":{"env":["A=b"]},"linux":{"sysctl":{"kernel.sem":"1"}}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		spec, err := parseSpec(data)
		if err != nil {
			return
		}
		if id, err := mappedRoot(spec.Linux.UIDMappings); err == nil && id == 0 {
			t.Fatal("mapped to the root user of the host")
		}
	})
}

func FuzzCgroup(f *testing.F) {
	f.Add([]byte("5:devices:/isulad/abc\n0::/\n"), "/isulad/abc")
	f.Add([]byte("5:devices:/x.slice/p-n.scope\n"), "x.slice:p:n")
	f.Fuzz(func(t *testing.T, data []byte, configured string) {
		path, ok := cgroupPath(data, "devices")
		if !ok {
			return
		}
		got, err := matchCgroup(path, configured, "id")
		if err == nil && (!strings.HasPrefix(path, got) || strings.Contains(got, "..") && strings.Contains(got, "/../")) {
			t.Fatalf("%q matched as %q", path, got)
		}
	})
}

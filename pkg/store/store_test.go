//go:build linux

package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"isula.org/syscontainer-hooks/internal/atomicfile"
)

func openTemp(t *testing.T) *Store {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, os.Chmod(dir, 0o750))
	s, err := Open(dir)
	require.NoError(t, err)
	t.Cleanup(func() { s.Close() })
	return s
}

// Records as syscontainer-tools v0.9 writes them come back byte for byte.
func TestRoundTrip(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/*.json")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	for _, file := range files {
		data, err := os.ReadFile(file)
		require.NoError(t, err)
		record, err := Parse(data)
		require.NoError(t, err, file)
		again, err := record.Marshal()
		require.NoError(t, err)
		require.Equal(t, strings.TrimSpace(string(data)), string(again), file)
	}
}

func TestUnknownMembersSurvive(t *testing.T) {
	t.Parallel()
	s := openTemp(t)
	const record = `{"deviceToAdd":[{"Type":"c","Minor":5,"Major":1,"PathOnHost":"/dev/zero","PathInContainer":"/dev/z",` +
		`"CgroupPermissions":"rwm","Parent":"","Since":{"v":2}}],"version":"2.0","later":[1,2]}`
	require.NoError(t, os.WriteFile(s.Path(), []byte(record), 0o600))
	require.NoError(t, s.Update(t.Context(), func(r *Record) error {
		r.Devices[0].Minor = 6
		return nil
	}))
	got, err := os.ReadFile(s.Path())
	require.NoError(t, err)
	require.Equal(t, strings.Replace(record, `"Minor":5`, `"Minor":6`, 1), string(got))
}

func TestLoadWithoutRecord(t *testing.T) {
	t.Parallel()
	s := openTemp(t)
	_, err := s.Load()
	require.ErrorIs(t, err, fs.ErrNotExist)
}

func TestUpdateLeavesOldOnError(t *testing.T) {
	t.Parallel()
	s := openTemp(t)
	require.NoError(t, s.Update(t.Context(), func(r *Record) error {
		r.Binds = []string{"/a:/b:ro"}
		return nil
	}))
	old, err := os.ReadFile(s.Path())
	require.NoError(t, err)
	require.Equal(t, `{"bindToAdd":["/a:/b:ro"]}`, string(old))
	boom := errors.New("boom")
	require.ErrorIs(t, s.Update(t.Context(), func(*Record) error { return boom }), boom)
	require.Error(t, s.Update(t.Context(), func(r *Record) error {
		r.Binds = []string{"nonsense"}
		return nil
	}))
	got, err := os.ReadFile(s.Path())
	require.NoError(t, err)
	require.Equal(t, old, got)
}

func TestUpdatesAreSerialised(t *testing.T) {
	t.Parallel()
	s := openTemp(t)
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			err := s.Update(t.Context(), func(r *Record) error {
				r.Binds = append(r.Binds, fmt.Sprintf("/a%d:/b%d", i, i))
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	record, err := s.Load()
	require.NoError(t, err)
	require.Len(t, record.Binds, 16)
}

func TestUpdateLockDeadline(t *testing.T) {
	t.Parallel()
	s := openTemp(t)
	held, err := atomicfile.Lock(t.Context(), s.dir, LockName)
	require.NoError(t, err)
	defer held.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, s.Update(ctx, func(*Record) error { return nil }), context.DeadlineExceeded)
}

func TestParseRefuses(t *testing.T) {
	t.Parallel()
	device := func(old, replacement string) string {
		const d = `{"deviceToAdd":[{"Type":"c","Minor":5,"Major":1,"PathOnHost":"/dev/zero","PathInContainer":"/dev/z",` +
			`"CgroupPermissions":"rwm","Parent":""}]}`
		if old != "" && !strings.Contains(d, old) {
			panic(old)
		}
		return strings.Replace(d, old, replacement, 1)
	}
	_, err := Parse([]byte(device("", "")))
	require.NoError(t, err)
	for _, data := range []string{
		`null`, `[]`, `""`, ``, `{`, "\ufeff{}", `{}x`, `{}{}`,
		`{"bindToAdd":{}}`, `{"bindToAdd":[1]}`, `{"deviceToAdd":}`, `{"deviceToAdd":"x"}`, `{"readIops":[[]]}`,
		`{"DEVICETOADD":[]}`, `{"deviceToAdd":[],"deviceToAdd":[]}`, `{"deviceToAdd":[],"DEVICETOADD":[]}`,
		`{"bindToAdd":[` + strings.Repeat(`"/a:/b",`, MaxBinds) + `"/a:/c"]}`,
		`{"x":"` + strings.Repeat("x", maxSize) + `"}`,
		device(`"Major":1`, `"Major":-1`), device(`"Major":1`, `"Major":4096`), device(`"Minor":5`, `"Minor":1048576`),
		device(`"Minor":5`, `"Minor":4294967304`), device(`"Minor":5`, `"Minor":"5"`), device(`"Minor":5`, `"minor":5`),
		device(`"c"`, `"x"`), device(`"c"`, `"a"`), device(`"c"`, `""`), device(`"c"`, `"u"`),
		device(`rwm`, ``), device(`rwm`, `rwmx`), device(`rwm`, `rr`), device(`rwm`, `*`),
		device(`/dev/zero`, `dev/zero`), device(`/dev/z"`, `"`), device(`/dev/z"`, `/dev/a\nb"`), device(`/dev/z"`, `/a\u0000b"`),
		device(`"Parent":""`, `"Parent":"sda"`), device(`/dev/z"`, strings.Repeat("/a", 4096)+`"`),
		`{"readBps":[{"major":8,"minor":0,"path":"/dev/sda","value":"-1"}]}`,
		`{"readBps":[{"major":8,"minor":0,"path":"/dev/sda","value":"1\n8:0 max"}]}`,
		`{"readBps":[{"major":8,"minor":0,"path":"/dev/sda","value":"18446744073709551616"}]}`,
		`{"blkioWeight":[{"major":8,"minor":0,"path":"/dev/sda","value":"1001"}]}`,
		`{"blkioWeight":[{"major":8,"minor":0,"path":"/dev/sda","value":"9"}]}`,
		`{"networkInterfaces":[{"Ip":"10.0.0.1/24","Mtu":1500,"CtrNicName":"veth%d"}]}`,
		`{"networkInterfaces":[{"Ip":"10.0.0.1/24","Mtu":1500,"CtrNicName":"a","Bridge":"-t"}]}`,
		`{"networkInterfaces":[{"Ip":"10.0.0.1/24","Mtu":1500,"CtrNicName":"a","Mac":"02:00:00:00:00"}]}`,
		`{"networkRoute":[{"dest":"","gw":"fe80::1%eth0"}]}`,
		`{"networkInterfaces":[{"Ip":"10.0.0.1","Mtu":1500,"CtrNicName":"eth0"}]}`,
		`{"networkInterfaces":[{"Ip":"10.0.0.1/24","Mtu":67,"CtrNicName":"eth0"}]}`,
		`{"networkInterfaces":[{"Ip":"10.0.0.1/24","Mtu":1500,"Qlen":-1,"CtrNicName":"eth0"}]}`,
		`{"networkInterfaces":[{"Ip":"10.0.0.1/24","Mtu":1500,"CtrNicName":""}]}`,
		`{"networkInterfaces":[{"Ip":"10.0.0.1/24","Mtu":1500,"CtrNicName":"a b"}]}`,
		`{"networkInterfaces":[{"Ip":"10.0.0.1/24","Mtu":1500,"CtrNicName":"a","Type":"x"}]}`,
		`{"networkRoute":[{"dest":"default"}]}`, `{"networkRoute":[{"dest":"1.2.3.4","gw":"1.2.3.1"}]}`,
		`{"networkRoute":[{"dest":"","gw":"garbage"}]}`, `{"networkRoute":[{"dest":"","src":"1.2.3"}]}`,
	} {
		_, err := Parse([]byte(data))
		require.Error(t, err, abbreviate(data))
	}
}

func TestParseBind(t *testing.T) {
	t.Parallel()
	for s, want := range map[string]Bind{
		"/a:/b":              {"/a", "/b", false, "rslave"},
		"/a:/b:ro":           {"/a", "/b", true, "rslave"},
		"/a:/b:rw,rprivate":  {"/a", "/b", false, "rprivate"},
		"/a:/b:private,ro":   {"/a", "/b", true, "private"},
		"/a:/b:rslave":       {"/a", "/b", false, "rslave"},
		"/a b/:/c,d/ü\\040/": {"/a b/", "/c,d/ü\\040/", false, "rslave"},
	} {
		got, err := ParseBind(s)
		require.NoError(t, err, s)
		require.Equal(t, want, got)
	}
	for _, s := range []string{
		"", "/a", "/a:/b:", "/a:/b:ro:x", "a:/b", "/a:b", "/a:/b:rw,shared", "/a:/b:ro,ro", "/a:/b:ro,rw", "/a:/b:remount",
		"/a:/b:exec,suid", "/a:/b:,", "/a:/b:private,rprivate", "/a\n:/b:ro", "/a:/b:" + strings.Repeat("x", 1<<20),
	} {
		_, err := ParseBind(s)
		require.Error(t, err, abbreviate(s))
		require.Less(t, len(err.Error()), 1000)
	}
}

func FuzzParse(f *testing.F) {
	files, err := filepath.Glob("testdata/*.json")
	require.NoError(f, err)
	for _, file := range files {
		data, err := os.ReadFile(file)
		require.NoError(f, err)
		f.Add(data)
	}
	f.Add([]byte(`{"x":null,"bindToAdd":["/a:/b:ro"],"deviceToAdd":null}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		record, err := Parse(data)
		if err != nil {
			return
		}
		once, err := record.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		record, err = Parse(once)
		if err != nil {
			t.Fatalf("own output refused: %v\n%s", err, once)
		}
		twice, err := record.Marshal()
		if err != nil || string(once) != string(twice) {
			t.Fatalf("not stable: %s\n%s\n%v", once, twice, err)
		}
	})
}

//go:build linux

package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"isula.org/syscontainer-hooks/pkg/udev"
)

// rules is a file with one udev rule for each of many containers.
type rules struct {
	tb      testing.TB
	rule    udev.Rule // of one more
	with    []byte    // the file with it
	without []byte
}

func newRules(tb testing.TB, n int) *rules {
	tb.Helper()
	r := &rules{tb: tb, rule: udev.Rule{Disk: "sdb", Path: "/dev/sdx", ID: containerID(n)}}
	all := make([]udev.Rule, n)
	for i := range all {
		all[i] = udev.Rule{Disk: "sdb", Path: "/dev/sdx", ID: containerID(i)}
	}
	tb.Cleanup(func() { require.NoError(tb, os.Remove(udev.RulesFile)) })
	require.NoError(tb, udev.Add(context.Background(), all...))
	r.without = r.content()
	require.NoError(tb, r.set(r.rule))
	r.with = r.content()
	require.NoError(tb, r.set())
	require.Equal(tb, n, strings.Count(string(r.without), "\nKERNEL"))
	require.Equal(tb, n+1, strings.Count(string(r.with), "\nKERNEL"))
	return r
}

// containerID differs from the others in the part that a rule has.
func containerID(i int) string { return fmt.Sprintf("%08x%056x", i*7919, 0) }

func (r *rules) content() []byte {
	r.tb.Helper()
	data, err := os.ReadFile(udev.RulesFile)
	require.NoError(r.tb, err)
	return data
}

func (r *rules) set(rules ...udev.Rule) error {
	_, err := udev.Set(context.Background(), r.rule.ID, rules)
	return err
}

// rulesRound gives one container its rule and removes it, and with bare calls reads and replaces a file of the same size.
func rulesRound(tb testing.TB, n int) func(m *meter) {
	tb.Helper()
	r := newRules(tb, n)
	return func(m *meter) {
		m.inTurn(
			func() { r.measure(m, "bare", func() error { return r.replace(r.with) }, r.with) },
			func() { r.measure(m, "add", func() error { return r.set(r.rule) }, r.with) },
			func() { r.measure(m, "remove", func() error { return r.set() }, r.without) },
		)
	}
}

// measure begins with the file as it is before the change.
func (r *rules) measure(m *meter, name string, way func() error, want []byte) {
	r.tb.Helper()
	start := r.without
	if string(want) == string(start) {
		start = r.with
	}
	require.NoError(r.tb, r.replace(start))
	m.time(name, way)
	if m.check {
		require.Equal(r.tb, string(want), string(r.content()), name)
	}
}

// replace reads the file and puts data in its place.
func (r *rules) replace(data []byte) error {
	if _, err := os.ReadFile(udev.RulesFile); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(udev.RulesFile))
	if err != nil {
		return err
	}
	defer dir.Close()
	temp := filepath.Join(dir.Name(), ".bench")
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := unix.Rename(temp, udev.RulesFile); err != nil {
		return err
	}
	return dir.Sync()
}

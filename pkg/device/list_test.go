//go:build linux

package device

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestParseAccess(t *testing.T) {
	t.Parallel()
	for s, want := range map[string]Access{"r": Read, "mrw": allAccess, "wm": Write | Mknod} {
		got, err := ParseAccess(s)
		require.NoError(t, err)
		require.Equal(t, want, got)
	}
	require.Equal(t, "rwm", allAccess.String())
	for _, s := range []string{"", "x", "rr", "*", "rwmx", "r w", "é"} {
		_, err := ParseAccess(s)
		require.Error(t, err, s)
	}
}

func TestMissing(t *testing.T) {
	t.Parallel()
	rule := Rule{Char, 1, 5, Read | Write}
	for entries, want := range map[string]struct {
		missing Access
		open    bool
	}{
		"":                     {Read | Write, false},
		"c 1:5 rwm":            {0, false},
		"c 1:5 r":              {Write, false},
		"c 1:* rw":             {0, false},
		"c *:5 rw":             {0, false},
		"c *:* m":              {Read | Write, false},
		"c *:* r\nc 1:5 w":     {Read, false}, // open(2) for both asks one entry
		"b 1:5 rwm\nc 1:6 rwm": {Read | Write, false},
		"a *:* rwm":            {Read | Write, true},
	} {
		l, err := parseList(strings.NewReader(entries))
		require.NoError(t, err, entries)
		missing, open := l.missing(rule)
		require.Equal(t, want.missing, missing, entries)
		require.Equal(t, want.open, open, entries)
	}
}

func FuzzParseList(f *testing.F) {
	f.Add("c 1:3 rwm\nb *:* m\n")
	f.Add("a *:* rwm")
	f.Fuzz(func(t *testing.T, data string) {
		l, err := parseList(strings.NewReader(data))
		if err != nil {
			return
		}
		for _, e := range l {
			if e.Major == wildcard || e.Minor == wildcard || e.Type == "a" {
				continue
			}
			again, err := parseEntry(Rule(e).String())
			if err != nil || again != e {
				t.Fatalf("%v came back as %v: %v", e, again, err)
			}
		}
	})
}

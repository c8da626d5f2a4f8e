//go:build linux

package udev

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// setting is the change that Set makes.
func setting(id string, want ...Rule) *change {
	id = shortID(id)
	return &change{ids: []string{id}, mine: func(r Rule) bool { return r.ID == id }, want: short(want)}
}

func apply(t testing.TB, c *change, content string) (edited string, had []Rule) {
	t.Helper()
	data, had, changed := c.apply([]byte(content))
	require.Equal(t, changed, string(data) != content)
	return string(data), had
}

func TestApply(t *testing.T) {
	t.Parallel()
	var (
		b     = Rule{"sdb", "/dev/sdx", "1f2e3d4c"}
		c     = Rule{"sdc", "/dev/sdx", longID("1f2e3d4c")}
		other = Rule{"sdb", "/dev/sdx", "other"}.String() + "\n"
		bLine = fullLine + "\n"
		cLine = c.String() + "\n"
	)
	c.ID = "1f2e3d4c"
	for name, row := range map[string]struct {
		content string
		want    []Rule
		edited  string
		had     []Rule
	}{
		"new":                    {header, []Rule{b, c}, header + bLine + cLine, nil},
		"empty":                  {"", []Rule{b}, bLine, nil},
		"twice":                  {"", []Rule{b, b}, bLine, nil},
		"there":                  {header + other + bLine, []Rule{b}, header + other + bLine, []Rule{b}},
		"there in another order": {cLine + other + bLine, []Rule{b, c}, cLine + other + bLine, []Rule{c, b}},
		"one more":               {header + other + bLine, []Rule{b, c}, header + cLine + other + bLine, []Rule{b}},
		"one less":               {cLine + other + bLine, []Rule{c}, cLine + other, []Rule{c, b}},
		"none":                   {header + bLine + other + cLine + plainLine, nil, header + other, []Rule{b, c, b}},
		"plain":                  {header + other + plainLine + "\n" + other, []Rule{b}, header + bLine + other + other, []Rule{b}},
		"carriage return":        {other + fullLine + "\r\n", []Rule{b}, bLine + other, []Rule{b}},
		"duplicates":             {other + bLine + bLine, []Rule{b}, other + bLine, []Rule{b, b}},
		"no final newline":       {"# x\n" + other + "foreign", []Rule{b}, "# x\n" + bLine + other + "foreign", nil},
		"only a fragment":        {"foreign", []Rule{b}, bLine + "foreign", nil},
		"comment fragment":       {"# foreign", []Rule{b}, bLine + "# foreign", nil},
		"ours is a fragment":     {"foreign\n" + fullLine, []Rule{b}, bLine + "foreign\n", []Rule{b}},
		"continuation":           {"# x\\\nforeign \\\n", []Rule{b}, "# x\\\n" + bLine + "foreign \\\n", nil},
		"comment with NUL":       {"#\x00x\\\nforeign", []Rule{b}, bLine + "#\x00x\\\nforeign", nil},
		"CRLF comments":          {"# x\r\n\r\nforeign\r\n", []Rule{b}, "# x\r\n\r\n" + bLine + "foreign\r\n", nil},
		"long comment": {
			"#" + strings.Repeat("x", 20<<10) + "\n" + other,
			[]Rule{b},
			bLine + "#" + strings.Repeat("x", 20<<10) + "\n" + other,
			nil,
		},
		"no rule of ours": {"KERNEL==\"\"\n" + fullLine + " # 1f2e3d4c\n", nil, "KERNEL==\"\"\n" + fullLine + " # 1f2e3d4c\n", nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			edited, had := apply(t, setting(longID("1f2e3d4c"), row.want...), row.content)
			require.Equal(t, row.edited, edited)
			require.Equal(t, row.had, had)
		})
	}
}

// Containers whose ids begin alike, and what syscontainer-tools makes of them.
func TestApplyOtherContainers(t *testing.T) {
	t.Parallel()
	lines := ""
	for _, id := range []string{"web-prod-1", "web-prod-2", "web-prod", "web-prod-12", "1f2e3d4", "1f2e3d4cc"} {
		lines += Rule{"sdb", "/dev/sdx", id}.String() + "\n"
	}
	edited, had := apply(t, setting("web-prod-1"), lines)
	require.Equal(t, strings.Replace(lines, Rule{"sdb", "/dev/sdx", "web-prod-1"}.String()+"\n", "", 1), edited)
	require.Equal(t, []Rule{{"sdb", "/dev/sdx", "web-prod-1"}}, had)
	edited, had = apply(t, setting(longID("1f2e3d4c")), lines)
	require.Equal(t, lines, edited)
	require.Empty(t, had)
}

func TestApplyKeepsHugeLines(t *testing.T) {
	t.Parallel()
	content := header + strings.Repeat("x", 1<<20) + "\n\x00\xff\r\x01\n" + strings.Repeat(fullLine, 5000)
	r := Rule{"sdc", "/dev/sdx", "c1"}
	edited, _ := apply(t, setting("c1", r), content)
	require.Equal(t, header+r.String()+"\n"+content[len(header):], edited)
	again, _ := apply(t, setting("c1"), edited)
	require.Equal(t, content, again)
}

func FuzzParseRule(f *testing.F) {
	f.Add(fullLine)
	f.Add(plainLine + "\r\n")
	f.Add(strings.ReplaceAll(fullLine, "sdb", "cciss!c0d0"))
	f.Add(strings.Replace(fullLine, "/dev/sdx", "/dev/a,b $name c sdb", 1))
	f.Fuzz(func(t *testing.T, line string) {
		r, ok := ParseRule(line)
		if !ok {
			return
		}
		again, ok := ParseRule(r.String())
		require.True(t, ok)
		require.Equal(t, r, again)
		full, plain := r.String(), strings.TrimSuffix(r.String(), r.lastMatch())
		require.Contains(t, []string{full, plain}, strings.TrimRight(line, "\r\n"))
	})
}

// A valid rule is one line, that both programs read as this rule; any other has no line.
func FuzzRule(f *testing.F) {
	f.Add("sdb", "/dev/sdx", longID("1f2e3d4c"))
	f.Add("cciss!c0d0", "/dev/a:b", "web-prod-1")
	f.Add("sdb", "/dev/sdx sdb\"\n"+fullLine, "c1")
	f.Fuzz(func(t *testing.T, disk, path, id string) {
		r := Rule{Disk: disk, Path: path, ID: id}
		if r.Validate() != nil {
			return
		}
		got, ok := ParseRule(r.String())
		require.True(t, ok)
		r.ID = shortID(id)
		require.Equal(t, r, got)
		require.Equal(t, 12, strings.Count(r.String(), `"`))
		require.Equal(t, 5, strings.Count(r.String(), ","))
		require.NotContains(t, r.String(), "\n")
		v09, ok := parseV09(r.String())
		require.True(t, ok)
		require.Equal(t, ruleV09{r.udevName(), path, r.ID}, v09)
	})
}

// What is not the container's stays byte for byte; the rules that are set are there, once, and go.
func FuzzApply(f *testing.F) {
	foreign := Rule{"sdb", "/dev/sdx", "c2"}.String()
	f.Add("", "c1")
	f.Add(header+fullLine+"\r\n"+plainLine, longID("1f2e3d4c"))
	f.Add(foreign+"\n\\\n#\\\n\x00"+foreign+"\\\r\n"+fullLine+"\n\n", "1f2e3d4c")
	f.Add("#a\n#b\r#c\n"+fullLine, "1f2e3d4c")
	f.Fuzz(func(t *testing.T, content, id string) {
		rules := []Rule{{"sdb", "/dev/sdx", id}, {"sdc", "/dev/sdx", id}}
		if rules[0].Validate() != nil {
			return
		}
		var others []string
		for line := range strings.Lines(content) {
			if r, ok := ParseRule(line); !ok || r.ID != shortID(id) {
				others = append(others, line)
			}
		}
		without := strings.Join(others, "")
		edited, had := apply(t, setting(id, rules...), content)
		again, hadAgain := apply(t, setting(id, rules...), edited)
		require.Equal(t, edited, again)
		require.Len(t, hadAgain, 2)
		for _, r := range rules {
			require.True(t, slices.Contains(strings.SplitAfter(edited, "\n"), r.String()+"\n"))
		}
		removed, _ := apply(t, setting(id), edited)
		require.Equal(t, without, removed)
		if len(had) == 0 {
			require.Equal(t, content, removed)
		}
	})
}

// ruleV09 is what version 0.9 of syscontainer-tools knows of a rule.
type ruleV09 struct{ disk, path, id string }

// parseV09 reads a line as that program does.
func parseV09(line string) (ruleV09, bool) {
	var r ruleV09
	for field := range strings.SplitSeq(line, ",") {
		field = strings.TrimSpace(field)
		quoted := strings.Split(field, `"`)
		switch {
		case strings.HasPrefix(field, "KERNEL"):
			if len(quoted) < 2 || quoted[1] == "" {
				return r, false
			}
			r.disk = quoted[1][:len(quoted[1])-1]
		case strings.HasPrefix(field, "RUN"):
			if len(quoted) < 2 {
				return r, false
			}
			words := strings.Split(quoted[1], " ")
			if len(words) < 6 {
				return r, false
			}
			r.id, r.path = words[2], words[4]
		}
	}
	return r, r.disk != "" && r.path != ""
}

// String is the line that it writes.
func (r ruleV09) String() string {
	return fmt.Sprintf(`KERNEL=="%s*",ACTION=="add|remove", ENV{DEVTYPE}=="partition", SUBSYSTEM=="block", `+
		`RUN{program}+="/lib/udev/syscontainer-tools_wrapper $env{ACTION} %s $name %s %s"`,
		r.disk, r.id[:min(len(r.id), 8)], r.path, r.disk)
}

func TestV09ReadsLines(t *testing.T) {
	t.Parallel()
	for _, line := range []string{fullLine, plainLine} {
		r, ok := parseV09(line)
		require.True(t, ok)
		require.Equal(t, ruleV09{"sdb", "/dev/sdx", "1f2e3d4c"}, r)
		require.Equal(t, plainLine, r.String())
	}
}

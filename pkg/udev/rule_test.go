//go:build linux

package udev

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const (
	plainLine = `KERNEL=="sdb*",ACTION=="add|remove", ENV{DEVTYPE}=="partition", SUBSYSTEM=="block", ` +
		`RUN{program}+="/lib/udev/syscontainer-tools_wrapper $env{ACTION} 1f2e3d4c $name /dev/sdx sdb"`
	fullLine = plainLine + `, DEVPATH=="*/sdb/*"`
)

func TestLine(t *testing.T) {
	t.Parallel()
	r := Rule{Disk: "sdb", Path: "/dev/sdx", ID: longID("1f2e3d4c")}
	require.Equal(t, fullLine, r.String())
	require.NoError(t, r.Validate())
	r.ID = "1f2e3d4c"
	for _, line := range []string{fullLine, plainLine, fullLine + "\n", plainLine + "\r\n", fullLine + "\r"} {
		got, ok := ParseRule(line)
		require.True(t, ok, "%q", line)
		require.Equal(t, r, got, "%q", line)
	}
	// udev has a slash where sysfs cannot.
	r.Disk = "cciss!c0d0"
	require.Contains(t, r.String(), `KERNEL=="cciss/c0d0*"`)
	require.Contains(t, r.String(), `/dev/sdx cciss/c0d0", DEVPATH=="*/cciss!c0d0/*"`)
	got, ok := ParseRule(r.String())
	require.True(t, ok)
	require.Equal(t, r, got)
	// Of syscontainer-tools, which looks at no path, to be found and removed.
	got, ok = ParseRule(strings.Replace(plainLine, "/dev/sdx", "/dev/a,b $env{c}", 1))
	require.True(t, ok)
	require.Equal(t, "/dev/a,b $env{c}", got.Path)
	require.Error(t, got.Validate())
}

func TestParseRuleRefuses(t *testing.T) {
	t.Parallel()
	for name, line := range map[string]string{
		"empty":           "",
		"comment":         "#" + fullLine,
		"indented":        " " + fullLine,
		"more":            fullLine + " ",
		"other match":     plainLine + `, DEVPATH=="*/sdc/*"`,
		"twice":           fullLine + `, DEVPATH=="*/sdb/*"`,
		"two lines":       fullLine + "\n" + fullLine,
		"no disk":         strings.ReplaceAll(fullLine, "sdb", ""),
		"two disks":       strings.Replace(fullLine, `sdb"`, `sdc"`, 1),
		"pattern":         strings.ReplaceAll(fullLine, "sdb", "sd[a-b]"),
		"raw name":        strings.ReplaceAll(fullLine, "sdb", "cciss!c0d0"),
		"no id":           strings.Replace(fullLine, "1f2e3d4c ", "", 1),
		"long id":         strings.Replace(fullLine, "1f2e3d4c", longID("1f2e3d4c"), 1),
		"other id":        strings.Replace(fullLine, "1f2e3d4c", "-x", 1),
		"no path":         strings.Replace(fullLine, "/dev/sdx ", "", 1),
		"empty path":      strings.Replace(fullLine, "/dev/sdx", "", 1),
		"quote":           strings.Replace(fullLine, "/dev/sdx", `/dev/"x`, 1),
		"other program":   strings.Replace(fullLine, "_wrapper", "", 1),
		"other separator": strings.Replace(fullLine, ",ACTION", ", ACTION", 1),
		"unfinished":      fullLine[:len(plainLine)-1],
	} {
		_, ok := ParseRule(line)
		require.False(t, ok, name)
	}
}

func TestValidate(t *testing.T) {
	t.Parallel()
	good := Rule{Disk: "sdb", Path: "/dev/sdx", ID: "c1"}
	for _, r := range []Rule{
		{"nvme0n1", "/dev/disk/by-path/pci-0000:00:1f.2-ata-1@x=y+z", longID("1f2e3d4c")},
		{"cciss!c0d0", "/x", "abc"},
		{"sd-b_c", "/" + strings.Repeat("a", 255), strings.Repeat("A", 128)},
		{"b", "/..", "9._-"},
	} {
		require.NoError(t, r.Validate(), r)
	}
	for _, disk := range []string{"", "sd b", "sd/b", `sd"`, "sd*", "sd,", "sd\n", "sd\x00", "sd.", "sdä", "$x", "s%b"} {
		r := good
		r.Disk = disk
		require.ErrorContains(t, r.Validate(), "!_-", "%q", disk)
	}
	paths := []string{"", "/", "dev/x", "/" + strings.Repeat("a", 256), "/dev/ä", "/\xff", "/dev/x\n" + fullLine}
	for _, c := range "\n\r\x00\t \",;'`\\$%*?[]{}()<>|&!#~^\u00a0\u2028" {
		paths = append(paths, "/dev/a"+string(c)+"b")
	}
	for _, path := range append(paths, `/dev/a\nb`, "/dev/$env{X}", "/dev/%k", "/dev/%%", "/dev/$$") {
		r := good
		r.Path = path
		require.ErrorContains(t, r.Validate(), "._/+:@=-", "%q", path)
	}
	for _, id := range []string{"", "-a", ".a", "_a", "a b", "a/b", `a"`, "a\n", "ä", "a$", strings.Repeat("a", 129)} {
		r := good
		r.ID = id
		require.ErrorContains(t, r.Validate(), "_.-", "%q", id)
	}
}

func TestShortID(t *testing.T) {
	t.Parallel()
	for id, want := range map[string]string{
		longID("1f2e3d4c5"):       "1f2e3d4c",
		longID("ABCDEF01"):        "ABCDEF01",
		longID("1f2e3d4g"):        longID("1f2e3d4g"),
		longID("1f2e3d4c")[1:]:    longID("1f2e3d4c")[1:],
		longID("1f2e3d4c") + "0":  longID("1f2e3d4c") + "0",
		"abc":                     "abc",
		"web-prod-1":              "web-prod-1",
		strings.Repeat("f", 64):   "ffffffff",
		"1f2e3d4c":                "1f2e3d4c",
		strings.Repeat("-", 63):   strings.Repeat("-", 63),
		strings.Repeat("\x00", 9): strings.Repeat("\x00", 9),
	} {
		require.Equal(t, want, shortID(id))
	}
}

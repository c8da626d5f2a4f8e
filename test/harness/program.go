//go:build linux

package harness

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Program stands in for a program of the host, and writes down how it is called.
type Program struct {
	tb  TB
	log string
}

// FakeProgram puts a shell script where the hook looks first for the program of that name, to the end of the test. The script
// runs after the call is written down.
func FakeProgram(tb TB, name, script string) *Program {
	tb.Helper()
	p := &Program{tb: tb, log: filepath.Join(TempDir(tb), "calls")}
	path := "/usr/sbin/" + name
	own := path + ".own"
	err := os.Rename(path, own)
	if errors.Is(err, fs.ErrNotExist) {
		own = ""
	} else {
		Fatal(tb, err, "replace program")
	}
	tb.Cleanup(func() {
		Fatal(tb, os.Remove(path), "remove program")
		if own != "" {
			Fatal(tb, os.Rename(own, path), "put program back")
		}
	})
	text := "#!/bin/sh\necho \"$@\" >>" + p.log + "\n" + script + "\n"
	Fatal(tb, os.WriteFile(path, []byte(text), 0o600), "write program")
	Fatal(tb, os.Chmod(path, 0o755), "write program")
	return p
}

// Calls are the arguments of the calls since the last time that it was asked for them.
func (p *Program) Calls() []string {
	p.tb.Helper()
	text, err := os.ReadFile(p.log)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	Fatal(p.tb, err, "calls of program")
	Fatal(p.tb, os.Remove(p.log), "calls of program")
	return strings.Split(strings.TrimSuffix(string(text), "\n"), "\n")
}

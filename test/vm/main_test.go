//go:build linux

package vm

import (
	"os"
	"testing"

	"isula.org/syscontainer-hooks/test/harness"
)

func TestMain(m *testing.M) {
	code := m.Run()
	harness.RemoveBuilt()
	os.Exit(code)
}

//go:build linux

package udev

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"isula.org/syscontainer-hooks/internal/testutil"
)

func TestMain(m *testing.M) {
	switch {
	case os.Getenv(killedEnv) != "":
		os.Exit(runToBeKilled())
	case os.Getenv(udevdEnv) != "":
		os.Exit(runBesideUdevd(m))
	}
	os.Exit(testutil.Main(m))
}

// longID is as engines make them; a line has its first 8 characters.
func longID(start string) string { return start + strings.Repeat("0", 64-len(start)) }

// emptyHost is for tests of the file: it is not there, before and after.
func emptyHost(t testing.TB) {
	t.Helper()
	testutil.RequireRoot(t)
	require.True(t, testutil.Isolated())
	clean := func() {
		require.NoError(t, os.RemoveAll(filepath.Dir(RulesFile)))
		require.NoError(t, os.RemoveAll(filepath.Dir(LockFile)))
	}
	clean()
	t.Cleanup(clean)
}

func writeRules(t testing.TB, content string) {
	t.Helper()
	require.NoError(t, os.MkdirAll(filepath.Dir(RulesFile), 0o755))
	require.NoError(t, os.WriteFile(RulesFile, []byte(content), 0o600))
}

func readRules(t testing.TB) string {
	t.Helper()
	content, err := os.ReadFile(RulesFile)
	require.NoError(t, err)
	return string(content)
}

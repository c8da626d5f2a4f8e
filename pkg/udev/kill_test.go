//go:build linux

package udev

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"isula.org/syscontainer-hooks/internal/testutil"
)

// killedEnv has what a process of this program does instead of the tests: strace(1) kills it at one of its system calls.
const killedEnv = "SYSCONTAINER_HOOKS_TEST_KILLED"

var killedRules = []Rule{{"sdb", "/dev/sdx", "c1"}, {"sdc", "/dev/sdy", "c1"}}

func runToBeKilled() int {
	var rules []Rule
	if os.Getenv(killedEnv) == "set" {
		rules = killedRules
	}
	if _, err := Set(context.Background(), "c1", rules); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// A process that is killed at any of its system calls leaves the old file or the new one, and the next one puts all right.
func TestKilled(t *testing.T) {
	testutil.RequireRoot(t)
	const strace = "/usr/bin/strace"
	requireProgram(t, strace, "strace")
	program, err := os.Executable()
	require.NoError(t, err)
	foreign := header + Rule{"sdb", "/dev/sdx", "c2"}.String() + "\nforeign"
	with := header + killedRules[0].String() + "\n" + killedRules[1].String() + "\n" + foreign[len(header):]
	for job, contents := range map[string][2]string{"set": {foreign, with}, "remove": {with, foreign}} {
		for _, call := range []string{"openat", "flock", "write", "fchmod", "fsync", "renameat", "close"} {
			t.Run(job+"/"+call, func(t *testing.T) {
				emptyHost(t)
				kills, leftovers := 0, 0
				for ended := false; !ended; {
					writeRules(t, contents[0])
					cmd := exec.Command(strace, "-f", "-qq", "-o", "/dev/null", "-e", "trace="+call,
						"-e", fmt.Sprintf("inject=%s:signal=KILL:when=%d", call, kills+1), program)
					cmd.Env = append(os.Environ(), killedEnv+"="+job, "GOMAXPROCS=1")
					out, err := cmd.CombinedOutput()
					if ended = err == nil; ended {
						require.Equal(t, contents[1], readRules(t))
						break
					}
					require.ErrorContains(t, err, "signal: killed", "%s", out)
					kills++
					require.Contains(t, contents[:], readRules(t), "killed at call %d", kills)
					requireNoOtherRules(t)
					if _, err := os.Stat(filepath.Dir(RulesFile) + "/" + temp); err == nil {
						leftovers++
					}
					_, err = Set(t.Context(), "c1", nil)
					require.NoError(t, err)
					require.Equal(t, foreign, readRules(t))
					requireOnlyRules(t)
				}
				require.Positive(t, kills)
				if call == "fchmod" || call == "renameat" {
					require.Positive(t, leftovers, "a temporary file that the next run has to remove")
				}
			})
		}
	}
}

// requireNoOtherRules: udev reads every file that ends in .rules.
func requireNoOtherRules(t *testing.T) {
	t.Helper()
	names, err := filepath.Glob(filepath.Dir(RulesFile) + "/*")
	require.NoError(t, err)
	hidden, err := filepath.Glob(filepath.Dir(RulesFile) + "/.*")
	require.NoError(t, err)
	for _, name := range append(names, hidden...) {
		require.True(t, name == RulesFile || !strings.HasSuffix(name, ".rules"), name)
	}
}

// requireProgram skips a test as testutil.RequireRoot does it.
func requireProgram(t *testing.T, path, ofPackage string) {
	t.Helper()
	if _, err := os.Stat(path); err == nil {
		return
	}
	if os.Getenv("REQUIRE_ROOT") == "1" {
		t.Fatalf("needs %s of %s, and REQUIRE_ROOT=1 forbids to skip", path, ofPackage)
	}
	t.Skipf("needs %s of %s", path, ofPackage)
}

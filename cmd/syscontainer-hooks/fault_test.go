//go:build linux

package main

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"isula.org/syscontainer-hooks/pkg/store"
)

func eachUserNS(t *testing.T, test func(t *testing.T, userns bool)) {
	for _, userns := range []bool{false, true} {
		t.Run(map[bool]string{false: "host users", true: "user namespace"}[userns], func(t *testing.T) { test(t, userns) })
	}
}

// A prestart that fails at any step leaves the container and the host as they were.
func TestFailAtEachStep(t *testing.T) {
	eachUserNS(t, func(t *testing.T, userns bool) {
		s := newScene(t, userns)
		warm(t)
		before, inside := s.host(), s.inside()
		for _, name := range stepNames((&restoration{}).restoreSteps()) {
			for _, kind := range []string{"fail before", "fail after", "panic after"} {
				if name == "finish" && kind != "fail before" {
					continue // then all is done, and what the nodes replaced is dropped
				}
				got := s.hook(kind+":"+name, "prestart")
				require.Equal(t, exitFailed, got.code, "%s: %s", name, got.stderr)
				require.Contains(t, got.stderr, "container "+s.ID+": prestart: "+name+": ")
				require.Contains(t, got.stderr, errInjected.Error())
				if kind != "panic after" { // its stack is in the log
					require.Regexp(t, `^[^\n]+\n$`, got.stderr)
				}
				require.Equal(t, before, s.host(), "%s %s", kind, name)
				require.Equal(t, inside, s.inside(), "%s %s", kind, name)
			}
		}
	})
}

// A prestart that is killed at any step: the next prestart of the same run makes it whole, and poststop removes all.
func TestKillAtEachStep(t *testing.T) {
	eachUserNS(t, func(t *testing.T, userns bool) {
		s := newScene(t, userns)
		warm(t)
		restored, after := s.startAndStop()
		for _, name := range stepNames((&restoration{}).restoreSteps()) {
			for _, kind := range []string{"kill before", "kill after"} {
				for _, next := range []string{"prestart", "poststop", "poststop without container", "restart"} {
					note := kind + " " + name + ", then " + next
					s.occupy()
					s.Start()
					require.Equal(t, -1, s.hook(kind+":"+name, "prestart").code, note)
					if next == "restart" || next == "poststop without container" {
						s.Stop()
					}
					if next == "restart" {
						s.Start()
					}
					if next == "restart" || next == "prestart" {
						require.Equal(t, result{}, s.hook("", "prestart"), note)
						require.Equal(t, restored, s.restored(), note)
					}
					require.Equal(t, result{}, s.hook("", "poststop"), note)
					s.Stop()
					finished := next == "restart" || next == "prestart" || name == "finish" && kind == "kill after"
					require.Equal(t, !finished, s.vacate(), note)
					require.Equal(t, after, s.host(), note)
				}
			}
		}
	})
}

// Host directories that only a killed prestart has made do not stay.
func TestKillLeavesNoHostDirectories(t *testing.T) {
	s := newScene(t, false)
	warm(t)
	before := s.host()
	for _, name := range []string{"make host directories", "share host paths", "save device numbers"} {
		require.Equal(t, -1, s.hook("kill after:"+name, "prestart").code)
		require.NotEqual(t, before, s.host())
		require.Equal(t, result{}, s.hook("", "poststop"))
		s.Stop()
		require.Equal(t, before, s.host())
		s.Start()
	}
}

// occupy puts a file of the image where a node belongs. A start that comes to its end drops it, any other puts it back.
func (s *scene) occupy() {
	s.t.Helper()
	require.NoError(s.t, os.WriteFile(s.Root+"/mnt/occupied", []byte("of the image"), 0o600))
}

// vacate removes the file and tells whether it was there.
func (s *scene) vacate() bool {
	s.t.Helper()
	data, err := os.ReadFile(s.Root + "/mnt/occupied")
	if os.IsNotExist(err) {
		return false
	}
	require.NoError(s.t, err)
	require.Equal(s.t, "of the image", string(data))
	require.NoError(s.t, os.Remove(s.Root+"/mnt/occupied"))
	return true
}

// startAndStop gives what a whole start makes, and what stays after the stop: the host directories that it has made.
func (s *scene) startAndStop() (restored, after map[string][]string) {
	s.t.Helper()
	require.Equal(s.t, result{}, s.hook("", "prestart"))
	restored = s.restored()
	require.Equal(s.t, result{}, s.hook("", "poststop"))
	s.Stop()
	return restored, s.host()
}

// restored is the container and the host but for the journal, which tells the runs apart.
func (s *scene) restored() map[string][]string {
	s.t.Helper()
	all := s.inside()
	host := s.host()
	all["host mounts"], all["cgroup"], all["limits"] = host["mounts"], host["cgroup"], host["limits"]
	return all
}

// A poststop that fails or is killed at any step: the others still happen, it exits 0, and the next one finishes.
func TestPoststopFaults(t *testing.T) {
	eachUserNS(t, func(t *testing.T, userns bool) {
		s := newScene(t, userns)
		warm(t)
		_, after := s.startAndStop()
		for _, name := range stepNames((&restoration{}).removeSteps()) {
			for _, kind := range []string{"fail before", "fail after", "panic after", "kill before", "kill after"} {
				for _, next := range []string{"poststop", "prestart"} {
					s.Start()
					require.Equal(t, result{}, s.hook("", "prestart"))
					s.Stop()
					got := s.hook(kind+":"+name, "poststop")
					if kind == "kill before" || kind == "kill after" {
						require.Equal(t, -1, got.code)
					} else {
						require.Equal(t, exitOK, got.code)
						require.Contains(t, got.stderr, name+": ")
					}
					if next == "prestart" {
						s.Start()
						require.Equal(t, result{}, s.hook("", "prestart"))
						s.Stop()
					}
					require.Equal(t, result{}, s.hook("", "poststop"), "%s %s", kind, name)
					require.Equal(t, after, s.host(), "%s %s", kind, name)
				}
			}
		}
	})
}

// The same for kills that strike anywhere, also in the middle of a step.
func TestKillAnywhere(t *testing.T) {
	eachUserNS(t, func(t *testing.T, userns bool) {
		s := newScene(t, userns)
		warm(t)
		restored, after := s.startAndStop()
		rounds, struck := 60, 0
		if testing.Short() {
			rounds = 10
		}
		for i := range rounds {
			s.Start()
			stage := "prestart"
			if i%3 == 2 {
				stage = "poststop"
				require.Equal(t, result{}, s.hook("", "prestart"))
			}
			delay := time.Duration(rand.IntN(12_000)) * time.Microsecond
			cmd := hookCommand(t, "", s.State(), "-log", s.log, "-state", stage)
			require.NoError(t, cmd.Start())
			time.Sleep(delay)
			_ = cmd.Process.Kill()
			if cmd.Wait() != nil {
				struck++
			}
			note := fmt.Sprintf("round %d: %s killed after %s", i, stage, delay)
			if i%2 == 0 {
				require.Equal(t, result{}, s.hook("", "prestart"), note)
				require.Equal(t, restored, s.restored(), note)
			}
			require.Equal(t, result{}, s.hook("", "poststop"), note)
			s.Stop()
			require.Equal(t, after, s.host(), note)
		}
		require.Positive(t, struck)
	})
}

// Signals that ask a prestart to end make it take everything back; a poststop goes on.
func TestSignals(t *testing.T) {
	s := newScene(t, false)
	warm(t)
	before, inside := s.host(), s.inside()
	for _, signal := range endSignals {
		for round := range 6 {
			cmd := hookCommand(t, "", s.State(), "-log", s.log, "-state", "prestart", "-record-dir", s.Bundle)
			require.NoError(t, cmd.Start())
			time.Sleep(time.Duration(1+2*round) * time.Millisecond)
			_ = cmd.Process.Signal(signal)
			err := cmd.Wait()
			if err != nil {
				require.Equal(t, before, s.host(), "%s: %v", signal, err)
				require.Equal(t, inside, s.inside(), "%s: %v", signal, err)
				continue
			}
			require.Equal(t, result{}, s.hook("", "poststop")) // it was faster; from now on its host directories are there
			s.Stop()
			s.Start()
			before, inside = s.host(), s.inside()
		}
	}
}

// A run without a record ends as well when a signal comes while it waits for another one.
func TestSignalWhileWaiting(t *testing.T) {
	s := newScene(t, false)
	warm(t)
	require.NoError(t, os.Remove(filepath.Join(s.Bundle, store.FileName)))
	lock, err := os.OpenFile(filepath.Join(journalDir, s.ID), os.O_CREATE|os.O_RDWR, 0o600)
	require.NoError(t, err)
	defer lock.Close()
	t.Cleanup(func() { _ = os.Remove(lock.Name()) })
	require.NoError(t, unix.Flock(int(lock.Fd()), unix.LOCK_EX))
	before, inside := s.host(), s.inside()
	for _, signal := range endSignals {
		cmd := hookCommand(t, "", s.State(), "-log", s.log, "-state", "prestart")
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		require.NoError(t, cmd.Start())
		time.Sleep(100 * time.Millisecond)
		start := time.Now()
		require.NoError(t, cmd.Process.Signal(signal))
		require.Error(t, cmd.Wait())
		require.Less(t, time.Since(start), time.Second)
		require.Equal(t, exitFailed, cmd.ProcessState.ExitCode())
		require.Contains(t, stderr.String(), "signal: ")
		require.Equal(t, before, s.host())
		require.Equal(t, inside, s.inside())
	}
}

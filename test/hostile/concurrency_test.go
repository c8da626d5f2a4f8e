//go:build linux

package hostile

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestStages is CON-03: the stages of one id in the wrong order, twice, and at once.
func TestStages(t *testing.T) {
	begin(t, true)
	t.Run("CON-03/poststop-alone", func(t *testing.T) {
		w := newWorld(t, variant{})
		w.record(goodRecord(w))
		w.start()
		before := w.clean()
		for range 2 {
			res := w.poststop()
			require.Zero(t, res.code, res)
			require.Empty(t, diff(before, w.clean()), "CLEAN")
		}
	})
	t.Run("CON-03/poststop-twice", func(t *testing.T) {
		w := newWorld(t, variant{})
		w.record(goodRecord(w))
		w.start()
		host := w.host(true)
		require.Zero(t, w.prestart().code)
		w.kill()
		for range 2 {
			res := w.poststop()
			require.Zero(t, res.code, res)
			require.Empty(t, diff(host, w.host(true)), "HOST")
		}
	})
	for _, v := range []variant{{name: "plain"}, {name: "user", user: true}, {name: "user+tmpfs", user: true, tmpfs: true}} {
		t.Run("CON-03/prestart-twice-"+v.name, func(t *testing.T) {
			w := newWorld(t, v)
			w.record(goodRecord(w))
			w.start()
			host := w.host(true)
			res := w.prestart()
			require.Zero(t, res.code, res)
			between := w.clean()
			res = w.prestart()
			require.Zero(t, res.code, "a second prestart for the same running container: %s", res)
			require.Empty(t, diff(between, w.clean()), "the second prestart changed something")
			goodInside(w)
			w.kill()
			require.Zero(t, w.poststop().code)
			require.Empty(t, diff(host, w.host(true)), "HOST")
		})
	}
	t.Run("CON-03/without-a-stop", func(t *testing.T) {
		w := newWorld(t, variant{})
		w.record(goodRecord(w))
		w.start()
		host := w.host(true)
		for range 3 {
			res := w.prestart()
			require.Zero(t, res.code, "a start after a host crash: %s", res)
			goodInside(w)
			w.kill()
			w.start()
		}
		require.Zero(t, w.poststop().code)
		require.Empty(t, diff(host, w.host(true)), "HOST")
	})
	for i := range scaled(10, 100) {
		t.Run(fmt.Sprintf("CON-03/at-once-%d", i), func(t *testing.T) { atOnce(t, i) })
	}
}

// atOnce starts two prestarts and two poststops of one id together.
func atOnce(t *testing.T, i int) {
	w := newWorld(t, variant{})
	w.record(goodRecord(w))
	w.start()
	host, canary := w.host(true), w.canary()
	stages := []string{"prestart", "poststop", "prestart", "poststop"}
	rand.Shuffle(len(stages), func(a, b int) { stages[a], stages[b] = stages[b], stages[a] })
	procs := make([]*process, len(stages))
	for k, s := range stages {
		procs[k] = w.spawn(run{args: []string{"-state", s}, limit: 30 * time.Second})
		if i%2 == 0 {
			time.Sleep(time.Millisecond)
		}
	}
	results := make([]result, len(stages))
	var wg sync.WaitGroup
	for k, p := range procs {
		wg.Go(func() { results[k] = p.wait() })
	}
	wg.Wait()
	for k, res := range results {
		require.Zero(t, res.signal, res)
		if stages[k] == "poststop" {
			require.Zero(t, res.code, res)
		}
	}
	w.kill()
	require.Zero(t, w.poststop().code)
	require.Empty(t, diff(host, w.host(true)), "HOST, stages %v", stages)
	require.Empty(t, diff(canary, w.canary()), "CANARY")
}

// TestSignals is CON-06: a signal at any time means take back and fail; one that comes too late finds the work done.
func TestSignals(t *testing.T) {
	begin(t, true)
	signals := []syscall.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP}
	interrupted := 0
	took := 30 * time.Millisecond // of a whole run, measured by each that is not interrupted
	for i := range scaled(60, 600) {
		sig := signals[i%len(signals)]
		t.Run(fmt.Sprintf("CON-06/%v-%d", sig, i), func(t *testing.T) {
			w := newWorld(t, variant{user: i%3 == 1, tmpfs: i%5 == 1})
			list := make([]object, 32)
			for k := range list {
				list[k] = zero(fmt.Sprintf("/dev/d/%d", k))
			}
			paths := make([]string, 16)
			for k := range paths {
				paths[k] = fmt.Sprintf("%s/d:/m/%d:ro", w.src, k)
			}
			w.record(object{"deviceToAdd": list, "bindToAdd": paths})
			w.start()
			before, host := w.clean(), w.host(true)
			p := w.spawn(run{args: []string{"-state", "prestart"}})
			time.Sleep(rand.N(took))
			_ = p.cmd.Process.Signal(sig)
			res := p.wait()
			if res.code == 0 {
				took = min(res.took, 200*time.Millisecond)
				w.hasText("/m/15/marker", textOfD)
			} else {
				// Before its first instruction the signal ends the process itself; then there is nothing to take back.
				require.True(t, res.signal == 0 || slices.Contains(signals, res.signal), res)
				require.Less(t, res.took, 10*time.Second)
				require.Empty(t, diff(before, w.clean()), "CLEAN: %s", res)
				if res.signal == 0 {
					interrupted++
					w.failed(res, "", 0)
				}
			}
			w.kill()
			require.Zero(t, w.poststop().code)
			require.Empty(t, diff(host, w.host(true)), "HOST after poststop")
		})
	}
	t.Logf("%d runs were interrupted", interrupted)
	require.Positive(t, interrupted, "no signal came in time")
}

// TestStopGoesOn: signals do not keep poststop from cleaning up.
func TestStopGoesOn(t *testing.T) {
	begin(t, true)
	for i := range scaled(20, 200) {
		t.Run(fmt.Sprintf("CON-06/poststop-%d", i), func(t *testing.T) {
			w := newWorld(t, variant{})
			w.record(goodRecord(w))
			w.start()
			host := w.host(true)
			require.Zero(t, w.prestart().code)
			w.kill()
			st := w.state()
			st["pid"] = 0
			p := w.spawn(run{args: []string{"-state", "poststop"}, stdin: asJSON(w, st)})
			time.Sleep(rand.N(10 * time.Millisecond))
			_ = p.cmd.Process.Signal(syscall.SIGTERM)
			if res := p.wait(); res.signal == syscall.SIGTERM {
				require.Zero(t, w.poststop().code) // it came before the first instruction
			} else {
				require.Zero(t, res.code, res)
			}
			require.Empty(t, diff(host, w.host(true)), "HOST")
		})
	}
}

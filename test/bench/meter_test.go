//go:build linux

package bench

import (
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// meter collects the times of the ways that are compared.
type meter struct {
	tb      testing.TB
	check   bool // compare what the ways come to as well
	rounds  int
	samples map[string][]time.Duration
}

func (m *meter) round(f func(*meter)) {
	f(m)
	m.rounds++
}

// time measures call. The garbage of what came before is not its own.
func (m *meter) time(name string, call func() error) {
	m.tb.Helper()
	runtime.GC()
	start := time.Now()
	err := call()
	took := time.Since(start)
	require.NoError(m.tb, err, name)
	if m.samples == nil {
		m.samples = make(map[string][]time.Duration)
	}
	m.samples[name] = append(m.samples[name], took)
}

// inTurn calls all of them, each round in the opposite order of the last: whoever comes second finds warm caches.
func (m *meter) inTurn(calls ...func()) {
	calls = slices.Clone(calls)
	if m.rounds%2 == 1 {
		slices.Reverse(calls)
	}
	for _, call := range calls {
		call()
	}
}

// median of one way, or the sum of several joined by "+".
func (m *meter) median(name string) time.Duration {
	var sum time.Duration
	for part := range strings.SplitSeq(name, "+") {
		sorted := slices.Sorted(slices.Values(m.samples[part]))
		sum += sorted[len(sorted)/2]
	}
	return sum
}

// report prints a ratio as "<way>-ratio" and a time as "<way>-µs".
func (m *meter) report(b *testing.B, base string) {
	b.Helper()
	b.ReportMetric(0, "ns/op") // of a round with all its preparations: it says nothing
	for name := range m.samples {
		took := m.median(name)
		b.ReportMetric(float64(took.Nanoseconds())/1000, name+"-µs")
		if !slices.Contains(strings.Split(base, "+"), name) {
			b.ReportMetric(float64(took)/float64(m.median(base)), name+"-ratio")
		}
	}
}

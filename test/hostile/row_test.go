//go:build linux

package hostile

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// outcome is what a row allows. either stands for rows where both are safe; what was chosen must be the same each time.
type outcome int

const (
	fail outcome = iota
	okIn
	either
)

// row is one line of the corpus, or one case of it; id is "ROW" or "ROW/case".
type row struct {
	id      string
	want    outcome
	host    func(w *world)     // what is on the host before the container starts for the first time
	content func(w *world)     // hostile content, made in the first container before the hook runs
	mounts  func(w *world)     // what each new container of the row does
	record  func(w *world) any // the record; nil: none
	run     func(w *world) run
	name    string // what the reason must name
	within  time.Duration
	maxRSS  int64
	inside  func(w *world)               // extra assertions after success
	after   func(w *world)               // extra assertions in any case
	undo    func(w *world)               // takes a fault away after a prestart that must fail
	allowed func(w *world) []string      // container paths that may change beside those of the record
	not     func(v variant) (why string) // variants in which the content cannot exist
	net     bool                         // the container has a network namespace of its own
	light   bool                         // pure validation, the variants make no difference
}

var rowVariants = []variant{
	{name: "plain"},
	{name: "tmpfs", tmpfs: true},
	{name: "user", user: true},
	{name: "user+tmpfs", user: true, tmpfs: true},
	{name: "twice", twice: true},
	{name: "user+twice", user: true, twice: true},
	{name: "one-cpu", oneCPU: true},
	{name: "few-caps", fewCaps: true},
}

func noTmpfs(v variant) string {
	if v.tmpfs {
		return "its content is where the tmpfs would be"
	}
	return ""
}

// noUserTmpfs is for nodes in /dev: on that tmpfs neither the host nor the container can make one.
func noUserTmpfs(v variant) string {
	if v.user && v.tmpfs {
		return "no device node can be made there"
	}
	return ""
}

func hexOf(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])
}

// runRows runs a table; the cases of one row are subtests of it, their variants subtests of these.
func runRows(t *testing.T, rows []row) {
	t.Helper()
	begin(t, true)
	var order []string
	cases := map[string][]row{}
	for _, r := range rows {
		id, rest, _ := strings.Cut(r.id, "/")
		if cases[id] == nil {
			order = append(order, id)
		}
		r.id = rest
		cases[id] = append(cases[id], r)
	}
	for _, id := range order {
		t.Run(id, func(t *testing.T) {
			for _, r := range cases[id] {
				if r.id == "" {
					r.variants(t)
					continue
				}
				t.Run(r.id, r.variants)
			}
		})
	}
}

func (r row) variants(t *testing.T) {
	for _, v := range rowVariants {
		if r.not != nil && r.not(v) != "" || r.light && (v.tmpfs || v.twice || v.fewCaps) {
			continue
		}
		v.net = r.net
		t.Run(v.name, func(t *testing.T) { r.play(t, v) })
	}
}

// runPlain is for rows in which the kind of container makes no difference.
func runPlain(t *testing.T, rows []row) {
	t.Helper()
	begin(t, true)
	for _, r := range rows {
		t.Run(r.id, func(t *testing.T) { r.play(t, variant{net: r.net}) })
	}
}

func (r row) play(t *testing.T, v variant) {
	w := newWorld(t, v)
	if r.host != nil {
		r.host(w)
	}
	if r.record != nil {
		if rec := r.record(w); rec != nil { // nil: it wrote its own bytes
			w.record(rec)
		}
	}
	w.start()
	if r.content != nil {
		r.content(w)
	}
	succeeded := r.once(w)
	if !v.twice {
		return
	}
	w.stop()
	w.start()
	require.Equal(t, succeeded, r.once(w), "the second start ends otherwise than the first")
}

// once starts and stops one container and asserts everything that holds for all rows.
func (r row) once(w *world) bool {
	w.t.Helper()
	if r.mounts != nil {
		r.mounts(w)
	}
	canary, host, before := w.canary(), w.host(true), w.clean()
	how := run{}
	if r.run != nil {
		how = r.run(w)
	}
	res := w.hook("prestart", how)
	require.Empty(w.t, diff(canary, w.canary()), "CANARY after prestart: %s", res)
	if r.maxRSS > 0 {
		require.Less(w.t, res.rss, r.maxRSS, "peak memory: %s", res)
	}
	failed := r.want == fail || r.want == either && res.code != 0 || w.v.fewCaps && res.code != 0
	switch {
	case failed:
		w.failed(res, r.name, r.within)
		require.Empty(w.t, w.settled(before, w.clean), "CLEAN after a failed prestart: %s", res)
	default:
		require.Zero(w.t, res.code, "prestart: %s", res)
		require.Empty(w.t, res.stderr, "a good run is silent")
		if r.within != 0 {
			require.Less(w.t, res.took, r.within, "too slow: %s", res)
		}
		require.Empty(w.t, w.settled(w.others(host), func() snapshot { return w.host(false) }), "HOST after prestart")
		r.onlyOwnPaths(w, before)
		onlyOwnMounts(w, before)
		if r.inside != nil {
			r.inside(w)
		}
	}
	if r.after != nil {
		r.after(w)
	}
	if r.undo != nil {
		r.undo(w)
		host = w.host(true)
	}
	stop := w.poststop()
	require.Zero(w.t, stop.code, "poststop: %s", stop)
	require.Empty(w.t, diff(canary, w.canary()), "CANARY after poststop")
	w.sameHost(host, "HOST after poststop")
	if failed && r.undo == nil {
		require.Empty(w.t, w.settled(before, w.clean), "CLEAN after poststop")
	}
	return res.code == 0
}

// onlyOwnPaths asserts that nothing changed in the container but what the record asks for and the transfer directory.
func (r row) onlyOwnPaths(w *world, before snapshot) {
	w.t.Helper()
	allowed := []string{"/.sharedpath"}
	if r.record != nil {
		allowed = append(allowed, containerPaths(r.record(w))...)
	}
	if r.allowed != nil {
		allowed = append(allowed, r.allowed(w)...)
	}
	for _, d := range diff(before, w.clean()) {
		_, rest, ok := strings.Cut(d, ": container/")
		if !ok {
			continue
		}
		changed, _, _ := strings.Cut("/"+rest, ": mode ")
		require.True(w.t, covered(changed, allowed), "%s, only %q may change", d, allowed)
	}
}

// onlyOwnMounts asserts that every new mount of the container is below its root. Before pivot_root it also has a copy of
// what the hook mounted on the host.
func onlyOwnMounts(w *world, before snapshot) {
	w.t.Helper()
	for _, m := range w.mounts() {
		_, old := before["container mount "+m.line]
		hosts := (strings.HasPrefix(m.point, "/.sharedpath/") || strings.HasPrefix(m.point, "/run/syscontainer-tools/")) &&
			strings.Contains(m.point, w.id)
		if !old && !hosts && !w.v.pivot {
			require.True(w.t, strings.HasPrefix(m.point, w.rf+"/"), "a mount outside the container's root: %s", m.line)
		}
	}
}

func covered(changed string, allowed []string) bool {
	for _, a := range allowed {
		a = path.Clean(a)
		if changed == a || strings.HasPrefix(changed, a+"/") || strings.HasPrefix(a, changed+"/") {
			return true
		}
	}
	return false
}

func containerPaths(record any) []string {
	o, _ := record.(object)
	var all []string
	if list, ok := o["deviceToAdd"].([]object); ok {
		for _, d := range list {
			if p, ok := d["PathInContainer"].(string); ok {
				all = append(all, p)
			}
		}
	}
	if list, ok := o["bindToAdd"].([]string); ok {
		for _, b := range list {
			if parts := strings.SplitN(b, ":", 3); len(parts) > 1 {
				all = append(all, parts[1])
			}
		}
	}
	return all
}

// hasNode asserts that the container has a usable device node at the path.
func (w *world) hasNode(container string, major, minor, perm uint32) {
	w.t.Helper()
	st, err := w.stat(container)
	require.NoError(w.t, err, container)
	require.EqualValues(w.t, unix.S_IFCHR, st.Mode&unix.S_IFMT, "%s is no character device: mode %o", container, st.Mode)
	require.Equal(w.t, unix.Mkdev(major, minor), st.Rdev, container)
	require.Equal(w.t, perm, st.Mode&0o7777, container)
	require.Equal(w.t, w.rootUID(), st.Uid, container)
	_, err = w.try("open", container)
	require.NoError(w.t, err, "the container cannot open %s", container)
}

func hasZero(container string) func(w *world) {
	return func(w *world) {
		w.t.Helper()
		w.hasNode(container, 1, 5, 0o666)
		require.Contains(w.t, w.permissions(), "c 1:5 rwm")
	}
}

// hasText asserts what a process in the container reads at the path.
func (w *world) hasText(container, text string) {
	w.t.Helper()
	got, err := w.try("read", container)
	require.NoError(w.t, err, container)
	require.Equal(w.t, text, got, container)
}

// seesNoCanary asserts that no mount of the container shows the host directory or the host's root.
func seesNoCanary(w *world) {
	w.t.Helper()
	hd := strings.TrimPrefix(w.hd, base)
	for _, m := range w.mounts() {
		require.False(w.t, m.root == hd || strings.HasPrefix(m.root, hd+"/"), "a mount shows the host: %s", m.line)
		require.False(w.t, m.point == w.hd || strings.HasPrefix(m.point, w.hd+"/"), "a mount on the host directory: %s", m.line)
	}
}

// tracePoints lists where a run that strace(1) has noted can be killed: each call once, from the first that names one of the
// marks to the last; without marks all of them.
func tracePoints(t *testing.T, trace []byte, marks ...string) []point {
	t.Helper()
	seen := map[string]int{}
	var points []point
	first, last := -1, -1
	for line := range bytes.SplitSeq(trace, []byte("\n")) {
		m := tracedCall.FindSubmatch(line)
		if m == nil {
			continue
		}
		key := string(m[1]) + " " + string(m[2])
		seen[key]++
		points = append(points, point{string(m[2]), seen[key]})
		named := func(mark string) bool { return bytes.Contains(line, []byte(mark)) }
		if len(marks) == 0 || slices.ContainsFunc(marks, named) {
			if first < 0 {
				first = len(points) - 1
			}
			last = len(points) - 1
		}
	}
	require.GreaterOrEqual(t, first, 0, "the trace has nothing of it:\n%s", trace)
	var unique []point
	for _, p := range points[first : last+1] {
		if !slices.Contains(unique, p) {
			unique = append(unique, p)
		}
	}
	return unique
}

var tracedCall = regexp.MustCompile(`^(\d+) +(\w+)\(`)

// kill is what starts the hook so that it is killed there.
func (p point) kill() []string {
	return []string{
		"/usr/bin/strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=" + p.call,
		"-e", fmt.Sprintf("inject=%s:signal=KILL:when=%d", p.call, p.n),
	}
}

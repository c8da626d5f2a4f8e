//go:build linux

package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"text/tabwriter"

	"isula.org/syscontainer-hooks/test/harness"
)

const absent = "absent"

// scene is one container, and what is to appear in it.
type scene struct {
	tb    harness.TB
	c     *harness.Container
	share string // host directory of the sources
	rows  []row
}

// row is a line of the table: what is in the record, and of which of its lists, how it looks from inside, and how it should.
type row struct {
	list, record  string
	resource      string
	look          func() string
	want          string
	fits          func(after string) bool // instead of want, for what is measured
	before, after string
}

func (r *row) right() bool {
	if r.fits != nil {
		return r.fits(r.after)
	}
	return r.after == r.want
}

func newScene(tb harness.TB, rt *harness.Runtime, tools harness.Tools) *scene {
	c := harness.New(tb, harness.Config{Runtime: rt, Tools: tools, Stage: "createRuntime"})
	s := &scene{tb: tb, c: c, share: filepath.Join(harness.TempDir(tb), "srv")}
	fmt.Printf("Container %s on %s, hook at createRuntime and poststop.\n\n", c.ID, rt.Name)
	harness.Mkdir(tb, s.share, 0o755, 0)
	for _, dir := range []string{"data", "config"} {
		harness.Mkdir(tb, filepath.Join(s.share, dir), 0o755, 0)
		harness.WriteFile(tb, filepath.Join(s.share, dir, "hello"), "hello from the host", 0)
	}
	if harness.V1Devices() {
		s.rows = append(s.rows, row{
			list: "deviceToAdd", resource: "device /dev/demo",
			record: `{"Type":"c","Minor":5,"Major":1,"PathOnHost":"/dev/zero","PathInContainer":"/dev/demo",` +
				`"CgroupPermissions":"rwm","Parent":""}`,
			look: s.device, want: "c 1:5, reads 00000000",
		})
	} else {
		fmt.Print("No device in this demonstration: here cgroup v2 governs them, which the hook cannot change yet.\n\n")
	}
	s.rows = append(
		s.rows,
		row{
			list: "bindToAdd", resource: "bind /mnt/data rw", record: fmt.Sprintf("%q", s.share+"/data:/mnt/data:rw"),
			look: s.writable, want: "reads the host's file; the host reads the container's",
		},
		row{
			list: "bindToAdd", resource: "bind /mnt/config ro", record: fmt.Sprintf("%q", s.share+"/config:/mnt/config:ro,rslave"),
			look: s.readOnly, want: "reads the host's file; a write is refused",
		},
	)
	s.rows = append(s.rows, s.diskRows()...)
	s.rows = append(s.rows, s.networkRows()...)
	return s
}

// play runs the container without a record and with one, prints the table, and compares the host with how it was.
func (s *scene) play() {
	before := s.c.Left()
	s.c.Start()
	for i := range s.rows {
		s.rows[i].before = s.rows[i].look()
	}
	s.c.WriteRecord(s.record())
	s.c.Restart()
	for i := range s.rows {
		s.rows[i].after = s.rows[i].look()
	}
	s.c.Stop()
	s.print()
	if left := s.c.Left(); reflect.DeepEqual(before, left) {
		fmt.Println("\nContainer stopped: no mount, node, directory, cgroup or interface of it is left on the host.")
	} else {
		s.tb.Errorf("left on the host after the stop:\nbefore %+v\nafter  %+v", before, left)
	}
}

func (s *scene) record() string {
	lists := map[string][]json.RawMessage{}
	for _, r := range s.rows {
		lists[r.list] = append(lists[r.list], json.RawMessage(r.record))
	}
	text, err := json.Marshal(lists)
	harness.Fatal(s.tb, err, "record")
	return string(text)
}

func (s *scene) print() {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 3, ' ', 0)
	fmt.Fprintln(w, "IN THE RECORD\tBEFORE, WITHOUT IT\tAFTER THE RESTART\t")
	for _, r := range s.rows {
		verdict := "ok"
		if r.before != absent || !r.right() {
			verdict = "WRONG"
			s.tb.Errorf("%s: expected %q and then %s", r.resource, absent, cmp.Or(r.want, "what is in the record"))
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", r.resource, r.before, r.after, verdict)
	}
	harness.Fatal(s.tb, w.Flush(), "print the table")
}

func (s *scene) device() string {
	st := s.c.TryExec("stat", "/dev/demo")
	if st.Code != 0 {
		return missing(st)
	}
	f := strings.Fields(st.Stdout)
	return fmt.Sprintf("%s %s, reads %s", f[0], f[1], text(s.c.TryExec("read", "/dev/demo", "4")))
}

func (s *scene) writable() string {
	got := s.c.TryExec("read", "/mnt/data/hello")
	if got.Code != 0 {
		return missing(got)
	}
	if r := s.c.TryExec("write", "/mnt/data/answer", "from the container"); r.Code != 0 {
		return text(r)
	}
	answer, err := os.ReadFile(filepath.Join(s.share, "data", "answer"))
	if err != nil || got.Stdout != "hello from the host" || string(answer) != "from the container" {
		return fmt.Sprintf("reads %q, host reads %q (%v)", got.Stdout, answer, err)
	}
	return "reads the host's file; the host reads the container's"
}

func (s *scene) readOnly() string {
	got := s.c.TryExec("read", "/mnt/config/hello")
	if got.Code != 0 {
		return missing(got)
	}
	if r := s.c.TryExec("write", "/mnt/config/answer", "x"); !strings.Contains(r.Stderr, "read-only file system") {
		return fmt.Sprintf("write: exit status %d, %s", r.Code, text(r))
	}
	return "reads the host's file; a write is refused"
}

// missing tells what is not there from what does not work.
func missing(r harness.Result) string {
	if strings.Contains(r.Stderr, "no such file") {
		return absent
	}
	return text(r)
}

func text(r harness.Result) string { return strings.TrimSpace(r.Stdout + r.Stderr) }

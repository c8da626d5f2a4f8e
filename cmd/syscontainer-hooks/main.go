//go:build linux

// Syscontainer-hooks is an OCI hook. At prestart it gives a system container back what was added to it while it ran before:
// devices and I/O limits, shared host paths, network interfaces and routes. At poststop it removes what the container leaves on
// the host.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync"
	"time"
	"unicode"

	"golang.org/x/sys/unix"

	"isula.org/syscontainer-hooks/internal/mountns"
)

// Exit statuses, as the manual page lists them.
const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2
)

// poststop is the stage that cleans up: it goes on whatever fails, and is never an error.
const poststop = "poststop"

const (
	// defaultTimeout leaves a failing prestart time to take everything back before lcr kills it after 30 seconds.
	defaultTimeout = 20 * time.Second
	maxTimeout     = 24 * time.Hour
	undoTimeout    = 5 * time.Second
)

// maxMessage is how long the line on standard error may be: some runtimes read the pipe only after we have ended.
const maxMessage = 2000

// version is set by the linker.
var version = "unknown"

// options is the command line.
type options struct {
	stage     string
	logFile   string
	recordDir string
	timeout   time.Duration
	relabel   bool
	version   bool
}

func main() {
	os.Exit((&program{}).run(os.Args, os.Stdin, os.Stdout, os.Stderr))
}

// run is the program. It keeps to the contract of the command line: 2 for wrong usage, 1 for a prestart that failed and took
// everything back, 0 for a poststop whatever happened.
func (p *program) run(args []string, stdin *os.File, stdout, stderr io.Writer) int {
	opts, err := parseArgs(args, stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return exitOK
	case err != nil:
		return exitUsage
	case opts.version:
		fmt.Fprintln(stdout, "syscontainer-hooks", version)
		return exitOK
	case opts.stage == "poststart":
		return exitOK
	case opts.relabel && opts.stage != poststop: // the end of a container is not the time to object
		fmt.Fprintln(stderr, "syscontainer-hooks: -with-relabel is not available yet")
		return exitUsage
	}
	p.options = opts
	stage, failure := p.prestart, exitFailed
	if opts.stage == poststop {
		ignoreSignals()
		stage, failure = p.poststop, exitOK
	}
	if err := settle(); err != nil {
		fmt.Fprintln(stderr, "syscontainer-hooks:", err)
		return failure
	}
	fail := func(err error) {
		fmt.Fprintln(stderr, oneLine("syscontainer-hooks: "+p.describe(err)))
		p.log().Error(err)
	}
	p.context = newContext(opts.timeout)
	// Even taking back can hang, in a system call on a dead file server. What is left then is in the journal.
	var outcome sync.Once
	giveUp := func() {
		time.Sleep(undoTimeout + time.Second)
		outcome.Do(func() {
			fmt.Fprintln(stderr, "syscontainer-hooks: given up:", context.Cause(p.context))
			os.Exit(failure)
		})
	}
	defer context.AfterFunc(p.context.Context, giveUp)()
	err = protect(func() error { return stage(p.context, stdin) })
	status := exitOK
	outcome.Do(func() {
		if err != nil {
			fail(err)
			status = failure
		}
	})
	return status
}

// settle makes the process independent of what the runtime, and through it the container's image, may have handed it.
func settle() error {
	os.Clearenv()
	time.Local = time.UTC // and never the file that TZ names
	unix.Umask(0)         // every mode here is meant as it is
	signal.Ignore(unix.SIGPIPE)
	if err := os.Chdir("/"); err != nil {
		return fmt.Errorf("change to /: %w", err)
	}
	mountns.Settle()
	// What the runtime has left open is no business of a program that is run later. Linux 5.11; an older one has to do without.
	_ = unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC)
	return nil
}

// protect turns a panic into an error: the contract of the exit status holds for our own mistakes too.
func protect(f func() error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("panic: %v\n%s", r, debug.Stack())
		}
	}()
	return f()
}

func parseArgs(args []string, stderr io.Writer) (options, error) {
	var opts options
	flags := flag.NewFlagSet("syscontainer-hooks", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.StringVar(&opts.logFile, "log", "", "set output log `file` instead of syslog")
	flags.Func("state", "set hook `stage`: prestart, createRuntime, poststart or poststop", func(stage string) error {
		if opts.stage != "" {
			return errors.New("given twice")
		}
		opts.stage = stage
		return nil
	})
	flags.StringVar(&opts.recordDir, "record-dir", "", "`directory` of device_hook.json (default: the bundle)")
	flags.DurationVar(&opts.timeout, "timeout", defaultTimeout, "time for the whole run, without taking back")
	flags.BoolVar(&opts.relabel, "with-relabel", false, "enable oci relabel hook function (not available yet)")
	flags.BoolVar(&opts.version, "version", false, "print the version and exit")
	if len(args) > 0 {
		args = args[1:]
	}
	if err := flags.Parse(args); err != nil {
		return opts, err
	}
	if err := opts.check(flags.Args()); err != nil {
		fmt.Fprintln(stderr, "syscontainer-hooks:", err)
		flags.Usage()
		return opts, err
	}
	return opts, nil
}

// check also makes the log's path absolute: the process is about to leave its working directory.
func (o *options) check(operands []string) (err error) {
	if o.version {
		return nil
	}
	switch o.stage {
	case "prestart", "createRuntime", "poststart", poststop:
	default:
		return fmt.Errorf("-state %.40q: want prestart, createRuntime, poststart or poststop", o.stage)
	}
	if len(operands) > 0 {
		return fmt.Errorf("stray operand %.40q", operands[0])
	}
	if o.timeout <= 0 || o.timeout > maxTimeout {
		return fmt.Errorf("-timeout %s: want more than nothing, and at most %s", o.timeout, maxTimeout)
	}
	if o.recordDir != "" && !filepath.IsAbs(o.recordDir) {
		return fmt.Errorf("-record-dir %.200q: want an absolute path, each runtime has another working directory", o.recordDir)
	}
	if o.logFile != "" {
		o.logFile, err = filepath.Abs(o.logFile)
	}
	return err
}

// oneLine keeps a message to a line of a bearable length. Its first line says what happened; the log has the rest.
func oneLine(message string) string {
	message, _, _ = strings.Cut(message, "\ngoroutine ")
	message = strings.ReplaceAll(message, "\n", "; ")
	message = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return -1
		}
		return r
	}, message)
	if len(message) > maxMessage {
		message = strings.ToValidUTF8(message[:maxMessage], "") + "…"
	}
	return message
}

// describe is the line for standard error: the container, the step with its resource, and the reason.
func (p *program) describe(err error) string {
	if p.state == nil {
		return fmt.Sprintf("%s: %v", p.options.stage, err)
	}
	return fmt.Sprintf("container %s: %s: %v", p.state.ID, p.options.stage, err)
}

//go:build linux

package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"
)

// log gives the log. Most runs have nothing to say, and do not pay for it.
func (p *program) log() *logrus.Entry {
	if p.logger == nil {
		p.logger = newLog(p.options)
	}
	if p.state == nil {
		return p.logger
	}
	return p.logger.WithField("container", p.state.ID)
}

// newLog writes to the file of the options, or to syslog. Work goes on without a log that cannot be opened, as without a syslog
// daemon; syslog is told then.
func newLog(opts options) *logrus.Entry {
	logger := logrus.New()
	log := logger.WithField("stage", opts.stage)
	if opts.logFile != "" {
		f, err := openLog(opts.logFile)
		if err == nil {
			logger.Out = bestEffort{f}
			logger.Formatter = &logrus.TextFormatter{DisableColors: true, FullTimestamp: true}
			return log
		}
		defer func() { log.Error("open log: ", err) }()
	}
	logger.Out = io.Discard
	logger.AddHook(&syslogHook{formatter: &logrus.TextFormatter{DisableTimestamp: true, DisableColors: true}})
	return log
}

func openLog(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is no regular file", path)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// bestEffort drops what cannot be written: a full disk must not make logrus write to standard error, where the runtime expects
// one line.
type bestEffort struct{ f *os.File }

func (b bestEffort) Write(line []byte) (int, error) {
	_, _ = b.f.Write(line)
	return len(line), nil
}

// syslogTag is the tag that users of the log filter for.
const syslogTag = "hook "

// syslogHook sends lines to the host's syslog, syslog(3). It connects with the first line, since most runs have nothing to say,
// and never waits: a host without a syslog daemon, and one whose daemon does not read, lose them. Package log/syslog would wait.
type syslogHook struct {
	formatter logrus.Formatter
	socket    int // 0 before the first line, -1 without a daemon
}

func (h *syslogHook) Levels() []logrus.Level { return logrus.AllLevels }

func (h *syslogHook) Fire(entry *logrus.Entry) error {
	if h.socket == 0 {
		h.socket = connectSyslog()
	}
	if h.socket < 0 {
		return nil
	}
	line, err := h.formatter.Format(entry)
	if err != nil {
		return err
	}
	const daemon = 3 << 3
	severity := 6 // info
	switch {
	case entry.Level <= logrus.ErrorLevel:
		severity = 3
	case entry.Level == logrus.WarnLevel:
		severity = 4
	}
	message := fmt.Sprintf("<%d>%s %s[%d]: %s", daemon|severity, time.Now().Format(time.Stamp), syslogTag, os.Getpid(),
		strings.TrimSuffix(string(line), "\n"))
	_ = unix.Send(h.socket, []byte(message), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
	return nil
}

func connectSyslog() int {
	socket, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1
	}
	for _, path := range []string{"/dev/log", "/var/run/syslog", "/var/run/log"} {
		if unix.Connect(socket, &unix.SockaddrUnix{Name: path}) == nil {
			return socket
		}
	}
	unix.Close(socket)
	return -1
}

//go:build linux

package main

import (
	"fmt"
	"io"
	"log/syslog"
	"os"
	"strings"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"
)

// newLogger writes to file, or to syslog when file is "".
func newLogger(file string) (*logrus.Logger, error) {
	logger := logrus.New()
	if file == "" {
		logger.Out = io.Discard
		logger.AddHook(&syslogHook{formatter: &logrus.TextFormatter{DisableTimestamp: true, DisableColors: true}})
		return logger, nil
	}
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_APPEND|os.O_CREATE|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is no regular file", file)
	}
	logger.Out = bestEffort{f}
	logger.Formatter = &logrus.TextFormatter{DisableColors: true, FullTimestamp: true}
	return logger, nil
}

// bestEffort drops what cannot be written: a full disk must not make logrus write to standard error, where the runtime expects
// one line.
type bestEffort struct{ f *os.File }

func (b bestEffort) Write(line []byte) (int, error) {
	_, _ = b.f.Write(line)
	return len(line), nil
}

// syslogHook sends lines to the host's syslog with the tag that its users filter for. It connects with the first line, since
// most runs have nothing to say; a host without a syslog daemon loses them.
type syslogHook struct {
	formatter logrus.Formatter
	writer    *syslog.Writer
	failed    bool
}

func (h *syslogHook) Levels() []logrus.Level { return logrus.AllLevels }

func (h *syslogHook) Fire(entry *logrus.Entry) error {
	if h.writer == nil && !h.failed {
		var err error
		h.writer, err = syslog.New(syslog.LOG_DAEMON|syslog.LOG_INFO, "hook ")
		h.failed = err != nil
	}
	if h.failed {
		return nil
	}
	line, err := h.formatter.Format(entry)
	if err != nil {
		return err
	}
	text := strings.TrimSuffix(string(line), "\n")
	switch {
	case entry.Level <= logrus.ErrorLevel:
		return h.writer.Err(text)
	case entry.Level == logrus.WarnLevel:
		return h.writer.Warning(text)
	default:
		return h.writer.Info(text)
	}
}

//go:build linux

// Package journal keeps what a run of the hook is about to change, so that the next run for the same container can take it
// back when this one is killed. A container's journal is one file of JSON lines, and its lock as well: whoever has it open
// is the only run for that container.
//
// It lives below /run and is never synced: it has to outlive the process, not the host, whose mounts are gone with it.
package journal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"isula.org/syscontainer-hooks/internal/atomicfile"
	"isula.org/syscontainer-hooks/internal/strictjson"
)

// maxSize bounds what is read back: 128 binds and 4096 devices with paths of an ordinary length are far below.
const maxSize = 64 << 20

// Journal is the open and locked journal of one container. E is the type of its entries.
type Journal[E any] struct {
	dir     *os.File
	file    *os.File
	name    string
	Entries []E // in the order written
}

// Open makes dir and its parent if need be, waits for the lock of the container's journal until ctx is done, and reads it.
func Open[E any](ctx context.Context, dir, id string) (*Journal[E], error) {
	d, err := atomicfile.MakeDir(dir)
	if err != nil {
		return nil, err
	}
	f, err := atomicfile.Lock(ctx, d, id)
	if err != nil {
		d.Close()
		return nil, err
	}
	j := &Journal[E]{dir: d, file: f, name: id}
	if err := j.read(); err != nil {
		j.Close()
		return nil, fmt.Errorf("read journal %s: %w", f.Name(), err)
	}
	return j, nil
}

// read takes the lines that are whole. A run that was killed, or whose disk was full, may have left the last one torn; what
// that line says has not begun.
func (j *Journal[E]) read() error {
	data, err := io.ReadAll(io.LimitReader(j.file, maxSize+1))
	if err != nil {
		return err
	}
	if len(data) > maxSize {
		return fmt.Errorf("more than %d bytes", maxSize)
	}
	whole := data[:bytes.LastIndexByte(data, '\n')+1]
	for line := range bytes.Lines(whole) {
		var entry E
		if strictjson.Unmarshal(line, &entry) == nil { // a damaged line must not keep the others from being taken back
			j.Entries = append(j.Entries, entry)
		}
	}
	if len(whole) < len(data) {
		return j.file.Truncate(int64(len(whole)))
	}
	return nil
}

// Append writes an entry down. It returns before what the entry announces may begin.
func (j *Journal[E]) Append(entry E) error {
	line, err := strictjson.Marshal(entry)
	if err == nil {
		_, err = j.file.Write(append(line, '\n'))
	}
	if err != nil {
		return fmt.Errorf("write journal %s: %w", j.file.Name(), err)
	}
	j.Entries = append(j.Entries, entry)
	return nil
}

// Clear drops all entries.
func (j *Journal[E]) Clear() error {
	j.Entries = nil
	return j.file.Truncate(0)
}

// Close gives the lock up.
func (j *Journal[E]) Close() error { return errors.Join(j.file.Close(), j.dir.Close()) }

// Remove removes the journal; its lock is held until Close. A run that waits for the lock sees that and makes a new one.
func (j *Journal[E]) Remove() error {
	err := os.Remove(filepath.Join(j.dir.Name(), j.name))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

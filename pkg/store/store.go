//go:build linux

package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"isula.org/syscontainer-hooks/internal/atomicfile"
)

// Names of a record and of its lock in a container's directory, <graph root>/engines/<runtime>/<container id>.
const (
	FileName = "device_hook.json"
	LockName = ".device_hook.lock"
)

// Store is the directory that holds a container's record.
type Store struct{ dir *os.File }

// Open opens the directory. It has to belong to this process's user and nobody else may write it.
func Open(path string) (*Store, error) {
	dir, err := atomicfile.OpenDir(path)
	if err != nil {
		return nil, fmt.Errorf("open record directory: %w", err)
	}
	return &Store{dir}, nil
}

// Close closes the directory.
func (s *Store) Close() error { return s.dir.Close() }

// Path is where the record is, for messages.
func (s *Store) Path() string { return filepath.Join(s.dir.Name(), FileName) }

// Load reads and validates the record. Where nothing was ever added there is none: fs.ErrNotExist. A reader needs no lock, as
// the file is only ever replaced as a whole.
func (s *Store) Load() (*Record, error) {
	data, err := atomicfile.Read(s.dir, FileName, maxSize)
	if err != nil {
		return nil, fmt.Errorf("read record: %w", err)
	}
	record, err := Parse(data)
	if err != nil {
		return nil, fmt.Errorf("record %s: %w", s.Path(), err)
	}
	return record, nil
}

// Update changes the record under its lock, which syscontainer-tools takes as well, and for which it waits until ctx is done.
// change gets the record as it is then, an empty one if there is none; an error of it leaves the file alone. The new record
// is validated and on disk when Update returns; after a failure or a crash the old one is there, whole.
func (s *Store) Update(ctx context.Context, change func(*Record) error) error {
	lock, err := atomicfile.Lock(ctx, s.dir, LockName)
	if err != nil {
		return fmt.Errorf("lock record: %w", err)
	}
	defer lock.Close()
	record, err := s.Load()
	if errors.Is(err, fs.ErrNotExist) {
		record, err = &Record{}, nil
	}
	if err == nil {
		err = change(record)
	}
	if err == nil {
		err = record.Validate()
	}
	if err != nil {
		return err
	}
	data, err := record.Marshal()
	if err != nil {
		return fmt.Errorf("encode record: %w", err)
	}
	if err := atomicfile.Replace(s.dir, FileName, data, 0o600); err != nil {
		return fmt.Errorf("save record: %w", err)
	}
	return nil
}

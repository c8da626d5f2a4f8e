//go:build linux

package main

import (
	"fmt"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

const directUsage = ` | direct read|write PATH BLOCKSIZE COUNT`

// direct reads or writes blocks one after the other, past the page cache, and prints how many microseconds that took. The clock
// starts after a quarter of them: a limit lets the first tenth of a second's worth pass at once.
func direct(how, path, size, count string) error {
	blockSize, err := strconv.Atoi(size)
	if err != nil {
		return err
	}
	n, err := strconv.Atoi(count)
	if err != nil {
		return err
	}
	flags, do := os.O_RDONLY, unix.Pread
	switch how {
	case "read":
	case "write":
		flags, do = os.O_WRONLY, unix.Pwrite
	default:
		return errUsage
	}
	f, err := os.OpenFile(path, flags|unix.O_DIRECT, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	block, err := unix.Mmap(-1, 0, blockSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS) // aligned
	if err != nil {
		return fmt.Errorf("mmap: %w", err)
	}
	var begin time.Time
	for i := range n {
		if i == n/4 {
			begin = time.Now()
		}
		got, err := do(int(f.Fd()), block, int64(i*blockSize))
		if err != nil || got != blockSize {
			return fmt.Errorf("%s block %d of %s: %d bytes: %w", how, i, path, got, err)
		}
	}
	fmt.Println(time.Since(begin).Microseconds())
	return nil
}

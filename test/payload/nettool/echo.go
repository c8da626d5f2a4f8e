//go:build linux

package nettool

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// echoLimit bounds a conversation, and the wait for a server that is about to listen.
const echoLimit = 10 * time.Second

// Serve sends back what it gets, until the listener is closed.
func Serve(listener net.Listener) {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		go func() {
			defer conn.Close()
			_, _ = io.Copy(conn, conn) // the client sees what is missing
		}()
	}
}

// Echo sends so many bytes to a server and looks whether the same come back.
func Echo(address string, size int) error {
	conn, err := dial(address)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(echoLimit)); err != nil {
		return err
	}
	sent := message(size)
	result := make(chan error, 1)
	go func() {
		_, err := conn.Write(sent)
		result <- errors.Join(err, conn.CloseWrite())
	}()
	got, err := io.ReadAll(conn)
	if err = errors.Join(<-result, err); err != nil {
		return fmt.Errorf("echo of %s: %w", address, err)
	}
	if !bytes.Equal(sent, got) {
		return fmt.Errorf("echo of %s: sent %d bytes and got %d, or others", address, len(sent), len(got))
	}
	return nil
}

// dial tries again while nobody listens: a container's init is still on its way to that.
func dial(address string) (*net.TCPConn, error) {
	end := time.Now().Add(echoLimit)
	for {
		conn, err := net.DialTimeout("tcp", address, echoLimit)
		if err == nil {
			return conn.(*net.TCPConn), nil
		}
		if !errors.Is(err, unix.ECONNREFUSED) || time.Now().After(end) {
			return nil, err
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// message is of bytes that differ all along, so that lost and swapped segments are seen.
func message(size int) []byte {
	text := make([]byte, 0, size+sha256.Size)
	for sum := sha256.Sum256(nil); len(text) < size; sum = sha256.Sum256(sum[:]) {
		text = append(text, sum[:]...)
	}
	return text[:size]
}

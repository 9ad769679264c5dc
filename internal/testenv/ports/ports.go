// Package ports gives tests TCP ports of loopback that stay theirs while nobody listens:
// for a program that is told where to listen, and for a server that is stopped and
// comes back at its address.
//
// A port of which the kernel chose the number, as for "127.0.0.1:0", does not: once it
// is closed, the next connection or listener of any process may be given it. Who closes
// it for good, or never, needs nothing of this package.
package ports

import (
	"errors"
	"fmt"
	"net"
	"sync"
	"syscall"
)

// The ports lie below those that the kernel gives away by itself (on Linux from 32768,
// on others from 49152), and are had in blocks. Whoever holds the UDP port of a block's
// first number has the block; the kernel takes it back when the process ends.
const (
	first     = 20000
	blockSize = 50
	blocks    = 240
)

// taken are the blocks of this process, and how many ports it gave away.
var taken struct {
	sync.Mutex
	blocks []int // their first ports
	held   []net.PacketConn
	given  int
}

// Free gives an address, 127.0.0.1 and a port, at which nothing listens and that no
// other process is given by this package before this one ends. When there are no blocks
// left, ports that this process gave away long ago are given again. An error says that
// not one is free.
func Free() (string, error) {
	taken.Lock()
	defer taken.Unlock()
	for range blocks * blockSize {
		n, err := next()
		if err != nil {
			return "", err
		}
		if free(n) { // and not of somebody who does not ask here
			return fmt.Sprintf("127.0.0.1:%d", n), nil
		}
	}
	return "", errors.New("ports: none is free")
}

// free tells whether one could listen at a port. No child begins meanwhile: it would have
// the socket until it is a program of its own, and whoever asked could not listen.
func free(n int) bool {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	if err != nil {
		return false
	}
	defer syscall.Close(fd)
	return syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1) == nil &&
		syscall.Bind(fd, &syscall.SockaddrInet4{Port: n, Addr: [4]byte{127, 0, 0, 1}}) == nil && syscall.Listen(fd, 1) == nil
}

// next counts through the ports of the blocks, and takes another block when all were
// given away. It is called under the lock.
func next() (int, error) {
	if taken.given == len(taken.blocks)*blockSize {
		if err := take(); err != nil && len(taken.blocks) == 0 {
			return 0, err
		}
	}
	i := taken.given % (len(taken.blocks) * blockSize)
	taken.given++
	return taken.blocks[i/blockSize] + i%blockSize, nil
}

// take adds the first block that nobody has.
func take() error {
	for n := first; n < first+blocks*blockSize; n += blockSize {
		held, err := net.ListenPacket("udp", fmt.Sprintf("127.0.0.1:%d", n))
		if errors.Is(err, syscall.EADDRINUSE) {
			continue
		}
		if err != nil {
			return fmt.Errorf("ports: %w", err)
		}
		taken.blocks, taken.held = append(taken.blocks, n), append(taken.held, held)
		return nil
	}
	return errors.New("ports: other processes have all blocks")
}

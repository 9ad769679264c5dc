package control

import (
	"errors"
	"io"
	"sync"

	"github.com/klauspost/compress/zstd"
	"google.golang.org/protobuf/proto"

	"chandler.dev/chandler"
	chandlerv1 "chandler.dev/chandler/api/chandler/v1"
	"chandler.dev/chandler/internal/store"
)

const (
	// blockSize is what is compressed by itself, so that a read can begin at each.
	blockSize = 256 << 10
	// maxEncoded bounds what is kept of all modules together, in bytes.
	maxEncoded = 32 << 20
)

// encodings keeps modules as they are sent to those who read zstd: each is
// compressed once, whoever asks for it, and the very bytes are on their way to all
// of them. Where there is no room the rest of a module is sent as it is.
type encodings struct {
	most int64
	busy sync.Mutex // one module is compressed at a time

	mu    sync.Mutex
	all   map[chandler.ModuleDigest]*encoding
	held  int64
	count uint64 // of uses, which orders them
}

// encoding is one module.
type encoding struct {
	digest chandler.ModuleDigest
	ready  chan struct{} // closed when blocks stand
	// blocks are whole messages, one for each blockSize bytes, from the first on.
	blocks [][]byte
	size   int64

	users int    // guarded by encodings.mu
	used  uint64 // likewise
}

func newEncodings(most int64) *encodings {
	return &encodings{most: most, all: map[chandler.ModuleDigest]*encoding{}}
}

// of gives a module's encoding, which may not be ready yet, until done is called.
func (e *encodings) of(lease *store.Lease) *encoding {
	e.mu.Lock()
	one, known := e.all[lease.Digest()]
	if !known {
		one = &encoding{digest: lease.Digest(), ready: make(chan struct{})}
		e.all[one.digest] = one
	}
	e.count++
	one.users, one.used = one.users+1, e.count
	e.mu.Unlock()
	if !known {
		e.encode(one, lease)
		close(one.ready)
	}
	return one
}

// done tells that somebody needs an encoding no longer. One without a block, for
// want of room or because the module could not be read, is tried anew.
func (e *encodings) done(one *encoding) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if one.users--; one.users == 0 && one.size == 0 {
		delete(e.all, one.digest)
	}
}

// at gives the message for what begins at an offset; nil: there is none.
func (one *encoding) at(offset uint64) []byte {
	if i := offset / blockSize; one != nil && offset%blockSize == 0 && i < uint64(len(one.blocks)) {
		return one.blocks[i]
	}
	return nil
}

// encode compresses a module, as far as there is room.
func (e *encodings) encode(one *encoding, lease *store.Lease) {
	e.busy.Lock()
	defer e.busy.Unlock()
	e.makeRoom(lease.Size())
	f, err := lease.Open()
	if err != nil {
		return // whoever sends it as it is finds out and says so
	}
	defer f.Close()
	// The agent holds all of it against the digest: no further sum is needed.
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(blockSize), zstd.WithEncoderCRC(false))
	if err != nil {
		return
	}
	defer enc.Close()
	buf, frame := make([]byte, blockSize), []byte(nil)
	for {
		n, err := io.ReadFull(f, buf)
		if n == 0 || err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
			return
		}
		frame = enc.EncodeAll(buf[:n], frame[:0])
		m := &chandlerv1.ReadResponse{Zstd: frame}
		if len(frame) >= n {
			m = &chandlerv1.ReadResponse{Chunk: buf[:n]}
		}
		block, err := proto.Marshal(m)
		if err != nil || !e.hold(one, block) {
			return
		}
	}
}

// hold keeps a block, if there is room.
func (e *encodings) hold(one *encoding, block []byte) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	n := int64(len(block))
	if e.held+n > e.most {
		return false
	}
	e.held += n
	one.size += n
	one.blocks = append(one.blocks, block)
	return true
}

// makeRoom drops what was used longest ago and is not in use, until n bytes fit.
func (e *encodings) makeRoom(n int64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for e.held > 0 && e.held+n > e.most {
		var oldest *encoding
		for _, one := range e.all {
			if one.users == 0 && (oldest == nil || one.used < oldest.used) {
				oldest = one
			}
		}
		if oldest == nil {
			return
		}
		delete(e.all, oldest.digest)
		e.held -= oldest.size
	}
}

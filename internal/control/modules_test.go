package control

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"github.com/klauspost/compress/zstd"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"chandler.dev/chandler"
	chandlerv1 "chandler.dev/chandler/api/chandler/v1"
	"chandler.dev/chandler/internal/store"
	"chandler.dev/chandler/internal/xds/quiet"
)

// giver is as much of a control plane as gives modules.
func giver(t *testing.T, reads int, room int64) *Control {
	t.Helper()
	s, err := store.Open(store.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return &Control{
		cfg: Config{Store: s}, log: slog.New(slog.DiscardHandler), turns: &turns{free: reads}, encodings: newEncodings(room),
		metrics: &metrics{sent: prometheus.NewCounter(prometheus.CounterOpts{Name: "sent"})},
	}
}

// ingest puts as many bytes into the store, which compress to about a third.
func ingest(t *testing.T, c *Control, seed uint64, size int) ([]byte, chandler.ModuleDigest) {
	t.Helper()
	random := rand.New(rand.NewPCG(seed, 1))
	content := make([]byte, size)
	for i := range content {
		content[i] = byte(random.UintN(6))
	}
	d, _, err := c.cfg.Store.Ingest(bytes.NewReader(content), "")
	if err != nil {
		t.Fatal(err)
	}
	return content, d
}

// taker is the stream of an agent, which takes a message whenever take lets it.
type taker struct {
	grpc.ServerStream
	ctx  context.Context
	take func(ctx context.Context, m any) error
}

func (s *taker) Context() context.Context            { return s.ctx }
func (s *taker) SendMsg(m any) error                 { return s.take(s.ctx, m) }
func (s *taker) Send(*chandlerv1.ReadResponse) error { return errors.New("not used") }

// response decodes what was sent.
func response(t *testing.T, m any) *chandlerv1.ReadResponse {
	parts, ok := m.(quiet.Parts)
	if !ok {
		return m.(*chandlerv1.ReadResponse)
	}
	var r chandlerv1.ReadResponse
	if err := proto.Unmarshal(bytes.Join(parts, nil), &r); err != nil {
		t.Error(err)
	}
	return &r
}

// A thousand agents ask for one module at once. What is held for them is the module,
// compressed, once, and not a thousand times; each gets the whole of it.
func TestAThousandReadsOfOneModule(t *testing.T) {
	c := giver(t, maxReads, maxEncoded)
	content, digest := ingest(t, c, 1, 2_600_000)
	const agents = 1000
	var held, waiting runtime.MemStats
	underWay, hold := make(chan struct{}, agents), make(chan struct{})
	// next is the block that an agent is to get, the very one that all get.
	take := func(next *int) func(context.Context, any) error {
		return func(_ context.Context, m any) error {
			parts := m.(quiet.Parts)
			if len(parts) == 0 {
				return nil // it waits
			}
			if *next == 0 {
				underWay <- struct{}{}
				<-hold
			}
			if want := c.encodings.all[digest].blocks[*next]; unsafe.SliceData(parts[0]) != unsafe.SliceData(want) {
				t.Errorf("block %d was made for one agent", *next)
			}
			*next++
			return nil
		}
	}
	runtime.GC()
	runtime.ReadMemStats(&held)
	var all sync.WaitGroup
	got := make([]int, agents) // blocks
	for i := range agents {
		all.Go(func() {
			if err := c.send(&taker{ctx: t.Context(), take: take(&got[i])}, digest, &chandlerv1.ReadRequest{Zstd: true}); err != nil {
				t.Error(err)
			}
		})
	}
	for range maxReads {
		<-underWay
	}
	for c.turns.length() < agents-maxReads {
		time.Sleep(time.Millisecond)
	}
	runtime.GC()
	runtime.ReadMemStats(&waiting)
	if more := int64(waiting.HeapAlloc+waiting.StackInuse) - int64(held.HeapAlloc+held.StackInuse); more > 16<<20 {
		t.Errorf("%d bytes are held for %d agents", more, agents)
	} else {
		t.Logf("%d bytes are held for %d agents, %d of them the module's", more, agents, c.encodings.held)
	}
	close(hold)
	all.Wait()
	blocks := c.encodings.all[digest].blocks
	var decoded []byte
	for _, m := range blocks {
		decoded = append(decoded, unzstd(t, response(t, quiet.Parts{m}).GetZstd())...)
	}
	for i, n := range got {
		if n != len(blocks) {
			t.Errorf("agent %d got %d blocks of %d", i, n, len(blocks))
		}
	}
	if !bytes.Equal(decoded, content) {
		t.Error("what came is not the module")
	}
	if c.turns.free != maxReads || c.turns.length() != 0 || c.encodings.all[digest].users != 0 {
		t.Errorf("left: %d free, %d waiting, %d users", c.turns.free, c.turns.length(), c.encodings.all[digest].users)
	}
}

func unzstd(t *testing.T, frame []byte) []byte {
	t.Helper()
	d, err := zstd.NewReader(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	plain, err := d.DecodeAll(frame, nil)
	if err != nil {
		t.Fatal(err)
	}
	return plain
}

// One who reads a large module gives way after each turn to who came meanwhile.
func TestReadsTakeTurns(t *testing.T) {
	t.Parallel()
	c := giver(t, 1, maxEncoded)
	_, large := ingest(t, c, 1, 8*turnSize)
	_, small := ingest(t, c, 2, 1000)
	var before atomic.Int64 // of the large one, when the small one was through
	var sent atomic.Int64
	asked, through := make(chan struct{}), make(chan struct{})
	var once sync.Once
	done := make(chan error, 2)
	go func() {
		done <- c.send(&taker{ctx: t.Context(), take: func(_ context.Context, m any) error {
			once.Do(func() { close(asked) })
			for sent.Load() == 0 && c.turns.length() == 0 { // until the small one waits
				time.Sleep(time.Millisecond)
			}
			sent.Add(int64(len(response(t, m).GetChunk()))) // none: it is told to wait
			return nil
		}}, large, &chandlerv1.ReadRequest{})
	}()
	<-asked
	go func() {
		done <- c.send(&taker{ctx: t.Context(), take: func(_ context.Context, m any) error {
			if len(response(t, m).GetChunk()) > 0 {
				before.Store(sent.Load())
				close(through)
			}
			return nil
		}}, small, &chandlerv1.ReadRequest{})
	}()
	<-through
	for range 2 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if before.Load() != turnSize || sent.Load() != 8*turnSize {
		t.Errorf("the small one came after %d bytes of %d", before.Load(), sent.Load())
	}
}

// Who waits is told so and keeps its place; who takes nothing is ended, and who gives
// up leaves no place behind.
func TestReadsThatWait(t *testing.T) {
	c := giver(t, 1, maxEncoded)
	content, digest := ingest(t, c, 1, 1000)
	synctest.Test(t, func(t *testing.T) {
		begun := time.Now()
		endable, end := context.WithCancelCause(t.Context())
		stalled := make(chan error, 1)
		go func() {
			stalled <- c.send(&taker{ctx: quiet.Endable(endable, end), take: func(ctx context.Context, _ any) error { <-ctx.Done(); return context.Cause(ctx) }}, digest, &chandlerv1.ReadRequest{})
		}()
		synctest.Wait()
		given, giveUp := context.WithCancel(t.Context())
		gone := make(chan error, 1)
		go func() {
			gone <- c.send(&taker{ctx: given, take: func(context.Context, any) error { return nil }}, digest, &chandlerv1.ReadRequest{})
		}()
		synctest.Wait()
		var empty int
		var got []byte
		last := make(chan error, 1)
		go func() {
			last <- c.send(&taker{ctx: t.Context(), take: func(_ context.Context, m any) error {
				r := response(t, m)
				if len(r.GetChunk()) == 0 {
					empty++
				}
				got = append(got, r.GetChunk()...)
				return nil
			}}, digest, &chandlerv1.ReadRequest{})
		}()
		synctest.Wait()
		giveUp()
		if err := <-gone; status.Code(err) != codes.Canceled {
			t.Errorf("who gave up: %v", err)
		}
		if n := c.turns.length(); n != 1 {
			t.Errorf("%d wait", n)
		}
		if err := <-stalled; status.Code(err) != codes.Unavailable || time.Since(begun) != takePatience {
			t.Errorf("who took nothing: %v after %v", err, time.Since(begun))
		}
		if err := <-last; err != nil || !bytes.Equal(got, content) || empty < 2 {
			t.Errorf("who waited got %d bytes and was told %d times to wait: %v", len(got), empty, err)
		}
	})
	if c.turns.free != 1 {
		t.Error("a turn is lost")
	}
}

// What is kept compressed stays within its bound: what is not in use goes first, and
// what has no room is sent as it is.
func TestEncodingsStayWithinTheirBound(t *testing.T) {
	t.Parallel()
	const room = 500_000
	c := giver(t, 1, room)
	read := func(d chandler.ModuleDigest, between func()) (plain, compressed int) {
		t.Helper()
		err := c.send(&taker{ctx: t.Context(), take: func(_ context.Context, m any) error {
			r := response(t, m)
			plain, compressed = plain+len(r.GetChunk()), compressed+len(unzstd(t, r.GetZstd()))
			if between != nil {
				between()
				between = nil
			}
			return nil
		}}, d, &chandlerv1.ReadRequest{Zstd: true})
		if err != nil {
			t.Fatal(err)
		}
		if c.encodings.held > room {
			t.Errorf("%d bytes are kept", c.encodings.held)
		}
		return plain, compressed
	}
	var digests []chandler.ModuleDigest
	for i := range 5 {
		_, d := ingest(t, c, uint64(i), 400_000)
		digests = append(digests, d)
		if plain, compressed := read(d, nil); plain != 0 || compressed != 400_000 {
			t.Errorf("module %d: %d bytes as they are, %d compressed", i, plain, compressed)
		}
	}
	if c.encodings.all[digests[0]] != nil || c.encodings.all[digests[4]] == nil {
		t.Error("it is not the oldest that went")
	}
	_, large := ingest(t, c, 9, 2_000_000)
	if plain, compressed := read(large, nil); plain == 0 || compressed == 0 || plain+compressed != 2_000_000 {
		t.Errorf("large one: %d bytes as they are, %d compressed", plain, compressed)
	}
	// While that one is in use nothing else has room; afterwards it has.
	c.turns.free = 2
	read(large, func() {
		if plain, compressed := read(digests[0], nil); plain != 400_000 || compressed != 0 {
			t.Errorf("beside it: %d bytes as they are, %d compressed", plain, compressed)
		}
	})
	if plain, compressed := read(digests[0], nil); plain != 0 || compressed != 400_000 {
		t.Errorf("after it: %d bytes as they are, %d compressed", plain, compressed)
	}
}

// What does not get smaller is sent as it is, from the same memory for all.
func TestWhatDoesNotCompress(t *testing.T) {
	t.Parallel()
	c := giver(t, 1, maxEncoded)
	content := make([]byte, 300_000)
	random := rand.NewChaCha8([32]byte{1})
	_, _ = io.ReadFull(random, content)
	d, _, err := c.cfg.Store.Ingest(bytes.NewReader(content), "")
	if err != nil {
		t.Fatal(err)
	}
	var got []byte
	err = c.send(&taker{ctx: t.Context(), take: func(_ context.Context, m any) error {
		r := response(t, m)
		if len(r.GetZstd()) > 0 {
			t.Error("a frame that saves nothing was sent")
		}
		got = append(got, r.GetChunk()...)
		return nil
	}}, d, &chandlerv1.ReadRequest{Zstd: true})
	if err != nil || !bytes.Equal(got, content) {
		t.Errorf("%d bytes came: %v", len(got), err)
	}
}

package control_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	"chandler.dev/chandler"
	chandlerv1 "chandler.dev/chandler/api/chandler/v1"
	"chandler.dev/chandler/internal/control"
	"chandler.dev/chandler/internal/record"
	"chandler.dev/chandler/internal/resolve"
	"chandler.dev/chandler/internal/store"
	"chandler.dev/chandler/internal/testenv/fed"
	"chandler.dev/chandler/internal/testenv/module"
	"chandler.dev/chandler/internal/wire"
)

func (a *agent) report() grpc.BidiStreamingClient[chandlerv1.ReportRequest, chandlerv1.ReportResponse] {
	a.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	a.t.Cleanup(cancel)
	str, err := chandlerv1.NewReportsClient(a.conn()).Report(ctx)
	if err != nil {
		a.t.Fatal(err)
	}
	return str
}

func say(t *testing.T, str grpc.BidiStreamingClient[chandlerv1.ReportRequest, chandlerv1.ReportResponse], rep wire.Report) error {
	t.Helper()
	if err := str.Send(wire.ReportToProto(rep)); err != nil && !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	resp, err := str.Recv()
	if err == nil && resp.GetSequence() != rep.Sequence {
		t.Errorf("report %d was answered as %d", rep.Sequence, resp.GetSequence())
	}
	return err
}

func stateOf(att chandler.Attachment, state chandler.State, rejections uint64) chandler.AttachmentState {
	s := chandler.AttachmentState{
		Key: att.Key, UID: att.UID, Generation: att.Generation, Release: att.Release, Sequence: att.Sequence,
		State: state, Rejections: rejections,
	}
	switch state {
	case chandler.StateInForce:
		s.InForce = att.Release
	case chandler.StateRejected:
		s.Reason, s.Message = chandler.CodeRejected, "Unable to create Wasm plugin"
	}
	return s
}

func TestReportsBecomeStatusAndMetrics(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	mod := module.Append()
	r.set("auth:v1", mod)
	a := r.join(gateway)
	r.apply("auth", "oci://reg.example/auth:v1", nil)
	att := a.has("auth", runs(mod))
	r.await("auth", chandler.ConditionReady, "False Progressing")

	str := a.report()
	node := a.node
	if err := say(t, str, wire.Report{Node: &node, Sequence: 1, Full: true, States: []chandler.AttachmentState{stateOf(att, chandler.StateRejected, 2)}}); err != nil {
		t.Fatal(err)
	}
	r.await("auth", chandler.ConditionReady, "False Rejected")
	if got := gauge(t, r.metrics, "pilot_total_xds_rejects"); got != 2 {
		t.Errorf("%v rejects, want 2", got)
	}
	if err := say(t, str, wire.Report{Sequence: 2, States: []chandler.AttachmentState{stateOf(att, chandler.StateInForce, 3)}}); err != nil {
		t.Fatal(err)
	}
	r.await("auth", chandler.ConditionReady, "True Ready")
	if s := r.status("auth"); s.Desired != 1 || s.InForce != 1 || s.Failed != 0 || !s.Proxies[0].Connected {
		t.Errorf("status %+v", s)
	}
	// The agent begins anew: its counter does too.
	again := a.report()
	if err := say(t, again, wire.Report{Node: &node, Sequence: 1, Full: true, States: []chandler.AttachmentState{stateOf(att, chandler.StateInForce, 1)}}); err != nil {
		t.Fatal(err)
	}
	if got := gauge(t, r.metrics, "pilot_total_xds_rejects"); got != 4 {
		t.Errorf("%v rejects, want 2 + 1 + 1", got)
	}
	if err := say(t, str, wire.Report{Sequence: 3, States: []chandler.AttachmentState{stateOf(att, chandler.StateRejected, 9)}}); status.Code(err) != codes.Aborted {
		t.Errorf("the older stream still counts: %v", err)
	}
	if got := gauge(t, r.metrics, "chandler_plugin_proxies", "state", "in_force"); got != 1 {
		t.Errorf("chandler_plugin_proxies in_force is %v", got)
	}
	if got := gauge(t, r.metrics, "chandler_plugin_release_info", "release", string(att.Release)); got != 1 {
		t.Errorf("chandler_plugin_release_info is %v", got)
	}

	since := r.status("auth").Conditions[3].LastTransition
	a.stop()
	eventually(t, func() bool { return !r.status("auth").Proxies[0].Connected }, func() string { return "shown as away" })
	s := r.status("auth")
	if s.Desired != 0 || s.InForce != 0 || s.Conditions[3].Status == chandler.True {
		t.Errorf("counts who is away: %+v", s)
	}
	if !s.Conditions[3].LastTransition.After(since) {
		t.Error("the condition changed and its time did not")
	}
}

func TestReportsThatAreRefused(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.deliver()
	a := r.join(gateway)
	node, other := a.node, chandler.Node{Namespace: "x", Name: "y"}
	for name, reports := range map[string][]wire.Report{
		"no node":         {{Sequence: 1, Full: true}},
		"not full":        {{Node: &node, Sequence: 1}},
		"node changes":    {{Node: &node, Sequence: 1, Full: true}, {Node: &other, Sequence: 2}},
		"sequence stands": {{Node: &node, Sequence: 5, Full: true}, {Sequence: 5}},
	} {
		str := a.report()
		var err error
		for _, rep := range reports {
			err = say(t, str, rep)
		}
		if status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func (a *agent) read(digest string, offset uint64) ([]byte, error) {
	a.t.Helper()
	str, err := chandlerv1.NewModulesClient(a.conn()).Read(a.t.Context(), &chandlerv1.ReadRequest{Node: wire.NodeToProto(a.node), Digest: digest, Offset: offset})
	if err != nil {
		return nil, err
	}
	var got []byte
	for first := true; ; first = false {
		m, err := str.Recv()
		if errors.Is(err, io.EOF) {
			return got, nil
		}
		if err != nil {
			return got, err
		}
		if first != (m.GetSize() > 0) {
			a.t.Error("the size belongs in the first message and no other")
		}
		got = append(got, m.GetChunk()...)
	}
}

func TestModulesAreForTheirNodesOnly(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	mod := module.Append(module.WithSection("pad", make([]byte, 200<<10)))
	r.set("auth:v1", mod)
	a, stranger := r.join(gateway), r.join(chandler.Node{Namespace: "shop", Name: "cart"})
	r.apply("auth", "oci://reg.example/auth:v1", func(p *chandler.Plugin) { p.Selector = gateway.Labels })
	digest := string(a.has("auth", runs(mod)).Program.Module.Digest)

	if got, err := a.read(digest, 0); err != nil || !bytes.Equal(got, mod) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if got, err := a.read(digest, 150_000); err != nil || !bytes.Equal(got, mod[150_000:]) {
		t.Errorf("from the middle %d bytes, %v", len(got), err)
	}
	if got, err := a.read(digest, uint64(len(mod))); err != nil || len(got) != 0 {
		t.Errorf("from the end %d bytes, %v", len(got), err)
	}
	if _, err := a.read(digest, uint64(len(mod))+1); status.Code(err) != codes.OutOfRange {
		t.Errorf("past the end: %v", err)
	}
	_, denied := stranger.read(digest, 0)
	_, unknown := stranger.read("sha256:"+strings.Repeat("0", 64), 0)
	_, malformed := stranger.read("../../etc/passwd", 0)
	if status.Code(denied) != codes.NotFound || denied.Error() != unknown.Error() || denied.Error() != malformed.Error() {
		t.Errorf("answers differ: %v; %v; %v", denied, unknown, malformed)
	}
	if got := gauge(t, r.metrics, "chandler_module_bytes_sent_total"); got != float64(2*len(mod)-150_000) {
		t.Errorf("%v bytes counted", got)
	}
}

// Who reads zstd gets a module compressed, from any offset; who does not say so, as
// agents of before, gets it as it is.
func TestModulesAreCompressedForThoseWhoReadThat(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	mod := module.Append(module.WithSection("text", bytes.Repeat([]byte("some words that come again and again, "), 20_000)))
	r.set("auth:v1", mod)
	a := r.join(gateway)
	r.apply("auth", "oci://reg.example/auth:v1", nil)
	digest := string(a.has("auth", runs(mod)).Program.Module.Digest)
	decoder, err := zstd.NewReader(nil, zstd.WithDecoderMaxMemory(1<<20))
	if err != nil {
		t.Fatal(err)
	}
	defer decoder.Close()
	for _, offset := range []int{0, 1, 256 << 10, 300_000, len(mod) - 1, len(mod)} {
		before := gauge(t, r.metrics, "chandler_module_bytes_sent_total")
		str, err := chandlerv1.NewModulesClient(a.conn()).Read(t.Context(), &chandlerv1.ReadRequest{
			Node: wire.NodeToProto(a.node), Digest: digest, Offset: uint64(offset), Zstd: true,
		})
		if err != nil {
			t.Fatal(err)
		}
		var got []byte
		for first := true; ; first = false {
			m, err := str.Recv()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			if first != (m.GetSize() == uint64(len(mod))) {
				t.Errorf("from %d: a message says %d bytes", offset, m.GetSize())
			}
			plain, err := decoder.DecodeAll(m.GetZstd(), nil)
			if err != nil {
				t.Fatal(err)
			}
			got = append(append(got, m.GetChunk()...), plain...)
		}
		if !bytes.Equal(got, mod[offset:]) {
			t.Errorf("from %d came %d bytes, want %d", offset, len(got), len(mod)-offset)
		}
		if sent := gauge(t, r.metrics, "chandler_module_bytes_sent_total") - before; offset == 0 && sent > float64(len(mod)/20) {
			t.Errorf("%v bytes were sent of %d", sent, len(mod))
		}
	}
}

// Agents that ask for a module and then take next to nothing of it cost little, also
// those that get it as it is. Not beside other tests, whose memory would count.
func TestStalledReadsHoldLittle(t *testing.T) {
	r := newRig(t)
	mod := module.Append(module.WithSection("pad", make([]byte, 4<<20)))
	r.set("auth:v1", mod)
	a := r.join(gateway)
	r.apply("auth", "oci://reg.example/auth:v1", nil)
	digest := string(a.has("auth", runs(mod)).Program.Module.Digest)
	const conns, each = 6, 50
	var before, now runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for range conns {
		conn, err := grpc.NewClient("passthrough:///control", append(r.options(), grpc.WithStaticStreamWindowSize(1<<16), grpc.WithStaticConnWindowSize(each<<16))...)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		for range each {
			if _, err := chandlerv1.NewModulesClient(conn).Read(ctx, &chandlerv1.ReadRequest{Node: wire.NodeToProto(gateway), Digest: digest}); err != nil {
				t.Fatal(err)
			}
		}
	}
	sent := func() float64 { return gauge(t, r.metrics, "chandler_module_bytes_sent_total") }
	eventually(t, func() bool {
		was := sent()
		time.Sleep(200 * time.Millisecond)
		return was > 256*60<<10 && sent() == was // the windows of as many as may read at a time
	}, func() string { return fmt.Sprintf("%v bytes were sent, and no more are", sent()) })
	runtime.GC()
	runtime.ReadMemStats(&now)
	// 64 KiB at each end of each stream, and the pipes between them.
	if more := int64(now.HeapAlloc) - int64(before.HeapAlloc); more > 96<<20 {
		t.Errorf("%d bytes are held for %d reads", more, conns*each)
	} else {
		t.Logf("%d bytes are held for %d reads", more, conns*each)
	}
}

func TestLoopbackBelievesThisMachineOnly(t *testing.T) {
	t.Parallel()
	// bufconn's peer has no address of this machine.
	r := newRig(t)
	s, err := store.Open(store.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for _, test := range []struct {
		network, addr string
		want          codes.Code
	}{{"tcp", "127.0.0.1:0", codes.Unavailable}, {"bufconn", "", codes.Unauthenticated}} {
		var l net.Listener
		var dial []grpc.DialOption
		if test.network == "tcp" {
			if l, err = net.Listen("tcp", test.addr); err != nil {
				t.Fatal(err)
			}
			dial = []grpc.DialOption{grpc.WithTransportCredentials(insecure.NewCredentials())}
		} else {
			b := bufconn.Listen(1 << 16)
			l = b
			dial = []grpc.DialOption{
				grpc.WithTransportCredentials(insecure.NewCredentials()),
				grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return b.DialContext(ctx) }),
			}
		}
		c, err := control.New(control.Config{
			Source: make(fed.Source), Records: record.NewMemory(), Store: s, Listener: l,
			Resolver: resolve.New(resolve.Config{Fetcher: r.registry, Store: s}),
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- c.Run(ctx) }()
		conn, err := grpc.NewClient("passthrough:///"+l.Addr().String(), dial...)
		if err != nil {
			t.Fatal(err)
		}
		str, err := chandlerv1.NewModulesClient(conn).Read(ctx, &chandlerv1.ReadRequest{Node: wire.NodeToProto(gateway), Digest: "x"}, grpc.WaitForReady(true))
		if err == nil {
			_, err = str.Recv()
		}
		if status.Code(err) != test.want {
			t.Errorf("%s: %v", test.network, err)
		}
		conn.Close()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

//go:build kube

package e2e

import (
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	grpcstatus "google.golang.org/grpc/status"
)

// strictGate is a registry that wants a user's name and password, which can change. It
// is as careless as a server may be: what it refuses it repeats, in the reason, in
// the challenge and in other headers.
type strictGate struct {
	addr string

	mu       sync.Mutex
	pair     string // user:password that opens
	token    string // with it, this token opens, and pair gets the token
	answered map[int]int
}

func newStrictGate(t testing.TB, registry string) *strictGate {
	g := &strictGate{answered: map[int]int{}}
	behind := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: registry})
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { g.serve(w, r, behind) }))
	t.Cleanup(srv.Close)
	g.addr = strings.TrimPrefix(srv.URL, "http://")
	return g
}

// opens sets what opens from now on; token may be empty.
func (g *strictGate) opens(user, password, token string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.pair, g.token, g.answered = user+":"+password, token, map[int]int{}
}

// answers counts those of a status since opens was called.
func (g *strictGate) answers(status int) int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.answered[status]
}

func (g *strictGate) serve(w http.ResponseWriter, r *http.Request, behind http.Handler) {
	g.mu.Lock()
	pair, token := g.pair, g.token
	shown := r.Header.Get("Authorization")
	basic := "Basic " + base64.StdEncoding.EncodeToString([]byte(pair))
	asks := r.URL.Path == "/token"
	good := shown == basic && (asks || token == "") || token != "" && !asks && shown == "Bearer "+token
	code := map[bool]int{true: http.StatusOK, false: http.StatusUnauthorized}[good]
	g.answered[code]++
	g.mu.Unlock()
	switch {
	case good && asks:
		fmt.Fprintf(w, `{"token":%q,"access_token":%q,"expires_in":300}`, token, token)
	case good:
		r.Header.Del("Authorization")
		behind.ServeHTTP(w, r)
	default:
		user, password, _ := r.BasicAuth()
		challenge := fmt.Sprintf("Basic realm=%q", "not for "+user)
		if token != "" {
			challenge = fmt.Sprintf(`Bearer realm="http://%s/token",service="test"`, g.addr)
		}
		w.Header().Set("WWW-Authenticate", challenge)
		w.Header().Set("Warning", shown)
		w.Header().Set("Docker-Content-Digest", shown)
		w.WriteHeader(code)
		fmt.Fprintf(w, `{"errors":[{"code":"UNAUTHORIZED","message":%q,"detail":%q}]}`, "wrong password "+password+" of "+user, shown)
	}
}

// wiretap stands between agents and a control plane, and keeps all that either says.
type wiretap struct {
	addr string

	mu   sync.Mutex
	said []byte
}

const maxSaid = 256 << 20

func (w *wiretap) keep(b []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.said) < maxSaid {
		w.said = append(append(w.said, b...), '\n')
	}
}

func (w *wiretap) all(t testing.TB) []byte {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.said) >= maxSaid {
		t.Error("more was said than can be kept")
	}
	return append([]byte(nil), w.said...)
}

func (w *wiretap) keepHeaders(md metadata.MD) {
	for name, values := range md {
		w.keep([]byte(name + ": " + strings.Join(values, ", ")))
	}
}

// bytesCodec has gRPC hand on messages as they are.
type bytesCodec struct{}

func (bytesCodec) Name() string { return "proto" }

func (bytesCodec) Marshal(v any) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(*v.(*[]byte))}, nil
}

func (bytesCodec) Unmarshal(b mem.BufferSlice, v any) error {
	*v.(*[]byte) = b.Materialize()
	return nil
}

// newWire listens for agents of the control plane at an address.
func newWiretap(t testing.TB, control string) *wiretap {
	t.Helper()
	w := &wiretap{}
	conn, err := grpc.NewClient(control, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(bytesCodec{}), grpc.MaxCallRecvMsgSize(64<<20)))
	if err != nil {
		t.Fatal(err)
	}
	lis, err := net.Listen("tcp", loopback(0))
	if err != nil {
		t.Fatal(err)
	}
	w.addr = lis.Addr().String()
	srv := grpc.NewServer(grpc.ForceServerCodecV2(bytesCodec{}), grpc.MaxRecvMsgSize(64<<20),
		grpc.UnknownServiceHandler(func(_ any, from grpc.ServerStream) error { return w.carry(conn, from) }))
	done := make(chan error, 1)
	go func() { done <- srv.Serve(lis) }()
	t.Cleanup(func() {
		srv.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
		conn.Close()
	})
	return w
}

// carry hands a call on, and ends with it.
func (w *wiretap) carry(conn *grpc.ClientConn, from grpc.ServerStream) error {
	ctx, cancel := context.WithCancel(from.Context())
	defer cancel()
	method, ok := grpc.MethodFromServerStream(from)
	if !ok {
		return grpcstatus.Error(codes.Internal, "a call without a name")
	}
	md, _ := metadata.FromIncomingContext(ctx)
	w.keepHeaders(md)
	w.keep([]byte(method))
	to, err := conn.NewStream(metadata.NewOutgoingContext(ctx, md.Copy()), &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, method)
	if err != nil {
		return err
	}
	go func() { // ends with the call at the latest
		for {
			var b []byte
			if err := from.RecvMsg(&b); err != nil {
				if err == io.EOF {
					_ = to.CloseSend() // its end is told by the answers
				} else {
					cancel()
				}
				return
			}
			w.keep(b)
			if to.SendMsg(&b) != nil {
				return // why is told by the answers
			}
		}
	}()
	for first := true; ; first = false {
		var b []byte
		err := to.RecvMsg(&b)
		if md, _ := to.Header(); first {
			w.keepHeaders(md)
		}
		if err != nil {
			from.SetTrailer(to.Trailer())
			w.keepHeaders(to.Trailer())
			if err == io.EOF {
				return nil
			}
			w.keep([]byte(err.Error()))
			return err
		}
		w.keep(b)
		if err := from.SendMsg(&b); err != nil {
			return err
		}
	}
}

// commandLines are those of all that runs, with their environments. The tests' own
// process is not among them.
func commandLines(t testing.TB) []byte {
	t.Helper()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	var out []byte
	for _, e := range entries {
		if strings.Trim(e.Name(), "0123456789") != "" || e.Name() == fmt.Sprint(os.Getpid()) {
			continue
		}
		for _, what := range []string{"cmdline", "environ"} {
			b, _ := os.ReadFile("/proc/" + e.Name() + "/" + what) // it may have ended, or be another user's
			out = append(append(out, b...), '\n')
		}
	}
	return out
}

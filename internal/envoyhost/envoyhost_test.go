package envoyhost_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"chandler.dev/chandler/internal/envoyhost"
	"chandler.dev/chandler/internal/exchange"
	"chandler.dev/chandler/internal/testenv/leaks"
	"chandler.dev/chandler/internal/testenv/module"
)

func TestMain(m *testing.M) { leaks.Main(m) }

func engine(t *testing.T) *envoyhost.Engine {
	t.Helper()
	e := envoyhost.New(envoyhost.Config{Envoy: module.Envoy(t)})
	t.Cleanup(func() { b := time.Now(); _ = e.Close(); t.Log("close", time.Since(b)) })
	return e
}

func file(t *testing.T, code []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "m.wasm")
	if err := os.WriteFile(path, code, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func start(t *testing.T, e *envoyhost.Engine, s exchange.Setup) exchange.Session {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	session, err := e.Start(ctx, s)
	if err != nil {
		t.Fatal(err)
	}
	return session
}

func get(path string, headers ...exchange.Header) exchange.Exchange {
	return exchange.Exchange{
		Request: exchange.Message{Headers: append([]exchange.Header{
			{Name: ":method", Value: "GET"}, {Name: ":path", Value: path}, {Name: ":authority", Value: "shop.example"}, {Name: ":scheme", Value: "http"},
		}, headers...)},
		Upstream: exchange.Message{Headers: []exchange.Header{{Name: ":status", Value: "200"}, {Name: "x-up", Value: "1"}}, Chunks: [][]byte{[]byte("hello")}},
	}
}

func do(t *testing.T, s exchange.Session, e exchange.Exchange) *exchange.Outcome {
	t.Helper()
	o, err := s.Do(t.Context(), e)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// Plugins come one after the other, are refused, and deny, in one Envoy.
func TestEngine(t *testing.T) {
	t.Parallel()
	e := engine(t)
	begin := time.Now()
	s := start(t, e, exchange.Setup{Module: file(t, module.Append()), Name: "append", Config: []byte("first")})
	t.Log("start", time.Since(begin))
	for i := range 3 {
		begin = time.Now()
		o := do(t, s, get("/a"))
		t.Log(i, time.Since(begin))
		if status, _ := o.Response.Get(":status"); status != "200" || string(o.Response.Body()) != "hello" || o.Cut || o.Trap != "" || o.Details != "via_upstream" {
			t.Errorf("%+v", o)
		}
		if v, _ := o.Upstream.Get("x-plugins"); v != "first" {
			t.Errorf("upstream %+v", o.Upstream)
		}
		if v, _ := o.Response.Get("x-plugins-response"); v != "first" {
			t.Errorf("response %+v", o.Response)
		}
	}
	_ = s.Close()
	begin = time.Now()
	_, err := e.Start(t.Context(), exchange.Setup{Module: file(t, module.RefuseConfigure("the moon is wrong")), Name: "refuse", Config: []byte("x")})
	t.Log("refused", time.Since(begin))
	var refusal *exchange.Refusal
	if !errors.As(err, &refusal) || !strings.Contains(refusal.Reason, "the moon is wrong") || len(refusal.Logs) != 1 || refusal.Logs[0].Text != "the moon is wrong" {
		t.Fatalf("%v %+v", err, refusal.Logs)
	}
	if _, err = e.Start(t.Context(), exchange.Setup{Module: file(t, module.MissingImport()), Name: "missing"}); !errors.As(err, &refusal) || !strings.Contains(refusal.Reason, "proxy_no_such_call") {
		t.Fatal(err)
	}
	begin = time.Now()
	s = start(t, e, exchange.Setup{Module: file(t, module.Deny(418)), Name: "deny"})
	t.Log("start", time.Since(begin))
	o := do(t, s, get("/"))
	if status, _ := o.Response.Get(":status"); status != "418" || string(o.Response.Body()) != module.DenyBody || o.Upstream != nil {
		t.Errorf("%+v", o)
	}
	_ = s.Close()
	s = start(t, e, exchange.Setup{Module: file(t, module.TrapRequest()), Name: "trap"})
	o = do(t, s, get("/"))
	if status, _ := o.Response.Get(":status"); status != "503" || !strings.Contains(o.Trap, "unreachable") || o.Upstream != nil {
		t.Errorf("%+v", o)
	}
	begin = time.Now()
	_ = s.Close()
	t.Log("session close", time.Since(begin))
}

// A request that the plugin holds back for ever is given up, and the session goes on.
func TestHeld(t *testing.T) {
	t.Parallel()
	e := engine(t)
	s := start(t, e, exchange.Setup{Module: file(t, module.Script{On: map[string][]module.Turn{
		"proxy_on_request_headers": {{Gives: 1}}, // and nothing lets it go on
	}}.Encode()), Name: "held"})
	o := do(t, s, get("/"))
	if o.Response != nil || o.Upstream != nil || o.Trap != "" {
		t.Errorf("%+v", o)
	}
	if o := do(t, s, get("/")); o.Response != nil {
		t.Errorf("%+v", o)
	}
	_ = s.Close()
	s = start(t, e, exchange.Setup{Module: file(t, module.Append()), Name: "append", Config: []byte("c")})
	defer s.Close()
	if _, err := s.Do(t.Context(), exchange.Exchange{Properties: map[string]string{"a": "b"}}); err == nil || !strings.Contains(err.Error(), "cannot be set") {
		t.Error(err)
	}
	if v, _ := do(t, s, get("/")).Upstream.Get("x-plugins"); v != "c" {
		t.Errorf("%q", v)
	}
}

// A callback that does not come back costs its case, and the next one gets another Envoy.
func TestLoop(t *testing.T) {
	t.Parallel()
	e := engine(t)
	s := start(t, e, exchange.Setup{Module: file(t, module.LoopRequest()), Name: "loop"})
	if _, err := s.Do(t.Context(), get("/")); err == nil || !strings.Contains(err.Error(), "does not come back from a callback") {
		t.Errorf("%v", err)
	}
	if _, err := s.Do(t.Context(), get("/")); err == nil {
		t.Error("it goes on")
	}
	_ = s.Close()
	s = start(t, e, exchange.Setup{Module: file(t, module.Append()), Name: "append", Config: []byte("c")})
	defer s.Close()
	if v, _ := do(t, s, get("/")).Upstream.Get("x-plugins"); v != "c" {
		t.Errorf("%q", v)
	}
}

// An Envoy that is none is said to be none.
func TestNoEnvoy(t *testing.T) {
	t.Parallel()
	for _, program := range []string{"/bin/false", filepath.Join(t.TempDir(), "none")} {
		e := envoyhost.New(envoyhost.Config{Envoy: program})
		if _, err := e.Start(t.Context(), exchange.Setup{Module: file(t, module.Append()), Name: "a"}); err == nil || !strings.HasPrefix(err.Error(), "envoy: ") {
			t.Errorf("%s: %v", program, err)
		}
		if err := e.Close(); err != nil {
			t.Error(err)
		}
		if _, err := e.Start(t.Context(), exchange.Setup{Module: file(t, module.Append()), Name: "a"}); err == nil || !strings.Contains(err.Error(), "closed") {
			t.Error(err)
		}
	}
	e := engine(t)
	if _, err := e.Start(t.Context(), exchange.Setup{Module: "none.wasm"}); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

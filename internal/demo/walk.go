package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"chandler.dev/chandler/internal/testenv/module"
)

// The two credentials of the example's YAML: one written in clear, one encoded.
const (
	goodCredential  = "Basic YWRtaW4zOmFkbWluMw=="
	otherCredential = "Basic b2s6dGVzdA==" // ok:test
)

// brokenModule is well formed, and traps when it is started: only a proxy sees
// that it cannot run.
func brokenModule() []byte { return module.TrapStart() }

// step is one line of the walkthrough.
type step struct {
	what, expect string
	do           func(context.Context) (seen string, ok bool)
}

// walk takes the steps; it fails if any saw what was not expected.
func (s *stage) walk(ctx context.Context) error {
	fmt.Printf("gateway http://%s  control plane %s  registry %s, which stands in for %s\n\n", s.gateway, s.admin, s.registry.Addr, sampleHost)
	failed := 0
	for i, st := range s.steps() {
		begin := time.Now()
		seen, ok := st.do(ctx)
		if err := ctx.Err(); err != nil {
			return err
		}
		mark := "ok  "
		if !ok {
			mark = "FAIL"
			failed++
		}
		fmt.Printf("%s %2d  %-51s expected %-11s saw %-11s %8s\n", mark, i+1, st.what, st.expect, seen, time.Since(begin).Round(time.Millisecond))
	}
	if failed > 0 {
		return fmt.Errorf("%d of %d steps went otherwise than expected; logs are in %s", failed, len(s.steps()), s.dir)
	}
	fmt.Printf("\nall %d steps as expected\n", len(s.steps()))
	return nil
}

func (s *stage) steps() []step {
	page := "GET /productpage"
	return []step{
		{page + " before any plugin", "200", s.page("", 200)},
		{"chandler apply -f basic-auth.yaml --wait", "in force", s.apply("1.12.0", true, "in force")},
		{page + " without credentials", "401", s.page("", 401)},
		{page + " with admin3's credentials", "200", s.page(goodCredential, 200)},
		{page + " with ok:test", "200", s.page(otherCredential, 200)},
		{page + " with a wrong password", "401", s.page("Basic b2s6d3Jvbmc=", 401)},
		{"GET / which no rule guards", "200", s.path("/", "", 200)},
		{"metric istio_agent_wasm_cache_entries", "1", s.metric("istio_agent_wasm_cache_entries", "1")},
		{"metric istio_agent_wasm_cache_lookup_count misses", "1", s.metric(`istio_agent_wasm_cache_lookup_count{hit="false"}`, "1")},
		{"metric istio_agent_wasm_remote_fetch_count good", "1", s.metric(`istio_agent_wasm_remote_fetch_count{result="success"}`, "1")},
		{"metric istio_agent_wasm_config_conversion_count good", "1", s.metric(`istio_agent_wasm_config_conversion_count{result="success"}`, "1")},
		{"metric istio_agent_wasm_config_conversion_duration", "1", s.metric("istio_agent_wasm_config_conversion_duration_count", "1")},
		{"apply an update that cannot start", "WasmStart", s.apply("broken", false, "WasmStart")},
		{"chandler describe tells the reason", "unreachable", s.describe("unreachable")},
		{page + " without credentials, still", "401", s.page("", 401)},
		{page + " with credentials, still", "200", s.page(goodCredential, 200)},
		{"chandler delete wasmplugin basic-auth", "deleted", s.delete},
		{page + " without credentials", "200", s.pageSoon(200)},
	}
}

func (s *stage) page(authorization string, want int) func(context.Context) (string, bool) {
	return s.path("/productpage", authorization, want)
}

func (s *stage) path(path, authorization string, want int) func(context.Context) (string, bool) {
	return func(ctx context.Context) (string, bool) {
		code, body := get(ctx, "http://"+s.gateway+path, authorization)
		if code == 0 {
			return body, false
		}
		return fmt.Sprint(code), code == want
	}
}

// pageSoon waits a moment: a deletion is asked for, then done by every proxy.
func (s *stage) pageSoon(want int) func(context.Context) (string, bool) {
	return func(ctx context.Context) (string, bool) {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		for {
			seen, ok := s.page("", want)(ctx)
			if ok || ctx.Err() != nil {
				return seen, ok
			}
		}
	}
}

// manifest is the example's resource, to the letter but for another tag.
func (s *stage) manifest(tag string) (string, error) {
	b, err := os.ReadFile(filepath.Join(s.root, "examples", "bookinfo", "basic-auth.yaml"))
	if err != nil {
		return "", err
	}
	const written = "oci://" + sampleHost + "/" + repository + ":1.12.0"
	if !strings.Contains(string(b), written) {
		return "", errors.New("examples/bookinfo/basic-auth.yaml does not name " + written)
	}
	return strings.ReplaceAll(string(b), ":1.12.0", ":"+tag), nil
}

// apply applies the resource with a tag and waits for what becomes of it.
func (s *stage) apply(tag string, succeeds bool, want string) func(context.Context) (string, bool) {
	return func(ctx context.Context) (string, bool) {
		manifest, err := s.manifest(tag)
		if err != nil {
			return err.Error(), false
		}
		out, err := s.chandler(ctx, manifest, "apply", "-f", "-", "--wait", "--timeout", "60s")
		if (err == nil) == succeeds && strings.Contains(out, want) {
			return want, true
		}
		return out, false
	}
}

func (s *stage) describe(want string) func(context.Context) (string, bool) {
	return func(ctx context.Context) (string, bool) {
		out, err := s.chandler(ctx, "", "describe", "wasmplugin", "basic-auth", "-n", "istio-system")
		if err == nil && strings.Contains(out, want) {
			return want, true
		}
		return out, false
	}
}

func (s *stage) delete(ctx context.Context) (string, bool) {
	out, err := s.chandler(ctx, "", "delete", "wasmplugin", "basic-auth", "-n", "istio-system")
	if err == nil && strings.Contains(out, "deleted") {
		return "deleted", true
	}
	return out, false
}

// metric reads one sample from the agent's merged page.
func (s *stage) metric(name, want string) func(context.Context) (string, bool) {
	return func(ctx context.Context) (string, bool) {
		code, body := get(ctx, "http://"+s.agentAdmin+"/stats/prometheus", "")
		if code != http.StatusOK {
			return body, false
		}
		for line := range strings.Lines(body) {
			if value, ok := strings.CutPrefix(strings.TrimSpace(line), name+" "); ok {
				return value, value == want
			}
		}
		return "no such metric", false
	}
}

// up tells where everything is and waits to be interrupted.
func (s *stage) up(ctx context.Context) error {
	const file = "examples/bookinfo/basic-auth.yaml"
	server := ""
	if s.admin != "127.0.0.1:9911" {
		server = " --server " + s.admin
	}
	fmt.Printf(`Bookinfo behind Envoy   http://%s/productpage
registry                %s, which stands in for %s
agent                   http://%s/stats/prometheus
plugins folder          %s
logs                    %s

Put a guard before the page, from another terminal:

  bin/chandler apply -f %s --wait%s
  bin/chandler status%s
  curl -i http://%s/productpage
  curl -i -H "Authorization: %s" http://%s/productpage
  bin/chandler delete -f %s%s

Ctrl-C stops all of it.
`, s.gateway, s.registry.Addr, sampleHost, s.agentAdmin, filepath.Join(".run", "demo", "plugins"), filepath.Join(".run", "demo"),
		file, server, server, s.gateway, goodCredential, s.gateway, file, server)
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			fmt.Println("\nstopping")
			return nil
		case <-tick.C:
			if err := s.ended(); err != nil {
				return err
			}
		}
	}
}

package agent

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc"

	"chandler.dev/chandler"
	chandlerv1 "chandler.dev/chandler/api/chandler/v1"
	"chandler.dev/chandler/internal/fetch"
	"chandler.dev/chandler/internal/fetch/hosts"
	"chandler.dev/chandler/internal/testenv/module"
	"chandler.dev/chandler/internal/testenv/registry"
)

// mirrored has a mirror for one registry, in the operator's file.
func mirrored(t *testing.T, registry, mirror string) fetch.Hosts {
	t.Helper()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, registry), 0o700); err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(dir, registry, "hosts.toml"), fmt.Appendf(nil, "[host.%q]\n  capabilities = [\"pull\"]\n", mirror))
	d, err := hosts.Open(dir, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// push puts a module into a registry that wants no credentials, and gives its
// reference there.
func push(t *testing.T, reg *registry.Registry, name string, content []byte) string {
	t.Helper()
	pusher := fetch.New(fetch.Config{Dir: t.TempDir()})
	defer pusher.Close()
	digest, err := pusher.Push(t.Context(), reg.Addr+"/"+name, content, fetch.PushOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return name + "@" + string(digest)
}

// A node's mirror gives what has the right digest, without credentials; in every
// other case the control plane does, and the registry itself is never asked.
func TestFault_F41_LoadFromMirror(t *testing.T) {
	content := bigModule()
	origin, err := registry.Start(registry.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(origin.Close)
	mirror, err := registry.Start(registry.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(mirror.Close)
	at := "oci://" + origin.Addr + "/"
	ref, other, only := push(t, mirror, "m", content), push(t, mirror, "other", module.Append()), push(t, origin, "only/there", content)
	push(t, origin, "m", content)
	pushed := origin.Counts()

	silent, err := net.Listen("tcp", "127.0.0.1:0") // connections are made, and nobody answers
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { silent.Close() })
	slow := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		for {
			if _, err := w.Write([]byte(" ")); err != nil || http.NewResponseController(w).Flush() != nil {
				return
			}
			time.Sleep(50 * time.Millisecond)
		}
	}))
	t.Cleanup(slow.Close)
	gone := httptest.NewServer(http.NotFoundHandler())
	gone.Close()

	for name, c := range map[string]struct {
		mirror, origin string
		helps          bool   // the control plane
		failure        string // that is counted; empty: none
	}{
		"has it":            {"http://" + mirror.Addr, at + ref, false, ""},
		"lacks it":          {"http://" + mirror.Addr, at + only, true, ""},
		"gives other bytes": {"http://" + mirror.Addr, at + other, true, fetchChecksum},
		"is away":           {gone.URL, at + ref, true, fetchDownload},
		"is silent":         {"http://" + silent.Addr().String(), at + ref, true, fetchDownload},
		"is slow":           {slow.URL, at + ref, true, fetchDownload},
		"of another":        {"http://" + mirror.Addr, "oci://127.0.0.1:1/" + ref, true, ""},
		"of no registry":    {"http://" + mirror.Addr, "https://" + origin.Addr + "/m.wasm", true, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := &depot{read: func(_ *chandlerv1.ReadRequest, stream grpc.ServerStreamingServer[chandlerv1.ReadResponse]) error {
				return send(stream, content)
			}}
			l := newLoading(t, Config{FetchFrom: FromMirror, Hosts: mirrored(t, origin.Addr, c.mirror), Data: t.TempDir()}).from(d)
			l.wantLoaded(l.load(sourceOf(content), c.origin), content)
			if asked := len(d.asked()); asked > 0 != c.helps {
				t.Errorf("the control plane was asked %d times", asked)
			}
			for _, failure := range []string{fetchChecksum, fetchDownload} {
				if got := l.counted("istio_agent_wasm_remote_fetch_count", failure); got > 0 != (failure == c.failure) {
					t.Errorf("%v times %s is counted", got, failure)
				}
			}
		})
	}
	t.Cleanup(func() {
		if now := origin.Counts(); now != pushed {
			t.Errorf("the registry was asked: %+v, before %+v", now, pushed)
		}
	})
	t.Run("lacks it, and no control plane is there", func(t *testing.T) {
		l := newLoading(t, Config{FetchFrom: FromMirror, Hosts: mirrored(t, origin.Addr, "http://"+mirror.Addr), Data: t.TempDir()})
		l.wantError(l.load(sourceOf(content), at+only), chandler.CodeControlUnreachable, true)
	})
	t.Run("before the registry, with fetch from origin", func(t *testing.T) {
		l := newLoading(t, Config{FetchFrom: FromOrigin, Hosts: mirrored(t, origin.Addr, "http://"+mirror.Addr), Data: t.TempDir()})
		l.wantLoaded(l.load(sourceOf(content), at+ref), content)
	})
}

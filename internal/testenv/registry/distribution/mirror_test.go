package distribution_test

import (
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/fetch"
	"chandler.dev/chandler/internal/fetch/hosts"
)

// TestPullThrough: agents that know a mirror only get a module through it, by digest;
// of the registry behind it the bytes are fetched once, whoever asks after that, also
// when it has gone.
func TestPullThrough(t *testing.T) {
	behind := start(t)
	to := &url.URL{Scheme: "http", Host: behind}
	var blobs, asked atomic.Int64
	var away atomic.Bool
	pass := httputil.NewSingleHostReverseProxy(to)
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if away.Load() {
			http.Error(w, "{}", http.StatusBadGateway)
			return
		}
		if strings.Contains(r.URL.Path, "/blobs/") {
			asked.Add(1)
			if r.Method == http.MethodGet {
				blobs.Add(1)
			}
		}
		pass.ServeHTTP(w, r)
	}))
	defer front.Close()
	mirror := startWith(t, fmt.Sprintf("proxy: {remoteurl: %q}\n", front.URL))

	pusher := fetch.New(fetch.Config{Dir: t.TempDir()})
	defer pusher.Close()
	module := append([]byte("\x00asm\x01\x00\x00\x00"), bytes.Repeat([]byte("module"), 100_000)...)
	digest, err := pusher.Push(t.Context(), behind+"/team/plugin:v1", module, fetch.PushOptions{})
	if err != nil {
		t.Fatal(err)
	}

	// Its name leads nowhere: there is no other way than the mirror.
	const registry = "registry.invalid"
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, registry), 0o700); err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprintf("[host.%q]\n  capabilities = [\"pull\"]\n", "http://"+mirror)
	if err := os.WriteFile(filepath.Join(dir, registry, "hosts.toml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	mirrors, err := hosts.Open(dir, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 5 {
		if i > 0 {
			away.Store(i > 2)
		}
		agent := fetch.New(fetch.Config{Dir: t.TempDir(), Hosts: mirrors, OnlyMirrors: true})
		pull(t, agent, registry+"/team/plugin@"+string(digest), module)
		agent.Close()
		if i == 0 { // it is given away before it is kept: then of what is there nobody else is asked
			until(t, func() bool {
				before := asked.Load()
				resp, err := http.Head("http://" + mirror + "/v2/team/plugin/blobs/" + string(chandler.Digest[chandler.BlobDigest](module)))
				if err != nil || resp.StatusCode != http.StatusOK {
					t.Fatal(resp, err)
				}
				resp.Body.Close()
				return asked.Load() == before
			})
		}
	}
	if n := blobs.Load(); n != 1 {
		t.Errorf("%d blobs were fetched from the registry for five agents", n)
	}

	agent := fetch.New(fetch.Config{Dir: t.TempDir(), Hosts: mirrors, OnlyMirrors: true})
	defer agent.Close()
	for _, url := range []string{"other.invalid/team/plugin@" + string(digest), "https://other.invalid/plugin.wasm"} {
		ref, p := chandler.ParseReference(url)
		if p != nil {
			t.Fatal(p)
		}
		_, err := agent.Pull(t.Context(), fetch.Request{Reference: ref}, &shelf{})
		if e, ok := err.(*fetch.Error); !ok || e.Problem.Code != chandler.CodeNotFound || e.Temporary {
			t.Errorf("%s: %v", url, err)
		}
	}
}

// until waits for what comes a moment later.
func until(t *testing.T, so func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !so(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it does not come")
		}
	}
}

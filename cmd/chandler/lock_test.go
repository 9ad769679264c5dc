package main

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/fetch"
	"chandler.dev/chandler/internal/source"
	"chandler.dev/chandler/internal/testenv/module"
	"chandler.dev/chandler/internal/testenv/registry"
)

// TestLockOfPrivateAndWeb: what only a pull secret beside the resources may have is
// locked with it, of several that name one the one that may; and of what is on the web
// it is the unpacked module that is locked.
func TestLockOfPrivateAndWeb(t *testing.T) {
	t.Parallel()
	reg, err := registry.Start(registry.Config{Username: "puller", Password: "hunter2"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(reg.Close)
	mod := module.Append()
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = w.Write(mod) }))
	t.Cleanup(web.Close)
	client := fetch.New(fetch.Config{Dir: t.TempDir()})
	defer client.Close()
	want, err := client.Push(t.Context(), reg.Addr+"/team/a:v1", mod, fetch.PushOptions{Credentials: fetch.NewCredentials(reg.Addr, "puller", "hunter2")})
	if err != nil {
		t.Fatal(err)
	}
	auth := fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, reg.Addr, base64.StdEncoding.EncodeToString([]byte("puller:hunter2")))
	dir := t.TempDir()
	manifest := strings.NewReplacer("$AUTH", auth, "$OCI", "oci://"+reg.Addr+"/team/a:v1", "$WEB", web.URL+"/a.wasm?token=hunter3").Replace(`apiVersion: extensions.istio.io/v1alpha1
kind: WasmPlugin
metadata: {name: a}
spec: {url: $OCI}
---
apiVersion: extensions.istio.io/v1alpha1
kind: TrafficExtension
metadata: {name: b}
spec: {wasm: {url: $OCI, imagePullSecret: pull}}
---
apiVersion: extensions.istio.io/v1alpha1
kind: WasmPlugin
metadata: {name: c}
spec: {url: '$WEB'}
---
apiVersion: v1
kind: Secret
metadata: {name: pull}
type: kubernetes.io/dockerconfigjson
stringData: {.dockerconfigjson: '$AUTH'}
`)
	if err := os.WriteFile(filepath.Join(dir, "all.yaml"), []byte(manifest), 0o600); err != nil {
		t.Fatal(err)
	}
	nothing := func(string) string { return "" }
	var out, talk bytes.Buffer
	if code := run([]string{"chandler", "lock", "-f", dir}, nothing, strings.NewReader(""), &out, &talk); code != 0 {
		t.Fatalf("exit code %d: %s", code, talk.String())
	}
	if said := out.String() + talk.String(); strings.Contains(said, "hunter") {
		t.Errorf("a secret is told: %s", said)
	}
	text, err := os.ReadFile(filepath.Join(dir, source.LockName))
	if err != nil {
		t.Fatal(err)
	}
	l, problems := source.ParseLock(text)
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	for url, digest := range map[string]string{
		"oci://" + reg.Addr + "/team/a:v1": string(want),
		web.URL + "/a.wasm?token=hunter3":  string(chandler.Digest[chandler.ModuleDigest](mod)),
	} {
		ref, problem := chandler.ParseReference(url)
		if problem != nil {
			t.Fatal(problem)
		}
		if got, ok := l.Get(ref); !ok || got.Digest != digest {
			t.Errorf("%s is %v, want %s", url, got, digest)
		}
	}
	if stat, err := os.Stat(filepath.Join(dir, source.LockName)); err != nil || stat.Mode().Perm() != 0o644 {
		t.Errorf("mode %v, %v", stat.Mode(), err)
	}

	// What cannot be had is told, all of it, and the file stays as it is.
	web.Close()
	out.Reset()
	talk.Reset()
	if code := run([]string{"chandler", "lock", "-f", dir, "--timeout", "20s"}, nothing, strings.NewReader(""), &out, &talk); code != exitFailed || !strings.Contains(talk.String(), "1 of 2 references") {
		t.Errorf("exit code %d: %s", code, talk.String())
	}
	if after, err := os.ReadFile(filepath.Join(dir, source.LockName)); err != nil || !bytes.Equal(after, text) {
		t.Errorf("the file is another: %s, %v", after, err)
	}
}

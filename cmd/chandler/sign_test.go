package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"chandler.dev/chandler/internal/fetch"
	"chandler.dev/chandler/internal/testenv/cosign"
	"chandler.dev/chandler/internal/testenv/module"
	"chandler.dev/chandler/internal/testenv/registry"
)

// chandlerSays runs a command and gives its exit code and both outputs.
func chandlerSays(env map[string]string, args ...string) (code int, stdout, stderr string) {
	var out, talk bytes.Buffer
	code = run(append([]string{"chandler"}, args...), func(k string) string { return env[k] }, strings.NewReader(""), &out, &talk)
	return code, out.String(), talk.String()
}

// TestSignWithCosign: what one signs the other verifies, by the commands that people
// type, with keys that either has made; and neither takes another key.
func TestSignWithCosign(t *testing.T) {
	real, dir := cosign.New(t, "../../.tools/cosign"), t.TempDir()
	reg, err := registry.Start(registry.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(reg.Close)
	client := fetch.New(fetch.Config{Dir: t.TempDir()})
	t.Cleanup(client.Close)
	file := func(name, content string) string {
		t.Helper()
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	must := func(env map[string]string, args ...string) string {
		t.Helper()
		code, out, talk := chandlerSays(env, args...)
		if code != 0 {
			t.Fatalf("%v: exit %d: %s", args, code, talk)
		}
		return strings.TrimSpace(out)
	}
	private, public := file("cosign.key", real.PrivateKey), file("cosign.pub", real.PublicKey)
	ours := filepath.Join(dir, "ours")
	must(map[string]string{"COSIGN_PASSWORD": "secret"}, "sign", "generate-key", "--output-prefix", ours)
	ourPublic, err := os.ReadFile(ours + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	for _, form := range []string{"bundle", "tag"} {
		name := reg.Addr + "/" + form
		push := func(tag string) string {
			t.Helper()
			d, err := client.Push(t.Context(), name+":"+tag, append(module.Append(), "\x00\x02\x01"+tag[:1]...), fetch.PushOptions{})
			if err != nil {
				t.Fatal(err)
			}
			return name + "@" + string(d)
		}
		mine, theirs := push("mine"), push("theirs")
		for _, c := range []struct{ key, public, password string }{{private, real.PublicKey, ""}, {ours + ".key", string(ourPublic), "secret"}} {
			if err := real.Verify(t, c.public, mine); err == nil {
				t.Errorf("%s: cosign verifies what is not signed", form)
			}
			if got := must(map[string]string{"COSIGN_PASSWORD": c.password}, "sign", name+":mine", "--key", c.key, "--form", form); got != "oci://"+name+":mine@"+mine[strings.Index(mine, "@")+1:] {
				t.Errorf("signed %s", got)
			}
			if err := real.Verify(t, c.public, mine); err != nil {
				t.Errorf("%s: %v", form, err)
			}
		}
		if code, _, talk := chandlerSays(nil, "verify", theirs, "--key", public); code != exitUnhealthy || !strings.Contains(talk, "SigMissing") {
			t.Errorf("%s: exit %d: %s", form, code, talk)
		}
		real.Sign(t, cosign.Place(form), theirs)
		if got := must(nil, "verify", theirs, "--key", public); !strings.Contains(got, " signed by key sha256:") {
			t.Errorf("%s: %s", form, got)
		}
		if code, _, talk := chandlerSays(nil, "verify", theirs, "--key", ours+".pub"); code != exitUnhealthy || !strings.Contains(talk, "SigIdentity") {
			t.Errorf("%s: exit %d: %s", form, code, talk)
		}
	}
}

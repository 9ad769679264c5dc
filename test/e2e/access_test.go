package e2e

import (
	"context"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"chandler.dev/chandler/internal/testenv/authority"
	"chandler.dev/chandler/internal/testenv/module"
	"chandler.dev/chandler/internal/web"
)

// post asks the admin API as curl would, with headers as "NAME: VALUE".
func post(t *testing.T, way http.RoundTripper, url, body string, headers ...string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		req.Header.Set(name, value)
		if name == "Host" {
			req.Host = value
		}
	}
	resp, err := way.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var text strings.Builder
	if err := resp.Write(&text); err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, text.String()
}

// Who shows nothing changes nothing and reads no configuration, whichever way they
// come; the control plane's own user needs no flags for either.
func TestAdminAccess(t *testing.T) {
	w := newWorld(t)
	c := &canaries{}
	mark := c.mark("pluginConfig")
	manifest := plugin("p", w.push("append:v1", module.Append()), "pluginConfig: {tag: "+mark+"} # "+c.mark("comment"),
		"vmConfig: {env: [{name: KEY, value: "+c.mark("environment")+"}]}")
	port := freePort(t)
	p := w.agent(node{name: "a"}, w.gateway(listener{port: port, name: "in"}))
	w.apply(manifest)
	if out, ok := w.cli("", "get", "wasmplugin", "-n", "edge", "p", "-o", "yaml"); !ok || !strings.Contains(out, mark) {
		t.Errorf("the control plane's own user reads %s", out)
	}

	base := "http://" + w.admin + "/chandler.v1.Admin/"
	tcp := &http.Transport{DisableKeepAlives: true}
	const apply = `{"manifest": "a2luZDogeA=="}`
	for _, strange := range []struct {
		method, body string
		headers      []string
		code         int
		says         string
	}{
		{"Apply", apply, nil, 401, "show who you are"},
		{"Delete", `{"refs": [{"kind": "WasmPlugin", "namespace": "edge", "name": "p"}]}`, nil, 401, "show who you are"},
		{"Apply", apply, []string{"Authorization: Bearer x"}, 401, "nobody's"},
		{"List", `{}`, nil, 200, `"name":"p"`},
		{"List", `{}`, []string{"Host: evil.example"}, 403, "its Host"},
		{"List", `{}`, []string{"Origin: http://evil.example"}, 403, "its Origin"},
		{"Apply", apply, []string{"Origin: http://evil.example"}, 403, "its Origin"},
	} {
		code, text := post(t, tcp, base+strange.method, strange.body, strange.headers...)
		if code != strange.code || !strings.Contains(text, strange.says) {
			t.Errorf("%s with %v: %d %s", strange.method, strange.headers, code, text)
		}
		if found := c.find([]byte(text)); len(found) > 0 {
			t.Errorf("%s with %v shows configuration: %v", strange.method, strange.headers, found)
		}
	}
	socket := filepath.Join(w.dir, "control", "admin.sock")
	if st, err := os.Stat(socket); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("the socket: %v, %v", st, err)
	}
	own := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return web.DialSocket(ctx, socket) }}
	if code, text := post(t, own, "http://localhost/chandler.v1.Admin/Apply", apply); code != 200 || !strings.Contains(text, "REFUSED") {
		t.Errorf("over the socket: %d %s", code, text)
	}

	// The same through the command of somebody else, who has another home.
	for _, args := range []string{"get -A -o yaml", "get -A -o json", "describe wasmplugin -n edge p --show-config", "describe wasmplugin -n edge p", "status -o yaml"} {
		cmd := exec.CommandContext(t.Context(), filepath.Join(built, "chandler"), append(strings.Fields(args), "--server", w.admin)...)
		cmd.Env = append(os.Environ(), "XDG_STATE_HOME="+t.TempDir())
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), "<redacted>") {
			t.Errorf("chandler %s: %v\n%s", args, err, out)
		}
		if found := c.find(out); len(found) > 0 {
			t.Errorf("chandler %s shows configuration: %v", args, found)
		}
	}
	for place, text := range map[string]string{
		"the control plane's log": w.control.output(), "the control plane's metrics": fetchText(t, "http://"+w.admin+"/metrics"),
		"the agent's status": fetchText(t, "http://"+p.admin+"/status"), "the agent's report": fetchText(t, "http://"+p.admin+"/report"),
	} {
		if found := c.find([]byte(text)); len(found) > 0 {
			t.Errorf("%s shows configuration: %v", place, found)
		}
	}
	if log := w.control.output(); !strings.Contains(log, `does=Apply object="WasmPlugin edge/p" result=created`) {
		t.Errorf("the change is not in the log: %s", log)
	}
	has(t, port, mark) // and yet it is what requests get
}

// Over TLS the port believes certificates of its authority, and shows nothing to
// those without.
func TestAdminTLS(t *testing.T) {
	ca := authority.New(t)
	server := ca.Issue(authority.Leaf{IP: "127.0.0.1"})
	w := uncontrolled(t, "--admin-tls-cert", server.Cert, "--admin-tls-key", server.Key, "--admin-client-ca", ca.File)
	w.launchControl()
	client := ca.Issue(authority.Leaf{URI: "spiffe://cluster.local/ns/ops/sa/jane"})
	ask := func(args ...string) (string, bool) {
		t.Helper()
		out, err := exec.CommandContext(t.Context(), filepath.Join(built, "chandler"), append(args, "--server", w.admin, "--tls-ca", ca.File)...).CombinedOutput()
		return string(out), err == nil
	}
	eventually(t, 20*time.Second, "the control plane answers over TLS", func() (bool, string) {
		out, ok := ask("get", "-A")
		return ok, out
	})
	if out, ok := ask("delete", "wasmplugin", "x", "--tls-cert", client.Cert, "--tls-key", client.Key); ok || !strings.Contains(out, "spiffe://cluster.local/ns/ops/sa/jane may not edit") {
		t.Errorf("a certificate without a role: %s", out)
	}
	if out, ok := ask("delete", "wasmplugin", "x"); ok || !strings.Contains(out, "show who you are") {
		t.Errorf("nobody: %s", out)
	}
	foreign := authority.New(t).Issue(authority.Leaf{URI: "spiffe://cluster.local/ns/ops/sa/jane"})
	if out, ok := ask("get", "-A", "--tls-cert", foreign.Cert, "--tls-key", foreign.Key); ok {
		t.Errorf("a certificate of another authority: %s", out)
	}
	if out, ok := w.cli("", "get", "-A"); ok {
		t.Errorf("without TLS: %s", out)
	}
}

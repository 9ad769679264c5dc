package e2e

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"chandler.dev/chandler/internal/testenv/module"
)

// dbSecret is a Secret of which the key "config" has a tag for an appending module.
func dbSecret(tag string) string {
	return fmt.Sprintf("apiVersion: v1\nkind: Secret\nmetadata: {name: db, namespace: edge}\nstringData:\n  config: |\n    tag: %s\n---\n", tag)
}

// fromSecret has a plugin's configuration come from that Secret, too.
func fromSecret(manifest string) string {
	return strings.Replace(manifest, "metadata: {", "metadata: {annotations: {chandler.dev/config-from: secret/db#config}, ", 1)
}

// secretPlaces are those at which a configuration from a secret must not be seen.
// Where it belongs is left out: the secret's own file, what the agent keeps for the
// next start, and Envoy's dump of its configuration. With said, Envoy's log, too.
func secretPlaces(t *testing.T, w *world, p *proxy, said bool) map[string][]byte {
	t.Helper()
	out := map[string][]byte{}
	envoy := &http.Client{Timeout: time.Minute, Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(p.dir, "data", "envoy", "admin.sock"))
	}}}
	for _, page := range []struct {
		client      *http.Client
		host, paths string
	}{
		{envoy, "envoy", "init_dump clusters listeners server_info stats stats/prometheus"},
		{http.DefaultClient, w.admin, "metrics healthz/ready debug/pprof/ debug/vars"},
		{http.DefaultClient, p.admin, "metrics stats/prometheus status report healthz/ready"},
	} {
		for path := range strings.FieldsSeq(page.paths) {
			resp, err := page.client.Get("http://" + page.host + "/" + path)
			if err != nil {
				t.Fatal(err)
			}
			var text strings.Builder
			if err := resp.Write(&text); err != nil {
				t.Fatal(err)
			}
			out["http://"+page.host+"/"+path] = []byte(text.String())
		}
	}
	for command := range strings.SplitSeq("get -A -o yaml,get wasmplugin -n edge -o json,get -A -o wide,describe wasmplugin -n edge p,status -A,status -A -o json", ",") {
		text, _ := w.cli("", strings.Fields(command)...) // status fails when the plugin does
		out["chandler "+command] = []byte(text)
	}
	text, err := exec.Command(filepath.Join(built, "chandler-agent"), "status", "--admin", p.admin, "-o", "json").CombinedOutput()
	if len(text) == 0 {
		t.Error(err)
	}
	out["chandler-agent status"] = text
	for place, dir := range map[string]string{"control": w.dir, "agent": p.dir} {
		for name, content := range files(t, dir) {
			isLog := name == "agent.log" || strings.HasPrefix(name, "data/envoy/") && strings.Contains(name, "log")
			if name == "control/applied/secret_edge_db.yaml" || name == "data/lastgood" || said && isLog {
				continue
			}
			out[place+" "+name] = content
		}
	}
	return out
}

// A configuration from a secret reaches the proxies and is seen nowhere else; it
// follows the secret, and stays when that goes, over restarts of everything.
func TestSecretConfig(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "--log-level", "debug")
	port := freePort(t)
	p := w.agent(node{name: "a", flags: []string{"--log-level", "debug"}}, w.gateway(listener{port: port, name: "in"}))
	c := &canaries{}
	mark := func(of string) string {
		m := c.mark(of)
		for what, text := range map[string]string{"value": m, "text": "tag: " + m + "\n", "configuration": `{"tag":"` + m + `"}`} {
			c.sum(of+" "+what, text)
		}
		return m
	}
	quiet := func(when string, said bool) {
		t.Helper()
		places := secretPlaces(t, w, p, said)
		for place, content := range places {
			if found := c.find(content); len(found) > 0 {
				t.Errorf("%s, %s shows the configuration: %v", when, place, found[:1])
			}
		}
		if len(places) < 60 || !strings.Contains(string(places["control control.log"]), "new release") {
			t.Errorf("%s, only %d places were looked at", when, len(places))
		}
	}
	url := w.push("append:v1", module.Append())
	first := mark("first")
	w.apply(dbSecret(first) + fromSecret(plugin("p", url, tag("shown"))))
	sees(t, port, first)
	quiet("in force", false)

	second := mark("second")
	w.submit(dbSecret(second))
	sees(t, port, second)
	quiet("rotated", false)

	// A module that refuses its configuration and repeats it.
	w.submit(fromSecret(plugin("p", w.push("append:telltale", module.TellConfigure()), tag("shown"))))
	w.tells("p", "as the plugin's configuration holds secrets")
	has(t, port, second)
	if log := p.output(); !strings.Contains(log, second) {
		t.Errorf("the plugin's words are not even in Envoy's log:\n%s", log)
	}
	quiet("refused with its configuration in its words", true)
	w.submit(fromSecret(plugin("p", url, tag("shown"))))

	if out, ok := w.cli(dbSecret(second), "delete", "-f", "-"); !ok {
		t.Fatal(out)
	}
	w.tells("p", `secret "db" is not in namespace edge`)
	if err := w.control.stop(); err != nil {
		t.Fatal(err)
	}
	if err := p.stop(); err != nil {
		t.Fatal(err)
	}
	p.restart() // without a control plane: from what is on its disk
	p.awaitReady()
	sees(t, port, second)
	w.startControl()
	w.tells("p", `secret "db" is not in namespace edge`)
	sees(t, port, second)
	late := freePort(t)
	w.startAgent(node{name: "late"}, w.gateway(listener{port: late, name: "in"}))
	eventually(t, 20*time.Second, "a proxy that never had it refuses", func() (bool, string) {
		got, err := request(fresh, http.MethodGet, late, "/", nil)
		return err == nil && got.code == http.StatusForbidden, fmt.Sprint(got.code, err)
	})
	quiet("without the secret", true)

	file := filepath.Join(p.dir, "data", "lastgood")
	kept, err := os.ReadFile(file)
	if err != nil || len(c.find(kept)) == 0 {
		t.Errorf("the last good set has no configuration: %v", err)
	}
	for path, want := range map[string]os.FileMode{file: 0o600, filepath.Dir(file): 0o700} {
		if st, err := os.Stat(path); err != nil || st.Mode().Perm() != want {
			t.Errorf("%s: %v %v, want %v", path, st.Mode(), err, want)
		}
	}
	third := mark("third")
	w.submit(dbSecret(third))
	sees(t, port, third)
	sees(t, late, third)
}

// What refuses its configuration in a trial is told without its words.
func TestSecretConfigTried(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "--log-level", "debug", "--envoy", envoyBinary(t))
	c := &canaries{}
	m := c.mark("tried")
	w.submit(dbSecret(m) + fromSecret(plugin("p", w.push("append:telltale", module.TellConfigure()))))
	eventually(t, 30*time.Second, "it is refused", func() (bool, string) {
		out, _ := w.cli("", "describe", "wasmplugin", "p", "-n", "edge")
		return strings.Contains(out, "WasmConfigure") && strings.Contains(out, "kept back"), out
	})
	out := files(t, w.dir)
	out["describe"] = []byte(first(w.cli("", "describe", "wasmplugin", "p", "-n", "edge")))
	out["metrics"] = []byte(fetchText(t, "http://"+w.admin+"/metrics"))
	for place, content := range out {
		if found := c.find(content); len(found) > 0 && place != "control/applied/secret_edge_db.yaml" {
			t.Errorf("%s shows the configuration: %v", place, found[:1])
		}
	}
	if len(c.find(out["control/applied/secret_edge_db.yaml"])) == 0 {
		t.Error("it is not even in the secret")
	}
}

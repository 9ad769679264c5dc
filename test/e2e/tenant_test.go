package e2e

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	grpcstatus "google.golang.org/grpc/status"

	chandlerv1 "chandler.dev/chandler/api/chandler/v1"
	"chandler.dev/chandler/internal/testenv/module"
)

// Three plugins of one name and one module, of two kinds and in two namespaces, on
// one proxy: what one shares with itself no other sees. (In one VM each would see
// what the one before it left.)
func TestTenantsShareNoVM(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	port := freePort(t)
	w.agent(node{name: "a"}, w.gateway(listener{port: port, name: "in"}))
	url := w.push("share:v1", module.Share())
	extension := fmt.Sprintf("apiVersion: extensions.istio.io/v1alpha1\nkind: TrafficExtension\nmetadata: {name: p, namespace: edge}\nspec:\n  priority: 2\n  wasm:\n    url: %s\n    pluginConfig: {tag: extension}\n", url)
	w.apply(plugin("p", url, tag("plugin"), "priority: 3") + "---\n" + extension + "---\n" +
		strings.Replace(plugin("p", url, tag("root"), "priority: 1"), "namespace: edge", "namespace: istio-system", 1))
	sees(t, port, "plugin", "extension", "root")
	for range 20 {
		has(t, port, "plugin", "extension", "root")
	}
}

// hostile is what a tenant may try to have shown: commands of terminals, other lines,
// a turned direction of text, and more than anybody reads.
const hostile = "\x1b[31mred\x1b]0;title\x07\r\nlevel=ERROR msg=forged\u202egnp\u2028\u009b2J\u200b"

// tame tells what of a text a terminal or a reader could be misled by.
func tame(text string) string {
	for _, bad := range []string{"\x1b", "\x07", "\r", "\u202e", "\u2028", "\u009b", "\u200b", "\nlevel=ERROR msg=forged"} {
		if i := strings.Index(text, bad); i >= 0 {
			return fmt.Sprintf("%q in %q", bad, text[max(0, i-60):min(len(text), i+60)])
		}
	}
	return ""
}

// Hostile strings in resources, in what agents claim and report, in what a plugin logs
// and an Envoy says, and in what a registry answers: every output is fit to be shown,
// and none is long.
func TestHostileStrings(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "--log-level", "debug")
	port := freePort(t)
	p := w.agent(node{name: "a", flags: []string{"--log-level", "debug"}}, w.gateway(listener{port: port, name: "in"}))
	long := hostile + strings.Repeat("long ", 1<<18)
	w.submit(plugin("refuses", w.push("hostile:v1", module.RefuseConfigure(hostile+strings.Repeat("long", 500))), "failStrategy: FAIL_OPEN"))
	w.tells("refuses", "Rejected")
	w.submit(plugin("labels", w.push("append:v1", module.Append()), tag("ok"), "selector: {matchLabels: {"+quoted(hostile)+": "+quoted(hostile[:40])+"}}"))

	var said []string
	for _, manifest := range []string{
		plugin("name"+hostile, "oci://r.example/a:1"),
		plugin("url", "oci://r.example/a:1", quoted(hostile)+": 1"),
		strings.Replace(plugin("url", "URL"), "URL", quoted("oci://r.example/"+hostile), 1),
		plugin("root", "oci://r.example/a:1", "pluginName: "+quoted(hostile[:30])),
		plugin("env", "oci://r.example/a:1", "vmConfig: {env: [{name: "+quoted(hostile)+", value: x}]}"),
		plugin("secret", "oci://r.example/a:1", "imagePullSecret: "+quoted(hostile)),
		plugin("phase", "oci://r.example/a:1", "phase: "+quoted(long[:200<<10])),
		plugin("big", "oci://r.example/a:1", "phase: "+quoted(long)),
		"apiVersion: v1\nkind: " + quoted(hostile) + "\n",
	} {
		out, ok := w.cli(manifest, "apply", "-f", "-")
		if ok {
			t.Errorf("%.200q is taken", manifest)
		}
		said = append(said, out)
	}
	for _, args := range [][]string{{"get", hostile}, {"describe", "wasmplugin", hostile, "-n", "edge"}, {"status", hostile}, {"get", "-n", hostile}} {
		out, _ := w.cli("", args...)
		said = append(said, out)
	}
	hostileAgent(t, w, long)

	outputs := map[string]string{"applying": strings.Join(said, "")}
	for command := range strings.SplitSeq("get -A,get -A -o wide,get -A -o json,status -A,status -A -o json,describe wasmplugin -n edge refuses,describe wasmplugin -n edge labels", ",") {
		outputs["chandler "+command], _ = w.cli("", strings.Fields(command)...)
	}
	for _, url := range []string{w.admin + "/metrics", p.admin + "/metrics", p.admin + "/status", p.admin + "/report"} {
		_, body, _ := strings.Cut(fetchText(t, "http://"+url), "\r\n\r\n")
		outputs[url] = strings.ReplaceAll(body, "\r\n", "\n") // of its chunks
	}
	for name, log := range map[string]string{"control.log": w.control.log, "agent.log": p.log} {
		content, err := os.ReadFile(log)
		if err != nil {
			t.Fatal(err)
		}
		outputs[name] = string(content)
		// What Envoy copies of a plugin's words may have lines of its own.
		outputs[name] = strings.ReplaceAll(outputs[name], "\nlevel=ERROR msg=forged", "")
	}
	for name, text := range outputs {
		if why := tame(text); why != "" {
			t.Errorf("%s: %s", name, why)
		}
		if n := strings.Count(text, "long"); n > 10_000 {
			t.Errorf("%s: what is 1 MiB long is shown %d times", name, n)
		}
		if text == "" {
			t.Errorf("%s says nothing", name)
		}
	}
	if !strings.Contains(outputs["chandler describe wasmplugin -n edge refuses"], "[31mred") {
		t.Errorf("the plugin's words are not even shown:\n%s", outputs["chandler describe wasmplugin -n edge refuses"])
	}
}

// quoted is a string of YAML, in ASCII.
func quoted(s string) string {
	var b strings.Builder
	for _, r := range s {
		if r >= ' ' && r < 0x7f && r != '"' && r != '\\' {
			b.WriteRune(r)
		} else {
			fmt.Fprintf(&b, `\u%04x`, r)
		}
	}
	return `"` + b.String() + `"`
}

// hostileAgent claims and reports what it should not: in a name it is refused, and in
// words it is made fit.
func hostileAgent(t *testing.T, w *world, long string) {
	t.Helper()
	conn, err := grpc.NewClient(w.listen, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	report := func(n *chandlerv1.Node, states ...*chandlerv1.AttachmentState) error {
		str, err := chandlerv1.NewReportsClient(conn).Report(t.Context())
		if err != nil {
			return err
		}
		if err := str.Send(&chandlerv1.ReportRequest{Node: n, Sequence: 1, Full: true, States: states}); err != nil {
			return err
		}
		_, err = str.Recv()
		return err
	}
	good := func() *chandlerv1.Node { return &chandlerv1.Node{Name: "forger", Namespace: "edge"} }
	ref := &chandlerv1.PluginRef{Kind: "WasmPlugin", Namespace: "edge", Name: "refuses"}
	for what, claim := range map[string]func(n *chandlerv1.Node){
		"name":          func(n *chandlerv1.Node) { n.Name = hostile },
		"long name":     func(n *chandlerv1.Node) { n.Name = strings.Repeat("a", 1<<20) },
		"namespace":     func(n *chandlerv1.Node) { n.Namespace = "edge\u202e" },
		"label":         func(n *chandlerv1.Node) { n.Labels = map[string]string{"a": hostile} },
		"label's name":  func(n *chandlerv1.Node) { n.Labels = map[string]string{hostile: "a"} },
		"agent version": func(n *chandlerv1.Node) { n.AgentVersion = hostile },
		"envoy version": func(n *chandlerv1.Node) { n.EnvoyVersion = "1.40\x1b[2J" },
		"feature":       func(n *chandlerv1.Node) { n.Features = []string{"a\u2028b"} },
	} {
		n := good()
		claim(n)
		err := report(n)
		if code := grpcstatus.Code(err); code != codes.InvalidArgument && code != codes.PermissionDenied {
			t.Errorf("a hostile %s: %v", what, err)
		} else if why := tame(err.Error()); why != "" || len(err.Error()) > 4<<10 {
			t.Errorf("a hostile %s is answered with %d bytes: %s", what, len(err.Error()), why)
		}
	}
	for what, state := range map[string]*chandlerv1.AttachmentState{
		"reason": {Plugin: ref, State: chandlerv1.State_STATE_FAILED, Reason: hostile},
		"plugin": {Plugin: &chandlerv1.PluginRef{Kind: "WasmPlugin", Namespace: "edge", Name: hostile}, State: chandlerv1.State_STATE_FAILED},
		"uid":    {Plugin: &chandlerv1.PluginRef{Kind: "WasmPlugin", Namespace: "edge", Name: "a", Uid: hostile}, State: chandlerv1.State_STATE_FAILED},
	} {
		if err := report(good(), state); grpcstatus.Code(err) != codes.InvalidArgument {
			t.Errorf("a hostile %s: %v", what, err)
		}
	}
	if err := report(good(), &chandlerv1.AttachmentState{Plugin: ref, State: chandlerv1.State_STATE_FAILED, Reason: "FetchFailed", Message: long}); err != nil {
		t.Error(err)
	}
	eventually(t, 10*time.Second, "the claim is taken", func() (bool, string) {
		out, _ := w.cli("", "status", "-A", "-o", "json")
		return strings.Contains(out, "forger") || strings.Contains(out, "refuses"), out
	})
}

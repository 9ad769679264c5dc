package attach

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"chandler.dev/chandler/internal/testenv/module"
)

const first = `
node: {id: one, cluster: c, metadata: {a: {x: 1, y: 2}, b: kept}, locality: {region: r, zone: z}}
admin: {address: {socket_address: {address: 127.0.0.1, port_value: 9901}}}
stats_flush_interval: 5s
header_prefix: x-first
stats_config: {use_all_default_tags: true, stats_tags: [{tag_name: one, fixed_value: "1"}]}
typed_dns_resolver_config:
  name: envoy.network.dns_resolver.cares
  typed_config: {"@type": type.googleapis.com/envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig, query_timeout_seconds: 7, query_tries: 2}
layered_runtime: {layers: [{name: static, static_layer: {k: 1}}]}
static_resources:
  clusters:
  - {name: one, type: STATIC, connect_timeout: 1s, load_assignment: {cluster_name: one, endpoints: []}}
`

const second = `
node: {id: two, cluster: "", metadata: {a: {z: 3}}, locality: {zone: zz}}
admin: {address: {pipe: {path: admin.sock}}}
statsFlushInterval: 7s
headerPrefix: x-second
stats_config: {stats_tags: [{tag_name: two, fixed_value: "2"}], use_all_default_tags: ~}
typed_dns_resolver_config:
  typed_config: {"@type": type.googleapis.com/envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig, query_tries: 3}
layered_runtime: {layers: [{name: admin, admin_layer: {}}]}
staticResources:
  clusters:
  - {name: two, type: STATIC, connect_timeout: 2s, load_assignment: {cluster_name: two, endpoints: []}}
`

// Envoy with both flags and Envoy with the merged file must hold the same.
func TestMergeAsEnvoyDoes(t *testing.T) {
	t.Parallel()
	config, err := MergeConfig("first.yaml", []byte(first), second)
	if err != nil {
		t.Fatal(err)
	}
	merged, err := render(config.root, config.json)
	if err != nil {
		t.Fatal(err)
	}
	want := bootstrapOf(t, map[string]string{"first.yaml": first}, "-c", "first.yaml", "--config-yaml", second)
	got := bootstrapOf(t, map[string]string{"merged.yaml": string(merged)}, "-c", "merged.yaml")
	if !reflect.DeepEqual(got, want) {
		t.Errorf("Envoy merges to\n%s\nand reads the merged file as\n%s", indented(want), indented(got))
	}
}

func indented(v any) string {
	text, _ := json.MarshalIndent(v, "", " ")
	return string(text)
}

// bootstrapOf starts Envoy, whose admin interface must be at admin.sock, and
// gives the bootstrap that it says it has.
func bootstrapOf(t *testing.T, files map[string]string, args ...string) map[string]any {
	t.Helper()
	dir, err := os.MkdirTemp("", "chandler") // short: paths of sockets are bounded
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var log bytes.Buffer
	cmd := exec.Command(module.Envoy(t), append(args, "--use-dynamic-base-id", "--concurrency", "1", "-l", "error")...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	defer func() {
		_ = cmd.Process.Kill()
		<-ended
	}()
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(dir, "admin.sock"))
	}}
	defer transport.CloseIdleConnections()
	for until := time.Now().Add(2 * time.Minute); time.Now().Before(until); time.Sleep(10 * time.Millisecond) {
		res, err := (&http.Client{Transport: transport, Timeout: time.Minute}).Get("http://envoy/config_dump")
		if err != nil {
			select {
			case err := <-ended:
				ended <- err
				t.Fatalf("Envoy ended: %s", &log)
			default:
				continue
			}
		}
		text, err := io.ReadAll(res.Body)
		_ = res.Body.Close()
		var dump struct {
			Configs []struct {
				Bootstrap map[string]any `json:"bootstrap"`
			} `json:"configs"`
		}
		if err != nil || json.Unmarshal(text, &dump) != nil {
			t.Fatalf("dump: %v\n%s", err, text)
		}
		for _, c := range dump.Configs {
			if c.Bootstrap != nil {
				delete(c.Bootstrap["node"].(map[string]any), "extensions")
				return c.Bootstrap
			}
		}
		t.Fatalf("no bootstrap in the dump: %.300s", text)
	}
	t.Fatalf("Envoy does not come up: %s", &log)
	return nil
}

func TestMerge(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ name, path, file, override, want string }{
		{"a file alone", "e.yaml", "a: yes # why", "", "a: yes\n"},
		{"text alone", "", "", "a: [1, 'x']", "a: [1, \"x\"]\n"},
		{"nothing", "e.yaml", "", "", "{}\n"},
		{"null", "e.yaml", "~", "a: 1", "a: 1\n"},
		{"JSON stays JSON", "e.json", `{"a": 1.5, "yes": "yes"}`, " ", "{\n  \"a\": 1.5,\n  \"yes\": \"yes\"\n}\n"},
		{"JSON called YAML is YAML", "e.yml", `{"a": 1e3, "yes": "yes"}`, "", "a: 1e3\nyes: \"yes\"\n"},
		{"JSON and YAML are YAML", "e.json", `{"a": 1e3, "b": "1e3", "c": 0.5, "d": -2.0}`, "e: 1", "a: 1000\nb: \"1e3\"\nc: 0.5\nd: -2\ne: 1\n"},
		{"zero is unset", "e.yaml", "a: 5\nb: x\nc: true", `{a: 0, b: "", c: false, d: 0}`, "a: 5\nb: x\nc: true\nd: 0\n"},
		{"so is a duration of zero, but not the text 0", "e.yaml", "a: 5s\nb: x", `{a: 0.0s, b: "0"}`, "a: 5s\nb: \"0\"\n"},
		{"but not a port", "e.yaml", "s: {port_value: 5}", "s: {portValue: 0}", "s: {port_value: 0}\n"},
		{"a key that YAML would read otherwise", "e.json", `{"<<": {"null": 1}}`, "a: 1", "\"<<\":\n  \"null\": 1\na: 1\n"},
		{"merge keys", "e.yaml", "x: &x {a: 1, b: 2}\ny: &y {b: 3, c: 4}\nz: {<<: [*x, *y], a: 0}", "", "x: {a: 1, b: 2}\ny: {b: 3, c: 4}\nz: {a: 0, b: 2, c: 4}\n"},
	} {
		config, err := MergeConfig(c.path, []byte(c.file), c.override)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if got, err := render(config.root, config.json); err != nil || string(got) != c.want {
			t.Errorf("%s: %v\ngot\n%s\nwant\n%s", c.name, err, got, c.want)
		}
	}
	if _, err := MergeConfig("e.yaml", nil, "a: ["); err == nil || !strings.Contains(err.Error(), "YAML") {
		t.Errorf("text that is not YAML: %v", err)
	}
}

// What is edited for one alias must not show where the other stands.
func TestAliasesBecomeCopies(t *testing.T) {
	t.Parallel()
	root, _, err := parse([]byte("a: &x {l: [1]}\nb: *x\n"))
	if err != nil {
		t.Fatal(err)
	}
	if err := set(root.Content[1], "", "l", newSequence()); err != nil {
		t.Fatal(err)
	}
	if got, err := render(root, false); err != nil || string(got) != "a: {l: []}\nb: {l: [1]}\n" {
		t.Errorf("%v\n%s", err, got)
	}
}

// A file that is read and written again must mean the same to Envoy.
func TestScalarsKeepTheirMeaning(t *testing.T) {
	t.Parallel()
	for name, text := range map[string]string{
		"e.yaml": `
admin: {address: {pipe: {path: admin.sock}}}
node:
  id: seven
  cluster: '1.0'
  metadata:
    bools: [yes, No, ON, off, y, n, true, "true", 'no', !!str yes]
    numbers: [1, -1, +5, 010, 0x1F, 0o17, 1_000, 1.5, .5, 1e3, 2147483648, 9223372036854775807, 18446744073709551616, .inf, 190:20:30]
    quoted: ["1", '1', "0x1F", "null", '~', ""]
    nulls: [null, ~, Null]
    none:
    dates: [2026-08-01, 2026-08-01T10:00:00Z]
    text: ["tab\there", "\u00e9\U0001F680\x07\e", 'it''s', "a # b", "a: b", "- x", "*x", "&x", "!x", "%x", "@x", "{", "[", " lead", "trail ", "two\nlines"]
    plain: [a b, a#b, http://x:80/y, "=", <, "<<"]
    literal: |2
        indented first
      then not

    keep: |+
      kept

    folded: >
      one
      two

      three
    wrapped: one
      two
    ? complex
    : key
`,
		"e.json": `{"admin": {"address": {"pipe": {"path": "admin.sock"}}}, "node": {"id": "j", "metadata": {
			"numbers": [1, -1, 1.5, 1e3, 2147483648, 9007199254740993, 0.1], "text": ["\ud83d\ude80", "a\/b", "\u0007", "<&>", "\u2028", "yes"], "yes": true, "none": null, "e": {}, "l": []}}}`,
	} {
		config, err := MergeConfig(name, []byte(text), "")
		if err != nil {
			t.Fatal(err)
		}
		again, err := render(config.root, config.json)
		if err != nil {
			t.Fatal(err)
		}
		want := bootstrapOf(t, map[string]string{name: text}, "-c", name)
		got := bootstrapOf(t, map[string]string{name: string(again)}, "-c", name)
		if !reflect.DeepEqual(got, want) {
			t.Errorf("Envoy reads\n%s\nand what is written again as\n%s", indented(want), indented(got))
		}
	}
}

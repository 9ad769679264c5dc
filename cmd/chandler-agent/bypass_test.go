package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/agent"
)

// agentDirectory is one on which an agent has run, whose last good set has plugins.
func agentDirectory(t *testing.T, plugins ...string) string {
	t.Helper()
	data := t.TempDir()
	if err := os.Mkdir(filepath.Join(data, "envoy"), 0o700); err != nil {
		t.Fatal(err)
	}
	var versions []string
	for _, p := range plugins {
		namespace, name, _ := strings.Cut(p, "/")
		versions = append(versions, fmt.Sprintf(`{"Kind": "WasmPlugin", "Namespace": %q, "Name": %q}`, namespace, name))
	}
	text := `{"format": 1, "versions": [` + strings.Join(versions, ",") + `]}`
	if err := os.WriteFile(filepath.Join(data, "lastgood"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return data
}

// Without an agent an order is given to the next one.
func TestBypassWithoutAgent(t *testing.T) {
	t.Parallel()
	data, admin := agentDirectory(t, "edge/a", "edge/two", "other/two"), nobody(t)
	bypass := func(want int, says string, args ...string) {
		t.Helper()
		code, out, errs := local(t, nil, append([]string{"bypass", "--data", data, "--admin", admin}, args...)...)
		if code != want || !strings.Contains(out+errs, says) {
			t.Errorf("%v: exit code %d, want %d and %q:\n%s%s", args, code, want, says, out, errs)
		}
	}
	bypass(0, "nothing is taken out")
	bypass(0, "no agent answers", "a", "--reason", "it burns")
	bypass(1, "WasmPlugin/edge/two, WasmPlugin/other/two", "two", "--reason", "it burns")
	bypass(0, "no agent answers", "two", "--namespace", "other", "--reason", "so does this")
	bypass(1, "no plugin \"stranger\" is known", "stranger", "--reason", "x")
	bypass(0, "no agent answers", "stranger", "--namespace", "far", "--kind", "TrafficExtension", "--reason", "x")
	bypass(1, "not the name", "str/anger", "--namespace", "far", "--reason", "x")
	orders, err := agent.ListBypasses(data)
	if err != nil || len(orders) != 3 {
		t.Fatalf("orders: %v, %v", orders, err)
	}
	for _, o := range orders {
		if o.Name == "a" && (o.Key != chandler.Key{Kind: "WasmPlugin", Namespace: "edge", Name: "a"} || o.Reason != "it burns" || o.At.IsZero()) {
			t.Errorf("%+v", o)
		}
	}
	bypass(3, "WasmPlugin/other/two\tsince ")
	bypass(1, "is not taken out here", "two", "--namespace", "edge", "--undo")
	bypass(0, "", "two", "--namespace", "other", "--undo")
	bypass(0, "", "a", "--undo")
	bypass(0, "", "stranger", "--undo") // known by its order
	bypass(0, "nothing is taken out")
}

// The command ends when the agent has obeyed, or says that it has not.
func TestBypassAwaitsTheAgent(t *testing.T) {
	t.Parallel()
	data := agentDirectory(t)
	key := chandler.Key{Kind: "WasmPlugin", Namespace: "edge", Name: "a"}
	obeys, asked := true, 0
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		st := agent.Status{Plugins: []agent.PluginStatus{{PluginRef: agent.PluginRef(key)}}}
		orders, _ := agent.ListBypasses(data)
		for _, o := range orders {
			st.Bypassed = append(st.Bypassed, agent.BypassStatus{PluginRef: agent.PluginRef(o.Key)})
			asked++
		}
		if asked < 3 || !obeys { // it is in its slot still
			st.Listeners = []agent.ListenerStatus{{Slots: []agent.SlotStatus{{Members: []agent.MemberStatus{{PluginRef: agent.PluginRef(key), Release: "r"}}}}}}
		}
		_ = json.NewEncoder(w).Encode(st)
	}))
	defer srv.Close()
	admin := strings.TrimPrefix(srv.URL, "http://")
	code, out, errs := local(t, nil, "bypass", "a", "--reason", "it burns", "--data", data, "--admin", admin, "--timeout", "1m")
	if code != 0 || !strings.Contains(out, "WasmPlugin/edge/a is taken out after ") || asked < 3 {
		t.Errorf("exit code %d: %s%s, asked %d times", code, out, errs, asked)
	}
	if code, out, errs = local(t, nil, "bypass", "a", "--undo", "--data", data, "--admin", admin, "--timeout", "1m"); code != 0 || !strings.Contains(out, "no longer") {
		t.Errorf("exit code %d: %s%s", code, out, errs)
	}
	obeys = false
	if code, _, errs = local(t, nil, "bypass", "a", "--reason", "it burns", "--data", data, "--admin", admin, "--timeout", "100ms"); code != exitTimedOut || !strings.Contains(errs, "has not obeyed") {
		t.Errorf("exit code %d: %s", code, errs)
	}
}

// An agent that runs on another directory is not asked whether it has obeyed: it has no order.
func TestBypassAsksTheRightAgent(t *testing.T) {
	t.Parallel()
	data, other := agentDirectory(t, "edge/a"), agentDirectory(t, "edge/b")
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(agent.Status{Data: other, Plugins: []agent.PluginStatus{{PluginRef: agent.PluginRef{Kind: "WasmPlugin", Namespace: "edge", Name: "b"}}}})
	}))
	defer srv.Close()
	admin := strings.TrimPrefix(srv.URL, "http://")
	for _, args := range [][]string{{"a", "--reason", "it burns"}, {"a", "--undo"}} {
		code, out, errs := local(t, nil, append([]string{"bypass", "--data", data, "--admin", admin}, args...)...)
		if want := "no agent answers (the one at " + admin + " runs on " + other; code != 0 || out != "" || !strings.Contains(errs, want) {
			t.Errorf("%v: exit code %d, want %q:\n%s%s", args, code, want, out, errs)
		}
	}
	if code, _, errs := local(t, nil, "bypass", "b", "--reason", "x", "--data", data, "--admin", admin); code != exitFailed || !strings.Contains(errs, "is known on this machine") {
		t.Errorf("a plugin of the other agent: exit code %d: %s", code, errs)
	}
}

// The agent's variables say where it is, and nothing of plugins; who gave an order is
// written down.
func TestBypassVariables(t *testing.T) {
	t.Parallel()
	data := agentDirectory(t, "edge/a")
	var out, errs bytes.Buffer
	environ := []string{"CHANDLER_AGENT_DATA=" + data, "CHANDLER_AGENT_ADMIN=" + nobody(t), "CHANDLER_AGENT_NAMESPACE=proxies", "SUDO_USER=ann", "USER=root"}
	if code := run([]string{"bypass", "a", "--reason", "x"}, environ, &out, &errs); code != 0 {
		t.Fatalf("exit code %d: %s%s", code, out.String(), errs.String())
	}
	if orders, err := agent.ListBypasses(data); err != nil || len(orders) != 1 || orders[0].By != "ann" || orders[0].Namespace != "edge" {
		t.Errorf("%+v, %v", orders, err)
	}
}

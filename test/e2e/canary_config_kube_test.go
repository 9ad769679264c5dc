//go:build kube

package e2e

import (
	"encoding/base64"
	"fmt"
	"maps"
	"net/http"
	"strings"
	"testing"

	"chandler.dev/chandler/internal/testenv/module"
)

// config makes the Secret anew from which the configuration is, in one write.
func (a *aviary) config(text string) {
	a.t.Helper()
	a.cluster.apply(fmt.Sprintf("apiVersion: v1\nkind: Secret\nmetadata: {name: db, namespace: edge}\ndata: {config: %s}\n", base64.StdEncoding.EncodeToString([]byte(text))))
}

// elsewhere takes out the places where a configuration belongs: what goes to the proxies
// that run the plugin, their Envoy's own dump, and what they keep for the next start.
// With said, the plugin has repeated it, which is in Envoy's log.
func elsewhere(places map[string][]byte, said bool) map[string][]byte {
	out := maps.Clone(places)
	for place := range out {
		isLog := strings.HasPrefix(place, "the agent's files: ") && strings.Contains(place, "log")
		switch {
		case place == "between agent and control plane", place == "http://envoy/config_dump?include_eds",
			place == "the agent's files: data/lastgood", said && isLog:
			delete(out, place)
		}
	}
	return out
}

// What of a configuration is from a secret is in no status, event or record, in no log
// but that of an Envoy whose plugin repeats it, in no metric and in no file but the
// one that the agent starts from: neither when it is in force, nor when it is
// refused, nor when the secret is wrong or gone.
func TestKubeCanaryConfig(t *testing.T) {
	a := newAviary(t)
	c, pull := &canaries{}, &canaries{}
	user, password, config := a.credential(pull, "pull")
	a.gate.opens(user, password, "")
	a.secret(dockerSecret, config)
	a.port = freePort(t)
	a.agent = a.world.agent(node{name: a.name, flags: []string{"--control", a.wire.addr, "--log-level", "debug"}}, a.gateway(listener{port: a.port, name: "in"}))
	look := func(when string, said bool) { t.Helper(); a.quiet(c, when, elsewhere(a.shown(), said)) }
	mark := func(of string) string {
		m := c.mark(of)
		for what, text := range map[string]string{"value": m, "text": "tag: " + m, "configuration": `{"tag":"` + m + `"}`} {
			c.sum(of+" "+what, text)
		}
		return m
	}
	asks := func(url string) { t.Helper(); a.cluster.apply(fromSecret(a.plugin(url, tag("shown")))) }

	first := mark("first")
	a.config("tag: " + first)
	url := a.url("v1", build(1))
	asks(url)
	heals(t, a.port, first)
	a.shows("True")
	look("in force", false)
	second := mark("second")
	a.config("tag: " + second)
	heals(t, a.port, second)
	a.shows("True")
	look("rotated", false)

	asks(a.url("telltale", module.TellConfigure()))
	a.shows("False", "as the plugin's configuration holds secrets")
	has(t, a.port, second)
	look("refused", true)
	asks(url)
	a.shows("True")
	for text, says := range map[string]string{
		"- " + mark("a list"):                        "no object of YAML or JSON",
		"{" + mark("broken"):                         "no object of YAML or JSON",
		mark("twice") + ": 1\n" + second + ": {a: 1": "no object of YAML or JSON",
	} {
		a.config(text)
		a.shows("False", says)
		look("with what is no object", true)
	}
	a.cluster.kubectl("", "delete", "secret", "-n", "edge", "db")
	a.shows("False", `secret "db" is not in namespace edge`)
	if err := a.control.stop(); err != nil {
		t.Fatal(err)
	}
	a.startControl()
	a.shows("False", `secret "db" is not in namespace edge`)
	has(t, a.port, second)
	look("without the secret", true)

	kept, secret := a.kept()
	a.quiet(c, "at the end", elsewhere(kept, true))
	if len(c.find(secret)) == 0 || len(c.find(kept["between agent and control plane"])) == 0 {
		t.Error("the canaries are not even where they belong")
	}
	if records := kept["the API server's objects, controllerrevisions"]; !strings.Contains(string(records), `"ConfigFrom":[{"Name":"db","Key":"config","Version":"`) {
		t.Error("no record says what the configuration is from")
	}
	got, err := request(fresh, http.MethodGet, a.port, "/", nil)
	if err != nil || got.code != http.StatusOK {
		t.Error(got.code, err)
	}
	third := mark("third")
	a.config("tag: " + third)
	heals(t, a.port, third)
	look("with a secret again", true)
}

package main

import (
	"context"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/testenv/swarm"
)

// proxyInScript connects "proxy NAMESPACE/NAME [KEY=VALUE ...] [!PLUGIN=WORDS ...]", an
// agent with labels whose Envoy refuses plugins in these words, for as long as the script
// runs. @ in the words is what the plugin is given.
func proxyInScript(ts *testscript.TestScript, neg bool, args []string) {
	if neg {
		ts.Fatalf("proxy cannot be negated")
	}
	namespace, name, _ := strings.Cut(args[0], "/")
	node := chandler.Node{Namespace: namespace, Name: name, Labels: map[string]string{}, AgentVersion: "v1.2.3", EnvoyVersion: "1.40.0"}
	refuse := map[string]string{}
	for _, arg := range args[1:] {
		key, value, _ := strings.Cut(arg, "=")
		if plugin, ok := strings.CutPrefix(key, "!"); ok {
			refuse[plugin] = value
		} else {
			node.Labels[key] = value
		}
	}
	s := swarm.New(swarm.Config{
		Target: ts.Getenv("LISTEN"), Agents: 1, Node: func(int) chandler.Node { return node }, Mode: chandler.ModeClient,
		Conduct: func(_ chandler.Node, a *chandler.Attachment) swarm.Conduct {
			return swarm.Conduct{Reject: strings.ReplaceAll(refuse[a.Name], "@", repeated(a))}
		},
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	ts.Defer(func() {
		cancel()
		ts.Check(<-done)
	})
	deadline := time.Now().Add(time.Minute)
	for s.Connected() == 0 {
		if time.Now().After(deadline) {
			ts.Fatalf("the control plane does not answer %s", args[0])
		}
		time.Sleep(10 * time.Millisecond) // between looks at a condition
	}
}

// repeated is all that a plugin is given, as one that cannot start may write to its log.
func repeated(a *chandler.Attachment) string {
	all := string(a.Config)
	for _, v := range a.Env {
		all += " " + v.Value
	}
	return all
}

// code is "code CODE ARGUMENTS...": it runs chandler and wants an exit code.
func code(ts *testscript.TestScript, _ bool, args []string) {
	var out, errs strings.Builder
	got := run(append([]string{"chandler"}, args[1:]...), ts.Getenv, strings.NewReader(""), &out, &errs)
	if want := args[0]; want != string(rune('0'+got)) {
		ts.Fatalf("chandler %v ends with %d, want %s: %s%s", args[1:], got, want, out.String(), errs.String())
	}
}

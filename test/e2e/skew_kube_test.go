//go:build kube && upgrade

package e2e

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"chandler.dev/chandler/internal/testenv/module"
)

// Replicas of the last release and of what is built here share a cluster's records, as they
// do while a Deployment is replaced, and back. Each leads in turn under load: what tags once
// meant stays, the other's releases stay as they were written, agents of both versions get
// every change, and no request fails.
func TestSkewReplicas(t *testing.T) {
	c := newCluster(t)
	builds := []programs{last(t), current()}
	listens := []string{loopback(freePort(t)), loopback(freePort(t))}
	var replicas []*world
	for i, b := range builds {
		replicas = append(replicas, &world{t: t, dir: t.TempDir(), program: b.control, listen: listens[i], admin: loopback(freePort(t)),
			flags: c.flags("--no-vet", "--advertise", listens[i], "--peers", strings.Join(listens, ","))})
	}
	leads := func(i int) { c.leader(func(at string) bool { return at == listens[i] }) }
	w := uncontrolled(t)
	n, image := 0, "append:v1"
	url := w.push(image, build(1))
	replicas[0].startControl()
	leads(0)
	c.apply(plugin("p", url, tag("n0")))
	replicas[1].startControl()

	var ports []int
	var loads []*load
	for i, b := range builds {
		w.listen = listens[i] + "," + listens[1-i]
		ports = append(ports, freePort(t))
		w.agent(node{name: b.version, binary: b.agent}, w.gateway(listener{port: ports[i], name: "in"}))
		heals(t, ports[i], "n0")
		loads = append(loads, startLoad(ports[i], 2, 1, alwaysOne))
	}
	change := func() {
		t.Helper()
		n++
		c.apply(plugin("p", url, tag(fmt.Sprint("n", n))))
		for _, port := range ports {
			heals(t, port, fmt.Sprint("n", n))
		}
	}
	means := func(i int, want string) {
		t.Helper()
		eventually(t, time.Minute, fmt.Sprintf("to %s p is %s", builds[i], want), func() (bool, string) {
			got := replicas[i].meaning()["p"]
			return got != "" && got == want, got
		})
	}
	for dies := range builds {
		stays := 1 - dies
		leads(dies)
		was, before := replicas[dies].meaning()["p"], c.releases()
		w.push(image, module.Append()) // moved, and nobody is to notice
		replicas[dies].control.kill(t)
		leads(stays)
		means(stays, was)
		change()
		means(stays, was)
		replicas[dies].startControl()
		means(dies, was)
		image = "append:by-" + builds[stays].version
		url = w.push(image, build(2+stays))
		change()
		now := c.releases()
		if len(before) == 0 || len(now) != len(before)+2 { // by two changes
			t.Errorf("there are the releases %v, and were %v", slices.Sorted(maps.Keys(now)), slices.Sorted(maps.Keys(before)))
		}
		for name, data := range before {
			if now[name] != data {
				t.Errorf("%s has led, and of the release %s there is %q; it was %q", builds[stays], name, now[name], data)
			}
		}
	}
	for _, l := range loads {
		harmless(t, l)
	}
}

// releases are those that the cluster's records have, as they are written.
func (c *cluster) releases() map[string]string {
	c.t.Helper()
	var list struct {
		Items []struct {
			Metadata struct{ Name string }
			Data     json.RawMessage
		}
	}
	if err := json.Unmarshal([]byte(c.kubectl("", "get", "controllerrevisions", "-n", "edge", "-l", "chandler.dev/record=release", "-o", "json")), &list); err != nil {
		c.t.Fatal(err)
	}
	all := map[string]string{}
	for _, o := range list.Items {
		all[o.Metadata.Name] = string(o.Data)
	}
	return all
}

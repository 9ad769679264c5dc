//go:build kube

package e2e

import (
	"cmp"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	yaml "go.yaml.in/yaml/v3"
)

// right is a verb on a resource, as the chart grants it somewhere.
type right struct{ verb, resource string }

// forbidden is how the API server says that it is lacking, in a line of the log.
func (r right) forbidden() string {
	return fmt.Sprintf(`cannot %s resource \"%s\"`, r.verb, r.resource)
}

// without takes rights from the chart's roles, and gives what puts them back. Both
// return when the API server goes by it.
func (w *charted) without(rights ...right) (restore func()) {
	w.t.Helper()
	var undo []func()
	for _, r := range w.roles() {
		var kept, lost []grant
		for _, g := range r.rules {
			for _, resource := range g.Resources {
				one := g
				one.Resources = []string{resource}
				one.Verbs = slices.DeleteFunc(slices.Clone(g.Verbs), func(verb string) bool { return slices.Contains(rights, right{verb, resource}) })
				if len(one.Verbs) > 0 {
					kept = append(kept, one)
				}
				if gone := slices.DeleteFunc(slices.Clone(g.Verbs), func(verb string) bool { return slices.Contains(one.Verbs, verb) }); len(gone) > 0 {
					one.Verbs = gone
					lost = append(lost, one)
				}
			}
		}
		if len(lost) == 0 {
			continue
		}
		document := maps.Clone(r.document)
		document["rules"] = kept
		text, err := yaml.Marshal(document)
		if err != nil {
			w.t.Fatal(err)
		}
		w.kubectl(string(text), "replace", "-f", "-")
		await := func(may bool) {
			w.t.Helper()
			for _, g := range lost {
				w.awaitRight(g, r.place, may)
			}
		}
		await(false)
		undo = append(undo, func() {
			w.t.Helper()
			w.kubectl(string(r.text), "replace", "-f", "-")
			await(true)
		})
	}
	if len(undo) == 0 {
		w.t.Fatalf("the chart grants none of %v", rights)
	}
	return func() {
		w.t.Helper()
		for _, f := range undo {
			f()
		}
	}
}

// awaitRight waits until the control plane may or may not do what a rule grants.
func (w *charted) awaitRight(g grant, namespace string, may bool) {
	w.t.Helper()
	resource, sub, _ := strings.Cut(g.Resources[0], "/")
	if g.APIGroups[0] != "" {
		resource += "." + g.APIGroups[0]
	}
	if len(g.ResourceNames) > 0 {
		resource += "/" + g.ResourceNames[0]
	}
	args := []string{"auth", "can-i", g.Verbs[0], resource, "-n", cmp.Or(namespace, "istio-system")}
	if sub != "" {
		args = append(args, "--subresource="+sub)
	}
	eventually(w.t, 30*time.Second, fmt.Sprint(args, may), func() (bool, string) {
		out, err := w.cluster.KubectlAs(w.t.Context(), w.account, "", args...)
		return strings.Contains(out, map[bool]string{true: "yes", false: "no"}[may]) && (err == nil) == may, out
	})
}

// lackWorld is what rows of lacking rights do and see.
type lackWorld struct {
	*charted
	t     *testing.T
	url   string // of a module that only the pull secret opens
	mark  int    // where in the control plane's log the row begins
	edits int
}

// edit applies a version of plugin p that was not there before.
func (w *lackWorld) edit() {
	w.t.Helper()
	w.edits++
	w.kubectl(here(plugin("p", w.url, tag(w.tag()), "imagePullSecret: pull")), "apply", "-f", "-")
}

func (w *lackWorld) tag() string { return fmt.Sprint("v", w.edits) }

func (w *lackWorld) sees(want ...string) {
	w.t.Helper()
	want = append([]string{"base"}, want...)
	eventually(w.t, time.Minute, fmt.Sprint("requests get ", want), func() (bool, string) {
		got := appended(get(w.t, w.port, "/"))
		return slices.Equal(got, want), fmt.Sprint(got)
	})
}

// edited is an edit that comes into force.
func (w *lackWorld) edited() { w.t.Helper(); w.edit(); w.sees(w.tag()) }

// editedWhileLeading is an edit that comes into force unless the control plane came too
// late for it: without its rights it leads for some seconds more.
func (w *lackWorld) editedWhileLeading() {
	w.t.Helper()
	w.edit()
	want := []string{"base", w.tag()}
	eventually(w.t, time.Minute, fmt.Sprint("requests get ", want), func() (bool, string) {
		if strings.Contains(w.control.output()[w.mark:], "no replica leads") {
			w.t.Log("the Lease ended before the edit was taken")
			return true, ""
		}
		got := appended(get(w.t, w.port, "/"))
		return slices.Equal(got, want), fmt.Sprint(got)
	})
}

// says waits for lines of the control plane's log with these texts.
func (w *lackWorld) says(texts ...string) {
	w.t.Helper()
	for _, text := range texts {
		w.logs(w.mark, text)
	}
}

// lacking waits until the control plane has said that it lacks rights, and what to
// do.
func (w *lackWorld) lacking(rights ...right) {
	w.t.Helper()
	for _, r := range rights {
		w.logs(w.mark, r.forbidden(), "grant it to the control plane's service account")
	}
}

// shows waits until kubectl shows why a plugin is not as it should be.
func (w *lackWorld) shows(name string, texts ...string) {
	w.t.Helper()
	eventually(w.t, time.Minute, fmt.Sprint("the status of ", name, " says ", texts), func() (bool, string) {
		got := w.shown(name, "{.status.conditions[*].message}")
		return !slices.ContainsFunc(texts, func(text string) bool { return !strings.Contains(got, text) }), got
	})
}

func (w *lackWorld) ready(name string) {
	w.t.Helper()
	w.kubectl("", "wait", "--for=condition=Ready", "--timeout=60s", "-n", "istio-system", "wasmplugin/"+name)
}

func (w *lackWorld) unready() {
	w.t.Helper()
	if ok, _ := w.charted.ready(); ok {
		w.t.Error("the control plane is ready")
	}
}

func (w *lackWorld) apply(manifest string) {
	w.t.Helper()
	w.kubectl(here(manifest), "apply", "-f", "-")
}
func (w *lackWorld) delete(what ...string) {
	w.t.Helper()
	w.kubectl("", append([]string{"delete", "-n", "istio-system"}, what...)...)
}

// lack is a row: rights that are taken away together, since they are for the same.
type lack struct {
	rights []right
	// restart: the control plane begins without them; what it had begun with them, a
	// watch or a name that is looked up once, goes on.
	restart bool
	// lacking is what is seen without them, and having with them again.
	lacking, having func(*lackWorld)
}

func to(verb string, resources ...string) (rights []right) {
	for _, r := range resources {
		rights = append(rights, right{verb, r})
	}
	return rights
}

// lacks takes the rights away, row by row. Every row ends with p in force and
// nothing else beside base.
func (w *charted) lacks(t *testing.T, url string) {
	l := &lackWorld{charted: w, t: t, url: url}
	l.edited()
	l.ready("p")
	rows := slices.Concat(liveRows, leaseRows, restartRows)
	known := map[right]bool{}
	for _, row := range rows {
		for _, r := range row.rights {
			known[r] = true
		}
		l.row(row)
	}
	for _, r := range w.roles() {
		for _, g := range r.rules {
			for _, resource := range g.Resources {
				for _, verb := range g.Verbs {
					if !known[right{verb, resource}] {
						t.Errorf("nobody knows what breaks without %s of %s", verb, resource)
					}
				}
			}
		}
	}
}

func (w *lackWorld) row(row lack) {
	w.t.Helper()
	began := time.Now()
	log, err := os.ReadFile(w.control.log)
	if err != nil {
		w.t.Fatal(err)
	}
	w.mark = len(log)
	if row.restart {
		if err := w.control.stop(); err != nil { // it gives the Lease back
			w.t.Error(err)
		}
	}
	restore := w.without(row.rights...)
	if row.restart {
		w.launch()
	}
	row.lacking(w)
	if got := appended(get(w.t, w.port, "/")); len(got) == 0 || got[0] != "base" {
		w.t.Errorf("without %v requests get %v", row.rights, got)
	}
	restore()
	w.awaitReady()
	row.having(w)
	w.t.Logf("without %v: %.1f s", row.rights, time.Since(began).Seconds())
}

// liveRows are of rights that are taken from under a control plane at work.
var liveRows = []lack{
	{
		rights: to("patch", "wasmplugins/status", "trafficextensions/status"),
		lacking: func(w *lackWorld) {
			w.apply(strings.Replace(extension, "name: lua", "name: lua2", 1))
			w.edited()
			w.lacking(to("patch", "wasmplugins/status", "trafficextensions/status")...)
		},
		having: func(w *lackWorld) { w.ready("p"); w.delete("trafficextension", "lua2") },
	},
	{
		rights: to("create", "subjectaccessreviews"),
		lacking: func(w *lackWorld) {
			if out := w.visit("visitor-then"); !strings.Contains(out, "may do cannot be found out now") || !strings.Contains(out, "grant it to the control plane's service account") {
				w.t.Errorf("a visitor is told %s", out)
			}
			w.edited()
		},
		having: func(w *lackWorld) {
			if out := w.visit("visitor-now"); !strings.Contains(out, "values of configuration are not shown") {
				w.t.Errorf("a visitor is told %s", out)
			}
		},
	},
	{
		rights:  to("create", "events"),
		lacking: func(w *lackWorld) { w.edited(); w.lacking(right{"create", "events"}) },
		having:  (*lackWorld).edited,
	},
	{
		rights: to("patch", "controllerrevisions"),
		lacking: func(w *lackWorld) {
			before := w.tag()
			w.edit()
			w.shows("p", `cannot patch resource "controllerrevisions"`, "grant it to the control plane's service account")
			w.sees(before)
		},
		having: func(w *lackWorld) { w.sees(w.tag()) },
	},
	{
		rights: to("get", "controllerrevisions"), // a record in the way of one is looked at
		lacking: func(w *lackWorld) {
			before := w.tag()
			w.hideRollouts()
			w.edit()
			w.shows("p", `cannot get resource "controllerrevisions"`, "grant it to the control plane's service account")
			w.sees(before)
		},
		having: func(w *lackWorld) { w.sees(w.tag()) },
	},
	{
		rights: to("create", "controllerrevisions"),
		lacking: func(w *lackWorld) {
			w.apply(plugin("q", w.url, tag("q"), "imagePullSecret: pull"))
			w.shows("q", `cannot create resource "controllerrevisions"`, "grant it to the control plane's service account")
			w.sees(w.tag())
		},
		having: func(w *lackWorld) { w.sees(w.tag(), "q") },
	},
	{
		rights: to("delete", "controllerrevisions"),
		lacking: func(w *lackWorld) {
			w.delete("wasmplugin", "q")
			w.sees(w.tag())
			w.lacking(right{"delete", "controllerrevisions"})
		},
		having: func(*lackWorld) {},
	},
}

// leaseRows are of rights to a Lease that was lost. Its holder, which renews it every
// two seconds, leads on for ten.
var leaseRows = []lack{
	{
		rights: to("create", "leases"),
		lacking: func(w *lackWorld) {
			w.kubectl("", "delete", "lease", "-n", "chandler-system", "chandler")
			w.lacking(right{"create", "leases"})
			w.editedWhileLeading()
		},
		having: func(w *lackWorld) { w.edited(); w.leased() },
	},
	{
		rights: to("get", "leases"),
		lacking: func(w *lackWorld) {
			w.kubectl("", "delete", "lease", "-n", "chandler-system", "chandler")
			w.lacking(right{"get", "leases"})
			w.editedWhileLeading()
		},
		having: func(w *lackWorld) { w.edited(); w.leased() },
	},
}

// leased waits until there is a Lease again.
func (w *lackWorld) leased() {
	w.t.Helper()
	w.kubectl("", "wait", "--for=create", "--timeout=60s", "lease/chandler", "-n", "chandler-system")
}

// watched is all that is watched; the last three by name.
var watched = to("watch", "wasmplugins", "trafficextensions", "controllerrevisions", "customresourcedefinitions", "configmaps", "secrets")

// restartRows are of rights that are asked for once, at the beginning or for long.
var restartRows = []lack{
	{
		rights: to("update", "leases"), restart: true,
		lacking: func(w *lackWorld) { // nobody leads, and so nobody resolves
			before := w.tag()
			w.edit()
			w.lacking(right{"update", "leases"})
			w.sees(before)
		},
		having: func(w *lackWorld) { w.sees(w.tag()) },
	},
	{
		rights: watched, restart: true,
		// What may not be watched is looked at now and then.
		lacking: func(w *lackWorld) { w.lacking(watched...); w.edited() },
		having:  func(w *lackWorld) { w.edited(); w.says(`answers again" for="changes of wasmplugins"`) },
	},
	{
		rights: to("list", "wasmplugins", "trafficextensions"), restart: true,
		lacking: func(w *lackWorld) { w.lacking(to("list", "wasmplugins", "trafficextensions")...); w.unready() },
		having:  (*lackWorld).edited,
	},
	{
		rights: to("list", "controllerrevisions"), restart: true,
		lacking: func(w *lackWorld) { w.lacking(right{"list", "controllerrevisions"}); w.unready() },
		having:  (*lackWorld).edited,
	},
	{
		rights: to("create", "tokenreviews"), restart: true,
		lacking: func(w *lackWorld) {
			w.lacking(right{"create", "tokenreviews"})
			w.gateway.says(w.t, "not connected", "nobody can say now whose the token is")
		},
		having: (*lackWorld).edited,
	},
	{
		rights: to("get", "pods"), restart: true,
		lacking: func(w *lackWorld) {
			w.lacking(right{"get", "pods"})
			w.gateway.says(w.t, "not connected", "nobody can say now whose the token is")
		},
		having: (*lackWorld).edited,
	},
	{
		rights: to("get", "customresourcedefinitions", "configmaps"), restart: true,
		lacking: func(w *lackWorld) {
			w.lacking(to("get", "customresourcedefinitions", "configmaps")...)
			w.says("it may not be seen whether Istio is here")
			w.apply(plugin("new", w.url, tag("new"), "imagePullSecret: pull"))
			w.edited() // what was ours is ours
		},
		having: func(w *lackWorld) { w.sees(w.tag(), "new"); w.delete("wasmplugin", "new"); w.sees(w.tag()) },
	},
	{
		rights: to("get", "secrets"), restart: true,
		lacking: func(w *lackWorld) {
			before := w.tag()
			w.edit()
			w.shows("p", `the control plane may not read secret "pull"`)
			w.lacking(right{"get", "secrets"})
			w.sees(before)
		},
		having: func(w *lackWorld) { w.sees(w.tag()) },
	},
}

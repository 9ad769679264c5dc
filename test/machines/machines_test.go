//go:build machine

package machines

import (
	"strings"
	"testing"

	"chandler.dev/chandler/internal/testenv/machine"
	"chandler.dev/chandler/internal/testenv/module"
	"chandler.dev/chandler/internal/testenv/pages"
)

// edge gives a machine an Envoy and its configuration, as in a fleet that has no chandler
// yet, and the agent's package.
func (w *world) edge(name string) {
	w.t.Helper()
	w.deliver(name, "chandler-agent_*_amd64.deb")
	w.machines[name].Put(module.Envoy(w.t), "/usr/local/bin/envoy")
	w.machines[name].Must(`chmod 755 /usr/local/bin/envoy
mkdir -p /etc/envoy
cat >/etc/envoy/envoy.yaml <<'END'
static_resources:
  listeners:
  - address: {socket_address: {address: 0.0.0.0, port_value: 80}}
    name: in
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: in
          route_config: {virtual_hosts: [{name: all, domains: ["*"], routes: [{match: {prefix: /}, route: {cluster: upstream}}]}]}
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
  clusters:
  - name: upstream
    load_assignment: {cluster_name: upstream, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: ` + machine.Gateway + `, port_value: 8080}}}}]}]}
END`)
}

// The page, from nothing to a fleet and to its control plane on another machine. While it
// is built up further no request of the fleet notices.
func TestMachines(t *testing.T) {
	w := newWorld(t, "desk", "control-1", "control-2", "control-3", "edge-1", "edge-2")
	w.deliver("desk", "chandler_*_amd64.deb")
	w.machines["edge-1"].Put("../../bin/basicauth.wasm", "/root/basic-auth.wasm")
	w.edge("edge-1")
	w.edge("edge-2")
	t.Cleanup(func() {
		if t.Failed() {
			for _, name := range []string{"control-1", "control-2", "control-3"} {
				said, _ := w.machines[name].Run("chandler nodes -A; chandler describe wasmplugin basic-auth -n edge")
				t.Logf("%s says\n%s", name, said)
			}
			for name, m := range w.machines {
				journal, _ := m.Run("journalctl -b --no-pager -t chandler -t chandler-agent -t git | grep -v 'server.cc:4' | tail -n 60")
				t.Logf("journal of %s\n%s", name, journal)
			}
		}
	})
	run, shells := pages.Open(t, "docs/machines.md"), w.shells()
	run.In(shells, "The desk: authority, plugins, lock file", "The first control plane", "The machines with an Envoy")
	w.unitsAreSound("control-1", "chandler")
	w.unitsAreSound("edge-1", "chandler-agent")

	loads := []*load{w.startLoad("edge-1"), w.startLoad("edge-2")}
	envoy := w.envoy("edge-1")
	run.In(shells, "A second control plane")
	w.unlockedIsRefused()
	w.agentUpgrade(envoy)
	run.In(shells, "Back-up and restore")
	run.In(shells, "Moving the control plane")
	run.In(shells, "Monitoring")
	for _, l := range loads {
		l.harmless(t)
	}
	if now := w.envoy("edge-1"); now != envoy {
		t.Errorf("Envoy is process %s and was %s", now, envoy)
	}
	run.In(shells)
	w.powerCut()
}

// unitsAreSound has systemd look at a unit: it finds no mistake in it, and not much that its
// processes could do to the machine.
func (w *world) unitsAreSound(name, unit string) {
	w.t.Helper()
	m := w.machines[name]
	if said := strings.TrimSpace(m.Must("systemd-analyze verify --man=no /usr/lib/systemd/system/" + unit + ".service 2>&1")); said != "" {
		w.t.Errorf("%s: %s", unit, said)
	}
	m.Must("systemd-analyze security --no-pager --threshold=40 " + unit + ".service")
}

// envoy gives the process of a machine's Envoy.
func (w *world) envoy(name string) string {
	w.t.Helper()
	return strings.TrimSpace(w.machines[name].Must("pidof envoy"))
}

// unlockedIsRefused has a plugin committed whose tag nobody locked: both control planes say
// so, and agree on the digest of the other one.
func (w *world) unlockedIsRefused() {
	w.t.Helper()
	w.machines["desk"].Must(`cd /root/plugins
sed 's/basic-auth, namespace/unlocked, namespace/; s/basic-auth:v1/other:v1/' auth.yaml >unlocked.yaml
git add -A && git commit -qm unlocked && git push -q origin HEAD`)
	digests := map[string]bool{}
	for _, name := range []string{"control-1", "control-2"} {
		m := w.machines[name]
		m.Must(`export CHANDLER_SERVER=unix:///var/lib/chandler/admin.sock
for i in $(seq 300); do chandler describe wasmplugin unlocked -n edge 2>&1 | grep -q PolicyDenied && exit 0; sleep 0.1; done
chandler describe wasmplugin unlocked -n edge; exit 1`)
		digests[m.Must(`CHANDLER_SERVER=unix:///var/lib/chandler/admin.sock chandler describe wasmplugin basic-auth -n edge | grep -o 'sha256:[0-9a-f]*' | sort -u`)] = true
	}
	if len(digests) != 1 {
		w.t.Errorf("they say %v", digests)
	}
	w.machines["desk"].Must("cd /root/plugins && git rm -q unlocked.yaml && git commit -qm 'and away' && git push -q origin HEAD")
}

// agentUpgrade installs the agent's package once more and restarts the unit: Envoy serves on.
func (w *world) agentUpgrade(envoy string) {
	w.t.Helper()
	m := w.machines["edge-1"]
	before := m.Must("systemctl show -p MainPID --value chandler-agent")
	m.Must(`dpkg -i /root/chandler-agent_*_amd64.deb && systemctl restart chandler-agent
for i in $(seq 300); do chandler-agent status >/dev/null && exit 0; sleep 0.1; done; chandler-agent status`)
	if after := m.Must("systemctl show -p MainPID --value chandler-agent"); after == before {
		w.t.Error("the agent was not restarted")
	}
	if now := w.envoy("edge-1"); now != envoy {
		w.t.Errorf("Envoy is process %s and was %s", now, envoy)
	}
}

// powerCut has a machine come back by itself while no control plane is there: what was in
// force is, before the first request is answered.
func (w *world) powerCut() {
	w.t.Helper()
	for _, name := range []string{"control-2", "control-3"} {
		w.machines[name].Must("systemctl stop chandler")
	}
	m := w.machines["edge-1"]
	m.Reboot()
	code := w.machines["desk"].Must("for i in $(seq 300); do curl -s -o /dev/null -w '%{http_code}' http://10.0.0.11/ && exit 0; sleep 0.1; done")
	if !strings.HasSuffix(strings.TrimSpace(code), "401") {
		w.t.Errorf("the first answer after a power cut is %s", code)
	}
}

//go:build machine

package machines

import (
	"strings"
	"testing"

	"chandler.dev/chandler/internal/testenv/pages"
)

// An Envoy with a unit and a user of its own, and the agent's unit beside it. Each is
// started anew without the other: of the agent no request notices anything, and Envoy
// comes up with what was in force.
func TestBeside(t *testing.T) {
	w := newWorld(t, "edge-1")
	w.edge("edge-1")
	w.deliver("edge-1", "chandler_*_amd64.deb")
	m := w.machines["edge-1"]
	// One control plane, on loopback, and a machine that had its Envoy before.
	m.Must(`dpkg -i /root/chandler_*_amd64.deb
useradd --system envoy
cat >/etc/systemd/system/envoy.service <<'END'
[Service]
User=envoy
AmbientCapabilities=CAP_NET_BIND_SERVICE
ExecStart=/usr/local/bin/envoy -c /etc/envoy/envoy.yaml
[Install]
WantedBy=multi-user.target
END
cat >/etc/chandler/plugins/auth.yaml <<'END'
apiVersion: extensions.istio.io/v1alpha1
kind: WasmPlugin
metadata: {name: basic-auth, namespace: edge}
spec:
  url: oci://registry.example/team/basic-auth:v1
  failStrategy: FAIL_CLOSE
  pluginConfig: {basic_auth_rules: [{prefix: /, request_methods: [GET], credentials: ["ok:test"]}]}
END
mkdir /etc/systemd/system/chandler-agent-beside.service.d
printf '[Service]\nEnvironment=CHANDLER_AGENT_NAMESPACE=edge\n' >/etc/systemd/system/chandler-agent-beside.service.d/namespace.conf
systemctl daemon-reload
systemctl enable --now chandler envoy`)
	pages.Open(t, "docs/agent.md").In(&pages.World{Shells: map[string]*pages.Shell{"": w.shells().Shells["edge-1"]}})
	// answers waits for an answer with one of the codes; it is to be the plugin's.
	answers := func(codes string) {
		t.Helper()
		code := strings.TrimSpace(m.Must("for i in $(seq 300); do code=$(curl -s -o /dev/null -w '%{http_code}' http://10.0.0.11/ || :); case $code in " + codes + ") break;; esac; sleep 0.1; done; echo $code"))
		if code != "401" {
			t.Fatalf("%s: %s", code, m.Must("chandler-agent status 2>&1; journalctl -b --no-pager -u chandler-agent-beside -u envoy | grep -v 'server.cc:4' | tail -n 40"))
		}
	}
	answers("401")
	w.unitsAreSound("edge-1", "chandler-agent-beside")

	load, envoy := w.startLoad("edge-1"), w.envoy("edge-1")
	m.Must("systemctl restart chandler-agent-beside; for i in $(seq 300); do chandler-agent status >/dev/null && exit 0; sleep 0.1; done; exit 1")
	load.harmless(t)
	if now := w.envoy("edge-1"); now != envoy {
		t.Errorf("Envoy is process %s and was %s", now, envoy)
	}
	m.Must("systemctl stop chandler && systemctl restart envoy")
	answers("[1-9]??") // the first that Envoy gives
}

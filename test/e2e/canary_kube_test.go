//go:build kube

package e2e

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
)

// aviary is a cluster, a registry that wants credentials, a control plane and a
// gateway, with canaries that must not be seen outside of the secret.
type aviary struct {
	*world
	t       *testing.T
	cluster *cluster
	gate    *strictGate
	wire    *wiretap
	agent   *proxy
	port    int
	// name is of plugin and proxy, which everybody may see.
	name string
}

func newAviary(t *testing.T) *aviary {
	t.Helper()
	c := newCluster(t)
	a := &aviary{t: t, cluster: c, world: kubeWorld(t, c, "--log-level", "debug"), name: "harmless-canary"}
	a.gate = newStrictGate(t, a.registry.Addr)
	a.wire = newWiretap(t, a.listen)
	return a
}

// url is of a module in the registry, by the gate.
func (a *aviary) url(tag string, mod []byte) string {
	return strings.Replace(a.push(a.name+":"+tag, mod), a.registry.Addr, a.gate.addr, 1)
}

// secret makes a pull secret anew, of any type.
func (a *aviary) secret(kind, dockerconfig string) {
	a.t.Helper()
	a.cluster.kubectl("", "delete", "secret", "-n", "edge", "pull", "--ignore-not-found")
	a.cluster.apply(fmt.Sprintf("apiVersion: v1\nkind: Secret\nmetadata: {name: pull, namespace: edge}\ntype: %s\ndata: {.dockerconfigjson: %s}\n",
		kind, base64.StdEncoding.EncodeToString([]byte(dockerconfig))))
}

const dockerSecret = "kubernetes.io/dockerconfigjson"

// credential makes a marked user and password and the docker config of them.
func (a *aviary) credential(c *canaries, of string) (user, password, config string) {
	user = "u-" + c.mark(of+" user")
	password = c.mark(of+" password") + ` "&<\é%+/ ` + c.mark(of+" password's end")
	auth := base64.StdEncoding.EncodeToString([]byte(user + ":" + password))
	config = fmt.Sprintf(`{"auths":{%q:{"username":%q,"password":%q,"auth":%q,"email":%q},"other.example":{"identitytoken":%q,"registrytoken":%q}}}`,
		a.gate.addr, user, password, auth, c.mark(of+" email")+"@example", c.mark(of+" identity token"), c.mark(of+" registry token"))
	for what, text := range map[string]string{"password": password, "pair": user + ":" + password, "auth": auth, "config": config} {
		c.sum(of+" "+what, text)
	}
	return user, password, config
}

// shows waits until the plugin's Ready condition has a status and a text.
func (a *aviary) shows(status string, texts ...string) {
	a.t.Helper()
	eventually(a.t, time.Minute, fmt.Sprint("Ready is ", status, " of ", texts), func() (bool, string) {
		out := a.cluster.kubectl("", "get", "wasmplugin", "-n", "edge", a.name, "-o", `jsonpath={range .status.conditions[?(@.type=="Ready")]}{.status} {.reason} {.message}{end}`)
		ok := strings.HasPrefix(out, status+" ")
		for _, text := range texts {
			ok = ok && strings.Contains(out, text)
		}
		return ok, out
	})
}

// shown are the places that show how things are now.
func (a *aviary) shown() map[string][]byte {
	a.t.Helper()
	out := map[string][]byte{"command lines and environments": commandLines(a.t)}
	envoy := &http.Client{Timeout: time.Minute, Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(a.agent.dir, "data", "envoy", "admin.sock"))
	}}}
	for _, page := range []struct {
		client      *http.Client
		host, paths string
	}{
		{envoy, "envoy", "config_dump?include_eds init_dump clusters listeners server_info stats stats/prometheus certs runtime memory"},
		{http.DefaultClient, a.admin, "metrics healthz/ready debug/pprof/ debug/pprof/heap?debug=1 debug/pprof/goroutine?debug=2 debug/vars"},
		{http.DefaultClient, a.agent.admin, "metrics stats/prometheus status report healthz/ready debug/pprof/ debug/pprof/heap?debug=1 debug/vars config_dump"},
	} {
		for path := range strings.FieldsSeq(page.paths) {
			resp, err := page.client.Get("http://" + page.host + "/" + path)
			if err != nil {
				a.t.Fatal(err)
			}
			var text bytes.Buffer
			if err := resp.Write(&text); err != nil {
				a.t.Fatal(err)
			}
			out["http://"+page.host+"/"+path] = text.Bytes()
		}
	}
	for command := range strings.SplitSeq("get -A -o yaml,get wasmplugin -n edge -o json,get -A -o wide,describe wasmplugin -n edge "+a.name+",status -A,status -A -o json", ",") {
		text, _ := a.cli("", strings.Fields(command)...) // status fails when the plugin does
		out["chandler "+command] = []byte(text)
	}
	for command := range strings.SplitSeq("describe wasmplugin -n edge,get wasmplugin -A -o yaml --show-managed-fields,get events -A -o wide", ",") {
		out["kubectl "+command] = []byte(a.cluster.kubectl("", strings.Fields(command)...))
	}
	for _, format := range []string{"table", "json"} {
		text, err := exec.Command(filepath.Join(built, "chandler-agent"), "status", "--admin", a.agent.admin, "-o", format).CombinedOutput()
		if len(text) == 0 {
			a.t.Error(err)
		}
		out["chandler-agent status -o "+format] = text
	}
	for place, dir := range map[string]string{"the control plane's files": a.dir, "the agent's files": a.agent.dir} {
		for name, content := range files(a.t, dir) {
			out[place+": "+name] = content
		}
	}
	return out
}

// kept are the places that show also what was; secret is all that secrets were,
// where canaries belong.
func (a *aviary) kept() (out map[string][]byte, secret []byte) {
	a.t.Helper()
	out = map[string][]byte{"between agent and control plane": a.wire.all(a.t)}
	history, err := a.cluster.History(a.t.Context())
	if err != nil {
		a.t.Fatal(err)
	}
	for _, v := range history {
		kind, _, _ := strings.Cut(strings.TrimPrefix(v.Key, "/registry/"), "/")
		if kind == "secrets" {
			secret = append(secret, v.Value...)
			continue
		}
		place := "the API server's objects, " + kind
		out[place] = slices.Concat(out[place], []byte(v.Key), []byte(" "), v.Value, []byte("\n"))
	}
	for _, part := range []string{a.cluster.APIServer.Log(), a.cluster.Etcd.Log()} {
		content, err := os.ReadFile(part)
		if err != nil {
			a.t.Fatal(err)
		}
		out["log of "+filepath.Base(part)] = content
	}
	return out, secret
}

// quiet fails when a canary is seen somewhere.
func (a *aviary) quiet(c *canaries, when string, places map[string][]byte) {
	a.t.Helper()
	for place, content := range places {
		if found := c.find(content); len(found) > 0 {
			a.t.Errorf("%s, %s shows a credential %d times: %v", when, place, len(found), found[:min(3, len(found))])
		}
	}
}

// plugin is the resource, with further lines of the spec.
func (a *aviary) plugin(url string, more ...string) string {
	return plugin(a.name, url, append(more, "imagePullSecret: pull")...)
}

// letOut has a canary of its own go to every place it can go to, and wants it seen
// there: a search that finds nothing proves nothing.
func (a *aviary) letOut() {
	a.t.Helper()
	c := &canaries{}
	mark := c.mark("let out")
	coded := base64.StdEncoding.EncodeToString([]byte("user:" + mark))
	var zipped bytes.Buffer
	z := gzip.NewWriter(&zipped)
	_, err := io.WriteString(z, coded)
	for _, err := range []error{err, z.Close(),
		os.WriteFile(filepath.Join(a.dir, "control", "let-out"), []byte(coded), 0o600),
		os.WriteFile(filepath.Join(a.agent.dir, "data", "let-out"), zipped.Bytes(), 0o600),
	} {
		if err != nil {
			a.t.Fatal(err)
		}
	}
	a.cluster.kubectl("", "create", "configmap", "-n", "edge", "let-out", "--from-literal=note="+coded)
	a.cluster.kubectl("", "delete", "configmap", "-n", "edge", "let-out") // it was there
	child := exec.Command("sleep", "600")
	child.Env = []string{"NOTE=" + coded}
	if err := child.Start(); err != nil {
		a.t.Fatal(err)
	}
	defer func() {
		_ = child.Process.Kill()
		_ = child.Wait()
	}()
	a.callWith(coded)
	a.cluster.apply(a.plugin(a.url("v1", build(1)), tag(mark)))
	heals(a.t, a.port, mark)
	a.cluster.apply(a.plugin(a.url("v1", build(1))+mark, tag("next")))
	a.shows("False", mark)
	eventually(a.t, time.Minute, "an Event tells it", func() (bool, string) { // after the status
		out := a.cluster.kubectl("", "get", "events", "-A", "-o", "wide")
		return strings.Contains(out, mark), out
	})

	wanted := []string{
		"command lines and environments", "http://envoy/config_dump?include_eds", "the control plane's files: control.log",
		"the control plane's files: control/let-out", "the agent's files: data/let-out", "between agent and control plane",
		"chandler get -A -o yaml", "chandler describe wasmplugin -n edge " + a.name, "chandler status -A -o json",
		"kubectl describe wasmplugin -n edge", "kubectl get wasmplugin -A -o yaml --show-managed-fields", "kubectl get events -A -o wide",
		"the API server's objects, extensions.istio.io", "the API server's objects, controllerrevisions",
		"the API server's objects, events", "the API server's objects, configmaps",
	}
	places := a.shown()
	kept, _ := a.kept()
	maps.Copy(places, kept)
	for _, place := range wanted {
		if len(c.find(places[place])) == 0 {
			a.t.Errorf("what was let out is not seen in %s", place)
		}
	}
	// Where nothing of it could go to, it is put into a copy, in all its forms.
	for place, content := range places {
		if got := unique(c.find(slices.Concat(content, c.all()))); unpacked(content) == nil && len(got) != c.count {
			a.t.Errorf("%s: %d forms of %d are seen", place, len(got), c.count)
		}
	}
	for place, text := range map[string]string{
		"http://envoy/stats": a.name, "http://" + a.admin + "/metrics": a.name, "http://" + a.agent.admin + "/metrics": "chandler_agent_",
		"http://" + a.agent.admin + "/status": a.name, "http://" + a.agent.admin + "/report": a.name, "chandler-agent status -o json": a.name,
		"the agent's files: data/lastgood": a.name, "the agent's files: data/envoy/bootstrap.yaml": a.name, "the agent's files: agent.log": "[info][main]",
		"the control plane's files: control.log": "goroutine ", "log of kube-apiserver.log": "serving",
	} {
		if !bytes.Contains(places[place], []byte(text)) {
			a.t.Errorf("%s shows no %q", place, text)
		}
	}
}

// callWith makes a call that has a text in a header and in its message, as an agent.
func (a *aviary) callWith(text string) {
	a.t.Helper()
	conn, err := grpc.NewClient(a.wire.addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		a.t.Fatal(err)
	}
	defer conn.Close()
	in, out := []byte(text), []byte(nil)
	ctx := metadata.AppendToOutgoingContext(a.t.Context(), "x-note", text)
	if err := conn.Invoke(ctx, "/nobody.v1.Nobody/Nothing", &in, &out, grpc.ForceCodecV2(bytesCodec{})); err == nil {
		a.t.Error("a call of nothing succeeds")
	}
}

// What is in a pull secret is in no log, on no wire to a proxy, in no status, event
// or record, in no metric or dump, in no file and on no command line: neither when
// all goes well, nor when the registry or the secret's form is wrong, nor when the
// control plane dies. That it is in the secret, and in the control plane's memory
// (and so in a dump of its memory), is what it is for.
func TestKubeCanarySecret(t *testing.T) {
	a := newAviary(t)
	c := &canaries{}
	user, password, config := a.credential(c, "first")
	a.gate.opens(user, password, "")
	a.secret(dockerSecret, config)
	a.port = freePort(t)
	a.agent = a.world.agent(node{name: a.name, flags: []string{"--control", a.wire.addr, "--log-level", "debug"}}, a.gateway(listener{port: a.port, name: "in"}))
	look := func(when string) { t.Helper(); a.quiet(c, when, a.shown()) }
	inForce := func(version string) { t.Helper(); heals(t, a.port, version); a.shows("True") }

	// The sample asks the gateway's clients for a password of their own.
	a.cluster.apply(strings.Replace(a.plugin(a.url("auth", sample(t)), `phase: AUTHN`,
		`pluginConfig: {basic_auth_rules: [{prefix: "/productpage", request_methods: [GET], credentials: ["ok:test"]}]}`), a.name, "basic-auth", 1))
	eventually(t, time.Minute, "the gateway asks for a password", func() (bool, string) {
		got, err := request(fresh, http.MethodGet, a.port, "/productpage", nil)
		return err == nil && got.code == http.StatusUnauthorized, fmt.Sprint(got.code, err)
	})
	a.cluster.apply(a.plugin(a.url("v1", build(1)), tag("one")))
	inForce("one")
	look("in force")

	// The registry wants another password, which the secret does not have yet.
	user, password, config = a.credential(c, "second")
	a.gate.opens(user, password, "")
	a.cluster.apply(a.plugin(a.url("v2", build(2)), tag("two")))
	a.shows("False", "401")
	has(t, a.port, "one")
	if a.gate.answers(http.StatusUnauthorized) == 0 {
		t.Error("the registry refused nobody")
	}
	look("with a wrong password")
	a.secret(dockerSecret, config)
	inForce("two")
	look("with the next password")

	// The registry wants a token, which its token server gives for the password. It
	// is refused first.
	token := c.mark("token")
	a.gate.opens("nobody", "nothing", token)
	a.cluster.apply(a.plugin(a.url("v3", build(3)), tag("three")))
	a.shows("False", "401")
	look("with a refused token")
	a.gate.opens(user, password, token)
	a.secret(dockerSecret, strings.Replace(config, "{", "{ ", 1)) // it is tried again
	inForce("three")
	look("with a token")

	a.malformed(c, look)

	// The control plane dies with all its goroutines in its log.
	if err := a.control.cmd.Process.Signal(syscall.SIGQUIT); err != nil {
		t.Fatal(err)
	}
	<-a.control.done
	a.control.err = nil
	if log := a.control.tail(); !strings.Contains(log, "goroutine ") {
		t.Errorf("no goroutines in its log: %s", log)
	}
	a.startControl()
	user, password, config = a.credential(c, "third")
	a.gate.opens(user, password, "")
	a.secret(dockerSecret, config)
	a.cluster.apply(a.plugin(a.url("v5", build(5)), tag("four")))
	inForce("four")
	a.cluster.kubectl("", "delete", "secret", "-n", "edge", "pull")
	has(t, a.port, "four")
	look("at the end")
	kept, secret := a.kept()
	a.quiet(c, "at the end", kept)
	if len(c.find(secret)) == 0 {
		t.Error("the canaries are not even in the secrets")
	}
	a.secret(dockerSecret, config)
	a.letOut()
}

// malformed has the plugin use secrets that are wrong, each in its way.
func (a *aviary) malformed(c *canaries, look func(string)) {
	a.t.Helper()
	in64 := func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
	for i, wrong := range []struct{ what, kind, config, says string }{
		{"broken JSON", "Opaque", `{"auths":{"` + a.gate.addr + `":{"password":"` + c.mark("broken JSON"), "Opaque"},
		{"a text for auths", dockerSecret, fmt.Sprintf(`{"auths":%q}`, c.mark("auths")), "cannot be read at offset"},
		{"no base64", dockerSecret, fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, a.gate.addr, "!"+c.mark("no base64")), "not base64"},
		{"a list", dockerSecret, fmt.Sprintf(`{"auths":{%q:{"password":[%q]}}}`, a.gate.addr, c.mark("list")), "cannot be read at offset"},
		{"a line's end", dockerSecret, fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, a.gate.addr, in64("user:"+c.mark("line")+"\n")), "control character"},
		{"no colon", dockerSecret, fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, a.gate.addr, in64(c.mark("no colon"))), "not base64"},
		{"a pair for a host", dockerSecret, fmt.Sprintf(`{"auths":{%q:{"auth":"x"},"zz.example":{}}}`, "user:"+c.mark("host")), "entry 1 of 2"},
		{"an address with a pair", dockerSecret, fmt.Sprintf(`{"auths":{%q:{"auth":"x"}}}`, "https://user:"+c.mark("address")+"@"+a.gate.addr), "names no host"},
		{"a password for a host", dockerSecret, fmt.Sprintf(`{"auths":{%q:{"auth":"x"},"zz.example":{},"zzz.example":{}}}`, c.mark("bare host")), "entry 1 of 3"},
	} {
		a.secret(wrong.kind, wrong.config)
		if i == 0 {
			a.cluster.apply(a.plugin(a.url("v4", build(4)), tag("never")))
		}
		a.shows("False", wrong.says)
		look("with " + wrong.what)
	}
	has(a.t, a.port, "three")
}

// Package kube runs a real Kubernetes API server with its store on loopback, for
// tests: RBAC is on, and each of the two can be stopped, killed and started
// again. It is no whole cluster: there are no nodes, and no controllers, so that
// nothing makes pods, collects garbage or finishes deleting a namespace.
package kube

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"chandler.dev/chandler/internal/testenv/ports"
)

const (
	// startLimit is far beyond what a start takes on a busy machine.
	startLimit   = 2 * time.Minute
	stopLimit    = 30 * time.Second
	kubectlLimit = 2 * time.Minute
)

// Cluster is an API server and its store.
type Cluster struct {
	// Etcd and APIServer are its parts; both run when Start returns.
	Etcd, APIServer *Part
	// Addr is the API server's host and port, the same after every start of it.
	Addr string
	// Admin is the path of a kubeconfig file of somebody who may do everything.
	Admin string
	// Plugins is a folder of plugins for kubectl; it may be empty.
	Plugins string

	tools string
	dir   string
	store string // URL of etcd
	keys  keys
	http  *http.Client
}

// Start runs a cluster until the test ends. tools is the folder in which "make
// tools-kube" puts the programs. What fails ends the test.
func Start(t testing.TB, tools string) *Cluster {
	t.Helper()
	tools, err := filepath.Abs(tools)
	if err != nil {
		t.Fatal(err)
	}
	for _, program := range []string{"etcd", "kube-apiserver", "kubectl"} {
		if _, err := os.Stat(filepath.Join(tools, program)); err != nil {
			t.Fatalf("%v; run make tools-kube", err)
		}
	}
	c := &Cluster{tools: tools, dir: t.TempDir()}
	if err := c.prepare(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.http.CloseIdleConnections()
		for _, p := range []*Part{c.APIServer, c.Etcd} {
			if err := p.Kill(); err != nil { // nothing of it is kept
				t.Error(err)
			}
		}
	})
	for _, p := range []*Part{c.Etcd, c.APIServer} {
		if err := p.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

// prepare makes keys, files and command lines.
func (c *Cluster) prepare() error {
	var store, peers string
	var err error
	for _, addr := range []*string{&c.Addr, &store, &peers} {
		if *addr, err = ports.Free(); err != nil {
			return err
		}
	}
	if c.keys, err = newKeys(c.dir); err != nil {
		return err
	}
	c.http = &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: c.keys.pool}}}
	if c.Admin, err = c.User("admin", "system:masters"); err != nil {
		return err
	}
	token, err := randomToken()
	if err != nil {
		return err
	}
	tokens := filepath.Join(c.dir, "tokens.csv")
	if err := os.WriteFile(tokens, []byte(token+",probe,probe,system:masters\n"), 0o600); err != nil {
		return err
	}
	store, peers = "http://"+store, "http://"+peers
	c.store = store
	c.Etcd = &Part{
		name: "etcd", program: filepath.Join(c.tools, "etcd"), dir: c.dir,
		args: []string{
			"--name=etcd", "--data-dir=" + filepath.Join(c.dir, "etcd"), "--log-level=warn", "--unsafe-no-fsync",
			"--listen-client-urls=" + store, "--advertise-client-urls=" + store,
			"--listen-peer-urls=" + peers, "--initial-advertise-peer-urls=" + peers, "--initial-cluster=etcd=" + peers,
		},
		ready: func(ctx context.Context) error { return c.get(ctx, store+"/health", "") },
	}
	audit, err := c.auditArgs()
	if err != nil {
		return err
	}
	c.APIServer = &Part{
		name: "kube-apiserver", program: filepath.Join(c.tools, "kube-apiserver"), dir: c.dir,
		args: append(c.serverArgs(store, tokens), audit...),
		ready: func(ctx context.Context) error {
			if err := c.get(ctx, "https://"+c.Addr+"/readyz", token); err != nil {
				return err
			}
			return c.get(ctx, "https://"+c.Addr+"/api/v1/namespaces/default", token)
		},
	}
	return nil
}

func (c *Cluster) serverArgs(store, tokens string) []string {
	host, port, _ := net.SplitHostPort(c.Addr) // made by ports.Free
	return []string{
		"--etcd-servers=" + store,
		"--bind-address=" + host, "--secure-port=" + port, "--advertise-address=" + host, "--endpoint-reconciler-type=none",
		"--cert-dir=" + c.dir, "--tls-cert-file=" + c.keys.server.cert, "--tls-private-key-file=" + c.keys.server.key,
		"--client-ca-file=" + c.keys.authority, "--token-auth-file=" + tokens, "--authorization-mode=RBAC",
		"--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-key-file=" + c.keys.accounts, "--service-account-signing-key-file=" + c.keys.accounts,
		"--service-cluster-ip-range=10.96.0.0/24",
		"--profiling=false", "--v=0",
	}
}

// get asks for a URL and fails unless the answer is 200, and comes soon.
func (c *Cluster) get(ctx context.Context, url, token string) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answers %s", url, resp.Status)
	}
	return nil
}

// Compact has etcd forget all that is older than now. The API server may still
// know some of it until it is started again.
func (c *Cluster) Compact(ctx context.Context) error {
	var now struct {
		Header struct {
			Revision string `json:"revision"`
		} `json:"header"`
	}
	if err := c.post(ctx, "/v3/kv/range", `{"key":"AA=="}`, &now); err != nil {
		return err
	}
	return c.post(ctx, "/v3/kv/compaction", fmt.Sprintf(`{"revision":%q,"physical":true}`, now.Header.Revision), nil)
}

// post asks etcd something in JSON.
func (c *Cluster) post(ctx context.Context, path, body string, answer any) error {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.store+path, strings.NewReader(body))
	if err != nil {
		return err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	switch {
	case err != nil:
		return err
	case resp.StatusCode != http.StatusOK:
		return fmt.Errorf("etcd answers %s: %s", resp.Status, text)
	case answer == nil:
		return nil
	}
	return json.Unmarshal(text, answer)
}

// User gives the path of a kubeconfig file of a user, who is known by a client
// certificate and may do what RBAC grants to the name or to one of the groups.
func (c *Cluster) User(name string, groups ...string) (kubeconfig string, err error) {
	pair, err := c.keys.issue(c.dir, "user-"+strings.ReplaceAll(name, ":", "_"), leaf{name: name, groups: groups})
	if err != nil {
		return "", err
	}
	cert, err := os.ReadFile(pair.cert)
	if err != nil {
		return "", err
	}
	key, err := os.ReadFile(pair.key)
	if err != nil {
		return "", err
	}
	// Not by their paths: client-go would watch the files for as long as the
	// process lives, which looks like a leak.
	encode := base64.StdEncoding.EncodeToString
	return c.kubeconfig(name, fmt.Sprintf("client-certificate-data: %s\n    client-key-data: %s", encode(cert), encode(key)))
}

// ServiceAccount makes a service account, unless it is there, and gives the path
// of a kubeconfig file of it. Grants are made with Kubectl.
func (c *Cluster) ServiceAccount(ctx context.Context, namespace, name string) (kubeconfig string, err error) {
	if out, err := c.Kubectl(ctx, "", "create", "serviceaccount", "-n", namespace, name); err != nil && !strings.Contains(out, "already exists") {
		return "", err
	}
	token, err := c.Token(ctx, namespace, name)
	if err != nil {
		return "", err
	}
	return c.kubeconfig(namespace+"."+name, fmt.Sprintf("token: %q", token))
}

// Token gives a token of a service account, good for an hour, for an audience or
// else for the API server.
func (c *Cluster) Token(ctx context.Context, namespace, name string, audiences ...string) (string, error) {
	args := []string{"create", "token", "-n", namespace, name}
	for _, a := range audiences {
		args = append(args, "--audience="+a)
	}
	out, err := c.Kubectl(ctx, "", args...)
	return strings.TrimSpace(out), err
}

// kubeconfig writes a file for the user of a name who shows the credential.
func (c *Cluster) kubeconfig(name, credential string) (string, error) {
	file := filepath.Join(c.dir, strings.ReplaceAll(name, ":", "_")+".kubeconfig")
	return file, os.WriteFile(file, fmt.Appendf(nil, `apiVersion: v1
kind: Config
current-context: test
contexts:
- name: test
  context: {cluster: test, user: test}
clusters:
- name: test
  cluster:
    server: %q
    certificate-authority: %q
users:
- name: test
  user:
    %s
`, "https://"+c.Addr, c.keys.authority, credential), 0o600)
}

// Served returns when resources (plural names) can be asked for: their definitions are
// established a moment before the API server serves what they define, and says so.
func (c *Cluster) Served(ctx context.Context, resources ...string) error {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	for {
		_, err := c.Kubectl(ctx, "", "get", strings.Join(resources, ","), "--all-namespaces")
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// Kubectl runs kubectl as the admin; stdin is what "-f -" reads. It gives what
// was written to both outputs; the error holds it too.
func (c *Cluster) Kubectl(ctx context.Context, stdin string, args ...string) (string, error) {
	return c.KubectlAs(ctx, c.Admin, stdin, args...)
}

// KubectlAs is Kubectl for whom a kubeconfig file is of.
func (c *Cluster) KubectlAs(ctx context.Context, kubeconfig, stdin string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, kubectlLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(c.tools, "kubectl"), args...)
	cmd.Env = []string{"HOME=" + c.dir, "KUBECONFIG=" + kubeconfig, "PATH=" + c.Plugins}
	cmd.Stdin = strings.NewReader(stdin)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.WaitDelay = time.Second
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), errors.Join(ctx.Err(), err), out.String())
	}
	return out.String(), nil
}

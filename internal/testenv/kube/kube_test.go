//go:build kube

package kube_test

import (
	"strings"
	"testing"

	"chandler.dev/chandler/internal/testenv/kube"
)

const tools = "../../../.tools"

// TestCluster: what tests may rely on, in the order in which it is cheap.
func TestCluster(t *testing.T) {
	ctx := t.Context()
	c := kube.Start(t, tools)
	must := func(out string, err error) string {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	// The two differ in their version when kubectl does not know the server's.
	if out := must(c.Kubectl(ctx, "", "version")); strings.Contains(out, "WARNING") || strings.Count(out, "v1.36.") != 2 {
		t.Errorf("kubectl version:\n%s", out)
	}

	user := must(c.User("jane", "team-a"))
	if out, err := c.KubectlAs(ctx, user, "", "get", "secrets"); err == nil || !strings.Contains(out, `User "jane" cannot list resource "secrets"`) {
		t.Errorf("a user without grants: %v", err)
	}
	must(c.Kubectl(ctx, "", "create", "role", "reader", "--verb=list", "--resource=secrets"))
	must(c.Kubectl(ctx, "", "create", "rolebinding", "readers", "--role=reader", "--group=team-a"))
	must(c.KubectlAs(ctx, user, "", "get", "secrets"))

	account := must(c.ServiceAccount(ctx, "default", "agent"))
	if out := must(c.KubectlAs(ctx, account, "", "auth", "whoami")); !strings.Contains(out, "system:serviceaccount:default:agent") {
		t.Errorf("kubectl auth whoami:\n%s", out)
	}
	token := must(c.Token(ctx, "default", "agent", "chandler"))
	review := must(c.Kubectl(ctx, `apiVersion: authentication.k8s.io/v1
kind: TokenReview
metadata: {name: x}
spec: {token: "`+token+`", audiences: [chandler]}
`, "create", "-o", "jsonpath={.status.authenticated} {.status.user.username}", "-f", "-"))
	if review != "true system:serviceaccount:default:agent" {
		t.Errorf("TokenReview says %q", review)
	}

	must(c.Kubectl(ctx, "", "create", "configmap", "kept", "--from-literal=a=b"))
	for name, end := range map[string]func() error{
		"server stopped": c.APIServer.Stop, "server killed": c.APIServer.Kill, "store stopped": c.Etcd.Stop, "store killed": c.Etcd.Kill,
	} {
		if err := end(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		part := c.Etcd
		if strings.HasPrefix(name, "server") {
			part = c.APIServer
			if _, err := c.Kubectl(ctx, "", "get", "configmaps", "--request-timeout=5s"); err == nil {
				t.Errorf("%s: it still answers", name)
			}
		}
		if err := part.Start(ctx); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if err := c.APIServer.Ready(ctx); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if out := must(c.Kubectl(ctx, "", "get", "configmap", "kept", "-o", "jsonpath={.data.a}")); out != "b" {
			t.Errorf("%s: the object has become %q", name, out)
		}
	}
}

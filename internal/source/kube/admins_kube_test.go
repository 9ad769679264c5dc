//go:build kube

package kube

import (
	"errors"
	"strings"
	"testing"
	"time"

	roles "chandler.dev/chandler/internal/access"
	"chandler.dev/chandler/internal/testenv/kube"
)

// Real tokens and real roles of a real API server, with no more rights than are
// needed.
func TestAdminsOfACluster(t *testing.T) {
	cluster := kube.Start(t, tools)
	apply := func(stdin string, args ...string) string {
		t.Helper()
		out, err := cluster.Kubectl(t.Context(), stdin, args...)
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(out)
	}
	kubectl := func(args ...string) string { t.Helper(); return apply("", args...) }
	for _, namespace := range []string{"edge", "shop", "chandler-system"} {
		kubectl("create", "namespace", namespace)
	}
	kubectl("create", "serviceaccount", "-n", "shop", "jane")
	kubectl("create", "clusterrole", "reviews", "--verb=create", "--resource=tokenreviews.authentication.k8s.io,subjectaccessreviews.authorization.k8s.io")
	kubectl("create", "clusterrolebinding", "reviews", "--clusterrole=reviews", "--serviceaccount=chandler-system:chandler")
	config, err := cluster.ServiceAccount(t.Context(), "chandler-system", "chandler")
	if err != nil {
		t.Fatal(err)
	}
	client, err := Connect(config, "", "test")
	if err != nil {
		t.Fatal(err)
	}
	admins, err := client.Admins()
	if err != nil {
		t.Fatal(err)
	}
	var later time.Duration
	admins.now = func() time.Time { return time.Now().Add(later) }
	token := kubectl("create", "token", "-n", "shop", "jane", "--audience="+AdminAudience)
	var jane *roles.Account
	awaitGrant(t, func() (err error) { jane, err = admins.review(t.Context(), token); return err })
	if jane.User != "system:serviceaccount:shop:jane" || len(jane.Groups) == 0 {
		t.Errorf("whose it is: %+v", jane)
	}
	for _, other := range []string{kubectl("create", "token", "-n", "shop", "jane"), kubectl("create", "token", "-n", "shop", "jane", "--audience="+Audience), token + "x"} {
		if _, err := admins.Review(t.Context(), other); !errors.Is(err, roles.ErrRefused) {
			t.Errorf("a token for somebody else, or changed: %v", err)
		}
	}
	may := func(v roles.Verb, namespace string) bool {
		t.Helper()
		later += answerAge
		ok, err := admins.Allow(t.Context(), jane, v, namespace)
		if err != nil {
			t.Fatal(err)
		}
		return ok
	}
	if may(roles.List, "edge") || may(roles.List, roles.Everywhere) || may(roles.Debug, roles.Everywhere) {
		t.Error("she may do what nobody has granted")
	}
	apply(`apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: plugins, namespace: edge}
rules: [{apiGroups: [extensions.istio.io], resources: [wasmplugins], verbs: [list, update]}]
`, "apply", "-f", "-")
	kubectl("create", "rolebinding", "-n", "edge", "plugins", "--role=plugins", "--serviceaccount=shop:jane")
	awaitGrant(t, func() error {
		if !may(roles.List, "edge") || !may(roles.Steer, "edge") {
			return errors.New("she may not list")
		}
		return nil
	})
	if may(roles.Edit, "edge") || may(roles.Enrol, "edge") || may(roles.List, "shop") || may(roles.List, roles.Everywhere) {
		t.Error("she may do more than was granted")
	}
}

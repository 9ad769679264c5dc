//go:build kube

package kube

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/identity"
	"chandler.dev/chandler/internal/testenv/kube"
)

const gatewayPod = `apiVersion: v1
kind: ServiceAccount
metadata: {name: gateway, namespace: edge}
---
apiVersion: v1
kind: Pod
metadata: {name: gateway-1, namespace: edge, labels: {istio: ingressgateway}}
spec: {serviceAccountName: gateway, containers: [{name: envoy, image: envoy}]}
`

// Real tokens of a real API server: namespace, node and labels are what it says
// they are, with no more rights than are needed.
func TestTokensOfPods(t *testing.T) {
	cluster := kube.Start(t, tools)
	kubectl := func(stdin string, args ...string) string {
		t.Helper()
		out, err := cluster.Kubectl(t.Context(), stdin, args...)
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(out)
	}
	kubectl("", "create", "namespace", "edge")
	kubectl("", "create", "namespace", "chandler-system")
	kubectl(gatewayPod, "apply", "-f", "-")
	kubectl("", "create", "clusterrole", "chandler-reviews", "--verb=create", "--resource=tokenreviews.authentication.k8s.io")
	kubectl("", "create", "clusterrole", "chandler-pods", "--verb=get", "--resource=pods")
	config, err := cluster.ServiceAccount(t.Context(), "chandler-system", "chandler")
	if err != nil {
		t.Fatal(err)
	}
	client, err := Connect(config, "", "test")
	if err != nil {
		t.Fatal(err)
	}
	reviews, err := client.Tokens(TokensConfig{})
	if err != nil {
		t.Fatal(err)
	}
	var later time.Duration
	reviews.now = func() time.Time { return time.Now().Add(later) }
	agents := identity.New(identity.Config{Reviewer: reviews})

	claims := func(token, namespace, name string, labels map[string]string, code codes.Code, why string) chandler.Node {
		t.Helper()
		ctx := peer.NewContext(t.Context(), &peer.Peer{Addr: &net.TCPAddr{IP: net.IPv4(10, 0, 0, 9)}, AuthInfo: credentials.TLSInfo{State: tls.ConnectionState{}}})
		ctx = metadata.NewIncomingContext(ctx, metadata.Pairs("authorization", "Bearer "+token))
		n, err := agents.Authenticate(ctx, chandler.Node{Namespace: namespace, Name: name, Labels: labels})
		if status.Code(err) != code || err != nil && !strings.Contains(err.Error(), why) {
			t.Errorf("as %s/%s with %v: %v, want %v with %q", namespace, name, labels, err, code, why)
		}
		return n
	}
	uid := kubectl("", "get", "pod", "-n", "edge", "gateway-1", "-o", "jsonpath={.metadata.uid}")
	create := func(args ...string) string {
		return kubectl("", append([]string{"create", "token", "-n", "edge", "gateway"}, args...)...)
	}
	bound := create("--audience=chandler", "--bound-object-kind=Pod", "--bound-object-name=gateway-1", "--bound-object-uid="+uid)

	claims(bound, "edge", "gateway-1", nil, codes.Unavailable, "nobody can say now") // it may not ask yet
	kubectl("", "create", "clusterrolebinding", "reviews", "--clusterrole=chandler-reviews", "--serviceaccount=chandler-system:chandler")
	awaitGrant(t, func() error { _, err := reviews.review(t.Context(), bound); return err })
	claims(bound, "edge", "gateway-1", nil, codes.Unavailable, "nobody can say now") // nor for pods
	kubectl("", "create", "clusterrolebinding", "pods", "--clusterrole=chandler-pods", "--serviceaccount=chandler-system:chandler")
	awaitGrant(t, func() error { _, err := reviews.look(t.Context(), pod{"edge", "gateway-1", uid}); return err })

	label := map[string]string{"istio": "ingressgateway"}
	if n := claims(bound, "edge", "gateway-1", nil, codes.OK, ""); n.Labels["istio"] != "ingressgateway" || len(n.Labels) != 1 {
		t.Errorf("labels are %v", n.Labels)
	}
	claims(bound, "edge", "gateway-1", label, codes.OK, "")
	claims(bound, "shop", "gateway-1", label, codes.PermissionDenied, `system:serviceaccount:edge:gateway (pod gateway-1) may not act as node "shop/gateway-1"`)
	claims(bound, "edge", "gateway-2", label, codes.PermissionDenied, "may not act as node")
	claims(bound, "edge", "gateway-1", map[string]string{"istio": "egressgateway"}, codes.PermissionDenied, "it is not on the pod")
	claims(create("--audience=chandler"), "edge", "any", label, codes.OK, "")
	claims(create("--audience=chandler"), "shop", "any", label, codes.PermissionDenied, "may not act as node")
	claims(create(), "edge", "gateway-1", nil, codes.Unauthenticated, "the token is refused")
	claims(create("--audience=vault"), "edge", "gateway-1", nil, codes.Unauthenticated, "the token is refused")
	claims(bound+"x", "edge", "gateway-1", nil, codes.Unauthenticated, "the token is refused")

	kubectl("", "label", "pod", "-n", "edge", "gateway-1", "istio=egressgateway", "--overwrite")
	later += DefaultPodAge
	if n := claims(bound, "edge", "gateway-1", nil, codes.OK, ""); n.Labels["istio"] != "egressgateway" {
		t.Errorf("labels are %v after a change", n.Labels)
	}

	// The API server is away: who was known is, and nobody new.
	another := create("--audience=chandler")
	if err := cluster.APIServer.Kill(); err != nil {
		t.Fatal(err)
	}
	later += reviewAge
	claims(bound, "edge", "gateway-1", nil, codes.OK, "")
	claims(another, "edge", "any", nil, codes.Unavailable, "nobody can say now")
	if err := cluster.APIServer.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	awaitGrant(t, func() error { _, err := reviews.review(t.Context(), another); return err })
	claims(another, "edge", "any", nil, codes.OK, "")

	kubectl("", "delete", "pod", "-n", "edge", "gateway-1", "--grace-period=0", "--force")
	later += reviewAge
	claims(bound, "edge", "gateway-1", nil, codes.Unauthenticated, "the token is refused")
}

// awaitGrant waits for what the API server decides a moment later.
func awaitGrant(t *testing.T, ask func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for {
		err := ask()
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatal(fmt.Errorf("still not: %w", err))
		case <-time.After(50 * time.Millisecond):
		}
	}
}

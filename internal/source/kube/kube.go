// Package kube is chandler on Kubernetes, all of it: plugins and pull secrets
// come from the API server, records and status go there, and it says who an agent
// is and which replica leads. No other package knows the Kubernetes clients; what
// they get from here is what they get from a folder on one machine.
//
// It is no operator framework: there is one snapshot and one loop (package
// control), so nothing here is reconciled object by object.
package kube

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync/atomic"
	"time"

	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"
)

// LogTo has the Kubernetes clients' own lines written to log. It is for the whole
// program.
func LogTo(log *slog.Logger) { klog.SetSlogLogger(log) }

// Client speaks to one API server.
type Client struct {
	heard   atomic.Pointer[time.Time]
	rest    *rest.Config
	core    kubernetes.Interface
	dynamic dynamic.Interface
	// namespace is the context's, or "default".
	namespace string
}

// Connect reads kubeconfig, or takes the service account of the pod this runs in
// when kubeconfig is empty and there is one, or else looks where kubectl looks. An empty
// context is the file's current one. It speaks to nobody yet.
func Connect(kubeconfig, context, userAgent string) (*Client, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = kubeconfig
	loader := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, &clientcmd.ConfigOverrides{CurrentContext: context})
	config, err := loader.ClientConfig()
	if clientcmd.IsEmptyConfig(err) {
		return nil, errors.New("kubernetes: nothing says how to reach a cluster; name a file with --kubeconfig or KUBECONFIG")
	}
	if err != nil {
		return nil, fmt.Errorf("kubernetes: %w", err)
	}
	namespace, _, err := loader.Namespace()
	if err != nil {
		return nil, fmt.Errorf("kubernetes: %w", err)
	}
	config.UserAgent = userAgent
	// A control plane asks for little but in bursts; the API server's own fairness
	// is what bounds it.
	config.QPS, config.Burst = 50, 200
	c := &Client{rest: config, namespace: namespace}
	config.Wrap(func(next http.RoundTripper) http.RoundTripper { return listener{next, c} })
	if c.core, err = kubernetes.NewForConfig(config); err != nil {
		return nil, fmt.Errorf("kubernetes: %w", err)
	}
	if c.dynamic, err = dynamic.NewForConfig(config); err != nil {
		return nil, fmt.Errorf("kubernetes: %w", err)
	}
	return c, nil
}

// Namespace is the one that the kubeconfig's context names, or "default".
func (c *Client) Namespace() string { return c.namespace }

// Heard is when the API server answered anything last but that it cannot answer;
// zero: it never did.
func (c *Client) Heard() time.Time {
	if at := c.heard.Load(); at != nil {
		return *at
	}
	return time.Time{}
}

// listener notes when answers come.
type listener struct {
	http.RoundTripper
	c *Client
}

// RoundTrip implements http.RoundTripper.
func (l listener) RoundTrip(req *http.Request) (*http.Response, error) {
	res, err := l.RoundTripper.RoundTrip(req)
	if err == nil && res.StatusCode < http.StatusInternalServerError {
		now := time.Now()
		l.c.heard.Store(&now)
	}
	return res, err
}

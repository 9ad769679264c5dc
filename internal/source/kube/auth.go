package kube

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/identity"
)

// Audience is whom agents' tokens must be for: a token for the API server, or for
// somebody else, is none.
const Audience = "chandler"

const (
	// reviewAge is how long the API server's word on a token is good, and so how
	// long a revoked one is believed at most while the API server is there.
	reviewAge = 5 * time.Minute
	// DefaultPodAge is the same for a pod's labels.
	DefaultPodAge = 45 * time.Second
	// staleAge is how long what was known is good while the API server is away;
	// a token's own expiry ends it sooner.
	staleAge = time.Hour

	extraPod    = "authentication.kubernetes.io/pod-name"
	extraPodUID = "authentication.kubernetes.io/pod-uid"
)

// Tokens reviews agents' service account tokens with the API server. Tokens
// themselves are not kept.
type Tokens struct {
	core   kubernetes.Interface
	now    func() time.Time
	tokens memo[[sha256.Size]byte, account]
	pods   memo[pod, map[string]string] // their labels
}

// account is whose a token is.
type account struct {
	namespace, name string
	pod             pod // zero: bound to none
}

// pod is one pod for as long as it lives.
type pod struct{ namespace, name, uid string }

// TokensConfig is how tokens are reviewed.
type TokensConfig struct {
	// PodAge is how long a pod's labels are believed; DefaultPodAge when zero.
	PodAge time.Duration
	Log    *slog.Logger
}

// Tokens gives a reviewer with a client of its own, so that a flood of tokens does
// not hold up the rest. Its user may create tokenreviews, and get pods.
func (c *Client) Tokens(cfg TokensConfig) (*Tokens, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	config := rest.CopyConfig(c.rest)
	config.QPS, config.Burst = 100, 400
	core, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("kubernetes: %w", err)
	}
	t := &Tokens{core: core, now: time.Now}
	now := func() time.Time { return t.now() }
	believed := func(what string) func(error) {
		return func(why error) {
			cfg.Log.Warn("believed as before, while the API server cannot be asked: "+what, "error", why)
		}
	}
	t.tokens = memo[[sha256.Size]byte, account]{age: reviewAge, now: now, stale: staleAge, believed: believed("a token")}
	t.pods = memo[pod, map[string]string]{age: cmp.Or(cfg.PodAge, DefaultPodAge), now: now, stale: staleAge, believed: believed("a pod's labels"), again: true}
	return t, nil
}

// Review implements identity.Reviewer. For a token that is bound to a pod, as
// those that the kubelet projects are, node and labels are the pod's.
func (t *Tokens) Review(ctx context.Context, token string) (identity.Identity, error) {
	a, err := t.account(ctx, token)
	if err != nil {
		return identity.Identity{}, err
	}
	id := identity.Identity{
		Name:      "system:serviceaccount:" + a.namespace + ":" + a.name,
		Namespace: a.namespace, ServiceAccount: a.name,
	}
	if a.pod == (pod{}) {
		return id, nil
	}
	labels, err := t.labels(ctx, a.pod)
	if err != nil {
		return identity.Identity{}, err
	}
	id.Name += " (pod " + a.pod.name + ")"
	id.Node, id.Labels, id.Known = a.pod.name, labels, true
	return id, nil
}

func (t *Tokens) account(ctx context.Context, token string) (account, error) {
	return t.tokens.get(ctx, sha256.Sum256([]byte(token)), func(ctx context.Context) (account, time.Time, error) {
		a, err := t.review(ctx, token)
		return a, expiry(token), err
	})
}

func refuse(format string, args ...any) error {
	return &refusedError{chandler.Printable(fmt.Sprintf(format, args...), 256)}
}

// review asks whose a token is.
func (t *Tokens) review(ctx context.Context, token string) (account, error) {
	review := &authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: token, Audiences: []string{Audience}}}
	review, err := t.core.AuthenticationV1().TokenReviews().Create(ctx, review, metav1.CreateOptions{})
	if err != nil {
		return account{}, fmt.Errorf("token review: %w", explained(err))
	}
	st := review.Status
	parts := strings.Split(st.User.Username, ":")
	switch {
	case !st.Authenticated && st.Error != "":
		return account{}, refuse("%s", st.Error)
	case !st.Authenticated:
		return account{}, refuse("it is nobody's")
	case !slices.Contains(st.Audiences, Audience):
		return account{}, refuse("it is not for the audience %q", Audience)
	case len(parts) != 4 || parts[0] != "system" || parts[1] != "serviceaccount" || parts[2] == "" || parts[3] == "":
		return account{}, refuse("it is of %s, which is no service account", chandler.Quote(st.User.Username))
	}
	a := account{namespace: parts[2], name: parts[3]}
	if name, uid := first(st.User.Extra[extraPod]), first(st.User.Extra[extraPodUID]); name != "" {
		a.pod = pod{a.namespace, name, uid}
	}
	return a, nil
}

func first(values []string) string {
	if len(values) == 0 {
		return ""
	}
	return values[0]
}

func (t *Tokens) labels(ctx context.Context, p pod) (map[string]string, error) {
	return t.pods.get(ctx, p, func(ctx context.Context) (map[string]string, time.Time, error) {
		labels, err := t.look(ctx, p)
		return labels, time.Time{}, err
	})
}

// look asks for the labels of a pod.
func (t *Tokens) look(ctx context.Context, p pod) (map[string]string, error) {
	got, err := t.core.CoreV1().Pods(p.namespace).Get(ctx, p.name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err), err == nil && p.uid != "" && string(got.UID) != p.uid:
		return nil, refuse("its pod %s is gone", chandler.Quote(p.namespace+"/"+p.name))
	case err != nil:
		return nil, fmt.Errorf("pod of a token: %w", explained(err))
	case got.Labels == nil:
		return map[string]string{}, nil
	}
	return maps.Clone(got.Labels), nil
}

// expiry reads when a token expires; zero when it does not say. The API server has
// verified the token.
func expiry(token string) time.Time {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return time.Time{}
	}
	body, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return time.Time{}
	}
	var claims struct {
		Exp int64 `json:"exp"`
	}
	if json.Unmarshal(body, &claims) != nil || claims.Exp <= 0 {
		return time.Time{}
	}
	return time.Unix(claims.Exp, 0)
}

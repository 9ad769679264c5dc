package kube

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"
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
	// refusalAge is for tokens that were refused.
	refusalAge = 10 * time.Second
	// staleAge is how long what was known is good while the API server is away;
	// a token's own expiry ends it sooner.
	staleAge = time.Hour

	maxReviewed = 20_000 // tokens, and pods
	maxRefused  = 1_000
	askTimeout  = 10 * time.Second

	extraPod    = "authentication.kubernetes.io/pod-name"
	extraPodUID = "authentication.kubernetes.io/pod-uid"
)

// Tokens reviews agents' service account tokens with the API server. Tokens
// themselves are not kept.
type Tokens struct {
	core   kubernetes.Interface
	podAge time.Duration
	now    func() time.Time
	log    *slog.Logger

	flights singleflight.Group
	mu      sync.Mutex
	tokens  map[[sha256.Size]byte]known[account]
	refused map[[sha256.Size]byte]known[string] // and why
	pods    map[pod]known[map[string]string]    // their labels
}

// known is what the API server said.
type known[T any] struct {
	value T
	at    time.Time
	until time.Time // not beyond; zero: there is no such time
}

// good tells whether it is not older than age and may be believed at all.
func (k known[T]) good(now time.Time, age time.Duration) bool {
	return now.Sub(k.at) < age && (k.until.IsZero() || now.Before(k.until))
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
	return &Tokens{
		core: core, podAge: cmp.Or(cfg.PodAge, DefaultPodAge), now: time.Now, log: cfg.Log,
		tokens: map[[sha256.Size]byte]known[account]{}, refused: map[[sha256.Size]byte]known[string]{}, pods: map[pod]known[map[string]string]{},
	}, nil
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
	key := sha256.Sum256([]byte(token))
	t.mu.Lock()
	now := t.now()
	before, seen := t.tokens[key]
	refusal, no := t.refused[key]
	t.mu.Unlock()
	switch {
	case seen && before.good(now, reviewAge):
		return before.value, nil
	case no && refusal.good(now, refusalAge):
		return account{}, fmt.Errorf("%w: %s", identity.ErrRefused, refusal.value)
	}
	a, err := fly(ctx, &t.flights, "token "+string(key[:]), func(ctx context.Context) (account, error) { return t.review(ctx, token) })
	t.mu.Lock()
	defer t.mu.Unlock()
	now = t.now()
	var why *refusedError
	switch {
	case err == nil:
		keep(t.tokens, key, known[account]{a, now, expiry(token)}, maxReviewed)
		return a, nil
	case errors.As(err, &why):
		delete(t.tokens, key)
		keep(t.refused, key, known[string]{value: why.why, at: now}, maxRefused)
	case seen && before.good(now, staleAge):
		t.log.Warn("a token is believed as before, while the API server cannot be asked", "error", err)
		return before.value, nil
	}
	return account{}, err
}

// refusedError is the API server's no.
type refusedError struct{ why string }

func (e *refusedError) Error() string { return identity.ErrRefused.Error() + ": " + e.why }
func (e *refusedError) Unwrap() error { return identity.ErrRefused }

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
	t.mu.Lock()
	before, seen := t.pods[p]
	good := seen && before.good(t.now(), t.podAge)
	t.mu.Unlock()
	if good {
		return before.value, nil
	}
	labels, err := fly(ctx, &t.flights, "pod "+p.namespace+"/"+p.name+"/"+p.uid, func(ctx context.Context) (map[string]string, error) { return t.look(ctx, p) })
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.now()
	switch {
	case err == nil:
		keep(t.pods, p, known[map[string]string]{value: labels, at: now}, maxReviewed)
		return labels, nil
	case errors.Is(err, identity.ErrRefused):
		delete(t.pods, p)
	case seen && before.good(now, staleAge):
		t.log.Warn("a pod's labels are believed as before, while the API server cannot be asked", "error", err)
		return before.value, nil
	}
	return nil, err
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

// fly asks once for all that ask the same at the same time, and goes on when the
// first of them gives up.
func fly[T any](ctx context.Context, flights *singleflight.Group, key string, ask func(context.Context) (T, error)) (T, error) {
	answer := flights.DoChan(key, func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), askTimeout)
		defer cancel()
		return ask(ctx)
	})
	select {
	case a := <-answer:
		v, _ := a.Val.(T)
		return v, a.Err
	case <-ctx.Done():
		var none T
		return none, ctx.Err()
	}
}

// keep puts something in, and out what was longest there when there is no room.
func keep[K comparable, V any](m map[K]known[V], key K, value known[V], most int) {
	if _, ok := m[key]; !ok && len(m) >= most {
		times := make([]time.Time, 0, len(m))
		for _, k := range m {
			times = append(times, k.at)
		}
		slices.SortFunc(times, time.Time.Compare)
		before := times[len(times)/10] // a tenth at a time, so that it is seldom done
		maps.DeleteFunc(m, func(_ K, k known[V]) bool { return !k.at.After(before) })
	}
	m[key] = value
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

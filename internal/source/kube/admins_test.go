package kube

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	"k8s.io/client-go/rest"

	roles "chandler.dev/chandler/internal/access"
)

// court answers both kinds of reviews, and counts them.
type court struct {
	mu      sync.Mutex
	users   map[string]authenticationv1.TokenReviewStatus
	allowed map[string]bool // "USER VERB RESOURCE NAMESPACE"
	away    bool
	tokens  int
	answers int
}

func (c *court) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	if c.away {
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	w.WriteHeader(http.StatusCreated)
	if strings.HasSuffix(r.URL.Path, "/tokenreviews") {
		c.tokens++
		var review authenticationv1.TokenReview
		_ = json.NewDecoder(r.Body).Decode(&review)
		if len(review.Spec.Audiences) == 1 && review.Spec.Audiences[0] == AdminAudience {
			review.Status = c.users[review.Spec.Token]
		}
		_ = json.NewEncoder(w).Encode(review)
		return
	}
	c.answers++
	var review authorizationv1.SubjectAccessReview
	_ = json.NewDecoder(r.Body).Decode(&review)
	what := "get /debug/pprof/ "
	if on := review.Spec.ResourceAttributes; on != nil {
		what = on.Verb + " " + strings.TrimPrefix(on.Group+"/"+on.Resource+"/"+on.Subresource, "/") + " " + on.Namespace
	}
	review.Status.Allowed = c.allowed[review.Spec.User+" "+what]
	_ = json.NewEncoder(w).Encode(review)
}

func (c *court) set(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f()
}

func admins(t *testing.T, c *court) (a *Admins, advance func(time.Duration)) {
	t.Helper()
	srv := httptest.NewServer(c)
	t.Cleanup(srv.Close)
	a, err := (&Client{rest: &rest.Config{Host: srv.URL, ContentConfig: rest.ContentConfig{ContentType: "application/json"}}}).Admins()
	if err != nil {
		t.Fatal(err)
	}
	now := time.Unix(1_800_000_000, 0)
	a.now = func() time.Time { return now }
	return a, func(d time.Duration) { now = now.Add(d) }
}

func reviewed(name string) authenticationv1.TokenReviewStatus {
	return authenticationv1.TokenReviewStatus{
		Authenticated: true, Audiences: []string{AdminAudience},
		User: authenticationv1.UserInfo{Username: name, UID: "u", Groups: []string{"g"}, Extra: map[string]authenticationv1.ExtraValue{"k": {"v"}}},
	}
}

func TestAdminsReview(t *testing.T) {
	t.Parallel()
	elsewhere := reviewed("joe")
	elsewhere.Audiences = []string{"other"}
	c := &court{users: map[string]authenticationv1.TokenReviewStatus{"t1": reviewed("jane"), "t2": elsewhere, "t3": reviewed("")}}
	a, advance := admins(t, c)
	for range 3 {
		got, err := a.Review(t.Context(), "t1")
		if err != nil || got.User != "jane" || got.UID != "u" || len(got.Groups) != 1 || got.Extra["k"][0] != "v" {
			t.Fatalf("jane: %+v, %v", got, err)
		}
		for _, token := range []string{"t2", "t3", "t4"} {
			if _, err := a.Review(t.Context(), token); !errors.Is(err, roles.ErrRefused) {
				t.Errorf("%s: %v", token, err)
			}
		}
	}
	if c.tokens != 4 {
		t.Errorf("the API server was asked %d times for four tokens", c.tokens)
	}
	// While it is away nobody is believed for longer than before.
	c.set(func() { c.away = true })
	if _, err := a.Review(t.Context(), "t1"); err != nil {
		t.Errorf("a minute is not over: %v", err)
	}
	advance(accountAge)
	if _, err := a.Review(t.Context(), "t1"); err == nil || errors.Is(err, roles.ErrRefused) {
		t.Errorf("while the API server is away: %v", err)
	}
	c.set(func() { c.away = false; delete(c.users, "t1") })
	if _, err := a.Review(t.Context(), "t1"); !errors.Is(err, roles.ErrRefused) {
		t.Errorf("a revoked token: %v", err)
	}
}

func TestAdminsAllow(t *testing.T) {
	t.Parallel()
	const plugins = "extensions.istio.io/wasmplugins/ "
	c := &court{allowed: map[string]bool{
		"jane list " + plugins + "edge": true, "jane update " + plugins + "edge": true, "joe list " + plugins: true, "joe delete " + plugins: true,
		"joe create serviceaccounts/token shop": true, "joe get /debug/pprof/ ": true,
	}}
	a, advance := admins(t, c)
	for _, q := range []struct {
		user      string
		verb      roles.Verb
		namespace string
		want      bool
	}{
		{"jane", roles.List, "edge", true}, {"jane", roles.Read, "edge", true}, {"jane", roles.Steer, "edge", true}, {"jane", roles.Edit, "edge", false},
		{"jane", roles.List, "shop", false}, {"jane", roles.List, roles.Everywhere, false}, {"jane", roles.Debug, roles.Everywhere, false},
		{"joe", roles.List, roles.Everywhere, true}, {"joe", roles.Edit, roles.Everywhere, true}, {"joe", roles.Enrol, "shop", true}, {"joe", roles.Enrol, "edge", false},
		{"joe", roles.Debug, roles.Everywhere, true}, {"joe", "fly", roles.Everywhere, false},
	} {
		for range 2 {
			if got, err := a.Allow(t.Context(), &roles.Account{User: q.user}, q.verb, q.namespace); got != q.want || err != nil {
				t.Errorf("%s %s %s: %t, %v", q.user, q.verb, q.namespace, got, err)
			}
		}
	}
	if c.answers != 12 {
		t.Errorf("the API server was asked %d times", c.answers)
	}
	c.set(func() { c.away = true })
	advance(answerAge)
	if ok, err := a.Allow(t.Context(), &roles.Account{User: "jane"}, roles.List, "edge"); ok || err == nil {
		t.Errorf("while the API server is away: %t, %v", ok, err)
	}
}

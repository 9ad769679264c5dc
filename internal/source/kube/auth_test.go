package kube

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"chandler.dev/chandler/internal/identity"
)

// apiServer answers token reviews and gets of pods, and counts them.
type apiServer struct {
	mu      sync.Mutex
	users   map[string]authenticationv1.TokenReviewStatus // by token
	pods    map[string]corev1.Pod                         // by namespace/name
	away    bool
	reviews int
	gets    int
}

func (s *apiServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	answer := func(code int, v any) {
		w.WriteHeader(code)
		_ = json.NewEncoder(w).Encode(v)
	}
	failed := func(code int, reason metav1.StatusReason) {
		answer(code, metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: "Failure", Reason: reason, Code: int32(code)})
	}
	if s.away {
		failed(http.StatusForbidden, metav1.StatusReasonForbidden)
		return
	}
	if name, ok := strings.CutPrefix(r.URL.Path, "/api/v1/namespaces/"); ok {
		s.gets++
		pod, ok := s.pods[strings.Replace(name, "/pods/", "/", 1)]
		if !ok {
			failed(http.StatusNotFound, metav1.StatusReasonNotFound)
			return
		}
		pod.TypeMeta = metav1.TypeMeta{Kind: "Pod", APIVersion: "v1"}
		answer(http.StatusOK, pod)
		return
	}
	s.reviews++
	var review authenticationv1.TokenReview
	if err := json.NewDecoder(r.Body).Decode(&review); err != nil || len(review.Spec.Audiences) != 1 || review.Spec.Audiences[0] != "chandler" {
		failed(http.StatusBadRequest, metav1.StatusReasonBadRequest)
		return
	}
	review.Status = s.users[review.Spec.Token]
	review.TypeMeta = metav1.TypeMeta{Kind: "TokenReview", APIVersion: "authentication.k8s.io/v1"}
	answer(http.StatusCreated, review)
}

func (s *apiServer) set(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

func (s *apiServer) counts() (reviews, gets int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.reviews, s.gets
}

func user(name string, extra ...string) authenticationv1.TokenReviewStatus {
	st := authenticationv1.TokenReviewStatus{Authenticated: true, Audiences: []string{"chandler"}, User: authenticationv1.UserInfo{Username: name}}
	if len(extra) == 2 {
		st.User.Extra = map[string]authenticationv1.ExtraValue{extraPod: {extra[0]}, extraPodUID: {extra[1]}}
	}
	return st
}

func labelled(uid string, labels map[string]string) corev1.Pod {
	return corev1.Pod{ObjectMeta: metav1.ObjectMeta{UID: types.UID(uid), Labels: labels}}
}

// token is one that expires.
func token(name string, exp time.Time) string {
	return "h." + base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, `{"sub":%q,"exp":%d}`, name, exp.Unix())) + ".s"
}

// tokens gives a reviewer with a clock of its own.
func tokens(t *testing.T, s *apiServer) (r *Tokens, advance func(time.Duration)) {
	t.Helper()
	srv := httptest.NewServer(s)
	t.Cleanup(srv.Close)
	r, err := (&Client{rest: &rest.Config{Host: srv.URL, ContentConfig: rest.ContentConfig{ContentType: "application/json"}}}).Tokens(TokensConfig{})
	if err != nil {
		t.Fatal(err)
	}
	now := time.Unix(1_800_000_000, 0)
	var mu sync.Mutex
	r.now = func() time.Time {
		mu.Lock()
		defer mu.Unlock()
		return now
	}
	return r, func(d time.Duration) {
		mu.Lock()
		defer mu.Unlock()
		now = now.Add(d)
	}
}

func TestReview(t *testing.T) {
	t.Parallel()
	other := user("system:serviceaccount:edge:gw")
	other.Audiences = []string{"https://kubernetes.default.svc"}
	s := &apiServer{
		users: map[string]authenticationv1.TokenReviewStatus{
			"bound": user("system:serviceaccount:edge:gw", "gw-1", "u1"), "free": user("system:serviceaccount:edge:gw"),
			"gone": user("system:serviceaccount:edge:gw", "gw-2", "u2"), "again": user("system:serviceaccount:edge:gw", "gw-1", "u0"),
			"person": user("jane"), "odd": user("system:serviceaccount:edge"), "other": other, "bad": {Error: "token has expired\n"},
		},
		pods: map[string]corev1.Pod{"edge/gw-1": labelled("u1", map[string]string{"app": "gw"})},
	}
	r, _ := tokens(t, s)
	id, err := r.Review(t.Context(), "bound")
	if err != nil || id.Namespace != "edge" || id.ServiceAccount != "gw" || id.Node != "gw-1" || !id.Known || !maps.Equal(id.Labels, map[string]string{"app": "gw"}) {
		t.Errorf("%+v, %v", id, err)
	}
	if id, err = r.Review(t.Context(), "free"); err != nil || id.Namespace != "edge" || id.Node != "" || id.Known {
		t.Errorf("%+v, %v", id, err)
	}
	for token, why := range map[string]string{
		"gone": `its pod "edge/gw-2" is gone`, "again": `its pod "edge/gw-1" is gone`, "person": `it is of "jane"`, "odd": "no service account",
		"other": `not for the audience "chandler"`, "bad": "token has expired", "unknown": "it is nobody's",
	} {
		if _, err := r.Review(t.Context(), token); !errors.Is(err, identity.ErrRefused) || !strings.Contains(err.Error(), why) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v, want %q", token, err, why)
		}
	}
	s.set(func() { s.away = true })
	if _, err := r.Review(t.Context(), "new"); err == nil || errors.Is(err, identity.ErrRefused) {
		t.Errorf("refused, because the API server cannot be asked: %v", err)
	}
}

// What the API server said is believed for a while, and for longer while it is
// away, but never beyond the token's own end.
func TestReviewsAreKept(t *testing.T) {
	t.Parallel()
	s := &apiServer{users: map[string]authenticationv1.TokenReviewStatus{}, pods: map[string]corev1.Pod{"edge/gw-1": labelled("u1", map[string]string{"v": "1"})}}
	r, advance := tokens(t, s)
	good := token("a", r.now().Add(30*time.Minute))
	s.users[good] = user("system:serviceaccount:edge:gw", "gw-1", "u1")
	asked := func(token string, reviews, gets int, want string) {
		t.Helper()
		id, err := r.Review(t.Context(), token)
		got := id.Labels["v"]
		if err != nil {
			got = "failed"
			if errors.Is(err, identity.ErrRefused) {
				got = "refused"
			}
		}
		if n, m := s.counts(); n != reviews || m != gets || got != want {
			t.Errorf("%d reviews and %d gets, %q; want %d and %d, %q", n, m, got, reviews, gets, want)
		}
	}
	asked(good, 1, 1, "1")
	asked(good, 1, 1, "1")
	asked("bad", 2, 1, "refused")
	asked("bad", 2, 1, "refused")
	s.set(func() { s.pods["edge/gw-1"] = labelled("u1", map[string]string{"v": "2"}) })
	advance(DefaultPodAge)
	asked(good, 2, 2, "2")
	asked("bad", 3, 2, "refused")
	advance(reviewAge)
	asked(good, 4, 3, "2")

	s.set(func() { s.away = true })
	advance(reviewAge)
	asked(good, 4, 3, "2")
	asked("new", 4, 3, "failed")
	advance(20 * time.Minute) // it has expired
	asked(good, 4, 3, "failed")
	s.set(func() { s.away = false; delete(s.users, good) })
	asked(good, 5, 3, "refused")
}

// However many ask at once, the API server is asked once; and what is kept is
// bounded.
func TestReviewsAreBounded(t *testing.T) {
	t.Parallel()
	s := &apiServer{users: map[string]authenticationv1.TokenReviewStatus{"x": user("system:serviceaccount:edge:gw")}}
	r, _ := tokens(t, s)
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			if _, err := r.Review(t.Context(), "x"); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n, _ := s.counts(); n != 1 {
		t.Errorf("%d reviews for 50 of one token", n)
	}
	var m map[int]known[string]
	now := time.Unix(0, 0)
	for i := range 1000 {
		put(&m, i, known[string]{at: now.Add(time.Duration(i))}, 100)
		if len(m) > 100 {
			t.Fatalf("%d are kept", len(m))
		}
		if _, ok := m[i]; !ok {
			t.Fatal("the newest is not kept")
		}
	}
}

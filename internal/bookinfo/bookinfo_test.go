package bookinfo

import (
	"bufio"
	"context"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// site runs the whole sample and gives productpage's URL.
func site(t *testing.T) string {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	r, w := io.Pipe()
	done := make(chan error, 1)
	go func() { done <- All(ctx, "127.0.0.1:0", w) }()
	lines := bufio.NewScanner(r)
	front := ""
	for range 6 {
		if !lines.Scan() {
			t.Fatal("it does not tell its addresses")
		}
		if name, addr, ok := strings.Cut(lines.Text(), " "); ok && name == "productpage" {
			front = strings.TrimSpace(addr)
		}
	}
	t.Cleanup(func() {
		http.DefaultClient.CloseIdleConnections()
		cancel()
		if err := <-done; err != nil {
			t.Errorf("it ended with %v", err)
		}
	})
	return front
}

func get(t *testing.T, client *http.Client, url string) (int, string) {
	t.Helper()
	resp, err := client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

func TestPaths(t *testing.T) {
	front := site(t)
	for path, want := range map[string]struct {
		code int
		text string
	}{
		"/":                          {200, "Four small services"},
		"/productpage":               {200, "The Comedy of Errors"},
		"/health":                    {200, "healthy"},
		"/api/v1/products":           {200, `"title":"The Comedy of Errors"`},
		"/api/v1/products/0":         {200, `"ISBN-13":"123-1234567890"`},
		"/api/v1/products/0/reviews": {200, `"reviewer":"Reviewer1"`},
		"/api/v1/products/0/ratings": {200, `"Reviewer2":4`},
		"/api/v1/products/7":         {404, "no such book"},
		"/api/v1/products/x/reviews": {404, "no such book"},
		"/nowhere":                   {404, ""},
	} {
		if code, body := get(t, http.DefaultClient, front+path); code != want.code || !strings.Contains(body, want.text) {
			t.Errorf("%s: %d %s", path, code, body)
		}
	}
}

// The three versions of reviews take turns, each with its own stars.
func TestReviewsTakeTurns(t *testing.T) {
	front := site(t)
	for _, want := range []string{"reviews v1", "stars black", "stars red", "reviews v1"} {
		if _, body := get(t, http.DefaultClient, front+"/productpage"); !strings.Contains(body, want) {
			t.Errorf("the page lacks %q", want)
		}
	}
}

func TestLogin(t *testing.T) {
	front := site(t)
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Jar: jar}
	defer client.CloseIdleConnections()
	resp, err := client.PostForm(front+"/login", url.Values{"username": {"jason<script>"}})
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if _, body := get(t, client, front+"/productpage"); !strings.Contains(body, "jasonscript") || strings.Contains(body, "<script>") {
		t.Error("the user's name is not shown as it should be")
	}
	if _, body := get(t, client, front+"/logout"); strings.Contains(body, "jasonscript") {
		t.Error("the user is still signed in")
	}
	resp, err = client.PostForm(front+"/login", url.Values{})
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusBadRequest {
		t.Errorf("a login without a name: %d", resp.StatusCode)
	}
}

// A page whose services are down says which, and is a page all the same.
func TestServicesDown(t *testing.T) {
	const nobody = "http://127.0.0.1:1"
	h, err := ProductPage(Backends{Details: nobody, Ratings: nobody, Reviews: []string{nobody}})
	if err != nil {
		t.Fatal(err)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/productpage", nil))
	for _, want := range []string{"details service does not answer", "reviews service does not answer", "The Comedy of Errors"} {
		if !strings.Contains(w.Body.String(), want) {
			t.Errorf("the page lacks %q", want)
		}
	}
	w = httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/api/v1/products/0/ratings", nil))
	if w.Code != http.StatusServiceUnavailable {
		t.Errorf("ratings without their service: %d", w.Code)
	}
	w = httptest.NewRecorder()
	Reviews(V2, nobody).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/reviews/0", nil))
	if !strings.Contains(w.Body.String(), "not to be had") || w.Code != http.StatusOK {
		t.Errorf("reviews without ratings: %d %s", w.Code, w.Body)
	}
}

func TestRatings(t *testing.T) {
	h := Ratings()
	post := func(body string) *httptest.ResponseRecorder {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/ratings/0", strings.NewReader(body)))
		return w
	}
	if w := post(`{"Reviewer1": 1, "New": 3}`); w.Code != 200 || !strings.Contains(w.Body.String(), `"New":3`) {
		t.Errorf("a rating: %d %s", w.Code, w.Body)
	}
	for _, bad := range []string{`{"A": 6}`, `{"A": 0}`, `[`, ``} {
		if w := post(bad); w.Code != http.StatusBadRequest {
			t.Errorf("%s: %d", bad, w.Code)
		}
	}
}

// The user's name and the request's id go along to the services.
func TestForwardedHeaders(t *testing.T) {
	got := make(chan http.Header, 1)
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got <- r.Header.Clone()
		writeJSON(w, 200, BookRatings{})
	}))
	defer backend.Close()
	h, err := ProductPage(Backends{Ratings: backend.URL, Reviews: []string{backend.URL}})
	if err != nil {
		t.Fatal(err)
	}
	req := httptest.NewRequest(http.MethodGet, "/api/v1/products/0/ratings", nil)
	req.Header.Set("x-request-id", "42")
	req.AddCookie(&http.Cookie{Name: userCookie, Value: "jason"})
	h.ServeHTTP(httptest.NewRecorder(), req)
	if header := <-got; header.Get("end-user") != "jason" || header.Get("x-request-id") != "42" {
		t.Errorf("the service saw %v", header)
	}
}

func TestWebSocketEcho(t *testing.T) {
	front := site(t)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	conn, _, err := websocket.Dial(ctx, strings.Replace(front, "http", "ws", 1)+"/ws", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.CloseNow()
	if err := conn.Write(ctx, websocket.MessageText, []byte("hello")); err != nil {
		t.Fatal(err)
	}
	if _, b, err := conn.Read(ctx); err != nil || string(b) != "hello" {
		t.Errorf("got %q, %v", b, err)
	}
}

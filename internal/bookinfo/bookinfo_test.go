package bookinfo

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coder/websocket"
	"google.golang.org/grpc/test/bufconn"

	"chandler.dev/chandler/internal/testenv/leaks"
)

// TestMain has services wait for each other for as long as a machine may stand still.
func TestMain(m *testing.M) {
	frontTimeout, reviewsTimeout = 2*time.Minute, time.Minute
	leaks.Main(m)
}

// site runs the whole sample and gives productpage's URL.
func site(t *testing.T) string {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	r, w := io.Pipe()
	done := make(chan error, 1)
	go func() { done <- All(ctx, Addresses{ProductPage: "127.0.0.1:0"}, w) }()
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
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusBadRequest || !strings.Contains(string(b), "A user name has") {
		t.Errorf("a login without a name: %d %s %v", resp.StatusCode, b, err)
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
	reviews, err := Reviews(V2, nobody)
	if err != nil {
		t.Fatal(err)
	}
	reviews.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/reviews/0", nil))
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
	for _, bad := range []string{`{"A": 6}`, `{"A": 0}`, `{"": 3}`, `{"` + strings.Repeat("n", maxName+1) + `": 3}`, `[`, ``} {
		if w := post(bad); w.Code != http.StatusBadRequest {
			t.Errorf("%s: %d", bad, w.Code)
		}
	}
	many := map[string]int{}
	for i := range maxRatings {
		many[fmt.Sprint("r", i)] = 1
	}
	b, err := json.Marshal(many)
	if err != nil {
		t.Fatal(err)
	}
	if w := post(string(b)); w.Code != http.StatusInsufficientStorage {
		t.Errorf("more ratings than are kept: %d", w.Code)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/ratings/0", nil))
	var kept BookRatings
	if err := json.Unmarshal(w.Body.Bytes(), &kept); err != nil || len(kept.Ratings) != 3 || kept.Ratings["Reviewer1"] != 1 {
		t.Errorf("kept are %v, %v", kept, err)
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
	h, err := ProductPage(Backends{Details: backend.URL, Ratings: backend.URL, Reviews: []string{backend.URL}})
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
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
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

// serve runs h until the test or stop ends it; ended gives what Serve said.
func serve(t *testing.T, h http.Handler) (addr string, stop func(), ended <-chan error) {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, lis, h) }()
	return lis.Addr().String(), cancel, done
}

// Every service answers by itself, not only behind the page.
func TestEachService(t *testing.T) {
	ratings := httptest.NewServer(Ratings())
	defer ratings.Close()
	defer http.DefaultClient.CloseIdleConnections()
	services := map[string]http.Handler{"/details/0": Details(), "/ratings/0": Ratings()}
	for _, v := range []Version{V1, V2, V3} {
		h, err := Reviews(v, ratings.URL)
		if err != nil {
			t.Fatal(err)
		}
		services["/reviews/0?"+string(v)] = h
	}
	for path, h := range services {
		srv := httptest.NewServer(h)
		for at, want := range map[string]int{path: 200, "/health": 200, strings.Replace(path, "0", "9", 1): 404, "/": 404} {
			if code, body := get(t, http.DefaultClient, srv.URL+at); code != want {
				t.Errorf("%s of %s: %d %s", at, path, code, body)
			}
		}
		srv.Close()
	}
}

// One service that is down takes only its own part of the page with it.
func TestOneServiceDown(t *testing.T) {
	const nobody = "http://127.0.0.1:1"
	details := httptest.NewServer(Details())
	defer details.Close()
	v3, err := Reviews(V3, nobody)
	if err != nil {
		t.Fatal(err)
	}
	reviews := httptest.NewServer(v3)
	defer reviews.Close()
	page := func(b Backends) string {
		h, err := ProductPage(b)
		if err != nil {
			t.Fatal(err)
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/productpage", nil))
		if w.Code != http.StatusOK {
			t.Errorf("the page: %d", w.Code)
		}
		return w.Body.String()
	}
	for _, c := range []struct {
		backends   Backends
		has, hasnt string
	}{
		{Backends{nobody, nobody, []string{reviews.URL}}, "details service does not answer", "reviews service does not answer"},
		{Backends{details.URL, nobody, []string{nobody}}, "reviews service does not answer", "details service does not answer"},
		{Backends{details.URL, nobody, []string{reviews.URL}}, "ratings are not to be had", "does not answer"},
	} {
		if body := page(c.backends); !strings.Contains(body, c.has) || strings.Contains(body, c.hasnt) {
			t.Errorf("with %+v the page is %s", c.backends, body)
		}
	}
}

// Ratings that hang are told as such: the reviews still come in time.
func TestRatingsHang(t *testing.T) {
	defer func(before time.Duration) { reviewsTimeout = before }(reviewsTimeout)
	reviewsTimeout = 100 * time.Millisecond
	hang := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
	defer hang.Close()
	v2, err := Reviews(V2, hang.URL)
	if err != nil {
		t.Fatal(err)
	}
	reviews := httptest.NewServer(v2)
	defer reviews.Close()
	h, err := ProductPage(Backends{Details: reviews.URL, Ratings: hang.URL, Reviews: []string{reviews.URL}})
	if err != nil {
		t.Fatal(err)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/productpage", nil))
	if body := w.Body.String(); !strings.Contains(body, "ratings are not to be had") || !strings.Contains(body, "Served by reviews v2") {
		t.Errorf("the page is %s", body)
	}
}

func TestWrongBackends(t *testing.T) {
	const ok = "http://127.0.0.1:1"
	for _, b := range []Backends{
		{}, {ok, ok, nil}, {ok, ok, []string{ok, ""}}, {"127.0.0.1:80", ok, []string{ok}}, {ok, "ftp://x", []string{ok}},
	} {
		if _, err := ProductPage(b); err == nil {
			t.Errorf("%+v is taken", b)
		}
	}
	if _, err := Reviews("v4", ok); err == nil {
		t.Error("there is a v4")
	}
	if _, err := Reviews(V2, ""); err == nil {
		t.Error("v2 goes without ratings")
	}
}

// inMemory is Serve without a network, for bubbles, and a client of it.
type inMemory struct {
	lis    *bufconn.Listener
	client *http.Client
	stop   context.CancelFunc
	ended  chan error // what Serve said
}

func serveInMemory(t *testing.T, h http.Handler) *inMemory {
	t.Helper()
	s := &inMemory{lis: bufconn.Listen(64 << 10), ended: make(chan error, 1)}
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return s.lis.DialContext(ctx) }}
	t.Cleanup(transport.CloseIdleConnections)
	s.client = &http.Client{Transport: transport}
	var ctx context.Context
	ctx, s.stop = context.WithCancel(t.Context())
	go func() { s.ended <- Serve(ctx, s.lis, h) }()
	return s
}

// get asks, and gives the status when it comes; 0: there is no answer.
func (s *inMemory) get() <-chan int {
	code := make(chan int, 1)
	go func() {
		resp, err := s.client.Get("http://bookinfo")
		if err != nil {
			code <- 0
			return
		}
		resp.Body.Close()
		code <- resp.StatusCode
	}()
	return code
}

// A request in flight ends well when the server is told to stop.
func TestStopLetsRequestsFinish(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		arrived, leave := make(chan struct{}), make(chan struct{})
		s := serveInMemory(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			close(arrived)
			<-leave
			if r.Context().Err() != nil {
				w.WriteHeader(http.StatusInternalServerError)
			}
		}))
		code := s.get()
		<-arrived
		s.stop()
		time.Sleep(grace / 2) // of the bubble's clock
		if c, err := s.lis.DialContext(t.Context()); err == nil {
			c.Close()
			t.Error("it still listens")
		}
		close(leave)
		if got := <-code; got != http.StatusOK {
			t.Errorf("the request in flight got %d", got)
		}
		if err := <-s.ended; err != nil {
			t.Error(err)
		}
	})
}

// A request that never ends is cut after the grace, an idle WebSocket at once. In a bubble,
// as a request that takes longer than readTimeout ends by that.
func TestStopCutsTheRest(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		arrived := make(chan struct{})
		s := serveInMemory(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/ws" {
				echo(w, r)
				return
			}
			close(arrived)
			<-r.Context().Done()
		}))
		conn, _, err := websocket.Dial(t.Context(), "ws://bookinfo/ws", &websocket.DialOptions{HTTPClient: s.client})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.CloseNow()
		code := s.get()
		<-arrived
		s.stop()
		if err := <-s.ended; err != nil {
			t.Error(err)
		}
		if got := <-code; got != 0 {
			t.Errorf("a request without an end was answered: %d", got)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, _, err := conn.Read(ctx); err == nil || errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("the WebSocket is still open: %v", err)
		}
	})
}

// A port that is taken ends everything, and says which service wanted it.
func TestPortTaken(t *testing.T) {
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer lis.Close()
	err = All(t.Context(), Addresses{ProductPage: lis.Addr().String()}, io.Discard)
	if err == nil || !strings.Contains(err.Error(), "productpage") {
		t.Errorf("got %v", err)
	}
}

func TestBodyIsBounded(t *testing.T) {
	addr, stop, ended := serve(t, Ratings())
	resp, err := http.Post("http://"+addr+"/ratings/0", "application/json", strings.NewReader(`{"A": 1`+strings.Repeat(" ", maxBody)+`}`))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusBadRequest {
		t.Errorf("a body over the limit: %d", resp.StatusCode)
	}
	http.DefaultClient.CloseIdleConnections()
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

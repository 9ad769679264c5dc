package web

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/reflect/protoreflect"

	"chandler.dev/chandler"
	chandlerv1 "chandler.dev/chandler/api/chandler/v1"
	"chandler.dev/chandler/internal/access"
	"chandler.dev/chandler/internal/control"
	"chandler.dev/chandler/internal/credential"
	"chandler.dev/chandler/internal/testenv/authority"
	"chandler.dev/chandler/internal/testenv/leaks"
)

func TestMain(m *testing.M) { leaks.Main(m) }

// logged is a log that tests read while it is written.
type logged struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logged) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// served is an admin port over TCP and a socket.
type served struct {
	t            *testing.T
	addr, socket string
	log          *logged
	end          context.CancelFunc
	done         chan error
}

func serve(t *testing.T, cfg Config) *served { return serveTLS(t, cfg, nil) }

func serveTLS(t *testing.T, cfg Config, config *tls.Config) *served {
	t.Helper()
	if cfg.Metrics == nil {
		cfg.Metrics = prometheus.NewRegistry()
	}
	s := &served{t: t, log: &logged{}, socket: filepath.Join(t.TempDir(), "admin.sock"), done: make(chan error, 1)}
	cfg.Log = slog.New(slog.NewTextHandler(s.log, nil))
	tcp, err := ListenTCP("127.0.0.1:0", config)
	if err != nil {
		t.Fatal(err)
	}
	s.addr = tcp.Addr().String()
	unix, err := ListenSocket(s.socket)
	if err != nil {
		t.Fatal(err)
	}
	var ctx context.Context
	ctx, s.end = context.WithCancel(t.Context())
	go func() { s.done <- Serve(ctx, Handler(cfg), cfg.Log, tcp, unix) }()
	t.Cleanup(func() {
		s.end()
		if err := <-s.done; err != nil {
			t.Error(err)
		}
		if _, err := os.Lstat(s.socket); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the socket is still there: %v", err)
		}
	})
	return s
}

// own asks over the socket.
func (s *served) own(method, body string) (int, string) {
	s.t.Helper()
	way := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return DialSocket(ctx, s.socket) }}
	return s.with(way, "http://localhost/chandler.v1.Admin/"+method, body, nil)
}

// strange asks over TCP, with headers.
func (s *served) strange(method, body string, headers map[string]string) (int, string) {
	s.t.Helper()
	return s.with(&http.Transport{DisableKeepAlives: true}, "http://"+s.addr+"/chandler.v1.Admin/"+method, body, headers)
}

func (s *served) with(way http.RoundTripper, url, body string, headers map[string]string) (int, string) {
	s.t.Helper()
	method := http.MethodPost
	if body == "" {
		method = http.MethodGet
	}
	req, err := http.NewRequestWithContext(s.t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	for name, value := range headers {
		req.Header.Set(name, value)
	}
	if host := headers["Host"]; host != "" {
		req.Host = host
	}
	return s.answer(way.RoundTrip(req))
}

func (s *served) answer(resp *http.Response, err error) (int, string) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// configured is a plugin whose configuration is a canary.
func configured(namespace, name string) control.ObjectView {
	v := view(chandler.KindWasmPlugin, namespace, name)
	v.Manifest = []byte("# canary\nkind: WasmPlugin\nmetadata: {name: " + name + "}\nspec: {url: 'https://h.example/p?token=canary', pluginConfig: {key: canary}}\n")
	return v
}

func granted(grants ...access.Grant) func() []access.Grant {
	return func() []access.Grant { return grants }
}

func tokenOf(name string, role access.Role, namespaces ...string) access.Grant {
	sum := sha256.Sum256([]byte(name + "'s token"))
	return access.Grant{Name: name, TokenSHA256: hex.EncodeToString(sum[:]), Role: role, Namespaces: namespaces}
}

func showing(name string) map[string]string {
	return map[string]string{"Authorization": "Bearer " + name + "'s token"}
}

const (
	inEdge = "apiVersion: extensions.istio.io/v1alpha1\nkind: WasmPlugin\nmetadata: {name: a, namespace: edge}\n"
	inShop = "---\napiVersion: extensions.istio.io/v1alpha1\nkind: WasmPlugin\nmetadata: {name: a, namespace: shop}\n"
)

func manifest(text string) string {
	return fmt.Sprintf(`{"manifest": %q}`, base64.StdEncoding.EncodeToString([]byte(text)))
}

// manifests are those of an answer to List.
func manifests(t *testing.T, list string) string {
	t.Helper()
	var res chandlerv1.ListResponse
	if err := protojson.Unmarshal([]byte(list), &res); err != nil {
		t.Fatal(err)
	}
	var all string
	for _, o := range res.Objects {
		all += string(o.Manifest)
	}
	return all
}

// Every procedure of the service has a rule, and what has none is for nobody.
func TestEveryProcedureHasARule(t *testing.T) {
	t.Parallel()
	procedures := 0
	for _, service := range []protoreflect.ServiceDescriptor{
		chandlerv1.File_chandler_v1_admin_proto.Services().ByName("Admin"), chandlerv1.File_chandler_v1_fleet_proto.Services().ByName("Fleet"),
		chandlerv1.File_chandler_v1_rollout_proto.Services().ByName("Rollouts"),
	} {
		methods := service.Methods()
		procedures += methods.Len()
		for i := range methods.Len() {
			m := methods.Get(i)
			name := "/" + string(service.FullName()) + "/" + string(m.Name())
			if _, ok := rules[name]; !ok {
				t.Errorf("%s has no rule: say in rules.go who may call it", name)
			}
			if m.IsStreamingServer() || m.IsStreamingClient() {
				t.Errorf("%s is a stream, which no rule is kept for", name)
			}
		}
	}
	if len(rules) != procedures {
		t.Errorf("%d rules for %d procedures", len(rules), procedures)
	}
	all := &caller{name: "root", known: true, own: true}
	if _, err := permit(t.Context(), all, "/chandler.v1.Admin/New", nil); err == nil {
		t.Error("a procedure without a rule may be called")
	}
	if _, err := permit(t.Context(), callerOf(t.Context()), "/chandler.v1.Admin/List", nil); err == nil {
		t.Error("a request that nobody has looked at may list")
	}
}

func TestWhoMayDoWhat(t *testing.T) {
	t.Parallel()
	editor := &fakeEditor{}
	s := serve(t, Config{
		UID:     os.Getuid(),
		Control: fakeControl{views: []control.ObjectView{configured("edge", "a"), configured("shop", "b")}},
		Editor:  editor,
		Grants: granted(tokenOf("viewer", access.Viewer, "edge"), tokenOf("admin", access.Admin, "edge"),
			tokenOf("operator", access.Operator, "*"), tokenOf("root", access.Admin, "*")),
	})
	const del = `{"refs": [{"kind": "WasmPlugin", "namespace": "edge", "name": "a"}]}`
	for _, c := range []struct {
		who, method, body string
		code              int
		says              string
	}{
		{"", "Apply", manifest(inEdge), 401, "to edit, show who you are"},
		{"", "Delete", del, 401, "to edit, show who you are"},
		{"viewer", "Apply", manifest(inEdge), 403, "viewer may not edit in all namespaces"},
		{"operator", "Delete", del, 403, "operator may not edit"},
		{"admin", "Apply", manifest(inEdge), 200, "ACTION_REFUSED"},
		{"admin", "Apply", manifest(inEdge + inShop), 403, `admin may not edit in namespace \"shop\"`},
		{"admin", "Delete", del, 200, "NOT_FOUND"},
		{"admin", "Delete", strings.ReplaceAll(del, "edge", "shop"), 403, "admin may not edit"},
		{"admin", "Delete", strings.ReplaceAll(del, "edge", ""), 403, "admin may not edit in all namespaces"},
		{"root", "Apply", manifest(inEdge + inShop), 200, "ACTION_REFUSED"},
		{"thief", "List", `{}`, 401, "the token is nobody's"},
		{"thief", "Apply", manifest(inEdge), 401, "the token is nobody's"},
	} {
		var headers map[string]string
		if c.who != "" {
			headers = showing(c.who)
		}
		editor.applied.Manifest = nil
		if code, text := s.strange(c.method, c.body, headers); code != c.code || !strings.Contains(text, c.says) {
			t.Errorf("%s of %q: %d %s", c.method, c.who, code, text)
		}
		if c.code != 200 && editor.applied.Manifest != nil {
			t.Errorf("%s of %q reached the editor", c.method, c.who)
		}
	}
	for who, reads := range map[string][]string{"": nil, "viewer": {"edge"}, "admin": {"edge"}, "operator": {"edge", "shop"}, "own": {"edge", "shop"}} {
		var list string
		switch who {
		case "own":
			_, list = s.own("List", `{}`)
		case "":
			_, list = s.strange("List", `{}`, nil)
		default:
			_, list = s.strange("List", `{}`, showing(who))
		}
		if n := strings.Count(list, `"manifest"`); n != 2 {
			t.Errorf("%q sees %d plugins", who, n)
		}
		if n := 2 - strings.Count(list, `"redacted":true`); n != len(reads) {
			t.Errorf("%q reads %d plugins, want %v", who, n, reads)
		}
		// Three canaries are in each: a comment, a value and the url.
		if n := strings.Count(manifests(t, list), "canary"); n != 3*len(reads) || strings.Contains(list, "canary") {
			t.Errorf("%q sees %d canaries: %s", who, n, list)
		}
	}
	for _, line := range []string{
		`msg=changed who=root from=127.0.0.1:`, `does=Apply object="WasmPlugin ns/a" result=refused generation=0 problems=SpecEnum`,
		`msg="a request to the admin port is refused" who=nobody`,
	} {
		if !strings.Contains(s.log.String(), line) {
			t.Errorf("not in the log: %s\n%s", line, s.log)
		}
	}
	for _, secret := range []string{"canary", "'s token"} {
		if strings.Contains(s.log.String(), secret) {
			t.Errorf("%q stands in the log", secret)
		}
	}
}

// A browser's page of another server, and a name that was turned to this machine.
func TestHostAndOrigin(t *testing.T) {
	t.Parallel()
	s := serve(t, Config{UID: os.Getuid(), Control: fakeControl{}, Editor: &fakeEditor{}, Hosts: []string{"control.example"}, Grants: granted(tokenOf("root", access.Admin, "*"))})
	_, port, _ := net.SplitHostPort(s.addr)
	for _, c := range []struct {
		headers map[string]string
		code    int
		says    string
	}{
		{nil, 200, ""},
		{map[string]string{"Host": "localhost:" + port}, 200, ""},
		{map[string]string{"Host": "control.example"}, 200, ""},
		{map[string]string{"Host": "evil.example:" + port}, 403, "its Host"},
		{map[string]string{"Origin": "http://" + s.addr}, 200, ""},
		{map[string]string{"Origin": "http://evil.example"}, 403, "its Origin"},
		{map[string]string{"Origin": "null"}, 403, "its Origin"},
		{map[string]string{"Sec-Fetch-Site": "cross-site"}, 403, "its Origin"},
		{map[string]string{"Content-Type": "text/plain"}, 415, ""},
		{map[string]string{"Content-Type": "application/x-www-form-urlencoded"}, 415, ""},
	} {
		headers := showing("root")
		for name, value := range c.headers {
			headers[name] = value
		}
		if code, text := s.strange("Apply", manifest(inEdge), headers); code != c.code || !strings.Contains(text, c.says) {
			t.Errorf("%v: %d %s", c.headers, code, text)
		}
	}
	way := &http.Transport{DisableKeepAlives: true}
	for _, page := range []string{"/metrics", "/healthz/live", "/debug/pprof/"} {
		if code, text := s.with(way, "http://"+s.addr+page, "", map[string]string{"Host": "evil.example"}); code != 403 || !strings.Contains(text, "its Host") {
			t.Errorf("%s for another host: %d %s", page, code, text)
		}
	}
	if code, _ := s.with(way, "http://"+s.addr+"/debug/pprof/", "", showing("root")); code != 404 {
		t.Errorf("profiles without --debug: %d", code)
	}
}

// From another machine, without TLS.
func TestOtherMachines(t *testing.T) {
	t.Parallel()
	h := Handler(Config{Control: fakeControl{views: []control.ObjectView{configured("edge", "a")}}, Metrics: prometheus.NewRegistry(), Grants: granted(tokenOf("root", access.Admin, "*"))})
	for _, c := range []struct {
		page    string
		headers map[string]string
		code    int
		says    string
	}{
		{"/healthz/live", nil, 200, "live"},
		{"/healthz/ready", nil, 200, "ready"},
		{"/metrics", nil, 200, ""},
		{"/chandler.v1.Admin/List", nil, 401, "from another machine, show who you are over TLS"},
		{"/chandler.v1.Admin/List", showing("root"), 401, "shown without TLS"},
		{"/chandler.v1.Admin/Apply", showing("root"), 401, "shown without TLS"},
	} {
		method := http.MethodGet
		if strings.Contains(c.page, "Admin") {
			method = http.MethodPost
		}
		r := httptest.NewRequest(method, "http://10.1.2.3:9911"+c.page, strings.NewReader("{}"))
		r.Header.Set("Content-Type", "application/json")
		for name, value := range c.headers {
			r.Header.Set(name, value)
		}
		r.RemoteAddr = "10.9.9.9:40000"
		r = r.WithContext(context.WithValue(r.Context(), http.LocalAddrContextKey, &net.TCPAddr{IP: net.ParseIP("10.1.2.3"), Port: 9911}))
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code != c.code || !strings.Contains(w.Body.String(), c.says) || strings.Contains(w.Body.String(), "canary") {
			t.Errorf("%s: %d %s", c.page, w.Code, w.Body)
		}
	}
}

func TestClientCertificates(t *testing.T) {
	t.Parallel()
	ca, other := authority.New(t), authority.New(t)
	own := ca.Issue(authority.Leaf{IP: "127.0.0.1"})
	server, err := credential.NewServer(credential.Files{Cert: own.Cert, Key: own.Key, CA: ca.File})
	if err != nil {
		t.Fatal(err)
	}
	s := serveTLS(t, Config{
		Control: fakeControl{views: []control.ObjectView{configured("edge", "a")}}, Editor: &fakeEditor{}, Verify: server.Verify,
		Grants: granted(access.Grant{Name: "ops", Certificate: "spiffe://d/ns/ops/sa/ops", Role: access.Admin, Namespaces: []string{"edge"}}, tokenOf("root", access.Admin, "*")),
	}, server.HTTP())
	for _, c := range []struct {
		name    string
		files   credential.Files
		headers map[string]string
		code    int
		says    string
	}{
		{"a granted name", pair(ca.Issue(authority.Leaf{URI: "spiffe://d/ns/ops/sa/ops"})), nil, 200, "ACTION_REFUSED"},
		{"another name", pair(ca.Issue(authority.Leaf{URI: "spiffe://d/ns/ops/sa/other"})), nil, 403, "spiffe://d/ns/ops/sa/other may not edit"},
		{"no name", pair(ca.Issue(authority.Leaf{})), nil, 401, "no name but its subject"},
		{"no certificate", credential.Files{}, nil, 401, "show who you are"},
		{"a token", credential.Files{}, showing("root"), 200, "ACTION_REFUSED"},
	} {
		c.files.CA = ca.File
		config, err := credential.NewClient(c.files).HTTP()
		if err != nil {
			t.Fatal(err)
		}
		way := &http.Transport{DisableKeepAlives: true, TLSClientConfig: config, ForceAttemptHTTP2: true}
		if code, text := s.with(way, "https://"+s.addr+"/chandler.v1.Admin/Apply", manifest(inEdge), c.headers); code != c.code || !strings.Contains(text, c.says) {
			t.Errorf("%s: %d %s", c.name, code, text)
		}
		way.CloseIdleConnections()
	}
	foreign := pair(other.Issue(authority.Leaf{URI: "spiffe://d/ns/ops/sa/ops"}))
	foreign.CA = ca.File
	config, err := credential.NewClient(foreign).HTTP()
	if err != nil {
		t.Fatal(err)
	}
	way := &http.Transport{DisableKeepAlives: true, TLSClientConfig: config}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+s.addr+"/healthz/live", nil)
	if err != nil {
		t.Fatal(err)
	}
	if resp, err := way.RoundTrip(req); err == nil {
		resp.Body.Close()
		t.Error("a certificate of another authority is taken")
	}
}

func pair(p authority.Pair) credential.Files { return credential.Files{Cert: p.Cert, Key: p.Key} }

// The socket is for one user and root: the kernel says who is there.
func TestSocketIsForOneUser(t *testing.T) {
	t.Parallel()
	g := &gate{cfg: Config{UID: 1000}}
	for _, c := range []struct {
		p    peer
		says string
	}{
		{peer{uid: 1000}, ""}, {peer{uid: 0}, ""}, {peer{uid: 1001}, "not for uid 1001"}, {peer{err: errors.New("no")}, "cannot be told"},
	} {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		who, err := g.identify(r.WithContext(context.WithValue(r.Context(), peerKey{}, c.p)))
		if c.says == "" && (err != nil || !who.own) || c.says != "" && (err == nil || !strings.Contains(err.Error(), c.says) || who.own) {
			t.Errorf("%+v: %v", c.p, err)
		}
	}
	path := filepath.Join(t.TempDir(), strings.Repeat("long", 40), "admin.sock")
	if err := os.Mkdir(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	lis, err := ListenSocket(path)
	if err != nil {
		t.Fatal(err)
	}
	defer lis.Close()
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("its mode: %v %v", st, err)
	}
	if _, err := ListenSocket(path); err == nil || !strings.Contains(err.Error(), "answers") {
		t.Errorf("a second one in its place: %v", err)
	}
	conn, err := DialSocket(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	there, err := lis.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer there.Close()
	if p, ok := there.(*peerConn); !ok || p.peer.err != nil || p.peer.uid != os.Getuid() {
		t.Errorf("who is there: %+v", there)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ListenSocket(file); err == nil || !strings.Contains(err.Error(), "no socket") {
		t.Errorf("a file was replaced: %v", err)
	}
}

func TestProfiles(t *testing.T) {
	t.Parallel()
	s := serve(t, Config{UID: os.Getuid(), Debug: true, Control: fakeControl{}, Grants: granted(tokenOf("root", access.Admin, "*"), tokenOf("admin", access.Admin, "edge"))})
	way := &http.Transport{DisableKeepAlives: true}
	for who, want := range map[string]int{"": 401, "admin": 403, "root": 200} {
		var headers map[string]string
		if who != "" {
			headers = showing(who)
		}
		if code, text := s.with(way, "http://"+s.addr+"/debug/pprof/goroutine?debug=1", "", headers); code != want {
			t.Errorf("%q: %d %s", who, code, text)
		}
	}
}

// fakeReviewer knows one account, which may list and edit in one namespace.
type fakeReviewer struct{ down bool }

func (f fakeReviewer) Review(_ context.Context, token string) (*access.Account, error) {
	switch {
	case f.down:
		return nil, errors.New("no API server")
	case token != "jane's token":
		return nil, fmt.Errorf("%w: it is nobody's", access.ErrRefused)
	}
	return &access.Account{User: "jane", Groups: []string{"team"}}, nil
}

func (f fakeReviewer) Allow(_ context.Context, a *access.Account, v access.Verb, namespace string) (bool, error) {
	return a.User == "jane" && namespace == "edge" && slices.Contains([]access.Verb{access.List, access.Read, access.Edit}, v), nil
}

func TestReviewer(t *testing.T) {
	t.Parallel()
	cfg := Config{
		Control: fakeControl{views: []control.ObjectView{configured("edge", "a"), configured("shop", "b")}}, Editor: &fakeEditor{}, Reviewer: fakeReviewer{},
		Grants: granted(access.Grant{Name: "team", Group: "team", Role: access.Viewer, Namespaces: []string{"other"}}),
	}
	s := serve(t, cfg)
	for _, c := range []struct {
		who, method, body string
		code              int
		says              string
	}{
		{"jane", "Apply", manifest(inEdge), 200, "REFUSED"},
		{"jane", "Apply", manifest(inShop), 403, "jane may not edit"},
		{"joe", "Apply", manifest(inEdge), 401, "it is nobody's"},
	} {
		if code, text := s.strange(c.method, c.body, showing(c.who)); code != c.code || !strings.Contains(text, c.says) {
			t.Errorf("%s of %s: %d %s", c.method, c.who, code, text)
		}
	}
	// Here she sees both, as everybody on this machine does, and reads hers.
	if _, list := s.strange("List", `{}`, showing("jane")); strings.Count(list, `"manifest"`) != 2 || strings.Count(list, `"redacted":true`) != 1 {
		t.Errorf("jane sees %s", list)
	}
	away := &caller{name: "jane", known: true, account: &access.Account{User: "jane"}, review: fakeReviewer{}}
	seen, err := away.shown(t.Context(), Select([]control.ObjectView{configured("edge", "a"), configured("shop", "b")}, &chandlerv1.ListRequest{}))
	if err != nil || len(seen) != 1 || seen[0].Redacted || seen[0].Ref.Namespace != "edge" {
		t.Errorf("from another machine she sees %v, %v", seen, err)
	}
	cfg.Reviewer = fakeReviewer{down: true}
	if code, text := serve(t, cfg).strange("List", `{}`, showing("jane")); code != http.StatusServiceUnavailable || !strings.Contains(text, "cannot be found out now") {
		t.Errorf("without an API server: %d %s", code, text)
	}
}

// What answers with no results is told by its request.
func TestChangeWithoutResults(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	i := &interceptor{log: slog.New(slog.NewTextHandler(&log, nil)), now: time.Now}
	i.changed(&caller{name: "root", from: "socket"}, access.Enrol, connect.NewRequest(&chandlerv1.ListRequest{Namespace: "edge", Name: "a"}), connect.NewResponse(&chandlerv1.ListResponse{}), nil)
	if !strings.Contains(log.String(), "who=root from=socket") || !strings.Contains(log.String(), "object=edge/a verb=enrol") {
		t.Error(log.String())
	}
}

// A flood of refusals is a line a second.
func TestRefusalsAreFewLines(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	now := time.Unix(1_700_000_000, 0)
	i := &interceptor{log: slog.New(slog.NewTextHandler(&log, nil)), now: func() time.Time { return now }, emit: func(chandler.Event) {}}
	for range 1000 {
		i.refused(&caller{}, access.Edit, errors.New("no"))
	}
	now = now.Add(time.Second)
	i.refused(&caller{}, access.Edit, errors.New("no"))
	if n := strings.Count(log.String(), "\n"); n != 2 || !strings.Contains(log.String(), "not_logged_before=999") {
		t.Errorf("%d lines: %s", n, log.String())
	}
}

// More connections than there may be wait, and are served when others have ended.
func TestConnectionsAreCapped(t *testing.T) {
	t.Parallel()
	lis, err := ListenTCP("127.0.0.1:0", nil)
	if err != nil {
		t.Fatal(err)
	}
	accepted := make(chan net.Conn)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := lis.Accept()
			if err != nil {
				return
			}
			accepted <- conn
		}
	}()
	var here, there []net.Conn
	for range maxConnections + 1 {
		conn, err := net.Dial("tcp", lis.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		here = append(here, conn)
	}
	for range maxConnections {
		there = append(there, <-accepted)
	}
	select {
	case <-accepted:
		t.Error("one too many is served")
	default:
	}
	there[0].Close()
	there[0].Close() // counts once
	there = append(there, <-accepted)
	if free := cap(lis.(*capped).free) - len(lis.(*capped).free); free != 0 {
		t.Errorf("%d are free", free)
	}
	lis.Close()
	<-done
	for _, conn := range slices.Concat(here, there) {
		conn.Close()
	}
}

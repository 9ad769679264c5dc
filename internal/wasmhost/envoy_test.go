package wasmhost_test

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"chandler.dev/chandler/internal/exchange"
	"chandler.dev/chandler/internal/testenv/module"
)

// envoyWorld is one Envoy with a listener, an upstream and a cluster for each of some
// agreements.
type envoyWorld struct {
	log   string
	ports map[string]string
	ups   map[string]*peer
	calls map[string]*peer
}

// peer is a server that reads a request and answers with what it is told to.
type peer struct {
	net.Listener
	pace   time.Duration
	mu     sync.Mutex
	answer func(req *exchange.Message) *exchange.Message // nil: the connection is closed
	got    []*exchange.Message
}

func newPeer(t *testing.T, pace time.Duration) *peer {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &peer{Listener: l, pace: pace}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { defer c.Close(); p.serve(c) })
		}
	})
	t.Cleanup(func() { _ = l.Close(); wg.Wait() })
	return p
}

func (p *peer) serve(c net.Conn) {
	r := bufio.NewReader(c)
	for {
		m, err := readMessage(r, nil)
		if err != nil {
			return
		}
		p.mu.Lock()
		p.got = append(p.got, m)
		answer := p.answer
		p.mu.Unlock()
		a := answer(m)
		if a == nil || writeMessage(c, *a, m, p.pace) != nil {
			return
		}
	}
}

func (p *peer) take() []*exchange.Message {
	p.mu.Lock()
	defer p.mu.Unlock()
	got := p.got
	p.got = nil
	return got
}

func (p *peer) set(answer func(*exchange.Message) *exchange.Message) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.answer = answer
}

// readMessage reads a message as it came over HTTP/1.1.
// asked is what it answers, if it is a response.
func readMessage(r *bufio.Reader, asked *exchange.Message) (*exchange.Message, error) {
	line, err := readLine(r)
	if err != nil {
		return nil, err
	}
	m := &exchange.Message{}
	first, second, _ := strings.Cut(line, " ")
	if strings.HasPrefix(first, "HTTP/") {
		status, _, _ := strings.Cut(second, " ")
		m.Headers = append(m.Headers, exchange.Header{Name: ":status", Value: status})
	} else {
		path, _, _ := strings.Cut(second, " ")
		m.Headers = append(m.Headers, exchange.Header{Name: ":method", Value: first}, exchange.Header{Name: ":path", Value: path})
	}
	read := func(to *[]exchange.Header) error {
		for {
			line, err := readLine(r)
			if err != nil || line == "" {
				return err
			}
			name, value, _ := strings.Cut(line, ":")
			if name = strings.ToLower(name); name == "host" {
				name = ":authority"
			}
			*to = append(*to, exchange.Header{Name: name, Value: strings.TrimSpace(value)})
		}
	}
	if err := read(&m.Headers); err != nil {
		return nil, err
	}
	if asked != nil {
		if method, _ := asked.Get(":method"); method == "HEAD" {
			return m, nil
		}
	}
	if te, _ := m.Get("transfer-encoding"); te == "chunked" {
		m.Chunked = true
		b, err := io.ReadAll(httputil.NewChunkedReader(r))
		if err != nil {
			return m, err
		}
		if len(b) > 0 {
			m.Chunks = [][]byte{b}
		}
		return m, read(&m.Trailers)
	}
	var length int
	if value, there := m.Get("content-length"); there {
		if _, err := fmt.Sscan(value, &length); err != nil {
			return nil, err
		}
	}
	b := make([]byte, length)
	n, err := io.ReadFull(r, b)
	if n > 0 {
		m.Chunks = [][]byte{b[:n]}
	}
	return m, err
}

func readLine(r *bufio.Reader) (string, error) {
	line, err := r.ReadString('\n')
	return strings.TrimRight(line, "\r\n"), err
}

// pace is between pieces, so that Envoy reads each by itself.
const pace = 40 * time.Millisecond

// writeMessage writes a message, piece by piece. to is the request that it answers.
func writeMessage(w io.Writer, m exchange.Message, to *exchange.Message, pace time.Duration) error {
	var b bytes.Buffer
	method, path, status, authority := "", "", "", ""
	for _, h := range m.Headers {
		switch h.Name {
		case ":method":
			method = h.Value
		case ":path":
			path = h.Value
		case ":status":
			status = h.Value
		case ":authority":
			authority = h.Value
		}
	}
	if to != nil {
		fmt.Fprintf(&b, "HTTP/1.1 %s X\r\n", cmp.Or(status, "200"))
	} else {
		fmt.Fprintf(&b, "%s %s HTTP/1.1\r\nhost: %s\r\n", cmp.Or(method, "GET"), cmp.Or(path, "/"), cmp.Or(authority, "localhost"))
	}
	for _, h := range m.Headers {
		if !strings.HasPrefix(h.Name, ":") {
			fmt.Fprintf(&b, "%s: %s\r\n", h.Name, h.Value)
		}
	}
	chunked := m.Chunked || len(m.Trailers) > 0
	if chunked {
		b.WriteString("transfer-encoding: chunked\r\n")
	} else if length := len(m.Body()); length > 0 || to != nil {
		fmt.Fprintf(&b, "content-length: %d\r\n", length)
	}
	b.WriteString("\r\n")
	if to != nil {
		if method, _ := to.Get(":method"); method == "HEAD" {
			_, err := w.Write(b.Bytes())
			return err
		}
	}
	for _, chunk := range m.Chunks {
		if _, err := w.Write(b.Bytes()); err != nil {
			return err
		}
		b.Reset()
		time.Sleep(pace) // there is nothing to wait for: Envoy says of no piece that it has it
		if chunked {
			fmt.Fprintf(&b, "%x\r\n%s\r\n", len(chunk), chunk)
		} else {
			b.Write(chunk)
		}
	}
	if chunked {
		b.WriteString("0\r\n")
		for _, h := range m.Trailers {
			fmt.Fprintf(&b, "%s: %s\r\n", h.Name, h.Value)
		}
		b.WriteString("\r\n")
	}
	_, err := w.Write(b.Bytes())
	return err
}

func startEnvoy(t *testing.T, all map[string]agreement) *envoyWorld {
	t.Helper()
	dir := t.TempDir()
	w := &envoyWorld{log: filepath.Join(dir, "log"), ups: map[string]*peer{}, calls: map[string]*peer{}}
	var listeners, clusters []string
	cluster := func(name string, p *peer) {
		host, port, _ := net.SplitHostPort(p.Addr().String())
		clusters = append(clusters, fmt.Sprintf(`{"name": %q, "type": "STATIC", "load_assignment": {"cluster_name": %q, "endpoints": [
			{"lb_endpoints": [{"endpoint": {"address": {"socket_address": {"address": %q, "port_value": %s}}}}]}]},
			"typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
				"@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
				"explicit_http_config": {"http_protocol_options": {"enable_trailers": true}}}}}`, name, name, host, port))
	}
	q := func(s string) string { b, _ := json.Marshal(s); return string(b) }
	callee := newPeer(t, 0) // which calls are whose is in their authority
	callee.set(func(m *exchange.Message) *exchange.Message {
		name, _ := m.Get(":authority")
		own := w.calls[name]
		own.mu.Lock()
		own.got = append(own.got, m)
		answer := own.answer
		own.mu.Unlock()
		return answer(m)
	})
	cluster("callee", callee)
	for name, a := range all {
		path := filepath.Join(dir, name+".wasm")
		if err := os.WriteFile(path, a.mod, 0o600); err != nil {
			t.Fatal(err)
		}
		w.ups[name], w.calls[name] = newPeer(t, pace), &peer{}
		cluster("up-"+name, w.ups[name])
		policy := "FAIL_CLOSED"
		if a.open {
			policy = "FAIL_OPEN"
		}
		filter := fmt.Sprintf(`{"name": %[1]s, "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm",
			"config": {"name": %[1]s, "failure_policy": %[4]q,
				"configuration": {"@type": "type.googleapis.com/google.protobuf.StringValue", "value": %[3]s},
				"vm_config": {"vm_id": %[1]s, "runtime": "envoy.wasm.runtime.v8", "code": {"local": {"filename": %[2]s}}}}}}`, q(name), q(path), q(a.config), policy)
		listeners = append(listeners, fmt.Sprintf(`{"name": %[1]q, "address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}},
			"filter_chains": [{"filters": [{"name": "hcm", "typed_config": {
				"@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
				"stat_prefix": "l", "http_protocol_options": {"enable_trailers": true},
				"route_config": {"name": "local", "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "up-%[1]s", "timeout": "3s"}}]}]},
				"http_filters": [%[2]s, {"name": "router", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}]}}]}]}`, name, filter))
	}
	config := fmt.Sprintf(`{"admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}}},
		"static_resources": {"listeners": [%s], "clusters": [%s]}}`, strings.Join(listeners, ","), strings.Join(clusters, ","))
	bootstrap, admin := filepath.Join(dir, "envoy.json"), filepath.Join(dir, "admin")
	if err := os.WriteFile(bootstrap, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(w.log)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(module.Envoy(t), "-c", bootstrap, "--use-dynamic-base-id", "--concurrency", "1", "--admin-address-path", admin,
		"-l", "warning", "--component-log-level", "wasm:trace", "--log-format", "%l %v")
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	for end := time.Now().Add(time.Minute); w.ports == nil; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			b, _ := os.ReadFile(w.log)
			t.Fatalf("Envoy is not ready:\n%s", b)
		}
		if b, err := os.ReadFile(admin); err == nil && len(b) > 0 {
			w.ports = ports(string(b))
		}
	}
	return w
}

func ports(admin string) map[string]string {
	res, err := http.Get("http://" + admin + "/ready")
	if err != nil {
		return nil
	}
	defer res.Body.Close()
	if res.StatusCode != 200 {
		return nil
	}
	list, err := http.Get("http://" + admin + "/listeners")
	if err != nil {
		return nil
	}
	defer list.Body.Close()
	found := map[string]string{}
	for lines := bufio.NewScanner(list.Body); lines.Scan(); {
		name, address, _ := strings.Cut(lines.Text(), "::")
		found[name] = address
	}
	return found
}

// logged gives the lines that a plugin logged since the first skip ones, once there are
// no more of them for a while.
func (w *envoyWorld) logged(name string, skip int) (lines []string, err error) {
	said := regexp.MustCompile(`(?m)^(\w+) wasm log(?: \S+)* ` + regexp.QuoteMeta(name) + `: (.*)$`)
	for before := -1; len(lines) != before; {
		if before = len(lines); before > 0 {
			time.Sleep(5 * pace) // until nothing comes any more
		}
		b, err := os.ReadFile(w.log)
		if err != nil {
			return nil, err
		}
		lines = nil
		for _, m := range said.FindAllStringSubmatch(string(b), -1) {
			level := map[string]string{"warning": "warn"}[m[1]]
			lines = append(lines, cmp.Or(level, m[1])+" "+m[2])
		}
		lines = lines[min(skip, len(lines)):]
	}
	return lines, nil
}

// run sends an agreement's exchanges, one after the other.
func (w *envoyWorld) run(name string, a agreement) (s seen, err error) {
	before, err := w.logged(name, 0)
	if err != nil {
		return s, err
	}
	var outcomes []*exchange.Outcome
	for _, e := range a.sends {
		o, err := w.send(name, e)
		if err != nil {
			return s, err
		}
		outcomes = append(outcomes, o)
	}
	if s.logs, err = w.logged(name, len(before)); err != nil {
		return s, err
	}
	for _, m := range w.calls[name].take() { // some are made when all is over
		last := outcomes[len(outcomes)-1]
		last.Calls = append(last.Calls, exchange.Call{Cluster: "callee", Request: *m})
	}
	for _, o := range outcomes {
		s.outcomes = append(s.outcomes, told(o))
	}
	return s, nil
}

func (w *envoyWorld) send(name string, e exchange.Exchange) (*exchange.Outcome, error) {
	conn, err := net.Dial("tcp", w.ports[name])
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	w.ups[name].set(func(*exchange.Message) *exchange.Message { return &e.Upstream })
	var mu sync.Mutex
	used := map[int]int{}
	w.calls[name].set(func(m *exchange.Message) *exchange.Message {
		path, _ := m.Get(":path")
		mu.Lock()
		i := slices.IndexFunc(e.Answers, func(a exchange.Answer) bool { return a.Path == "" || a.Path == path })
		for ; i >= 0 && i < len(e.Answers) && e.Answers[i].Times > 0 && used[i] >= e.Answers[i].Times; i++ {
		}
		mu.Unlock()
		if i < 0 || i == len(e.Answers) {
			return nil
		}
		used[i]++
		time.Sleep(e.Answers[i].Delay)
		if e.Answers[i].Fails {
			return nil
		}
		return &e.Answers[i].Message
	})
	wrote := make(chan struct{})
	go func() { defer close(wrote); _ = writeMessage(conn, e.Request, nil, pace) }()
	defer func() { <-wrote }()
	_ = conn.SetReadDeadline(time.Now().Add(5 * time.Second))
	o := &exchange.Outcome{}
	m, err := readMessage(bufio.NewReader(conn), &e.Request)
	o.Response = m
	if m != nil && err != nil {
		if _, o.Cut = m.Get("content-length"); !o.Cut {
			o.Response = nil
		}
	}
	if got := w.ups[name].take(); len(got) > 0 {
		o.Upstream = got[0]
	}
	return o, nil
}

package wasmhost_test

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"chandler.dev/chandler/internal/exchange"
	"chandler.dev/chandler/internal/testenv/module"
)

// agreement is a plugin and what is sent through it, in both hosts.
type agreement struct {
	mod    []byte
	config string
	open   bool
	sends  []exchange.Exchange
	// differs are lines in which the hosts may differ, as they tell of the machine.
	differs *regexp.Regexp
}

// seen is what came of it.
type seen struct {
	outcomes []string
	logs     []string
}

// envoyWorld is one Envoy with a listener, an upstream and a cluster for each of some
// agreements.
type envoyWorld struct {
	t     *testing.T
	log   string
	ports map[string]string
	ups   map[string]*peer
	calls map[string]*peer
}

// peer is a server that reads a request and answers with what it is told to.
type peer struct {
	net.Listener
	mu     sync.Mutex
	answer func(req *exchange.Message) *exchange.Message // nil: the connection is closed
	got    []*exchange.Message
}

func newPeer(t *testing.T) *peer {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &peer{Listener: l}
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
		m, err := readMessage(r)
		if err != nil {
			return
		}
		p.mu.Lock()
		p.got = append(p.got, m)
		answer := p.answer
		p.mu.Unlock()
		a := answer(m)
		if a == nil || writeMessage(c, *a, m) != nil {
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
func readMessage(r *bufio.Reader) (*exchange.Message, error) {
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
func writeMessage(w io.Writer, m exchange.Message, to *exchange.Message) error {
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
	for i, chunk := range m.Chunks {
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
		_ = i
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
	w := &envoyWorld{t: t, log: filepath.Join(dir, "log"), ups: map[string]*peer{}, calls: map[string]*peer{}}
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
	callee := newPeer(t) // which calls are whose is in their authority
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
		w.ups[name], w.calls[name] = newPeer(t), &peer{}
		cluster(name, w.ups[name])
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
				"route_config": {"name": "local", "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": {"cluster": %[1]q, "timeout": "3s"}}]}]},
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
		"-l", "warning", "--component-log-level", "wasm:info", "--log-format", "%l %v")
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

// logged gives the lines that a plugin logged from a place in the log on, once there
// are no more of them for a while.
func (w *envoyWorld) logged(name string, from int64) (lines []string) {
	said := regexp.MustCompile(`^\w+ wasm log((?: \S+)*): (.*)$`)
	size := int64(-1)
	for {
		info, err := os.Stat(w.log)
		if err != nil {
			w.t.Fatal(err)
		}
		if info.Size() == size {
			break
		}
		size = info.Size()
		time.Sleep(2 * pace) // until nothing comes any more
	}
	b, err := os.ReadFile(w.log)
	if err != nil {
		w.t.Fatal(err)
	}
	for line := range strings.Lines(string(b[from:])) {
		if m := said.FindStringSubmatch(strings.TrimRight(line, "\n")); m != nil && strings.HasSuffix(m[1], " "+name) {
			lines = append(lines, m[2])
		}
	}
	return lines
}

func (w *envoyWorld) run(name string, a agreement) (s seen) {
	before, err := os.Stat(w.log)
	if err != nil {
		w.t.Fatal(err)
	}
	var conn net.Conn
	for _, e := range a.sends {
		if conn, err = net.Dial("tcp", w.ports[name]); err != nil {
			w.t.Fatal(err)
		}
		w.ups[name].set(func(*exchange.Message) *exchange.Message { return &e.Upstream })
		var mu sync.Mutex
		used := map[int]int{}
		w.calls[name].set(func(m *exchange.Message) *exchange.Message {
			mu.Lock()
			defer mu.Unlock()
			path, _ := m.Get(":path")
			for i, answer := range e.Answers {
				if (answer.Path == "" || answer.Path == path) && (answer.Times == 0 || used[i] < answer.Times) {
					used[i]++
					time.Sleep(answer.Delay)
					if answer.Fails {
						return nil
					}
					return &answer.Message
				}
			}
			return nil
		})
		o := exchange.Outcome{}
		wrote := make(chan error, 1)
		go func() { wrote <- writeMessage(conn, e.Request, nil) }()
		_ = conn.SetReadDeadline(time.Now().Add(6 * time.Second))
		m, err := readMessage(bufio.NewReader(conn))
		if !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) { // else it was closed
			o.Response = m
		}
		<-wrote
		_ = conn.Close()
		if got := w.ups[name].take(); len(got) > 0 {
			o.Upstream = got[0]
		}
		for _, m := range w.calls[name].take() {
			o.Calls = append(o.Calls, exchange.Call{Cluster: "callee", Request: *m})
		}
		s.outcomes = append(s.outcomes, told(&o))
	}
	s.logs = w.logged(name, before.Size())
	return s
}

// told writes an outcome as text.
func told(o *exchange.Outcome) string {
	var b strings.Builder
	write := func(what string, m *exchange.Message) {
		if m == nil {
			fmt.Fprintf(&b, "%s: none\n", what)
			return
		}
		fmt.Fprintf(&b, "%s:\n", what)
		for _, name := range []string{":status", ":method", ":path", ":authority"} {
			if value, there := m.Get(name); there {
				fmt.Fprintf(&b, "  %s: %s\n", name, value)
			}
		}
		for _, h := range m.Headers {
			if !exchange.Own(h.Name) && !strings.HasPrefix(h.Name, ":") {
				fmt.Fprintf(&b, "  %s: %s\n", h.Name, h.Value)
			}
		}
		if body := m.Body(); len(body) > 200 {
			fmt.Fprintf(&b, "  body of %d\n", len(body))
		} else if len(body) > 0 {
			fmt.Fprintf(&b, "  body %q\n", body)
		}
		for _, h := range m.Trailers {
			fmt.Fprintf(&b, "  trailer %s: %s\n", h.Name, h.Value)
		}
	}
	write("response", o.Response)
	write("upstream", o.Upstream)
	for _, c := range o.Calls {
		write("call", &c.Request)
	}
	return b.String()
}

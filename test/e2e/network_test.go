package e2e

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"chandler.dev/chandler/internal/testenv/module"
)

// echoServer sends back what it gets, until the test ends.
func echoServer(t *testing.T) int {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { lis.Close() })
	go func() {
		for {
			conn, err := lis.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				_, _ = io.Copy(conn, conn)
			}()
		}
	}()
	return lis.Addr().(*net.TCPAddr).Port
}

// certificate is one for a name, as PEM.
func certificate(t *testing.T, name string) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{name}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalECPrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})),
		string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER}))
}

// tcpPorts are a plain listener, and one with two TLS servers, "a" and "b".
type tcpPorts struct{ plain, tls int }

// tcpGateway is an Envoy configuration that proxies connections to an echo.
func tcpGateway(t *testing.T) (string, tcpPorts) {
	t.Helper()
	ports := tcpPorts{freePort(t), freePort(t)}
	proxy := `filters: [{name: tcp, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: tcp, cluster: echo}}]`
	var b strings.Builder
	fmt.Fprintf(&b, "static_resources:\n  listeners:\n  - address: {socket_address: {address: 127.0.0.1, port_value: %d}}\n    filter_chains: [{%s}]\n", ports.plain, proxy)
	fmt.Fprintf(&b, "  - address: {socket_address: {address: 127.0.0.1, port_value: %d}}\n", ports.tls)
	b.WriteString("    listener_filters: [{name: tls, typed_config: {\"@type\": type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector}}]\n    filter_chains:\n")
	for _, name := range []string{"a", "b"} {
		cert, key := certificate(t, name)
		fmt.Fprintf(&b, "    - filter_chain_match: {server_names: [%s]}\n      %s\n      transport_socket: {name: tls, typed_config: {\"@type\": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext, common_tls_context: {tls_certificates: [{certificate_chain: {inline_string: %q}, private_key: {inline_string: %q}}]}}}\n",
			name, proxy, cert, key)
	}
	fmt.Fprintf(&b, "  clusters: [{name: echo, connect_timeout: 2s, load_assignment: {cluster_name: echo, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: %d}}}}]}]}}]\n", echoServer(t))
	return b.String(), ports
}

// dialTCP opens a connection, with TLS if a server is named.
func dialTCP(port int, server string) (net.Conn, error) {
	dialer := &net.Dialer{Timeout: time.Minute}
	conn, err := dialer.Dial("tcp", loopback(port))
	if err == nil && server != "" {
		conn = tls.Client(conn, &tls.Config{ServerName: server, InsecureSkipVerify: true})
	}
	if err == nil {
		_ = conn.SetDeadline(time.Now().Add(time.Minute))
	}
	return conn, err
}

// said is what comes back for "hello" on a new connection; empty: it was closed.
func said(t testing.TB, port int, server string) string {
	t.Helper()
	conn, err := dialTCP(port, server)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	return say(conn, "hello")
}

func say(conn net.Conn, text string) string {
	if _, err := io.WriteString(conn, text); err != nil {
		return ""
	}
	var got bytes.Buffer
	buf := make([]byte, 256)
	for !strings.HasSuffix(got.String(), text) {
		n, err := conn.Read(buf)
		got.Write(buf[:n])
		if err != nil {
			break
		}
	}
	return got.String()
}

// tcpServer is a port, and the server that is named there.
type tcpServer struct {
	port int
	name string
}

func (p tcpPorts) servers() []tcpServer {
	return []tcpServer{{p.plain, ""}, {p.tls, "a"}, {p.tls, "b"}}
}

// everywhereSays holds on the plain listener and on both servers of the other.
func (p tcpPorts) everywhereSays(t testing.TB, want string) {
	t.Helper()
	for _, c := range p.servers() {
		if got := said(t, c.port, c.name); got != want {
			t.Errorf("server %q of port %d says %q, want %q", c.name, c.port, got, want)
		}
	}
}

// everywhereWillSay is for what no status waits for: each listener comes to it in its
// own time.
func (p tcpPorts) everywhereWillSay(t testing.TB, want string) {
	t.Helper()
	for _, c := range p.servers() {
		eventually(t, 10*time.Second, fmt.Sprintf("server %q of port %d says %q", c.name, c.port, want), func() (bool, string) {
			got := said(t, c.port, c.name)
			return got == want, got
		})
	}
}

// metric is a number of the agent's own.
func (p *proxy) metric(name string) float64 {
	p.w.t.Helper()
	for line := range strings.Lines(fetchText(p.w.t, "http://"+p.admin+"/metrics")) {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			n, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
			if err != nil {
				p.w.t.Fatal(err)
			}
			return n
		}
	}
	p.w.t.Fatalf("no metric %s", name)
	return 0
}

func networkPlugin(name, url, config string, more ...string) string {
	return plugin(name, url, append(more, "type: NETWORK", fmt.Sprintf("pluginConfig: {p: %q}", config))...)
}

// said by the plugin above: its configuration is a JSON object.
func prefix(config string) string { return fmt.Sprintf(`{"p":%q}`, config) }

func TestNetworkPlugin(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	config, ports := tcpGateway(t)
	agent := w.agent(node{name: "edge-1"}, config)
	ports.everywhereSays(t, "hello")
	open, err := dialTCP(ports.plain, "")
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	say(open, "hello")

	url := w.push("prefix", module.Prefix())
	w.apply(networkPlugin("prefix", url, "1"))
	ports.everywhereSays(t, prefix("1")+"hello")
	if out, _ := w.cli("", "describe", "wasmplugin", "prefix", "-n", "edge"); !strings.Contains(out, "drained") {
		t.Errorf("describe does not say that connections were drained:\n%s", out)
	}

	w.apply(networkPlugin("prefix", url, "2"))
	ports.everywhereSays(t, prefix("2")+"hello")

	// The order is that of priorities, whatever came first.
	w.apply(networkPlugin("before", url, "0", "priority: 5"))
	ports.everywhereSays(t, prefix("2")+prefix("0")+"hello")

	// What leaves stays in the listener without effect: to come back drains nothing.
	changes := agent.metric("chandler_agent_listener_changes_total")
	if out, ok := w.cli("", "delete", "wasmplugin", "before", "-n", "edge"); !ok {
		t.Fatal(out)
	}
	ports.everywhereWillSay(t, prefix("2")+"hello")
	w.apply(networkPlugin("before", url, "00", "priority: 5"))
	ports.everywhereSays(t, prefix("2")+prefix("00")+"hello")
	if n := agent.metric("chandler_agent_listener_changes_total"); n != changes {
		t.Errorf("the listeners changed %v times for a plugin that left and came back", n-changes)
	}
}

// A plugin that Envoy refuses closes connections or is left out, as its strategy
// says, and its neighbours run; an update that Envoy refuses changes nothing.
func TestNetworkPluginRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	config, ports := tcpGateway(t)
	w.agent(node{name: "edge-1"}, config)
	w.apply(networkPlugin("good", w.push("prefix", module.Prefix()), "1"))
	bad := w.push("bad", module.RefuseConfigure("no such prefix", module.Without("proxy_on_request_headers"), module.Without("proxy_on_response_headers")))

	w.submit(networkPlugin("bad", bad, "2", "failStrategy: FAIL_OPEN"))
	w.tells("bad", "no such prefix")
	ports.everywhereSays(t, prefix("1")+"hello")
	if out, ok := w.cli("", "delete", "wasmplugin", "bad", "-n", "edge"); !ok {
		t.Fatal(out)
	}

	w.submit(networkPlugin("good", bad, "3"))
	w.tells("good", "no such prefix")
	ports.everywhereSays(t, prefix("1")+"hello")

	w.submit(networkPlugin("bad", bad, "2"))
	w.tells("bad", "no such prefix")
	ports.everywhereWillSay(t, "")
}

// Before the connection manager a network plugin sees requests as bytes, and HTTP
// plugins run behind it.
func TestNetworkPluginBeforeHTTP(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	port := freePort(t)
	w.agent(node{name: "edge-1"}, w.gateway(listener{port: port}))
	w.apply(plugin("http", w.push("append", module.Append()), `pluginConfig: {from: "http"}`))
	w.apply(plugin("network", w.push("prefix", module.Prefix()), "type: NETWORK"))
	if a := get(t, port, "/"); a.code != http.StatusOK || a.seen.Get("X-Plugins") != `{"from":"http"}` {
		t.Errorf("status %d, the upstream saw %v", a.code, a.seen)
	}
	// With a configuration that is no request, no request is one any more.
	w.apply(networkPlugin("network", w.push("prefix", module.Prefix()), "not HTTP"))
	conn, err := dialTCP(port, "")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_, _ = io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil || resp.StatusCode != http.StatusBadRequest {
		t.Errorf("%v, %v", resp, err)
	}
}

// Whatever was down: the first connection goes through the plugin, and the first
// one of an Envoy that never had it is not served without.
func TestNetworkPluginRestarts(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	config, ports := tcpGateway(t)
	url := w.push("prefix", module.Prefix())
	w.submit(networkPlugin("prefix", url, "1"))
	agent := w.startAgent(node{name: "edge-1"}, config)
	sawPlain := make(chan string, 1)
	again := time.NewTicker(time.Millisecond)
	defer again.Stop()
	go func() { // the first that is served at all
		for {
			conn, err := net.Dial("tcp", loopback(ports.plain))
			if err != nil {
				select {
				case <-again.C:
					continue
				case <-t.Context().Done():
					return
				}
			}
			_ = conn.SetDeadline(time.Now().Add(time.Minute))
			got := say(conn, "hello")
			conn.Close()
			if got != "" {
				sawPlain <- got
				return
			}
		}
	}()
	agent.awaitReady()
	if got := <-sawPlain; got != prefix("1")+"hello" {
		t.Errorf("the first that was served got %q", got)
	}

	// The agent alone: its Envoy goes on, and the next agent knows its slots.
	envoy := agent.envoy(t)
	agent.process.kill(t)
	ports.everywhereSays(t, prefix("1")+"hello")
	agent.restart()
	agent.awaitReady()
	if agent.envoy(t) != envoy {
		t.Error("the Envoy was not adopted")
	}
	w.inForce("edge-1")
	w.apply(networkPlugin("prefix", url, "2"))
	ports.everywhereSays(t, prefix("2")+"hello")

	// All of it, with nobody to ask.
	if err := w.control.stop(); err != nil {
		t.Fatal(err)
	}
	w.registry.Close()
	agent.killAll(t)
	agent.restart()
	agent.awaitReady()
	ports.everywhereSays(t, prefix("2")+"hello")
}

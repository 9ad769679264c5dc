package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"chandler.dev/chandler/internal/fetch"
	"chandler.dev/chandler/internal/testenv/ports"
	"chandler.dev/chandler/internal/testenv/registry"
)

// The sample's image is where Istio's task has it; the demo's registry stands in for
// its host.
const (
	sampleHost = "ghcr.io"
	repository = "istio-ecosystem/wasm-extensions/basic_auth"
)

// stage holds what runs.
type stage struct {
	root, dir string // the repository, and the demo's own folder in it
	verbose   bool

	registry *registry.Registry
	parts    []*part // in the order of their start

	gateway, admin, agentAdmin string // addresses
}

// part is a child process.
type part struct {
	name string
	cmd  *exec.Cmd
	log  string
	done chan struct{}
	err  error
}

// startStage starts everything and returns when the gateway answers. The stage
// it gives must be stopped even when there is an error.
func startStage(ctx context.Context, verbose bool) (*stage, error) {
	root, err := os.Getwd()
	if err != nil {
		return nil, err
	}
	s := &stage{root: root, dir: filepath.Join(root, ".run", "demo"), verbose: verbose}
	if _, err := os.Stat(filepath.Join(root, "go.mod")); err != nil {
		return nil, errors.New("run it in the repository's folder, by make demo or make up")
	}
	if err := os.RemoveAll(s.dir); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Join(s.dir, "plugins"), 0o755); err != nil {
		return nil, err
	}
	for _, start := range []func(context.Context) error{s.startRegistry, s.writeHosts, s.publish, s.startBookinfo, s.startControl, s.startGateway} {
		if err := start(ctx); err != nil {
			return s, err
		}
	}
	return s, nil
}

func (s *stage) startRegistry(context.Context) (err error) {
	s.registry, err = registry.Start(registry.Config{Addr: prefer("127.0.0.1:5000")})
	return err
}

// writeHosts is the example's file with the registry's address: what the sample's
// url names comes from there.
func (s *stage) writeHosts(context.Context) error {
	name := filepath.Join(sampleHost, "hosts.toml")
	b, err := os.ReadFile(filepath.Join(s.root, "examples", "bookinfo", "hosts", name))
	if err != nil {
		return err
	}
	const written = "http://127.0.0.1:5000"
	if !strings.Contains(string(b), written) {
		return errors.New("examples/bookinfo/hosts does not name " + written)
	}
	if err := os.MkdirAll(filepath.Join(s.hosts(), sampleHost), 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(s.hosts(), name), []byte(strings.ReplaceAll(string(b), written, "http://"+s.registry.Addr)), 0o644)
}

func (s *stage) hosts() string { return filepath.Join(s.dir, "hosts") }

// publish pushes the sample plugin that make built, as its author would.
func (s *stage) publish(ctx context.Context) error {
	module, err := os.ReadFile(filepath.Join(s.root, "bin", "basicauth.wasm"))
	if err != nil {
		return err
	}
	client := fetch.New(fetch.Config{Dir: s.dir})
	defer client.Close()
	if _, err = client.Push(ctx, s.image("1.12.0"), module, fetch.PushOptions{Layout: fetch.LayoutCompat}); err != nil {
		return err
	}
	// A module that is whole and well formed, but that no Envoy can start.
	_, err = client.Push(ctx, s.image("broken"), brokenModule(), fetch.PushOptions{})
	return err
}

func (s *stage) image(tag string) string {
	return s.registry.Addr + "/" + repository + ":" + tag
}

func (s *stage) startBookinfo(ctx context.Context) error {
	addr := prefer("127.0.0.1:9080")
	if err := s.start(ctx, "bookinfo", "all", "--listen", addr); err != nil {
		return err
	}
	if err := s.await(ctx, "bookinfo", "http://"+addr+"/health"); err != nil {
		return err
	}
	return s.writeEnvoyConfig(addr)
}

// writeEnvoyConfig is the example's file with the addresses that were free.
func (s *stage) writeEnvoyConfig(bookinfo string) error {
	b, err := os.ReadFile(filepath.Join(s.root, "examples", "bookinfo", "envoy.yaml"))
	if err != nil {
		return err
	}
	s.gateway = prefer("127.0.0.1:8080")
	text := string(b)
	for from, to := range map[string]string{"9080": bookinfo, "8080": s.gateway, "9901": prefer("127.0.0.1:9901")} {
		_, port, err := net.SplitHostPort(to)
		if err != nil {
			return err
		}
		if !strings.Contains(text, "port_value: "+from) {
			return fmt.Errorf("examples/bookinfo/envoy.yaml has no port %s", from)
		}
		text = strings.ReplaceAll(text, "port_value: "+from, "port_value: "+port)
	}
	return os.WriteFile(s.envoyConfig(), []byte(text), 0o644)
}

func (s *stage) envoyConfig() string { return filepath.Join(s.dir, "envoy.yaml") }

func (s *stage) startControl(ctx context.Context) error {
	s.admin = prefer("127.0.0.1:9911")
	listen := prefer("127.0.0.1:9910")
	err := s.start(ctx, "chandler", "serve", "--plugins", filepath.Join(s.dir, "plugins"), "--data", filepath.Join(s.dir, "control"),
		"--listen", listen, "--admin", s.admin, "--hosts-dir", s.hosts(), "--envoy", filepath.Join(s.root, ".tools", "envoy"))
	if err != nil {
		return err
	}
	if err := s.await(ctx, "chandler", "http://"+s.admin+"/healthz/ready"); err != nil {
		return err
	}
	s.agentAdmin = prefer("127.0.0.1:9912")
	return s.start(ctx, "chandler-agent", "--control", listen, "--node", "ingressgateway-1", "--namespace", "istio-system",
		"--label", "istio=ingressgateway", "--data", filepath.Join(s.dir, "agent"), "--admin", s.agentAdmin,
		"--envoy", filepath.Join(s.root, ".tools", "envoy"), "--", "-c", s.envoyConfig())
}

func (s *stage) startGateway(ctx context.Context) error {
	return s.await(ctx, "chandler-agent", "http://"+s.gateway+"/productpage")
}

// prefer gives the address if nobody listens there, else one that is free.
func prefer(addr string) string {
	if lis, err := net.Listen("tcp", addr); err == nil {
		_ = lis.Close()
		return addr
	}
	if free, err := ports.Free(); err == nil {
		return free
	}
	return addr // who is told to listen there says what is wrong
}

// start runs one of the built commands; its output goes to a file.
func (s *stage) start(ctx context.Context, name string, args ...string) error {
	p := &part{name: name, log: filepath.Join(s.dir, name+".log"), done: make(chan struct{})}
	log, err := os.Create(p.log)
	if err != nil {
		return err
	}
	defer log.Close()
	p.cmd = exec.Command(filepath.Join(s.root, "bin", name), args...)
	p.cmd.Stdout, p.cmd.Stderr = log, log
	if s.verbose {
		p.cmd.Stdout, p.cmd.Stderr = os.Stderr, os.Stderr
	}
	// A terminal's interrupt reaches the demo alone, which then stops its parts
	// in order.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := p.cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", name, err)
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	s.parts = append(s.parts, p)
	return ctx.Err()
}

// await waits until an address answers 200, or the part behind it has ended.
func (s *stage) await(ctx context.Context, name, url string) error {
	ctx, cancel := context.WithTimeout(ctx, 60*time.Second)
	defer cancel()
	for {
		if code, _ := get(ctx, url, ""); code == http.StatusOK {
			return nil
		}
		if err := s.ended(); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s does not answer at %s: %w\n%s", name, url, ctx.Err(), s.tail(name))
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// ended tells of a part that ended though nobody asked it to.
func (s *stage) ended() error {
	for _, p := range s.parts {
		select {
		case <-p.done:
			return fmt.Errorf("%s ended (%v)\n%s", p.name, p.err, s.tail(p.name))
		default:
		}
	}
	return nil
}

func (s *stage) tail(name string) string {
	b, _ := os.ReadFile(filepath.Join(s.dir, name+".log"))
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return strings.Join(lines[max(0, len(lines)-15):], "\n")
}

// stop ends the parts, last first, each by the signal that a user would send.
func (s *stage) stop() error {
	var errs []error
	for i := len(s.parts) - 1; i >= 0; i-- {
		p := s.parts[i]
		_ = p.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-p.done:
			if p.err != nil {
				errs = append(errs, fmt.Errorf("%s: %w\n%s", p.name, p.err, s.tail(p.name)))
			}
		case <-time.After(20 * time.Second):
			_ = p.cmd.Process.Kill()
			<-p.done
			errs = append(errs, fmt.Errorf("%s did not stop when asked to", p.name))
		}
	}
	if s.registry != nil {
		s.registry.Close()
	}
	return errors.Join(errs...)
}

// chandler runs the command as a user would.
func (s *stage) chandler(ctx context.Context, stdin string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(s.root, "bin", "chandler"), append(args, "--server", s.admin)...)
	cmd.Stdin = strings.NewReader(stdin)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	return strings.TrimSpace(out.String()), err
}

// client does not keep connections, so that each request is decided anew.
var client = http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}

func get(ctx context.Context, url, authorization string) (int, string) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, err.Error()
	}
	if authorization != "" {
		req.Header.Set("Authorization", authorization)
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 4<<20))
	if err != nil {
		return 0, err.Error()
	}
	return resp.StatusCode, string(body)
}

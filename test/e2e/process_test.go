package e2e

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"chandler.dev/chandler/internal/testenv/module"
)

// An agent that is asked to end lets the requests in flight finish, and its
// Envoy is gone when it is.
func TestStopLosesNoRequest(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	arrived, release := make(chan struct{}), make(chan struct{})
	w.upstream.Close()
	w.upstream = httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		close(arrived)
		<-release
		_, _ = rw.Write([]byte("{}"))
	}))
	t.Cleanup(w.upstream.Close)
	port := freePort(t)
	p := w.agent(node{name: "a", flags: []string{"--drain", "1m"}}, w.gateway(listener{port: port, name: "in"}))
	done := make(chan error, 1)
	go func() {
		a, err := request(fresh, http.MethodGet, port, "/", nil)
		if err == nil && a.code != 200 {
			err = fmt.Errorf("status %d", a.code)
		}
		done <- err
	}()
	<-arrived
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, "the agent drains", func() (bool, string) {
		return strings.Contains(p.output(), "draining envoy"), p.tail()
	})
	close(release)
	if err := <-done; err != nil {
		t.Errorf("the request in flight: %v", err)
	}
	<-p.done
	if p.err != nil {
		t.Errorf("the agent ended with %v", p.err)
	}
}

// output is all that the process has said.
func (p *process) output() string {
	b, _ := os.ReadFile(p.log)
	return string(b)
}

var envoyPid = regexp.MustCompile(`envoy (?:started|adopted).*pid=(\d+)`)

// An Envoy that ends by itself ends its agent, with the same code and its last
// words.
func TestEnvoyEnds(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.agent(node{name: "a"}, w.gateway(listener{port: freePort(t), name: "in"}))
	log, err := os.ReadFile(p.log)
	if err != nil {
		t.Fatal(err)
	}
	m := envoyPid.FindSubmatch(log)
	if m == nil {
		t.Fatalf("the agent does not tell Envoy's pid:\n%s", log)
	}
	pid, err := strconv.Atoi(string(m[1]))
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-p.done
	var exit *exec.ExitError
	if !errors.As(p.err, &exit) || exit.ExitCode() != 128+int(syscall.SIGKILL) {
		t.Errorf("the agent ended with %v, want exit code 137", p.err)
	}
	p.err = nil // as expected; the clean-up has nothing to add
	if log := p.output(); !strings.Contains(log, "chandler-agent: envoy was ended by signal 9 (killed)") || !strings.Contains(log, "last_words=") {
		t.Errorf("the agent does not say how Envoy ended:\n%s", log)
	}
}

// Whoever reads the output may go, as tee does at Ctrl-C, which comes to it as well: the control
// plane goes on, and so does the agent, which still drains its Envoy when it is asked to end.
func TestReaderOfTheLogGoes(t *testing.T) {
	t.Parallel()
	w := uncontrolled(t)
	unread := func(program string, args ...string) *process {
		r, out, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer out.Close()
		_ = r.Close()
		return startInto(t, out, os.DevNull, filepath.Join(built, program), args...)
	}
	w.control = unread("chandler", "serve", "--no-vet", "--data", filepath.Join(w.dir, "control"), "--plugins", w.plugins, "--listen", w.listen, "--admin", w.admin)
	eventually(t, 20*time.Second, "control plane ready", func() (bool, string) { return status("http://" + w.admin + "/healthz/ready") })

	p := &proxy{w: w, dir: t.TempDir(), admin: loopback(freePort(t))}
	file := filepath.Join(p.dir, "envoy.yaml")
	if err := os.WriteFile(file, []byte(w.gateway(listener{port: freePort(t)})), 0o600); err != nil {
		t.Fatal(err)
	}
	p.process = unread("chandler-agent", "--control", w.listen, "--node", "a", "--namespace", "edge", "--data", filepath.Join(p.dir, "data"), "--admin", p.admin,
		"--envoy", envoyBinary(t), "--drain", "1s", "--", "-c", file)
	p.awaitReady()
	w.apply(plugin("deny", w.push("deny:v1", module.Deny(403))))
	envoy := p.pid(t)
	for _, ended := range []*process{p.process, w.control} {
		if err := ended.stop(); err != nil {
			t.Errorf("%s ended with %v", ended.cmd.Path, err)
		}
	}
	if err := syscall.Kill(envoy, 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("Envoy is still there (%v)", err)
	}
}

// What cannot work is refused before anything is started, with words.
func TestAgentRefuses(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write := func(name, text string) string {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	good := write("good.yaml", directGateway(1))
	for name, c := range map[string]struct {
		args []string
		want string
	}{
		"no configuration":  {[]string{"--", "-l", "info"}, "name no configuration"},
		"missing file":      {[]string{"--", "-c", filepath.Join(dir, "none.yaml")}, "no such file"},
		"hot restart":       {[]string{"--", "-c", good, "--restart-epoch", "1"}, "hot restart"},
		"dynamic resources": {[]string{"--", "-c", write("dynamic.yaml", "dynamic_resources: {ads_config: {api_type: GRPC}}\n")}, "dynamic_resources"},
		"misspelt field":    {[]string{"--", "-c", write("typo.yaml", strings.Replace(directGateway(1), "stat_prefix:", "stat_prefixx:", 1))}, "stat_prefixx"},
		"number as a text":  {[]string{"--", "-c", write("number.yaml", strings.Replace(directGateway(1), "stat_prefix: ", "stat_prefix: 7 # ", 1))}, "stat_prefix"},
		"no envoy":          {[]string{"--envoy", filepath.Join(dir, "no-envoy"), "--", "-c", good}, "--envoy"},
		"another program":   {[]string{"--envoy", "/bin/true", "--", "-c", good}, "says no Envoy version (it ended well)"},
		"unknown flag":      {[]string{"--nonsense", "--", "-c", good}, "nonsense"},
	} {
		args := append([]string{"--data", filepath.Join(dir, strings.ReplaceAll(name, " ", "-")), "--admin", "", "--control", "", "--envoy", envoyBinary(t)}, c.args...)
		out, err := exec.Command(filepath.Join(built, "chandler-agent"), args...).CombinedOutput()
		if err == nil || !strings.Contains(string(out), c.want) {
			t.Errorf("%s: want a refusal with %q, got %v: %s", name, c.want, err, out)
		}
	}
}

// Two agents do not share a directory.
func TestFault_F12_TwoAgentsOneDirectory(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.agent(node{name: "a"}, w.gateway(listener{port: freePort(t), name: "in"}))
	out, err := exec.Command(filepath.Join(built, "chandler-agent"), "--data", filepath.Join(p.dir, "data"), "--admin", "",
		"--envoy", envoyBinary(t), "--", "-c", filepath.Join(p.dir, "envoy.yaml")).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "another") {
		t.Errorf("a second agent on the directory: %v: %s", err, out)
	}
}

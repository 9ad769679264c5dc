//go:build upgrade

package e2e

import (
	"encoding/json"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"

	"chandler.dev/chandler"
)

// programs are a control plane and an agent of one version.
type programs struct{ version, control, agent string }

func (b programs) String() string { return b.version }

// current is what is under test.
func current() programs {
	return programs{"dev", filepath.Join(built, "chandler"), filepath.Join(built, "chandler-agent")}
}

// releases gives those of tools/releases.txt, oldest first.
func releases(t testing.TB) []programs {
	t.Helper()
	list, err := os.ReadFile("../../tools/releases.txt")
	if err != nil {
		t.Fatal(err)
	}
	var all []programs
	for line := range strings.Lines(string(list)) {
		fields := strings.Fields(line)
		if len(fields) != 2 || fields[0] == "#" {
			continue
		}
		dir, err := filepath.Abs(filepath.Join("../../.tools/releases", fields[0]))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(filepath.Join(dir, "commit")); err != nil {
			t.Fatalf("%s is not built: run make tools-releases", fields[0])
		}
		all = append(all, programs{fields[0], filepath.Join(dir, "chandler"), filepath.Join(dir, "chandler-agent")})
	}
	if len(all) == 0 {
		t.Fatal("there are no releases")
	}
	return all
}

// last is the newest release.
func last(t testing.TB) programs {
	t.Helper()
	all := releases(t)
	return all[len(all)-1]
}

// controlled is a world whose control plane is of a build.
func controlled(t testing.TB, b programs) *world {
	t.Helper()
	w := uncontrolled(t, "--no-vet")
	w.program = b.control
	w.startControl()
	return w
}

// replaceControl goes on with the control plane of another build.
func (w *world) replaceControl(b programs) {
	w.t.Helper()
	if err := w.control.stop(); err != nil {
		w.t.Fatalf("the control plane before %s: %v", b, err)
	}
	w.program = b.control
	w.startControl()
}

// skewed is an agent of a build, whose Envoy lives as long as the test.
type skewed struct {
	*proxy
	name  string
	build programs
}

func (w *world) skewed(t testing.TB, name string, b programs, config string) *skewed {
	t.Helper()
	s := &skewed{w.agent(node{name: name, workers: 2, binary: b.agent, flags: []string{"--leave-envoy"}}, config), name, b}
	envoy := s.envoy(t)
	t.Cleanup(func() { _ = syscall.Kill(envoy, syscall.SIGTERM) })
	return s
}

// become goes on with the agent of another build.
func (s *skewed) become(b programs) {
	s.w.t.Helper()
	if err := s.stop(); err != nil {
		s.w.t.Fatalf("the agent before %s: %v", b, err)
	}
	s.build, s.cmd.Path = b, b.agent
	s.restart()
	s.awaitReady()
}

// places tells it of the plugins that the agent was assigned.
func (p *proxy) places() map[string]place {
	p.w.t.Helper()
	resp, err := http.Get("http://" + p.admin + "/report")
	if err != nil {
		p.w.t.Fatal(err)
	}
	defer resp.Body.Close()
	var report []chandler.AttachmentState
	if err := json.NewDecoder(resp.Body).Decode(&report); err != nil {
		p.w.t.Fatal(err)
	}
	all := map[string]place{}
	for _, s := range report {
		all[s.Name] = place{s.Release, s.Sequence}
	}
	return all
}

// unmoved replaces a program and holds that nothing but that happened: every Envoy is
// the one before and was sent nothing, the registry was asked nothing, no agent was sent
// anything, and of every plugin the release that was assigned is the one before.
func (w *world) unmoved(what string, replace func(), proxies ...*skewed) {
	w.t.Helper()
	type state struct {
		envoy    int
		received float64
		places   map[string]place
	}
	look := func(s *skewed) state { return state{s.envoy(w.t), proxyStats(w.t, s.proxy).received, s.places()} }
	was := make([]state, len(proxies))
	for i, p := range proxies {
		was[i] = look(p)
	}
	control, sent, asked, places := w.control, w.sent(), w.registry.Counts(), w.places()
	replace()
	for i, p := range proxies {
		p.resumed()
		w.runs(p.name, p.build.version)
		if now := look(p); !reflect.DeepEqual(now, was[i]) {
			w.t.Errorf("with %s proxy %s is %+v, and was %+v", what, p.name, now, was[i])
		}
	}
	if w.control != control {
		sent = 0 // this one has only begun to count
	}
	if again := w.everSent() - sent; again != 0 {
		w.t.Errorf("with %s agents were sent %v bytes", what, again)
	}
	if now := w.registry.Counts(); now != asked {
		w.t.Errorf("with %s the registry was asked: %+v, before %+v", what, now, asked)
	}
	if now := w.places(); !maps.Equal(now, places) {
		w.t.Errorf("with %s there is assigned %+v, and was %+v", what, now, places)
	}
}

package config

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/strict"
	"chandler.dev/chandler/internal/testenv/leaks"
)

func TestMain(m *testing.M) { leaks.Main(m) }

// size is text with a meaning.
type size int

func (s *size) UnmarshalText(b []byte) error {
	if _, err := fmt.Sscanf(string(b), "%dMiB", (*int)(s)); err != nil {
		return chandler.Problemf(chandler.CodeConfValue, "", "write for example 5MiB", "%s is not a size", chandler.Quote(string(b)))
	}
	return nil
}

type rule struct {
	Names []string          `yaml:"names"`
	Wait  time.Duration     `yaml:"wait"`
	Size  *size             `yaml:"size"`
	Map   map[string]string `yaml:"map"`
}

func (r *rule) Check() []chandler.Problem {
	var problems []chandler.Problem
	for i, n := range r.Names {
		if n == "bad" {
			problems = append(problems, *chandler.Problemf(chandler.CodeConfValue, fmt.Sprintf("names[%d]", i), "", "is bad"))
		}
	}
	if r.Wait < 0 {
		problems = append(problems, *chandler.Problemf(chandler.CodeConfValue, "wait", "", "is in the past"))
	}
	if r.Wait == 0 {
		problems = append(problems, *chandler.Problemf(chandler.CodeConfValue, "wait", "", "is required"))
	}
	return problems
}

type inline struct {
	On bool `yaml:"on"`
}

type sample struct {
	inline `yaml:",inline"`
	Count  int    `yaml:"count"`
	Rules  []rule `yaml:"rules"`
}

func TestDecode(t *testing.T) {
	t.Parallel()
	var got sample
	if m := strict.Decode([]byte(`# a comment
on: true
count: 3
rules:
- {names: [a, "2"], wait: 1m30s, size: 5MiB, map: {k: v}}
- {names: [], wait: 1s}
`), &got, nil); m != nil {
		t.Fatal(m)
	}
	if !got.On || got.Count != 3 || len(got.Rules) != 2 || got.Rules[0].Wait != 90*time.Second || *got.Rules[0].Size != 5 || got.Rules[0].Map["k"] != "v" {
		t.Errorf("got %+v", got)
	}
	if got.Rules[1].Names == nil || got.Rules[1].Map != nil {
		t.Error("an empty list is not one that is left out")
	}
	for _, empty := range []string{"", "# only a comment\n", "---\n"} {
		if m := strict.Decode([]byte(empty), new(sample), nil); m != nil {
			t.Errorf("%q: %v", empty, m)
		}
	}
}

func TestRefuse_B113_ConfigFile(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ yaml, want string }{
		"unknown key":      {"on: true\nruels: []\n", `f:2:1: ruels: unknown key "ruels"; here may stand on, count, rules (ConfUnknown)`},
		"unknown below":    {"rules:\n- wait: 1s\n  nmaes: [a]\n", `f:3:3: rules[0].nmaes: unknown key "nmaes"; here may stand names, wait, size, map (ConfUnknown)`},
		"bad duration":     {"rules:\n- {names: [a], wait: 3 days}\n", `f:2:22: rules[0].wait: "3 days" is not a duration; write a duration such as 30s (ConfValue)`},
		"duration, bare":   {"rules: [{wait: 3}]\n", `f:1:16: rules[0].wait: "3" does not belong here; write a duration such as 30s (ConfValue)`},
		"bad size":         {"rules: [{wait: 1s, size: lots}]\n", `f:1:26: rules[0].size: "lots" is not a size; write for example 5MiB (ConfValue)`},
		"twice":            {"on: true\ncount: 1\non: false\n", `f:3:1: on: the key is written twice; keep one of them (ConfParse)`},
		"no value":         {"rules:\n", `f:1:7: rules: there is no value; write a value, or leave the key out; an empty list is [] (ConfValue)`},
		"not a list":       {"rules: {wait: 1s}\n", `f:1:8: rules: an object does not belong here; write a list, each entry with a - before it (ConfValue)`},
		"not an object":    {"rules: [a]\n", `f:1:9: rules[0]: "a" does not belong here; write an object: key: value (ConfValue)`},
		"not text":         {"rules: [{wait: 1s, names: [yes, 1]}]\n", `f:1:33: rules[0].names[1]: "1" does not belong here; write text; numbers and words like yes need quotes (ConfValue)`},
		"not a boolean":    {"on: 1\n", `f:1:5: on: "1" does not belong here; write true or false (ConfValue)`},
		"a list on top":    {"- on\n", `f:1:1: a list does not belong here; write an object: key: value (ConfValue)`},
		"an alias":         {"rules:\n- &r {wait: 1s}\n- *r\n", "f:2:3: rules[0]: anchors and aliases are not accepted; write it out (ConfParse)\nf:3:3: rules[1]: anchors and aliases are not accepted; write it out (ConfParse)"},
		"not YAML":         {"on: true\n\tcount: 1\n", `f:2:1: found a tab character that violates indentation (ConfParse)`},
		"two documents":    {"on: true\n---\non: false\n", `f:2:1: a second document begins; write one (ConfParse)`},
		"own check":        {"rules:\n- wait: 1s\n- names: [a, bad]\n  wait: 1s\n", `f:3:14: rules[1].names[1]: is bad (ConfValue)`},
		"own check, range": {"rules:\n- wait: -1s\n", `f:2:9: rules[0].wait: is in the past (ConfValue)`},
		"own check, none":  {"rules:\n- names: [a]\n", `f:2:3: rules[0].wait: is required (ConfValue)`},
	} {
		mistakes := strict.Decode([]byte(c.yaml), new(sample), nil)
		if len(mistakes) == 0 {
			t.Errorf("%s: taken", name)
			continue
		}
		t.Attr("refusal", string(mistakes[0].Code))
		if got := (&Error{Path: "f", Mistakes: mistakes}).Error(); got != c.want {
			t.Errorf("%s:\n got %s\nwant %s", name, got, c.want)
		}
	}
	var many []Mistake
	for range 12 {
		many = append(many, Mistake{})
	}
	if got := (&Error{Path: "f", Mistakes: many}).Error(); strings.Count(got, "\n") != 10 || !strings.HasSuffix(got, "f: 2 more mistakes") {
		t.Errorf("many mistakes:\n%s", got)
	}
	deep := strings.Repeat("[", 5000) + strings.Repeat("]", 5000)
	if m := strict.Decode([]byte("rules: "+deep), new(sample), nil); len(m) == 0 {
		t.Error("a deep nest is taken")
	}
}

func TestRefuse_B113_FileItself(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	large := filepath.Join(dir, "large.yaml")
	if err := os.WriteFile(large, bytes.Repeat([]byte("#"), maxFile+1), 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		filepath.Join(dir, "none.yaml"): "none.yaml: cannot be read: no such file or directory (ConfRead)",
		dir:                             "cannot be read: it is not a file (ConfRead)",
		large:                           "large.yaml: the file is larger than 1048576 bytes; make it smaller, or divide it (ConfSize)",
	} {
		_, err := Load(path)
		var e *Error
		if !errors.As(err, &e) || !strings.HasSuffix(err.Error(), want) {
			t.Errorf("%s: %v", path, err)
			continue
		}
		t.Attr("refusal", string(e.Mistakes[0].Code))
	}
}

const publicKey = `-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAENrX+RFPxkonAU0WjZtpibCt4erWn
JIWYXcbubL8wBcOH04nWXwOCIAihbGEwX8GHC18Hp+26JropXSvr+Me7rg==
-----END PUBLIC KEY-----
`

// buffer takes a log.
type buffer struct {
	mu sync.Mutex
	bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.Buffer.Write(p)
}

func (b *buffer) count(s string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return strings.Count(b.String(), s)
}

// A file is looked at as a ConfigMap's is: a link that leads to another folder. What
// is wrong is told once and changes nothing.
func TestWatch(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) { watch(t, dir) })
}

func watch(t *testing.T, dir string) {
	version := 0
	turn := func(content string) {
		t.Helper()
		version++
		folder := fmt.Sprintf("..%d", version)
		link := filepath.Join(dir, "..new")
		if err := errors.Join(
			os.Mkdir(filepath.Join(dir, folder), 0o700),
			os.WriteFile(filepath.Join(dir, folder, "chandler.yaml"), []byte(content), 0o600),
			os.Symlink(folder, link), os.Rename(link, filepath.Join(dir, "..data")),
		); err != nil {
			t.Fatal(err)
		}
	}
	turn("strict: false\n")
	path := filepath.Join(dir, "chandler.yaml")
	if err := os.Symlink(filepath.Join("..data", "chandler.yaml"), path); err != nil {
		t.Fatal(err)
	}
	log, metrics := new(buffer), prometheus.NewPedanticRegistry()
	w, f, err := Open(path, metrics, slog.New(slog.NewTextHandler(log, nil)))
	if err != nil || f.Strict {
		t.Fatal(f, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	files, done := make(chan *File, 10), make(chan struct{})
	go func() { defer close(done); w.Run(ctx, func(f *File) { files <- f }) }()

	turn("strict: maybe\n")
	wait(t, "the mistake is told", func() bool { return log.count("chandler.yaml:1:9: strict:") == 1 })
	if got := value(t, w.stale); got != 1 {
		t.Errorf("stale is %v", got)
	}
	turn("# the same mistake\nstrict: maybe\n")
	wait(t, "another line of it", func() bool { return log.count("chandler.yaml:2:9: strict:") == 1 })
	turn("# as it was\nstrict: false\n")
	wait(t, "the file is good again", func() bool { return value(t, w.stale) == 0 })
	<-files
	turn("strict: true\n")
	select {
	case f := <-files:
		if !f.Strict {
			t.Errorf("handed over %+v", f)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("the change is not seen")
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	wait(t, "the loss is told", func() bool { return log.count("no such file") == 1 })
	if err := os.WriteFile(path, []byte("strict: false\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if f := <-files; f.Strict {
		t.Error("what was written in its place is not taken")
	}
	// Written in place it is empty at first, which would be no rules at all.
	if err := os.WriteFile(path, []byte("strict: true\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if f := <-files; !f.Strict {
		t.Error("what was written there later is not taken")
	}
	if err := os.Truncate(path, 0); err != nil {
		t.Fatal(err)
	}
	time.Sleep(interval + interval/2) // a look
	if err := os.WriteFile(path, []byte("# more\nstrict: true\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if f := <-files; !f.Strict {
		t.Error("a file that was half written is taken")
	}
	// What it names is part of it.
	key := filepath.Join(dir, "key.pem")
	if err := errors.Join(
		os.WriteFile(key, []byte(publicKey), 0o600),
		os.WriteFile(path, []byte("signatures:\n- {name: all, keys: [key.pem]}\n"), 0o600),
	); err != nil {
		t.Fatal(err)
	}
	if f := <-files; len(f.Signatures) != 1 || f.Signatures[0].Hash() == "" {
		t.Errorf("signatures %+v", f.Signatures)
	}
	if err := os.WriteFile(key, []byte("gone"), 0o600); err != nil {
		t.Fatal(err)
	}
	wait(t, "a key that is none is told", func() bool { return log.count("chandler.yaml:2:22: signatures[0].keys[0]:") == 1 })
	cancel()
	<-done
	if len(files) != 0 {
		t.Error("what did not change was handed over")
	}
	if got := log.count("the one before stays"); got != 4 {
		t.Errorf("%d refusals are told, want 4:\n%s", got, log)
	}
}

func value(t *testing.T, g prometheus.Gauge) float64 {
	t.Helper()
	var m dto.Metric
	if err := g.Write(&m); err != nil {
		t.Fatal(err)
	}
	return m.GetGauge().GetValue()
}

func wait(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for !ok() {
		select {
		case <-deadline:
			t.Fatalf("%s: did not come to pass", what)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

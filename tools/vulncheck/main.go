// Command vulncheck has govulncheck look at packages and fails when they call
// something that is known to be vulnerable, unless it is excepted with a reason. It
// judges nothing itself: what is called, and what is known, is govulncheck's word.
//
//	go -C tools run ./vulncheck -toolchain go1.26.11 -db file:///DIR -except FILE -in .. ./cmd/...
//
// A line of FILE is an identifier, such as GO-2026-1234, and the reason. One that is
// not needed any more is a failure as well.
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
)

func main() {
	toolchain := flag.String("toolchain", "", "the Go release whose standard library is looked at, for example go1.26.11")
	db := flag.String("db", "", "URL of the vulnerability database")
	except := flag.String("except", "", "file of exceptions")
	dir := flag.String("in", ".", "folder of the module")
	flag.Parse()
	if err := run(*toolchain, *db, *except, *dir, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "vulncheck:", err)
		os.Exit(1)
	}
}

func run(toolchain, db, except, dir string, packages []string) error {
	excepted, err := exceptions(except)
	if err != nil {
		return err
	}
	cmd := exec.Command("go", append([]string{"tool", "-modfile=tools/go.mod", "govulncheck", "-format", "json", "-db", db}, packages...)...)
	cmd.Dir, cmd.Stderr = dir, os.Stderr
	cmd.Env = append(os.Environ(), "GOTOOLCHAIN="+toolchain)
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("govulncheck: %w", err)
	}
	scan, err := read(bytes.NewReader(out))
	if err != nil {
		return err
	}
	return scan.judge(os.Stdout, excepted)
}

// exceptions reads which findings are no failure, and why.
func exceptions(file string) (map[string]string, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	found := map[string]string{}
	lines := bufio.NewScanner(bytes.NewReader(b))
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		id, why, _ := strings.Cut(line, " ")
		if why = strings.TrimSpace(why); len(strings.Fields(why)) < 3 {
			return nil, fmt.Errorf("%s:%d: %s needs a reason, in words", file, n, id)
		}
		found[id] = why
	}
	return found, lines.Err()
}

// scan is what govulncheck found, by identifier.
type scan struct {
	db, goVersion string
	summaries     map[string]string
	called        map[string]finding
	present       map[string]bool
}

type finding struct {
	OSV   string `json:"osv"`
	Fixed string `json:"fixed_version"`
	Trace []struct {
		Module, Version, Package, Function string
	} `json:"trace"`
}

func read(r io.Reader) (*scan, error) {
	s := &scan{summaries: map[string]string{}, called: map[string]finding{}, present: map[string]bool{}}
	for d := json.NewDecoder(r); ; {
		var m struct {
			Config *struct {
				DB        string `json:"db"`
				GoVersion string `json:"go_version"`
			} `json:"config"`
			OSV *struct {
				ID      string `json:"id"`
				Summary string `json:"summary"`
			} `json:"osv"`
			Finding *finding `json:"finding"`
		}
		if err := d.Decode(&m); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, fmt.Errorf("govulncheck says something else than before: %w", err)
		}
		switch {
		case m.Config != nil:
			s.db, s.goVersion = m.Config.DB, m.Config.GoVersion
		case m.OSV != nil:
			s.summaries[m.OSV.ID] = m.OSV.Summary
		case m.Finding != nil:
			s.present[m.Finding.OSV] = true
			if t := m.Finding.Trace; len(t) > 0 && t[0].Function != "" {
				s.called[m.Finding.OSV] = *m.Finding
			}
		}
	}
	if s.goVersion == "" {
		return nil, errors.New("govulncheck did not say what it looked at")
	}
	return s, nil
}

// judge tells what was found; the error is that something is called and not excepted.
func (s *scan) judge(w io.Writer, excepted map[string]string) error {
	fmt.Fprintf(w, "standard library of %s; database %s\n", s.goVersion, s.db)
	bad := 0
	for _, id := range slices.Sorted(maps.Keys(s.called)) {
		f := s.called[id]
		at := f.Trace[0]
		if why, ok := excepted[id]; ok {
			fmt.Fprintf(w, "%s excepted: %s\n", id, why)
			continue
		}
		bad++
		fmt.Fprintf(w, "%s %s\n  %s@%s: %s.%s is called; fixed in %s\n", id, s.summaries[id], at.Module, at.Version, at.Package, at.Function, f.Fixed)
	}
	for _, id := range slices.Sorted(maps.Keys(excepted)) {
		if _, ok := s.called[id]; !ok {
			bad++
			fmt.Fprintf(w, "%s is excepted and not called: take it out of the exceptions\n", id)
		}
	}
	fmt.Fprintf(w, "%d called, %d more in what is linked or required\n", len(s.called), len(s.present)-len(s.called))
	if bad > 0 {
		return fmt.Errorf("%d to see to", bad)
	}
	return nil
}

package main

import (
	"bytes"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"chandler.dev/chandler/internal/testenv/authority"
)

// What cannot be run as it was asked for ends with exit code 2 and the line.
func TestRefuse_B113_Serve(t *testing.T) {
	dir := t.TempDir()
	file := func(name, content string) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	ca := authority.New(t)
	one, other := ca.Issue(authority.Leaf{}), ca.Issue(authority.Leaf{})
	open := file("open.pem", "none")
	if err := os.Chmod(open, 0o644); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		flags []string
		want  string // of stderr; * stands for anything
	}{
		"no file":         {[]string{"--config", filepath.Join(dir, "none.yaml")}, "*none.yaml: cannot be read: no such file or directory (ConfRead)"},
		"unknown key":     {[]string{"--config", file("unknown.yaml", "# a comment\nregistries:\n- namspaces: [edge]\n")}, `*unknown.yaml:3:3: registries[0].namspaces: unknown key "namspaces"; here may stand namespaces, repositories, require (ConfUnknown)`},
		"bad duration":    {[]string{"--config", file("duration.yaml", "limits:\n- {loadTime: 2 seconds}\n")}, `*duration.yaml:2:14: limits[0].loadTime: "2 seconds" is not a duration; write a duration such as 30s (ConfValue)`},
		"no such key":     {[]string{"--config", file("key.yaml", "signatures:\n- {name: all, keys: [none.pem]}\n")}, `*key.yaml:2:22: signatures[0].keys[0]: *"none.pem" cannot be read* (Policy)`},
		"bad duration, f": {[]string{"--fetch-deadline", "2 seconds"}, "*--fetch-deadline*"},
		"unknown flag":    {[]string{"--confg", "x"}, "unknown flag: --confg"},
		"port in use":     {[]string{"--listen", taken.Addr().String()}, "--listen: *address already in use; give an address that is free (ConfListen)"},
		"admin in use":    {[]string{"--admin", taken.Addr().String()}, "--admin: *address already in use; give an address that is free (ConfListen)"},
		"key for everybody": {[]string{"--tls-cert", one.Cert, "--tls-key", open},
			"--tls-key: the private key *open.pem may be read by everybody (mode 0644); take the right away: chmod o-r *open.pem (ConfKeyMode)"},
		"key of another": {[]string{"--tls-cert", one.Cert, "--tls-key", other.Key}, "--tls-cert: *; give a certificate, its key and authorities in PEM that belong together (ConfTLS)"},
	} {
		args := append([]string{"chandler", "serve", "--data", filepath.Join(dir, "data"), "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--no-vet"}, c.flags...)
		var out, said bytes.Buffer
		code := run(args, func(string) string { return "" }, strings.NewReader(""), &out, &said)
		pattern := "^(time=.*\\n)*chandler: " + strings.ReplaceAll(regexp.QuoteMeta(c.want), `\*`, ".*") + "\n$"
		if code != exitUsage || !regexp.MustCompile(pattern).MatchString(said.String()) {
			t.Errorf("%s: exit code %d\n%s", name, code, said.String())
			continue
		}
		if i := strings.LastIndex(c.want, "(Conf"); i >= 0 {
			t.Attr("refusal", strings.Trim(c.want[i:], "()"))
		}
	}
}

package hosts_test

import (
	"bytes"
	"crypto/x509"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"chandler.dev/chandler/internal/fetch"
	"chandler.dev/chandler/internal/fetch/hosts"
	"chandler.dev/chandler/internal/testenv/authority"
	"chandler.dev/chandler/internal/testenv/leaks"
)

func TestMain(m *testing.M) { leaks.Main(m) }

// certsD is a folder as containerd has it.
type certsD struct {
	t   *testing.T
	dir string
	now time.Time
	log bytes.Buffer
}

func newCertsD(t *testing.T) *certsD {
	t.Helper()
	return &certsD{t: t, dir: t.TempDir(), now: time.Now().Add(time.Hour)}
}

func (c *certsD) write(name, text string) {
	c.t.Helper()
	path := filepath.Join(c.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		c.t.Fatal(err)
	}
	if err := os.WriteFile(path+"~", []byte(text), 0o600); err != nil {
		c.t.Fatal(err)
	}
	if err := os.Rename(path+"~", path); err != nil {
		c.t.Fatal(err)
	}
}

func (c *certsD) open() (*hosts.Directory, error) {
	return hosts.Open(c.dir, func() time.Time { return c.now }, slog.New(slog.NewTextHandler(&c.log, nil)))
}

func (c *certsD) mustOpen() *hosts.Directory {
	c.t.Helper()
	d, err := c.open()
	if err != nil {
		c.t.Fatal(err)
	}
	return d
}

// brief writes endpoints in one line each.
func brief(t *testing.T, d *hosts.Directory, registry string) string {
	t.Helper()
	all, err := d.Endpoints(registry)
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, e := range all {
		may := ""
		for c, ok := range map[string]bool{"p": e.Pull, "r": e.Resolve, "P": e.Push} {
			if ok {
				may += c
			}
		}
		lines = append(lines, fmt.Sprintf("%s://%s%s %d", e.Scheme, e.Host, e.Path, len(may)))
	}
	return strings.Join(lines, ", ")
}

func TestEndpoints(t *testing.T) {
	t.Parallel()
	c := newCertsD(t)
	c.write("README", "not a registry")
	c.write("docker.io/hosts.toml", `
server = "https://registry-1.docker.io"
[host."https://public-mirror.example.com"]
  capabilities = ["pull"]
[host."http://10.0.0.7:5000/hub"]
  capabilities = ["Pull", "resolve"]
[host."https://art.example/v2/docker-remote/"]
  override_path = true
[host."plain.example"]
`)
	c.write("reg.example/hosts.toml", `capabilities = ["pull"]`)
	c.write("reg.example:5000/hosts.toml", `server = "https://colon.example"`)
	c.write("other.example_5000_/hosts.toml", `server = "https://underscore.example"`)
	c.write("only.example/hosts.toml", `host."https://dotted.example".capabilities = ["pull"]`)
	d := c.mustOpen()
	for registry, want := range map[string]string{
		"index.docker.io": "https://public-mirror.example.com/v2 1, http://10.0.0.7:5000/hub/v2 2, https://art.example/v2/docker-remote 3, https://plain.example/v2 3, https://registry-1.docker.io/v2 3",
		"reg.example":     "://reg.example/v2 1", "reg.example:5000": "https://colon.example/v2 3", "other.example:5000": "https://underscore.example/v2 3",
		"only.example": "https://dotted.example/v2 1, ://only.example/v2 3",
		"none.example": "", "..": "", "../x": "", "": "", "[::1]": "", "[::1]:5000": "",
	} {
		if got := brief(t, d, registry); got != want {
			t.Errorf("%s:\n got %s\nwant %s", registry, got, want)
		}
	}
	c.write("_default/hosts.toml", `[host."https://all.example"]`)
	for _, registry := range []string{"none.example", "../x", "[::1]:5000"} {
		if got := brief(t, d, registry); got != "https://all.example/v2 3, ://"+registry+"/v2 3" {
			t.Errorf("%s without a folder: %s", registry, got)
		}
	}
}

func content(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestSettings(t *testing.T) {
	t.Parallel()
	c := newCertsD(t)
	ca := authority.New(t)
	pair := ca.Issue(authority.Leaf{URI: "spiffe://cluster.local/chandler"})
	cert, key := content(t, pair.Cert), content(t, pair.Key)
	c.write("reg.example/ca.pem", content(t, ca.File))
	c.write("reg.example/both.pem", cert+key)
	c.write("reg.example/a.cert", cert)
	c.write("reg.example/a.key", key)
	c.write("reg.example/hosts.toml", `
ca = "ca.pem"
client = ["both.pem"]
[host."https://m.example"]
  ca = ["ca.pem"]
  client = [["a.cert", "a.key"], ["both.pem", ""]]
  dial_timeout = "1500ms"
  proxy = "http://u:secret@proxy.example:3128"
  [host."https://m.example".header]
    x-one = "1"
    x-two = ["2", "3"]
[host."https://n.example"]
  skip_verify = true
`)
	all, err := c.mustOpen().Endpoints("reg.example")
	if err != nil || len(all) != 3 {
		t.Fatalf("%v %v", all, err)
	}
	m, n, home := all[0], all[1], all[2]
	if m.DialTimeout != 1500*time.Millisecond || m.Proxy.Host != "proxy.example:3128" || m.Header.Get("X-One") != "1" || len(m.Header["X-Two"]) != 2 {
		t.Errorf("mirror: %+v", m)
	}
	for what, e := range map[string]fetch.Endpoint{"mirror": m, "registry": home} {
		if e.TLS.InsecureSkipVerify {
			t.Errorf("%s is not verified", what)
		}
		system, err := x509.SystemCertPool()
		if e.TLS.RootCAs == nil || err == nil && e.TLS.RootCAs.Equal(system) {
			t.Errorf("%s has no authority of its own", what)
		}
	}
	if len(m.TLS.Certificates) != 2 || len(home.TLS.Certificates) != 1 || !n.TLS.InsecureSkipVerify || n.TLS.RootCAs != nil {
		t.Error("certificates, or what is verified")
	}
}

// What is meant and not understood is an error, which says where.
func TestRefusedFiles(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"server = ":                   "line 1: ",
		`sever = "https://x.example"`: `unknown key "sever"`,
		"[host.\"https://m.example\"]\nskip_verfy = true": `unknown key "host.\"https://m.example\".skip_verfy"`,
		`[host."ftp://m.example"]`:                        `host "ftp://m.example": scheme "ftp" is none of https, http and file`,
		`[host."https://u:secret@m.example"]`:             "credentials in a url are not used",
		`[host."https://m.example/?x=y"]`:                 "the url has a query or a fragment",
		`[host."https://169.254.169.254"]`:                "is 169.254.169.254 (metadata)",
		`server = "https://0x7f.1"`:                       "is an address in an unusual form",
		`server = "https://reg.example:0"`:                `port "0" is out of range`,
		`[host.""]`:                                       "a host has no url",
		`capabilities = ["pul"]`:                          `capability "pul" is none of pull, resolve and push`,
		`capabilities = "pull"`:                           "",
		`ca = 7`:                                          "ca is neither a text nor a list of texts",
		`ca = "gone.pem"`:                                 "gone.pem: no such file",
		`ca = "hosts.toml"`:                               `ca "hosts.toml" has no certificate in PEM`,
		`ca = "."`:                                        "is not a file",
		`client = [["a"]]`:                                "client is neither a file",
		`client = [7]`:                                    "client is neither a file",
		`client = "hosts.toml"`:                           `client "hosts.toml": `,
		"[header]\n\"x\\r\" = \"1\"":                      `header "x\r" cannot be sent`,
		"[header]\nhost = \"1\"":                          `header "host" cannot be sent`,
		"[header]\nx = 1":                                 "neither a text nor a list of texts",
		"[header]\nx = \"\\n\"":                           `header "x" cannot be sent`,
		`dial_timeout = "soon"`:                           `dial_timeout "soon" is not a time`,
		`dial_timeout = "-1s"`:                            `dial_timeout "-1s" is not a time`,
		`proxy = "proxy.example:3128"`:                    "proxy is no url",
		`proxy = "http://u:secret@proxy.example/path"`:    "proxy is no url",
		strings.Repeat("#", 1<<20+1):                      "is larger than 1048576 bytes",
		manyHosts(33):                                     "more than 32 hosts",
		`ca = [` + strings.Repeat(`"x",`, 33) + `]`:       "ca has 33 entries, limit 32",
		"server = \"https://a.example\"\nserver = \"https://b.c\"": "line 2: ",
	} {
		c := newCertsD(t)
		c.write("reg.example/hosts.toml", text)
		_, err := c.open()
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), filepath.Join("reg.example", "hosts.toml")) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%.60q: got %v, want %s", text, err, want)
		}
	}
	if _, err := hosts.Open(filepath.Join(t.TempDir(), "gone"), nil, nil); err == nil {
		t.Error("a folder that is not there is no folder")
	}
}

func manyHosts(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "[host.\"https://m%d.example\"]\n", i)
	}
	return b.String()
}

// Files are read again when they, or what they name, have changed; what cannot be
// used leaves what was before, and is told once.
func TestReload(t *testing.T) {
	t.Parallel()
	c := newCertsD(t)
	c.write("reg.example/ca.pem", content(t, authority.New(t).File))
	c.write("reg.example/hosts.toml", "ca = \"ca.pem\"\n[host.\"https://a.example\"]")
	d := c.mustOpen()
	endpoint := func(i int) fetch.Endpoint {
		t.Helper()
		all, err := d.Endpoints("reg.example")
		if err != nil {
			t.Fatal(err)
		}
		return all[i]
	}
	before := endpoint(1)
	if endpoint(1).TLS != before.TLS {
		t.Error("nothing changed, and connections are made anew")
	}
	c.write("reg.example/ca.pem", content(t, authority.New(t).File))
	renewed := endpoint(1)
	if renewed.TLS == before.TLS || renewed.TLS.RootCAs.Equal(before.TLS.RootCAs) {
		t.Error("the authority that was changed is still trusted")
	}
	for range 3 {
		c.write("reg.example/hosts.toml", "[host.\"https://b.example\"")
		if got := endpoint(0).Host; got != "a.example" {
			t.Errorf("of a file that cannot be read came %s", got)
		}
	}
	if n := strings.Count(c.log.String(), "cannot be used"); n != 1 {
		t.Errorf("told %d times:\n%s", n, c.log.String())
	}
	c.write("reg.example/hosts.toml", "[host.\"https://b.example\"]")
	if got := endpoint(0).Host; got != "b.example" {
		t.Errorf("of the mended file came %s", got)
	}
	if !strings.Contains(c.log.String(), "can be used again") {
		t.Error("that it can be used again was not told")
	}
	// A new one that never could be used is not passed over.
	c.write("new.example/hosts.toml", "x")
	if _, err := d.Endpoints("new.example"); err == nil {
		t.Error("a file that cannot be used is no file at all")
	}
	if err := os.RemoveAll(filepath.Join(c.dir, "new.example")); err != nil {
		t.Fatal(err)
	}
	if all, err := d.Endpoints("new.example"); err != nil || all != nil {
		t.Errorf("of a file that is gone came %v %v", all, err)
	}
}

// A folder of artifacts may be in a server's place.
func TestFolders(t *testing.T) {
	t.Parallel()
	c := newCertsD(t)
	c.write("reg.example/hosts.toml", "server = \"file:///var/lib/artifacts\"\n[host.\"file:///srv//more/\"]\ncapabilities = [\"pull\"]\n")
	d := c.mustOpen()
	if got, want := brief(t, d, "reg.example"), "https://folder.invalid/v2 1, https://folder.invalid/v2 2"; got != want {
		t.Errorf("got %s\nwant %s", got, want)
	}
	before, err := d.Endpoints("reg.example")
	if err != nil || before[0].Local == nil || before[0].Local == before[1].Local {
		t.Fatalf("%v, %v", before, err)
	}
	c.write("reg.example/hosts.toml", "server = \"file:///var/lib/others\"\n[host.\"file:///srv/more\"]\ncapabilities = [\"pull\"]\n")
	if after, err := d.Endpoints("reg.example"); err != nil || after[1].Local == before[1].Local {
		t.Errorf("another folder is not taken, %v", err)
	}
	for text, want := range map[string]string{
		`server = "file://var/lib"`:                                          "write file:// and an absolute path",
		`server = "file:///a%20b"`:                                           "write file:// and an absolute path",
		"server = \"file:///a\"\nca = \"ca.pem\"":                            "a folder has no settings but capabilities",
		"[host.\"file:///a\"]\ndial_timeout = \"1s\"":                        "a folder has no settings but capabilities",
		"[host.\"file:///a\"]\ncapabilities = [\"push\"]":                    "a folder is not pushed to",
		"[host.\"file:///a\"]\ncapabilities = [\"run\"]":                     "is none of pull, resolve and push",
		"[host.\"file:///a\"]\n[host.\"file:///a\".header]\nx-one = \"1\"\n": "a folder has no settings but capabilities",
	} {
		c := newCertsD(t)
		c.write("reg.example/hosts.toml", text)
		if _, err := c.open(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", text, err, want)
		}
	}
}

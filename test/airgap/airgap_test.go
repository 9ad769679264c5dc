//go:build linux && airgap

// Package airgap_test runs docs/airgap.md on a machine that has no network and nothing of
// this repository but what "make dist" made.
package airgap_test

import (
	"archive/tar"
	"bytes"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"chandler.dev/chandler/internal/fetch"
	"chandler.dev/chandler/internal/testenv/machine"
	"chandler.dev/chandler/internal/testenv/module"
	"chandler.dev/chandler/internal/testenv/pages"
	"chandler.dev/chandler/internal/testenv/registry"
)

var made = flag.String("dist", "", "folder of a signed make dist")

// The credentials of the walkthrough.
const credentials = "Authorization: Basic YWRtaW4zOmFkbWluMw=="

// gap is a machine without network, and the place outside from which a medium comes.
type gap struct {
	t *testing.T
	*machine.Machine
	medium string
	public *registry.Registry // outside
	world  *pages.World
}

// TestPage takes the page from its first command to its last, and looks between them at
// what users rely on.
func TestPage(t *testing.T) {
	g := newGap(t)
	page := pages.Open(t, "docs/airgap.md")
	page.In(g.world, "What to bring", "Look at what came", "Install", "Plugins without a registry", "The walkthrough")
	g.answers("/productpage", "", 401)
	g.answers("/productpage", credentials, 200)
	g.truthful()

	g.publish("auth:v2", module.Deny(403))
	page.In(g.world, "Another version, and back")
	g.answers("/productpage", credentials, 200)
	g.answers("/productpage", "", 401)
	g.refusesTampered()

	g.outside("COSIGN_PASSWORD=secret chandler sign generate-key")
	page.In(g.world, "Signatures")
	g.answers("/productpage", credentials, 403)
	g.refusesUnsigned()
	g.answers("/productpage", credentials, 403)

	// After a loss of power the agent alone serves what was in force.
	g.Must("systemctl disable --quiet chandler")
	g.Reboot()
	g.Must("systemd-run --quiet --unit bookinfo --property DynamicUser=yes /usr/local/bin/bookinfo all")
	g.answers("/productpage", credentials, 403)
	g.Must("systemctl enable --quiet --now chandler")
	g.truthful()
	g.answers("/productpage", credentials, 403)

	g.askedNobody()
	page.In(g.world)
}

// newGap has a machine, what a medium brought there, and a registry outside.
func newGap(t *testing.T) *gap {
	t.Helper()
	dist := *made
	if dist == "" {
		t.Fatal("make e2e-airgap says with -dist where the files of make dist are")
	}
	programs := programsOf(t, dist)
	// A folder that the machine's users may look into.
	medium := t.TempDir()
	g := &gap{t: t, medium: medium, Machine: machine.Start(t, machine.Config{Name: "gap", Medium: medium})}
	if out, err := g.Run("command -v chandler chandler-agent envoy go"); err == nil {
		t.Fatalf("the machine is not bare:\n%s", out)
	}
	g.Put(filepath.Join(dist, "cosign.pub"), "/root/cosign.pub")
	outside := t.TempDir()
	if err := os.Symlink(dist, filepath.Join(outside, "dist")); err != nil {
		t.Fatal(err)
	}
	g.public = startRegistry(t)
	site := startRegistry(t)
	g.world = &pages.World{
		Shells: map[string]*pages.Shell{
			"": {Command: g.Shell()},
			// The medium is at /mnt outside, too, for this shell alone.
			"outside": {
				Dir:     outside,
				Command: []string{"unshare", "--mount", "sh", "-c", `mount --bind "$MEDIUM" /mnt && exec sh`},
				Env:     append(os.Environ(), "MEDIUM="+medium, "PATH="+programs+":"+os.Getenv("PATH")),
			},
		},
		Names: []string{"registry.example", g.public.Addr, "https://registry.internal", "http://" + site.Addr, "registry.internal", site.Addr},
		Time:  3 * time.Minute,
	}
	return g
}

func startRegistry(t *testing.T) *registry.Registry {
	t.Helper()
	r, err := registry.Start(registry.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r
}

// programsOf gives a folder with the programs in dist's archive for this platform.
func programsOf(t *testing.T, dist string) string {
	t.Helper()
	archive := only(t, filepath.Join(dist, "chandler-*-linux-"+runtime.GOARCH+".tar.gz"))
	dir := t.TempDir()
	if out, err := exec.Command("tar", "-xzf", archive, "-C", dir, "--strip-components=1").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return filepath.Join(dir, "bin")
}

// only gives the one file of a pattern.
func only(t *testing.T, pattern string) string {
	t.Helper()
	found, err := filepath.Glob(pattern)
	if err != nil || len(found) != 1 {
		t.Fatalf("%s: %q, %v; make dist makes one, in a folder without those of another version", pattern, found, err)
	}
	return found[0]
}

// outside runs a command outside, beside those of the page.
func (g *gap) outside(command string) {
	g.t.Helper()
	shell := g.world.Shells["outside"]
	cmd := exec.Command("unshare", "--mount", "sh", "-ec", `mount --bind "$MEDIUM" /mnt; eval "$0"`, strings.NewReplacer(g.world.Names...).Replace(command))
	cmd.Dir, cmd.Env = shell.Dir, shell.Env
	if out, err := cmd.CombinedOutput(); err != nil {
		g.t.Fatalf("outside: %s: %v\n%s", command, err, out)
	}
}

// publish puts a module into the registry outside, as team/NAME.
func (g *gap) publish(name string, wasm []byte) {
	g.t.Helper()
	client := fetch.New(fetch.Config{})
	defer client.Close()
	if _, err := client.Push(g.t.Context(), g.public.Addr+"/team/"+name, wasm, fetch.PushOptions{}); err != nil {
		g.t.Fatal(err)
	}
}

// answers waits for the gateway's answer to be one.
func (g *gap) answers(path, header string, want int) {
	g.t.Helper()
	command := fmt.Sprintf("curl -s -o /dev/null -w '%%{http_code}' -H '%s' http://127.0.0.1:8080%s", header, path)
	g.until(command, func(out string, _ error) bool { return out == fmt.Sprint(want) }, fmt.Sprint("the answer ", want))
}

// until waits for what a command prints to be so.
func (g *gap) until(command string, so func(string, error) bool, what string) {
	g.t.Helper()
	deadline := time.Now().Add(time.Minute)
	for {
		out, err := g.Run(command)
		if so(out, err) {
			return
		}
		if time.Now().After(deadline) {
			log, _ := g.Run("journalctl -b --no-pager -n 40 -u chandler -u chandler-agent")
			g.t.Fatalf("not %s: %s: %v\n%s\n%s", what, command, err, out, log)
		}
		time.Sleep(100 * time.Millisecond) // between looks
	}
}

const asRoot = "export CHANDLER_SERVER=unix:///var/lib/chandler/admin.sock; "

// truthful waits for the status to say that all is as it should be, which it is.
func (g *gap) truthful() {
	g.t.Helper()
	g.until(asRoot+"chandler status", func(_ string, err error) bool { return err == nil }, "a status that says that all is well")
}

// refusesTampered: an archive with one byte of a module changed is not put into the
// folder, nor is anything else of it.
func (g *gap) refusesTampered() {
	g.t.Helper()
	raw, err := os.ReadFile(filepath.Join(g.medium, "update.tar"))
	if err != nil {
		g.t.Fatal(err)
	}
	at, size := largest(g.t, raw)
	raw[at+size/2] ^= 1
	if err := os.WriteFile(filepath.Join(g.medium, "tampered.tar"), raw, 0o644); err != nil {
		g.t.Fatal(err)
	}
	const load = "runuser -u chandler -- chandler load /mnt/tampered.tar /var/lib/chandler/artifacts"
	before := g.Must("sha256sum /var/lib/chandler/artifacts/index.json")
	if out, err := g.Run(load); err == nil || !strings.Contains(out, "DigestMismatch") {
		g.t.Errorf("a tampered archive: %v\n%s", err, out)
	}
	if after := g.Must("sha256sum /var/lib/chandler/artifacts/index.json"); after != before {
		g.t.Error("a tampered archive changed the folder")
	}
}

// largest finds where the largest file in a tar lies.
func largest(t *testing.T, raw []byte) (at, size int64) {
	t.Helper()
	in := bytes.NewReader(raw)
	files := tar.NewReader(in)
	for {
		h, err := files.Next()
		if err == io.EOF {
			return at, size
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Size > size {
			at, size = int64(len(raw)-in.Len()), h.Size
		}
	}
}

// refusesUnsigned: an archive that is whole, of somebody who has not the key, is loaded,
// and comes to no proxy.
func (g *gap) refusesUnsigned() {
	g.t.Helper()
	g.publish("auth:v3", module.Deny(418))
	g.outside("chandler save registry.example/team/auth:v3 -o /mnt/unsigned.tar")
	apply := "sed 's#url: .*#url: oci://registry.example/team/auth:v3#' /opt/chandler/*/basic-auth.yaml >/tmp/v3.yaml && " + asRoot + "chandler apply -f /tmp/v3.yaml"
	g.Must("install -m 0644 /mnt/unsigned.tar /tmp && runuser -u chandler -- chandler load /tmp/unsigned.tar /var/lib/chandler/artifacts")
	g.Must(strings.NewReplacer(g.world.Names...).Replace(apply))
	g.until(asRoot+"chandler describe wasmplugin basic-auth -n istio-system", func(out string, _ error) bool { return strings.Contains(out, "SigMissing") }, "refused for want of a signature")
	if out, err := g.Run(asRoot + "chandler status"); err == nil {
		g.t.Errorf("the status says that all is well:\n%s", out)
	}
	g.Must(strings.NewReplacer(g.world.Names...).Replace(strings.ReplaceAll(apply, "v3", "v2")))
	g.truthful()
}

// askedNobody: no packet was meant for another machine, and no name was looked up: in the
// kernel's counters, which see both when they are tried.
func (g *gap) askedNobody() {
	g.t.Helper()
	if out := g.Must("ls /sys/class/net"); strings.TrimSpace(out) != "lo" {
		g.t.Errorf("interfaces: %s", out)
	}
	if n := g.counted(); n != 0 {
		g.t.Errorf("%d packets were meant for other machines, or for a name server:\n%s", n, g.Must("journalctl --no-pager -u chandler -u chandler-agent | tail -n 100"))
	}
	for _, try := range []string{"curl -s -m 5 http://192.0.2.1/", "curl -s -m 5 http://name.example/"} {
		before := g.counted()
		if _, err := g.Run(try); err == nil || g.counted() == before {
			g.t.Errorf("%s is not noticed", try)
		}
	}
}

var outward = regexp.MustCompile(`(?m)^(?:IpOutNoRoutes|Ip6OutNoRoutes|UdpNoPorts|Udp6NoPorts)\s+(\d+)`)

// counted is what the machine's kernel counted of what goes out, and of questions to a
// name server that is not there.
func (g *gap) counted() (n int) {
	g.t.Helper()
	out := g.Must("nstat -azs IpOutNoRoutes Ip6OutNoRoutes UdpNoPorts Udp6NoPorts")
	found := outward.FindAllStringSubmatch(out, -1)
	if len(found) != 4 {
		g.t.Fatalf("the counters are not all there:\n%s", out)
	}
	for _, f := range found {
		c, err := strconv.Atoi(f[1])
		if err != nil {
			g.t.Fatal(err)
		}
		n += c
	}
	return n
}

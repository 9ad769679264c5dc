//go:build linux && dist

// Package dist_test runs docs/install.md with what "make dist" made, on a machine of its
// own, and looks at what an upgrade and a removal do to an Envoy that serves.
package dist_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"chandler.dev/chandler/internal/testenv/machine"
	"chandler.dev/chandler/internal/testenv/pages"
	"chandler.dev/chandler/internal/testenv/registry"
)

// The release on the machine.
const folder = "/root/release"

// release is what "make dist" left.
type release struct {
	t          *testing.T
	root, dist string
	version    string
	names      []string // those of the page, and those of this release
}

func newRelease(t *testing.T) *release {
	t.Helper()
	root, err := pages.Root()
	if err != nil {
		t.Fatal(err)
	}
	r := &release{t: t, root: root, dist: filepath.Join(root, "dist")}
	archive := r.find("chandler-*-linux-" + runtime.GOARCH + ".tar.gz")
	r.version = strings.TrimSuffix(strings.TrimPrefix(archive, "chandler-"), "-linux-"+runtime.GOARCH+".tar.gz")
	return r
}

// has says what a file of the page is called in this release.
func (r *release) has(name, pattern string) (found string) {
	r.t.Helper()
	machine := map[string]string{"amd64": "x86_64", "arm64": "aarch64"}[runtime.GOARCH] // as rpms say it
	found = r.find(strings.NewReplacer("VERSION", r.version, "ARCH", runtime.GOARCH, "MACHINE", machine).Replace(pattern))
	r.names = append(r.names, name, found)
	return found
}

// find gives the name of the one file of the release that a pattern is for.
func (r *release) find(pattern string) string {
	r.t.Helper()
	found, err := filepath.Glob(filepath.Join(r.dist, pattern))
	if err != nil || len(found) != 1 {
		r.t.Fatalf("%s: %q, %v; make test-dist makes one", pattern, found, err)
	}
	return filepath.Base(found[0])
}

// outside is a shell in the folder of the release, with programs of this tree.
func (r *release) outside(env ...string) *pages.Shell {
	path := "PATH=" + filepath.Join(r.root, "bin") + ":" + filepath.Join(r.root, ".tools") + ":" + os.Getenv("PATH")
	return &pages.Shell{Dir: r.dist, Env: append(append(os.Environ(), path), env...)}
}

// place is a machine with a release on it.
type place struct {
	*release
	*machine.Machine
}

func newPlace(t *testing.T) *place {
	t.Helper()
	p := &place{release: newRelease(t), Machine: machine.Start(t, machine.Config{Name: "site"})}
	for name, pattern := range map[string]string{
		"chandler_0.3.0_amd64.deb": "chandler_*_ARCH.deb", "chandler-agent_0.3.0_amd64.deb": "chandler-agent_*_ARCH.deb",
		"chandler-0.3.0-1.x86_64.rpm": "chandler-[0-9]*.MACHINE.rpm", "chandler-agent-0.3.0-1.x86_64.rpm": "chandler-agent-[0-9]*.MACHINE.rpm", "chandler-0.3.0-linux-amd64.tar.gz": "chandler-VERSION-linux-ARCH.tar.gz",
		"chandler-0.3.0-image.tar": "chandler-VERSION-image.tar", "chandler-bookinfo-0.3.0-image.tar": "chandler-bookinfo-VERSION-image.tar",
	} {
		found := p.has(name, pattern)
		p.Put(filepath.Join(p.dist, found), folder+"/"+found)
	}
	p.names = append(p.names, "chandler-0.3.0-linux-amd64", "chandler-"+p.version+"-linux-"+runtime.GOARCH)
	for _, name := range []string{"SHA256SUMS", "SHA256SUMS.sig", "cosign.pub"} {
		p.Put(filepath.Join(p.dist, name), folder+"/"+name)
	}
	p.Put(filepath.Join(p.root, ".tools/cosign"), "/usr/local/bin/cosign")
	p.Put(filepath.Join(p.root, ".tools/envoy"), "/usr/local/bin/envoy")
	p.Put(filepath.Join(p.root, "examples/bookinfo/envoy.yaml"), "/etc/envoy/envoy.yaml")
	return p
}

// here is a word of the page as it is in this release.
func (p *place) here(word string) string { return strings.NewReplacer(p.names...).Replace(word) }

func TestInstallPage(t *testing.T) {
	p := newPlace(t)
	images, err := registry.Start(registry.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(images.Close)
	shell := p.Shell()
	world := &pages.World{
		Shells: map[string]*pages.Shell{
			"": {Command: append(shell[:len(shell)-1:len(shell)-1], "sh", "-c", "cd "+folder+" && exec sh")},
			// Images go to a registry, of which there is none on the machine.
			"outside": p.outside(),
		},
		Names: append(p.names, "registry.example", images.Addr),
		Time:  2 * time.Minute,
	}
	page := pages.Open(t, "docs/install.md")
	page.In(world, "Verify", "Packages")
	p.installed()
	page.In(world, "The archive", "Images")
	for _, name := range []string{"chandler", "chandler-bookinfo"} {
		if out, err := exec.Command("curl", "-fsS", "-H", "Accept: application/vnd.oci.image.index.v1+json", "http://"+images.Addr+"/v2/"+name+"/tags/list").CombinedOutput(); err != nil || !strings.Contains(string(out), `"tags":["`) {
			t.Errorf("%s in the registry: %v, %s", name, err, out)
		}
	}
	p.servesOn("dpkg -i "+folder+"/"+p.here("chandler-agent_0.3.0_amd64.deb"), "dpkg -r chandler-agent")
}

// The rpms do the same, with rpm's own program: there is no distribution here whose dnf
// would look for what they need.
func TestRPMsInstalled(t *testing.T) {
	p := newPlace(t)
	p.Must("rpm --install --nodeps " + folder + "/*.rpm && systemctl enable --now chandler")
	p.installed()
	p.Must("rpm --verify --nodeps chandler chandler-agent") // all files are there as the rpms have them
	if out := p.Must("rpm --query --configfiles chandler chandler-agent"); out != "/etc/chandler/serve.env\n/etc/chandler/agent.env\n" {
		t.Errorf("the administrator's are %s", out)
	}
	p.servesOn("rpm --upgrade --nodeps --replacepkgs "+folder+"/"+p.here("chandler-agent-0.3.0-1.x86_64.rpm"), "rpm --erase chandler-agent")
}

// installed: users, units and files are as the page says, and nothing runs but the control
// plane, which somebody started.
func (p *place) installed() {
	p.t.Helper()
	p.until("chandler serves", "systemctl is-active --quiet chandler && curl -fs http://127.0.0.1:9911/healthz/ready")
	for command, want := range map[string]string{
		"stat -c '%a %U %n' /etc/chandler/*.env":                                    "640 root /etc/chandler/agent.env\n640 root /etc/chandler/serve.env\n",
		"systemctl is-enabled chandler-agent chandler-agent-beside || :":            "disabled\ndisabled\n",
		"systemctl is-active chandler-agent chandler-agent-beside || :":             "inactive\ninactive\n",
		"grep -h ^ExecStart= /usr/lib/systemd/system/chandler* | cut -d' ' -f1":     "ExecStart=/usr/bin/chandler-agent\nExecStart=/usr/bin/chandler-agent\nExecStart=/usr/bin/chandler\n",
		"ps -o user:20= -C chandler":                                                "chandler\n",
		"getent group chandler-envoy | cut -d: -f1 && id -nu chandler-agent":        "chandler-envoy\nchandler-agent\n",
		"readlink /usr/bin/kubectl-chandler && kubectl-chandler version | wc -l":    "chandler\n1\n",
		"systemd-analyze verify --man=no /usr/lib/systemd/system/chandler*.service": "",
	} {
		if got := p.Must(command); got != want {
			p.t.Errorf("%s: %q, want %q", command, got, want)
		}
	}
}

// servesOn: an Envoy under the agent outlives a new package, the agent's restart and the
// package's removal.
func (p *place) servesOn(install, remove string) {
	p.t.Helper()
	archive := folder + "/" + p.here("chandler-0.3.0-linux-amd64")
	p.Must("[ -d " + archive + " ] || tar -xzf " + archive + ".tar.gz -C " + folder)
	p.Must("install -m 0755 " + archive + "/bin/bookinfo /usr/local/bin/ && systemd-run --quiet --unit bookinfo --property DynamicUser=yes /usr/local/bin/bookinfo all")
	p.Must("echo CHANDLER_AGENT_LABEL=istio=ingressgateway >/etc/chandler/agent.env && systemctl start chandler-agent")
	const serves = "curl -fs -o /dev/null http://127.0.0.1:8080/productpage"
	p.until("Envoy serves", serves)
	const envoy = "pgrep -x envoy"
	before, started := p.Must(envoy), p.Must("systemctl show -p MainPID --value chandler-agent")
	p.Must(install)
	p.Must("grep -q ingressgateway /etc/chandler/agent.env")
	if now := p.Must("systemctl show -p MainPID --value chandler-agent"); now != started {
		p.t.Errorf("the new package restarted the agent: process %s, was %s", now, started)
	}
	p.Must("systemctl restart chandler-agent")
	p.until("the agent is back", "chandler-agent status")
	p.Must(serves)
	p.Must(remove)
	p.Must("! systemctl is-active chandler-agent && " + serves)
	if now := p.Must(envoy); now != before {
		p.t.Errorf("Envoy is process %s, and was %s", now, before)
	}
}

// until waits for a command on the machine to succeed.
func (p *place) until(what, command string) {
	p.t.Helper()
	deadline := time.Now().Add(time.Minute)
	for {
		out, err := p.Run(command)
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			journal, _ := p.Run("journalctl --no-pager -n 60")
			p.t.Fatalf("%s: not within a minute: %v\n%s\n%s", what, err, out, journal)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

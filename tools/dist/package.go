package main

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/goreleaser/nfpm/v2"
	_ "github.com/goreleaser/nfpm/v2/deb"
	nfpmfiles "github.com/goreleaser/nfpm/v2/files"
	_ "github.com/goreleaser/nfpm/v2/rpm"

	"chandler.dev/chandler/tools/dist/files"
)

// formats of packages.
var formats = []string{"deb", "rpm"}

// A program that is packaged.
type packaged struct {
	name, summary, description string
	units                      []string
	envFile                    string
	// more is what else is in the package, of files of the repository.
	more map[string]string
}

var packages = []packaged{
	{
		name: "chandler", summary: "Control plane that distributes Proxy-Wasm plugins to Envoy proxies",
		description: "The control plane (chandler.service), and the command by which it is asked and by\nwhich plugins are built, tested, published and carried over air gaps.",
		units:       []string{"chandler.service"}, envFile: "serve.env",
	},
	{
		name: "chandler-agent", summary: "Agent that runs an Envoy and keeps its Proxy-Wasm plugins",
		description: "Runs an Envoy, or stands beside one, and puts plugins in force without dropping a\nrequest. Envoy itself is not in the package.",
		units:       []string{"chandler-agent.service", "chandler-agent-beside.service"}, envFile: "agent.env",
		more: map[string]string{"usr/share/doc/chandler-agent/examples/chandler-beside.conf": "deploy/systemd/chandler-beside.conf"},
	},
}

// config marks a file that is the administrator's once it is there.
const config = "etc/chandler/"

// contents are the files of a package, by where they are on a machine.
func (b *build) contents(of packaged, p platform) ([]files.File, error) {
	doc := "usr/share/doc/" + of.name + "/"
	all := []files.File{
		files.From("usr/bin/"+of.name, b.program(p, of.name), 0o755),
		files.From("usr/lib/sysusers.d/"+of.name+".conf", filepath.Join(b.root, "deploy/systemd", of.name+".sysusers.conf"), 0o644),
		files.From(config+of.envFile, filepath.Join(b.root, "tools/dist/packaging", of.envFile), 0o640),
		files.From(doc+"copyright", filepath.Join(b.root, "LICENSE"), 0o644),
		files.Text(doc+"NOTICE", b.notice),
		files.From(doc+"CHANGELOG.md", filepath.Join(b.root, "CHANGELOG.md"), 0o644),
	}
	for _, unit := range of.units {
		text, err := b.unit(unit)
		if err != nil {
			return nil, err
		}
		all = append(all, files.Text("usr/lib/systemd/system/"+unit, text))
	}
	for _, man := range b.manual {
		if name := path.Base(man.Name); owner(name) == of.name {
			all = append(all, files.Text("usr/share/man/man1/"+name, man.Text))
		}
	}
	for name, from := range of.more {
		text, err := os.ReadFile(filepath.Join(b.root, from))
		if err != nil {
			return nil, err
		}
		all = append(all, files.Text(name, packagePaths(text)))
	}
	if of.name == "chandler" {
		all = append(all, files.File{Name: "usr/bin/kubectl-chandler", Link: "chandler"}, files.File{Name: config + "plugins", Dir: true, Mode: 0o755})
		where := map[string]string{"chandler.bash": "usr/share/bash-completion/completions/chandler", "_chandler": "usr/share/zsh/site-functions/_chandler", "chandler.fish": "usr/share/fish/vendor_completions.d/chandler.fish"}
		for _, c := range b.completions {
			all = append(all, files.Text(where[c.Name], c.Text))
		}
	}
	return all, nil
}

// owner is the program that a manual page is of.
func owner(page string) string {
	for _, name := range []string{"chandler-agent", "bookinfo"} {
		if page == name+".1" {
			return name
		}
	}
	return "chandler"
}

// unit is a unit of deploy/systemd as packages have it.
func (b *build) unit(name string) ([]byte, error) {
	text, err := os.ReadFile(filepath.Join(b.root, "deploy/systemd", name))
	return packagePaths(text), err
}

// packagePaths has our programs where packages put them. Envoy's place stays.
func packagePaths(text []byte) []byte {
	return []byte(strings.ReplaceAll(string(text), "/usr/local/bin/chandler", "/usr/bin/chandler"))
}

// pack writes a package in a format to the folder, and gives its name.
func (b *build) pack(of packaged, p platform, format string) (string, error) {
	contents, err := b.contents(of, p)
	if err != nil {
		return "", err
	}
	info, err := b.describe(of, p)
	if err != nil {
		return "", err
	}
	for i, f := range contents {
		c, err := b.content(f, filepath.Join(b.scratch, format, of.name, p.String(), fmt.Sprint(i)))
		if err != nil {
			return "", err
		}
		info.Contents = append(info.Contents, c)
	}
	packager, err := nfpm.Get(format)
	if err != nil {
		return "", err
	}
	info = nfpm.WithDefaults(info)
	if err := nfpm.PrepareForPackager(info, format); err != nil {
		return "", err
	}
	name := packager.ConventionalFileName(info)
	return name, files.Create(filepath.Join(b.out, name), 0o644, func(w io.Writer) error { return packager.Package(info, w) })
}

// describe is a package without its files.
func (b *build) describe(of packaged, p platform) (*nfpm.Info, error) {
	info := &nfpm.Info{
		Name: of.name, Arch: p.Arch, Platform: p.OS, Version: b.release.Semver(), MTime: b.release.Time, Section: "net", Priority: "optional",
		Maintainer: "chandler maintainers <maintainers@chandler.dev>", Vendor: "chandler", Homepage: "https://chandler.dev", License: "Apache-2.0",
		Description: of.summary + "\n" + of.description, DisableGlobbing: true,
	}
	if before, after, ok := strings.Cut(info.Version, "-"); ok {
		info.Version, info.Prerelease = before, strings.ReplaceAll(after, "-", ".") // hyphens are rpm's own
	}
	info.RPM.Summary, info.RPM.BuildHost, info.RPM.Group = of.summary, "localhost", "System Environment/Daemons"
	info.Recommends = []string{"systemd"}
	scripts := filepath.Join(b.root, "tools/dist/packaging")
	info.Scripts = nfpm.Scripts{
		PostInstall: filepath.Join(scripts, of.name+".postinst"), PreRemove: filepath.Join(scripts, of.name+".prerm"), PostRemove: filepath.Join(scripts, "postrm"),
	}
	return info, nil
}

// content is a file as nfpm wants it: on disk, at a place in scratch where it is not.
func (b *build) content(f files.File, scratch string) (*nfpmfiles.Content, error) {
	c := &nfpmfiles.Content{Destination: "/" + f.Name, FileInfo: &nfpmfiles.ContentFileInfo{Owner: "root", Group: "root", Mode: f.Mode.Perm(), MTime: b.release.Time}}
	switch {
	case f.Dir:
		c.Type = nfpmfiles.TypeDir
		return c, nil
	case f.Link != "":
		c.Type, c.Source = nfpmfiles.TypeSymlink, f.Link
		return c, nil
	case strings.HasPrefix(f.Name, config):
		c.Type = nfpmfiles.TypeConfigNoReplace
	}
	c.Source = cmp.Or(f.From, scratch)
	if f.From == "" {
		return c, f.Write(scratch)
	}
	return c, nil
}

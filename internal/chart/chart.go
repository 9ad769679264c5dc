// Package chart renders the Helm chart of the control plane with Helm's own
// library, so that "chandler install" and Helm have one set of templates. It
// speaks to no cluster and installs nothing.
package chart

import (
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"

	"helm.sh/helm/v3/pkg/chart"
	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
	"helm.sh/helm/v3/pkg/strvals"

	"chandler.dev/chandler/deploy/helm"
)

// Options are what "helm install" would be told.
type Options struct {
	Release, Namespace string
	// Values are YAML texts; a later one wins.
	Values [][]byte
	// Set are NAME=VALUE pairs as Helm's --set reads them; they win over Values.
	Set []string
	// AppVersion is the version of the program that is installed, and so the image's tag
	// unless the values name one; empty for that in the chart.
	AppVersion string
}

// kubeVersion is that of the oldest cluster the chart is for. Nothing in the
// templates depends on it.
const kubeVersion = "v1.29.0"

// Render gives the manifests and the notes of a release. Without a cluster to look
// at, crds.mode=auto means that the definitions are in. An error is about the values,
// unless the chart itself is broken.
func Render(o Options) (manifests []byte, notes string, err error) {
	return render(o, engine.Render)
}

func render(o Options, run func(*chart.Chart, chartutil.Values) (map[string]string, error)) ([]byte, string, error) {
	c, err := load()
	if err != nil {
		return nil, "", err
	}
	if o.AppVersion != "" {
		c.Metadata.AppVersion = o.AppVersion
	}
	given := map[string]any{}
	for _, text := range o.Values {
		values, err := chartutil.ReadValues(text)
		if err != nil {
			return nil, "", fmt.Errorf("values: %w", err)
		}
		given = chartutil.CoalesceTables(values, given)
	}
	for _, set := range o.Set {
		if err := strvals.ParseInto(set, given); err != nil {
			return nil, "", fmt.Errorf("set %q: %w", set, err)
		}
	}
	capabilities := chartutil.DefaultCapabilities.Copy()
	if v, err := chartutil.ParseKubeVersion(kubeVersion); err == nil {
		capabilities.KubeVersion = *v
	}
	values, err := chartutil.ToRenderValues(c, given, chartutil.ReleaseOptions{Name: o.Release, Namespace: o.Namespace, Revision: 1, IsInstall: true}, capabilities)
	if err != nil {
		return nil, "", fmt.Errorf("values: %w", err)
	}
	files, err := run(c, values)
	if err != nil {
		return nil, "", err
	}
	return join(files)
}

// load reads the embedded chart.
func load() (*chart.Chart, error) {
	const root = "chandler"
	var files []*loader.BufferedFile
	err := fs.WalkDir(helm.Chart, root, func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := fs.ReadFile(helm.Chart, name)
		files = append(files, &loader.BufferedFile{Name: strings.TrimPrefix(name, root+"/"), Data: data})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("chart: %w", err)
	}
	return loader.LoadFiles(files)
}

// join puts the documents of all templates together, in the order of their files.
func join(files map[string]string) (manifests []byte, notes string, err error) {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(files)) {
		text := strings.TrimSpace(files[name])
		switch {
		case path.Base(name) == "NOTES.txt":
			notes = text + "\n"
		case strings.HasSuffix(name, ".yaml") && text != "":
			text = strings.TrimPrefix(text, "---\n")
			fmt.Fprintf(&b, "---\n# Source: %s\n%s\n", name, text)
		}
	}
	return []byte(b.String()), notes, nil
}

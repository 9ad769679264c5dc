//go:build linux && dist

package dist_test

import (
	"archive/tar"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"chandler.dev/chandler/internal/testenv/kube"
	"chandler.dev/chandler/internal/testenv/pages"
)

// The manifests and the packaged chart of a release, as the page says, each with an API
// server of its own: it takes all of them, they are the same objects, and what they are to
// run is an image of the release. There is no node that would run it.
func TestInstallOnKubernetes(t *testing.T) {
	r := newRelease(t)
	r.has("chandler-0.3.0.tgz", "chandler-*.tgz")
	tools := filepath.Join(r.root, ".tools")
	byHelm, byFile := kube.Start(t, tools), kube.Start(t, tools)
	home := "HOME=" + t.TempDir()
	pages.Open(t, "docs/install.md").In(&pages.World{
		Shells: map[string]*pages.Shell{
			"":             r.outside(home, "KUBECONFIG="+byHelm.Admin),
			"without Helm": r.outside(home, "KUBECONFIG="+byFile.Admin),
		},
		Names: r.names,
	})

	// Once more, for what is said to it.
	manifests := filepath.Join(r.dist, "install.yaml")
	text, err := os.ReadFile(manifests)
	if err != nil {
		t.Fatal(err)
	}
	objects := strings.Count(string(text), "\nkind: ")
	out := kubectl(t, byFile, "apply", "--server-side", "--validate=strict", "-f", manifests)
	if n := strings.Count(out, "serverside-applied"); n != objects || n < 10 || strings.Contains(out, "Warning") {
		t.Errorf("of %d objects %d are applied:\n%s", objects, n, out)
	}
	ours, theirs := installed(t, byFile), installed(t, byHelm)
	if len(ours) != objects || !slices.Equal(ours, theirs) {
		t.Errorf("%d manifests made\n%v\nand Helm\n%v", objects, ours, theirs)
	}
	images := r.images()
	for _, c := range []*kube.Cluster{byFile, byHelm} {
		const every = "jsonpath={range .items[*].spec.template.spec['initContainers','containers'][*]}{.image}{'\\n'}{end}"
		run := strings.Fields(kubectl(t, c, "get", "deployments,statefulsets,daemonsets", "-A", "-o", every))
		if len(run) == 0 {
			t.Error("nothing is to run")
		}
		for _, image := range run {
			if !slices.Contains(images, image) {
				t.Errorf("%s is to run, and the release has %v", image, images)
			}
		}
	}
}

// images are the names of those in the layouts of the release.
func (r *release) images() (names []string) {
	r.t.Helper()
	files, err := filepath.Glob(filepath.Join(r.dist, "*-image.tar"))
	if err != nil {
		r.t.Fatal(err)
	}
	for _, file := range files {
		var index struct {
			Manifests []struct{ Annotations map[string]string }
		}
		if err := json.Unmarshal(inTar(r.t, file, "index.json"), &index); err != nil || len(index.Manifests) != 1 {
			r.t.Fatalf("%s: %v, %+v", file, err, index)
		}
		notes := index.Manifests[0].Annotations
		name := notes["io.containerd.image.name"]
		if tag := notes["org.opencontainers.image.ref.name"]; !strings.HasSuffix(name, ":"+tag) || tag != r.version {
			r.t.Errorf("%s: it is %v, of version %s", file, notes, r.version)
		}
		names = append(names, name)
	}
	return names
}

// inTar gives a file of a tar.
func inTar(t *testing.T, name, member string) []byte {
	t.Helper()
	file, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for in := tar.NewReader(file); ; {
		head, err := in.Next()
		if err != nil {
			t.Fatalf("%s: no %s: %v", name, member, err)
		}
		if head.Name == member {
			text, err := io.ReadAll(in)
			if err != nil {
				t.Fatal(err)
			}
			return text
		}
	}
}

// installed are the objects of the chart in a cluster.
func installed(t *testing.T, c *kube.Cluster) []string {
	t.Helper()
	kinds := "deployments,services,serviceaccounts,roles,rolebindings,clusterroles,clusterrolebindings,networkpolicies,poddisruptionbudgets,persistentvolumeclaims"
	found := strings.Fields(kubectl(t, c, "get", kinds, "-A", "-l", "app.kubernetes.io/instance=chandler", "-o", "name"))
	found = append(found, strings.Fields(kubectl(t, c, "get", "customresourcedefinitions", "-o", "name"))...) // there are no others
	slices.Sort(found)
	return found
}

func kubectl(t *testing.T, c *kube.Cluster, args ...string) string {
	t.Helper()
	out, err := c.Kubectl(t.Context(), "", args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

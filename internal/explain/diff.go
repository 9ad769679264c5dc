package explain

import (
	"github.com/rogpeppe/go-internal/diff"
	"go.yaml.in/yaml/v3"
)

// noise are fields of an object's metadata that its author does not write.
var noise = []string{"uid", "resourceVersion", "generation", "creationTimestamp", "managedFields", "selfLink", "ownerReferences", "finalizers"}

// lastApplied is the annotation in which kubectl keeps a copy of the whole.
const lastApplied = "kubectl.kubernetes.io/last-applied-configuration"

// Diff gives the change from one text of an object to another as a unified diff; empty:
// they say the same. Comments, the order of fields, and what an API server adds count for
// nothing. A text that cannot be read is compared as it is.
func Diff(name, namespace string, before, after []byte) string {
	return string(diff.Diff("live/"+name, plain(before, namespace), "merged/"+name, plain(after, namespace)))
}

func plain(text []byte, namespace string) []byte {
	var doc map[string]any
	if err := yaml.Unmarshal(text, &doc); err != nil || doc == nil {
		return text
	}
	delete(doc, "status")
	if meta, ok := doc["metadata"].(map[string]any); ok {
		for _, field := range noise {
			delete(meta, field)
		}
		if meta["namespace"] == nil {
			meta["namespace"] = namespace
		}
		if notes, ok := meta["annotations"].(map[string]any); ok {
			delete(notes, lastApplied)
			if len(notes) == 0 {
				delete(meta, "annotations")
			}
		}
	}
	out, err := yaml.Marshal(doc)
	if err != nil {
		return text
	}
	return out
}

package config

import (
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
)

// The examples of docs/config.md are files that are taken, and every key is explained.
func TestDocs(t *testing.T) {
	t.Parallel()
	doc, err := os.ReadFile("../../docs/config.md")
	if err != nil {
		t.Fatal(err)
	}
	examples := regexp.MustCompile("(?s)```yaml\n(.*?)```").FindAllSubmatch(doc, -1)
	if len(examples) < 2 {
		t.Fatalf("%d examples", len(examples))
	}
	for _, e := range examples {
		path := filepath.Join(t.TempDir(), "chandler.yaml")
		if err := os.WriteFile(path, e[1], 0o600); err != nil {
			t.Fatal(err)
		}
		if f, err := Load(path); err != nil || reflect.DeepEqual(f, &File{inputs: f.inputs}) {
			t.Errorf("%v\n%s", err, e[1])
		}
	}
	var told []string
	keys(reflect.TypeFor[File](), func(key string) {
		if !strings.Contains(string(doc), "`"+key) && !strings.Contains(string(doc), "."+key+"`") {
			told = append(told, key)
		}
	})
	for _, key := range told {
		t.Errorf("key %s is not explained", key)
	}
}

// keys calls fn for every key that may be written.
func keys(t reflect.Type, fn func(string)) {
	switch t.Kind() {
	case reflect.Pointer, reflect.Slice:
		keys(t.Elem(), fn)
	case reflect.Struct:
		for i := range t.NumField() {
			name, options, _ := strings.Cut(t.Field(i).Tag.Get("yaml"), ",")
			if name != "" {
				fn(name)
			}
			if name != "" || options == "inline" {
				keys(t.Field(i).Type, fn)
			}
		}
	}
}

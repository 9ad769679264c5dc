package config

import (
	"encoding"
	"flag"
	"fmt"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"chandler.dev/chandler/internal/testenv/pages"
)

var update = flag.Bool("update", false, "write docs/reference/config.md anew")

// docs/reference/config.md has every key of the file, with what the code says of it.
func TestReference(t *testing.T) {
	t.Parallel()
	r := &reference{t: t, said: map[string]string{}, read: map[string]bool{}}
	r.keys("", reflect.TypeFor[File]())
	pages.Held(t, "docs/reference/config.md", `# The operator's file: all keys

Of `+"`chandler serve --config FILE`"+`. [The operator's file](../config.md) says how sections read together, with examples.
What ends in `+"`[]`"+` is a list, and stands once for each of its entries.

<!-- made from the types: go test ./internal/config -run TestReference -update -->

| key | is | |
|---|---|---|
`+r.rows.String(), *update)
}

// reference collects the rows of the keys below a type.
type reference struct {
	t    *testing.T
	rows strings.Builder
	said map[string]string // by package, type and field
	read map[string]bool
}

func (r *reference) keys(at string, t reflect.Type) {
	for i := range t.NumField() {
		f := t.Field(i)
		name, options, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		if options == "inline" {
			r.keys(at, f.Type)
		}
		if name == "" {
			continue
		}
		kind, below := word(f.Type)
		key, _ := strings.CutPrefix(at+"."+name, ".")
		if f.Type.Kind() == reflect.Slice && below != nil {
			key += "[]"
		}
		said := r.comment(t, f.Name)
		if said == "" {
			r.t.Errorf("%s: %s.%s has no comment", key, t, f.Name)
		}
		fmt.Fprintf(&r.rows, "| `%s` | %s | %s |\n", key, kind, strings.ReplaceAll(said, "|", `\|`))
		if below != nil {
			r.keys(key, below)
		}
	}
}

// word says what a value is, and what there is below it.
func word(t reflect.Type) (is string, below reflect.Type) {
	switch {
	case t == reflect.TypeFor[time.Duration]():
		return "duration", nil
	case reflect.PointerTo(t).Implements(reflect.TypeFor[encoding.TextUnmarshaler]()):
		return "text", nil
	case t.Kind() == reflect.Pointer:
		return word(t.Elem())
	case t.Kind() == reflect.Slice:
		is, below = word(t.Elem())
		if below != nil {
			return "object", below
		}
		return "list of " + is, nil
	case t.Kind() == reflect.Map:
		is, _ = word(t.Elem())
		return is + " by name", nil
	case t.Kind() == reflect.Struct:
		return "object", t
	case t.Kind() == reflect.Bool:
		return "true or false", nil
	case t.Kind() == reflect.String:
		return "text", nil
	}
	return "number", nil
}

// comment is what the code says of a field.
func (r *reference) comment(t reflect.Type, field string) string {
	r.t.Helper()
	dir, ok := strings.CutPrefix(t.PkgPath(), "chandler.dev/chandler/")
	if !ok {
		r.t.Fatalf("%s is of %s", t, t.PkgPath())
	}
	if !r.read[dir] {
		r.read[dir] = true
		files, err := filepath.Glob(filepath.Join("..", "..", dir, "*.go"))
		if err != nil {
			r.t.Fatal(err)
		}
		for _, file := range files {
			all, err := pages.Comments(file)
			if err != nil {
				r.t.Fatal(err)
			}
			for _, s := range all {
				r.said[dir+"."+s.Name] = s.Comment
			}
		}
	}
	return r.said[dir+"."+t.Name()+"."+field]
}

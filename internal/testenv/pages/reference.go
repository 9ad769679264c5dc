package pages

import (
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// Held compares a page with what the code makes of it, or writes it.
func Held(t testing.TB, page, text string, write bool) {
	t.Helper()
	root, err := Root()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(root, filepath.FromSlash(page))
	if write {
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
		return
	}
	if is, err := os.ReadFile(file); err != nil || string(is) != text {
		t.Errorf("%s is not what the code says (%v); run the test with -update", page, err)
	}
}

// Said is what the code says of a name: its comment, in one line, and of a constant its
// value and the comment of all that are declared with it.
type Said struct{ Name, Value, Comment, Group string }

// Comments gives, in the order of the file, the constants of a Go file ("Name") and the
// fields of its types ("Type.Name").
func Comments(file string) (all []Said, err error) {
	f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return nil, err
	}
	for _, d := range f.Decls {
		decl, ok := d.(*ast.GenDecl)
		if !ok {
			continue
		}
		for _, spec := range decl.Specs {
			switch spec := spec.(type) {
			case *ast.ValueSpec:
				for i, name := range spec.Names {
					all = append(all, Said{name.Name, literal(spec, i), oneLine(spec.Doc, spec.Comment), oneLine(decl.Doc)})
				}
			case *ast.TypeSpec:
				if s, ok := spec.Type.(*ast.StructType); ok {
					for _, field := range s.Fields.List {
						for _, name := range field.Names {
							all = append(all, Said{Name: spec.Name.Name + "." + name.Name, Comment: oneLine(field.Doc, field.Comment)})
						}
					}
				}
			}
		}
	}
	return all, nil
}

func literal(spec *ast.ValueSpec, i int) string {
	if i < len(spec.Values) {
		if lit, ok := spec.Values[i].(*ast.BasicLit); ok && lit.Kind == token.STRING {
			value, _ := strconv.Unquote(lit.Value) // the parser has seen to it
			return value
		}
	}
	return ""
}

func oneLine(comments ...*ast.CommentGroup) string {
	for _, c := range comments {
		if text := strings.Join(strings.Fields(c.Text()), " "); text != "" {
			return text
		}
	}
	return ""
}

package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"chandler.dev/chandler/internal/author/suite"
	"chandler.dev/chandler/internal/schema"
)

// unsaid are configurations that a sample plugin refuses and its schema takes: what JSON
// Schema has no words for.
var unsaid = map[string]bool{
	"ratelimit/two limits of one name would share their buckets": true,
	"ratelimit/more than a day":                                  true,
	"jsonguard/what is required cannot be there":                 true,
}

// TestSchemasOfPlugins holds the schemas of the sample plugins against their suites: a
// schema takes the configurations that the plugin takes, and refuses those that it refuses.
func TestSchemasOfPlugins(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("../../plugins/*/config.schema.json")
	if err != nil || len(files) < 5 {
		t.Fatalf("%v %v", files, err)
	}
	for _, file := range files {
		dir := filepath.Dir(file)
		t.Run(filepath.Base(dir), func(t *testing.T) {
			t.Parallel()
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			s, problem := schema.Compile(text)
			if problem != nil {
				t.Fatal(problem)
			}
			f, err := suite.Load(filepath.Join(dir, suite.FileName))
			if err != nil {
				t.Fatal(err)
			}
			refused := map[string]bool{}
			for i := range f.Configure {
				refused["configure/"+f.Configure[i].Name] = !f.Configure[i].Accepted
			}
			for _, test := range f.Tests() {
				checkSchema(t, s, filepath.Base(dir)+"/"+strings.TrimPrefix(test.Name, "configure/"), test.Setup.Config, refused[test.Name])
			}
		})
	}
}

func checkSchema(t *testing.T, s *schema.Schema, name string, config []byte, refused bool) {
	t.Helper()
	var object map[string]any
	if json.Unmarshal(config, &object) != nil {
		return // it is no resource's pluginConfig
	}
	problems, err := s.Check(schema.Config{Whole: config})
	switch {
	case err != nil:
		t.Errorf("%s: %v", name, err)
	case !refused && len(problems) > 0:
		t.Errorf("%s: the schema refuses what the plugin takes: %v", name, problems)
	case refused && len(problems) == 0 && !unsaid[name]:
		t.Errorf("%s: the schema takes what the plugin refuses: %s", name, config)
	case refused && len(problems) > 0 && unsaid[name]:
		t.Errorf("%s: the schema does say it", name)
	}
}

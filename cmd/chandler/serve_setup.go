package main

import (
	"os"
	"regexp"
	"runtime"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/types/known/timestamppb"

	"chandler.dev/chandler"
	chandlerv1 "chandler.dev/chandler/api/chandler/v1"
	"chandler.dev/chandler/internal/source"
)

// maxSetup bounds the operator's file in what is told of the set-up.
const maxSetup = 256 << 10

// givenFlags are the flags that were said, as they would be said again. None holds a
// secret but a URL with one in it, of which that is left out.
func givenFlags(flags *pflag.FlagSet) []string {
	var given []string
	flags.Visit(func(f *pflag.Flag) {
		given = append(given, "--"+f.Name+"="+chandler.Printable(withoutUser.ReplaceAllString(f.Value.String(), "://<redacted>@"), 4096))
	})
	return given
}

var withoutUser = regexp.MustCompile(`://[^/@\s]*@`)

// setup says how the control plane was set up, as it is when asked.
func (op *operator) setup(flags []string, started time.Time) func() *chandlerv1.GetSetupResponse {
	return func() *chandlerv1.GetSetupResponse {
		return &chandlerv1.GetSetupResponse{
			Version: version, GoVersion: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH,
			Started: timestamppb.New(started), Flags: flags, Config: op.text(),
		}
	}
}

// text is the operator's file, without comments and without hashes of tokens, as a short
// token could be found by trying.
func (op *operator) text() string {
	if op.path == "" {
		return ""
	}
	b, err := os.ReadFile(op.path)
	if err != nil {
		return "# " + err.Error() + "\n"
	}
	if len(b) > maxSetup {
		return "# the file has more than 256 KiB\n"
	}
	var doc any
	if err := yaml.Unmarshal(b, &doc); err != nil {
		return "# the file cannot be read as YAML\n"
	}
	if b, err = yaml.Marshal(withoutHashes(doc)); err != nil {
		return "# " + err.Error() + "\n"
	}
	return withoutUser.ReplaceAllString(string(b), "://<redacted>@")
}

func withoutHashes(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for name, value := range v {
			if strings.EqualFold(name, "tokenSHA256") {
				v[name] = source.Redacted
			} else {
				v[name] = withoutHashes(value)
			}
		}
	case []any:
		for i := range v {
			v[i] = withoutHashes(v[i])
		}
	}
	return v
}

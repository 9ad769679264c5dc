package pages

import (
	"reflect"
	"testing"
)

func TestCommandsOfAPage(t *testing.T) {
	t.Parallel()
	page := "Say `prog get [KIND [NAME]]`, or `prog rm NAME [--now \\| --then]`;\nnot `progress x`.\n" +
		"```sh\nA=1 sudo ./bin/prog run --why 'it is; so' \\\n  -x   # prog no\nother | prog apply -f - 2>out.txt\nx=$(prog id) && kubectl prog nodes\nprog serve &\n```\n" +
		"```console\n$ prog status\nprog is well\n```\n```yaml\nprog: no\n```\n"
	want := [][]string{
		{"run", "--why", "it is; so", "-x"}, {"apply", "-f", "-"}, {"id"}, {"serve"}, {"status"}, {"get", "KIND", "NAME"}, {"rm", "NAME", "--now", "--then"},
	}
	if got := of(page, []string{"prog"}); !reflect.DeepEqual(got, want) {
		t.Errorf("got %q\nwant %q", got, want)
	}
	if got := of(page, []string{"kubectl", "prog"}); !reflect.DeepEqual(got, [][]string{{"nodes"}}) {
		t.Errorf("of two words: %q", got)
	}
}

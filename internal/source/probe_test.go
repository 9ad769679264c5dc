package source_test

import (
	"strings"
	"testing"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/source"
)

func probed(annotation string) source.Document {
	doc := strings.Replace(wasmPlugin("url: a"), "  name: p\n", "  name: p\n  annotations:\n    chandler.dev/probe: '"+annotation+"'\n", 1)
	return source.Decode([]byte(doc), "ns")[0]
}

func TestProbe(t *testing.T) {
	t.Parallel()
	d := probed(`{"request":{"method":"POST","path":"/productpage?x=1","headers":{"Authorization":"Basic x",":authority":"shop"}},"expect":{"status":401}}`)
	if d.Plugin == nil || len(d.Plugin.Probes) != 1 || len(d.Warnings) != 0 {
		t.Fatalf("%+v", d)
	}
	if p := d.Plugin.Probes[0]; p.Method != "POST" || p.Path != "/productpage?x=1" || p.Status != 401 || p.Allowed != nil || p.Headers[":authority"] != "shop" || p.Headers["Authorization"] != "Basic x" {
		t.Errorf("%+v", p)
	}
	d = probed(`[{"request":{"path":"/"},"expect":{"allowed":false}},{"request":{},"expect":{"allowed":true}}]`)
	if d.Plugin == nil || len(d.Plugin.Probes) != 2 || *d.Plugin.Probes[0].Allowed || !*d.Plugin.Probes[1].Allowed || d.Plugin.Probes[1].Method != "GET" {
		t.Errorf("%+v", d)
	}
}

// Mistakes are told of the annotation, with the place in it.
func TestProbeMistakes(t *testing.T) {
	t.Parallel()
	for annotation, want := range map[string]string{
		`{`: "",
		`{"request":{"path":"x"},"expect":{"status":401}}`:     `request.path: path "x" is none`,
		`{"request":{"pth":"/"},"expect":{"status":401}}`:      `request.pth: unknown field "pth"`,
		`{"request":{"method":"get"},"expect":{"status":401}}`: `request.method: method "get" cannot be asked with`,
		`{"request":{}}`:                                                 `expect: expect is required`,
		`{"expect":{"status":401}}`:                                      `request: request is required`,
		`{"request":{},"expect":{}}`:                                     `expect: one of status and allowed is to be expected`,
		`{"request":{},"expect":{"status":401,"allowed":false}}`:         `expect: one of status and allowed is to be expected`,
		`{"request":{},"expect":{"status":99}}`:                          `expect.status: status 99 is out of range 200-599`,
		`{"request":{},"expect":{"allowed":"no"}}`:                       `expect.allowed: allowed must be a boolean, not a string`,
		`{"request":{"headers":{"a b":"c"}},"expect":{"status":401}}`:    `request.headers: "a b" is no name of a header`,
		`{"request":{"headers":{"a":"b\r\nc"}},"expect":{"status":401}}`: `request.headers.a: `,
		`[]`:                                  `0 probes`,
		`"` + strings.Repeat("x", 9000) + `"`: "9002 bytes, limit 8192",
	} {
		d := probed(annotation)
		if d.Plugin != nil || len(d.Problems) != 1 || d.Problems[0].Field != `metadata.annotations["chandler.dev/probe"]` || !strings.Contains(d.Problems[0].Message, want) {
			t.Errorf("%s: %+v", annotation, d.Problems)
		}
	}
	doc := strings.Replace(wasmPlugin("url: a\ntype: NETWORK"), "  name: p\n", "  name: p\n  annotations:\n    chandler.dev/probe: '{\"request\":{},\"expect\":{\"status\":401}}'\n", 1)
	if d := source.Decode([]byte(doc), "ns")[0]; len(d.Problems) != 1 || d.Problems[0].Code != chandler.CodeSpecValue {
		t.Errorf("NETWORK: %+v", d.Problems)
	}
}

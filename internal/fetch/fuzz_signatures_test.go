package fetch

import (
	"net/http"
	"net/url"
	"testing"
)

// FuzzSignatureList: whatever a registry says are an artifact's signatures is a
// list or refused by name, and the next page is never at another place.
func FuzzSignatureList(f *testing.F) {
	const digest = "sha256:93a44bbb96c751218e4c00d479e4c14358122a389acca16205b1e4d0dc5f9476"
	f.Add([]byte(`{"schemaVersion":2,"layers":[{"mediaType":"`+TypeSimpleSigning+`","size":8,"digest":"`+digest+`","annotations":{"a":"b"}}]}`), "")
	f.Add([]byte(`{"schemaVersion":2,"manifests":[{"artifactType":"`+TypeBundle+`","size":8,"digest":"`+digest+`"}]}`), `</v2/p/referrers/`+digest+`?n=2>; rel="next"`)
	f.Add([]byte(`{"schemaVersion":2}`), `<http://else.example/v2/p/referrers/`+digest+`?n=2>; rel=next, <x>`)
	f.Fuzz(func(t *testing.T, raw []byte, link string) {
		l, err := parseSignatureList(raw)
		named(t, err)
		if err == nil {
			for i := range l.Manifests {
				l.Manifests[i].mayBeBundle()
			}
		}
		at, err := url.Parse("https://reg.example/v2/p/referrers/" + digest)
		if err != nil {
			t.Fatal(err)
		}
		resp := &http.Response{Header: http.Header{"Link": {link}}, Request: &http.Request{URL: at}}
		next := linkNext(resp)
		query, err := nextPage(next, "referrers/"+digest)
		named(t, err)
		if query != "" && (next.Host != "reg.example" || next.Scheme != "https") {
			t.Fatalf("%q leads to %s", link, next)
		}
	})
}

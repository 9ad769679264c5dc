package fetch

import (
	"bytes"
	"reflect"
	"testing"
)

// FuzzLabels: documents that are pushed come back as they were, whatever they are;
// and what a stranger's configuration has for labels fits into it.
func FuzzLabels(f *testing.F) {
	f.Add([]byte(`{"config":{"Labels":{"dev.chandler.schema":"{}","a":"b"}}}`), []byte("# \u2028<b>\x00"))
	f.Add([]byte(`{"config":{"Labels":["a"]}}`), []byte("\xff"))
	f.Add([]byte(`{"config":{"labels":{"a":"b"}},"Config":{}}`), []byte(" "))
	f.Fuzz(func(t *testing.T, config, document []byte) {
		size := 0
		for k, v := range labelsIn(config) {
			size += len(k) + len(v)
		}
		if size > 3*len(config) { // what is not UTF-8 becomes a mark of three bytes, and is refused before
			t.Fatalf("%d bytes of labels in %d", size, len(config))
		}
		a, err := pack([]byte("\x00asm"), PushOptions{Documents: Documents{Readme: document}})
		if err != nil {
			return
		}
		var want map[string]string
		if len(bytes.TrimSpace(document)) > 0 {
			want = map[string]string{LabelReadme: string(document)}
		}
		if got := labelsIn(a.blobs[0].content); !reflect.DeepEqual(got, want) {
			t.Fatalf("got %q, want %q", got, want)
		}
	})
}

//go:build devserve

package dashboard

import (
	"net/http"
	"testing"
)

func TestServeDev(t *testing.T) {
	srv := func(addr string, f *fakeFleet) {
		h := New(configOf(f, admin))
		http.ListenAndServe(addr, h)
	}
	go srv("127.0.0.1:9871", told(t, 12, 6))
	srv("127.0.0.1:9872", told(t, 1000, 20))
}

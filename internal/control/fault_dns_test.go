package control_test

import (
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/fetch"
	"chandler.dev/chandler/internal/testenv/dns"
	"chandler.dev/chandler/internal/testenv/module"
)

// A name that does not resolve is tried again until it does. One that leads to where
// nothing may be fetched from is refused, in words, and not asked for every moment.
func TestFault_F42_NamesInTheControlPlane(t *testing.T) {
	names, err := dns.Start()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(names.Close)
	files := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Write(module.Append()) }))
	t.Cleanup(files.Close)
	_, port, _ := net.SplitHostPort(files.Listener.Addr().String())
	client := fetch.New(fetch.Config{
		Dir: t.TempDir(), Resolver: names.Resolver(), IdleTimeout: time.Second,
		Deny: []netip.Prefix{netip.MustParsePrefix("127.0.0.2/32")},
	})
	t.Cleanup(client.Close)
	r := newRig(t)
	r.fetcher = client
	r.restart()

	names.Set("slow.example", dns.Answer{Silent: true})
	names.Set("inside.example", dns.At("127.0.0.2"))
	a := r.join(gateway)
	begun := time.Now()
	for name, host := range map[string]string{"gone": "gone.example", "slow": "slow.example", "inside": "inside.example"} {
		r.put(name, "http://"+host+":"+port+"/x.wasm", nil)
	}
	r.deliver()
	tries := func(name string, least uint32) func() bool {
		return func() bool { return r.status(name).Attempt >= least }
	}
	show := func(name string) func() string {
		return func() string { return r.status(name).Conditions[1].Message }
	}
	for _, name := range []string{"gone", "slow"} {
		eventually(t, tries(name, 3), show(name))
		r.await(name, chandler.ConditionResolvedRefs, "False FetchFailed")
		if next := time.Until(r.status(name).NextTry); next > 3*time.Second {
			t.Errorf("%s is tried again after %s", name, next)
		}
	}
	r.await("inside", chandler.ConditionResolvedRefs, "False EgressDenied")
	if m := show("inside")(); !strings.Contains(m, "the host resolves to 127.0.0.2 (of 127.0.0.2/32, which is denied)") {
		t.Errorf("status says %q", m)
	}

	began := time.Now()
	names.Set("gone.example", dns.At("127.0.0.1"))
	names.Set("slow.example", dns.At("127.0.0.1"))
	for _, name := range []string{"gone", "slow"} {
		a.has(name, runs(module.Append()))
	}
	t.Logf("attached %s after the names resolved", time.Since(began).Round(time.Millisecond))
	// The pauses are of half a second at least, and each is twice the one before.
	n := r.status("inside").Attempt
	if took := time.Since(begun); took < (1<<(n-1)-1)*time.Second/2 {
		t.Errorf("what is refused was tried %d times in %v", n, took)
	}
}

package fetch

import (
	"net/url"
	"strings"
	"testing"
)

// FuzzChallenge: whatever a registry says of how it wants to be convinced, a
// password goes over TLS and to its own domain alone.
func FuzzChallenge(f *testing.F) {
	f.Add(`Bearer realm="https://auth.corp.example/token",service="s",scope="repository:a:pull"`)
	f.Add(`Basic realm="a\"b", Negotiate abc==, BEARER Realm = https://corp.example/x , realm=y`)
	c := New(Config{Insecure: func(string) bool { return true }})
	f.Cleanup(c.Close)
	f.Fuzz(func(t *testing.T, line string) {
		all := parseChallenges(line)
		if len(all) > maxChallenges {
			t.Fatalf("%d challenges", len(all))
		}
		for _, ch := range all {
			if len(ch.params) > maxParams || ch.scheme != strings.ToLower(ch.scheme) {
				t.Fatalf("%+v", ch)
			}
			for _, registry := range []string{"https://registry.corp.example", "http://registry.corp.example:5000", "https://10.1.2.3"} {
				at, err := url.Parse(registry)
				if err != nil {
					t.Fatal(err)
				}
				realm, err := url.Parse(ch.params["realm"])
				if err != nil {
					continue
				}
				err = c.checkRealm(at, realm, true)
				named(t, err)
				host := strings.ToLower(realm.Hostname())
				own := host == at.Hostname() || at.Hostname() != "10.1.2.3" && (host == "corp.example" || strings.HasSuffix(host, ".corp.example"))
				if err == nil && (realm.Scheme != "https" || !own || realm.User != nil) {
					t.Fatalf("a password for %s goes to %s", registry, realm)
				}
			}
		}
	})
}

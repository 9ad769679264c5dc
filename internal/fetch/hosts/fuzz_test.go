package hosts

import (
	"net/http"
	"strings"
	"testing"
)

// FuzzHosts: whatever a hosts.toml says is endpoints that can be asked, or refused.
func FuzzHosts(f *testing.F) {
	f.Add("server = \"https://x\"\n[host.\"http://m:5000/a\"]\ncapabilities=[\"pull\"]\noverride_path=true\n[header]\na=[\"b\"]")
	f.Add("ca = [\"a\"]\nclient = [[\"a\",\"b\"],\"c\"]\nskip_verify=true\ndial_timeout=\"1s\"\nproxy=\"socks5://p\"")
	f.Fuzz(func(t *testing.T, text string) {
		c, err := parse([]byte(text))
		if err != nil {
			if len(err.Error()) > 4096 || strings.ContainsAny(err.Error(), "\x00\x1b\n") {
				t.Fatalf("not fit to be shown: %q", err)
			}
			return
		}
		for _, e := range c.endpoints("reg.example") {
			if e.Scheme == "" {
				e.Scheme = "https"
			}
			if _, err := http.NewRequest(http.MethodGet, e.Scheme+"://"+e.Host+e.Path+"/x", nil); err != nil {
				t.Fatalf("%+v: %v", e, err)
			}
		}
	})
}

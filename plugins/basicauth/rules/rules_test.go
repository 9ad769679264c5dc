package rules

import "testing"

func mustParse(t *testing.T, configuration string) *Rules {
	t.Helper()
	r, err := Parse([]byte(configuration))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

const (
	userPass = "Basic dTpw"             // u:p
	admin    = "Basic YWRtaW46YWRtaW4=" // admin:admin
)

// TestRequest has a test for each rule of matching and of credentials. A request
// that should be guarded brings no credentials, and the decision says whether it was.
func TestRequest(t *testing.T) {
	t.Parallel()
	type request struct {
		method, authority, path, authorization string
		want                                   Decision
	}
	get := func(path string, want Decision) request { return request{"GET", "h", path, "", want} }
	on := func(authority string, want Decision) request { return request{"GET", authority, "/", "", want} }
	with := func(authorization string, want Decision) request {
		return request{"GET", "h", "/", authorization, want}
	}
	hosts := func(list string) string { return oneRule(`"prefix":"/","hosts":` + list) }
	for _, c := range []struct {
		rule, configuration string
		requests            []request
	}{
		{"no configuration guards nothing", ``, []request{get("/", Pass)}},
		{"no rules guard nothing", `{"realm":"x"}`, []request{get("/", Pass)}},

		{"method: each that is listed", oneRule(`"prefix":"/","request_methods":["GET","POST","GET"]`), []request{
			{"GET", "h", "/", "", NoCredentials}, {"POST", "h", "/", "", NoCredentials}, {"PUT", "h", "/", "", Pass}}},
		{"method: HEAD is not GET", oneRule(`"prefix":"/"`), []request{{"HEAD", "h", "/", "", Pass}}},
		{"method: case-sensitive", oneRule(`"prefix":"/"`), []request{{"get", "h", "/", "", Pass}}},
		{"method: a star is a character", oneRule(`"prefix":"/","request_methods":["*"]`), []request{get("/", Pass)}},

		{"hosts: absent means all", oneRule(`"prefix":"/"`), []request{on("a", NoCredentials), on("", NoCredentials)}},
		{"hosts: empty means all", hosts(`[]`), []request{on("a", NoCredentials), on("", NoCredentials)}},
		{"hosts: equality", hosts(`["a.io"]`), []request{on("a.io", NoCredentials), on("xa.io", Pass), on("a.iox", Pass), on("", Pass)}},
		{"hosts: any of them", hosts(`["a","b"]`), []request{on("a", NoCredentials), on("b", NoCredentials), on("c", Pass)}},
		{"hosts: case-sensitive", hosts(`["a.io"]`), []request{on("A.io", Pass)}},
		{"hosts: leading star, a suffix", hosts(`["*.cdn.io"]`), []request{on("x.cdn.io", NoCredentials), on("x.y.cdn.io:1", NoCredentials), on("cdn.io", Pass), on("xcdn.io", Pass)}},
		{"hosts: trailing star, a prefix", hosts(`["api.*"]`), []request{on("api.io", NoCredentials), on("api.", NoCredentials), on("api", Pass), on("x.api.io", Pass)}},
		{"hosts: star alone, all", hosts(`["*"]`), []request{on("a", NoCredentials), on("", NoCredentials)}},
		{"hosts: stars at both ends, only the leading one counts", hosts(`["*a*"]`), []request{on("xa*", NoCredentials), on("xax", Pass)}},
		{"hosts: star in the middle, a character", hosts(`["a*b"]`), []request{on("a*b", NoCredentials), on("axb", Pass)}},
		{"host: without its port", hosts(`["a.io"]`), []request{on("a.io:8080", NoCredentials), on("a.io:", NoCredentials), on("a.io:x", NoCredentials)}},
		{"host: a port in the pattern never matches", hosts(`["a.io:80"]`), []request{on("a.io:80", Pass), on("a.io", Pass)}},
		{"host: colons in brackets are left alone", hosts(`["[::1]"]`), []request{on("[::1]", NoCredentials), on("[::1]:80", NoCredentials), on("[::2]", Pass)}},

		{"path: prefix without segment boundary", oneRule(`"prefix":"/api"`), []request{
			get("/api", NoCredentials), get("/api/x", NoCredentials), get("/apifoo", NoCredentials), get("/api?x=1", NoCredentials), get("/ap", Pass), get("/x/api", Pass)}},
		{"path: exact, which a query defeats", oneRule(`"exact":"/a"`), []request{get("/a", NoCredentials), get("/a/", Pass), get("/a?x=1", Pass), get("/a?", Pass)}},
		{"path: exact with a query of its own", oneRule(`"exact":"/a?x=1"`), []request{get("/a?x=1", NoCredentials), get("/a", Pass)}},
		{"path: suffix, which a query defeats", oneRule(`"suffix":".php"`), []request{get("/a.php", NoCredentials), get("/a.php?x=1", Pass), get("/a?b=.php", NoCredentials)}},
		{"path: case-sensitive", oneRule(`"prefix":"/api"`), []request{get("/API", Pass)}},
		{"path: not normalised", oneRule(`"prefix":"/api"`), []request{get("//api", Pass), get("/x/../api", Pass), get("/%61pi", Pass)}},
		{"path: absent", oneRule(`"prefix":"/"`), []request{get("", Pass)}},

		{"credentials: plain is encoded", credential(`"admin:admin"`), []request{with(admin, Pass), with("Basic admin:admin", BadCredentials)}},
		{"credentials: encoded is kept", credential(`"YWRtaW46YWRtaW4="`), []request{with(admin, Pass)}},
		{"credentials: encoded without padding is kept literally", credential(`"YWRtaW4"`), []request{with("Basic YWRtaW4", Pass), with("Basic YWRtaW4=", BadCredentials)}},
		{"credentials: a colon alone", credential(`":"`), []request{with("Basic Og==", Pass), with("Basic ", BadCredentials)}},
		{"credentials: more than one colon", credential(`"a:b:c"`), []request{with("Basic YTpiOmM=", Pass)}},
		{"credentials: beyond ASCII", credential(`"\u00e9:p"`), []request{with("Basic w6k6cA==", Pass)}},
		{"credentials: any of them", credential(`"admin:admin","u:p"`), []request{with(admin, Pass), with(userPass, Pass), with("Basic eDp5", BadCredentials)}},
		{"header: absent", oneRule(`"prefix":"/"`), []request{with("", NoCredentials)}},
		{"header: another scheme", oneRule(`"prefix":"/"`), []request{with("Bearer dTpw", NoCredentials)}},
		{"header: the scheme in another case", oneRule(`"prefix":"/"`), []request{with("basic dTpw", NoCredentials), with("BASIC dTpw", NoCredentials)}},
		{"header: the scheme alone", oneRule(`"prefix":"/"`), []request{with("Basic", NoCredentials)}},
		{"header: no space", oneRule(`"prefix":"/"`), []request{with("BasicdTpw", NoCredentials)}},
		{"header: two spaces", oneRule(`"prefix":"/"`), []request{with("Basic  dTpw", BadCredentials)}},
		{"header: missing padding", credential(`"admin:admin"`), []request{with("Basic YWRtaW46YWRtaW4", BadCredentials)}},
		{"header: something behind", oneRule(`"prefix":"/"`), []request{with("Basic dTpw ", BadCredentials), with("Basic dTpw,Basic dTpw", BadCredentials)}},
		{"header: byte for byte", oneRule(`"prefix":"/"`), []request{with("Basic DTPW", BadCredentials), with(userPass, Pass)}},
	} {
		t.Run(c.rule, func(t *testing.T) {
			t.Parallel()
			rules := mustParse(t, c.configuration)
			for _, q := range c.requests {
				if got := rules.Decide(q.method, q.authority, q.path, q.authorization); got != q.want {
					t.Errorf("%q %q %q %q: %q, want %q", q.method, q.authority, q.path, q.authorization, got, q.want)
				}
			}
		})
	}
}

func TestEveryMatchingRuleMustBeSatisfied(t *testing.T) {
	t.Parallel()
	rules := mustParse(t, `{"basic_auth_rules":[
		{"prefix":"/","hosts":["other"],"request_methods":["GET"],"credentials":["x:y"]},
		{"prefix":"/a","request_methods":["GET","POST"],"credentials":["u:p","admin:admin"]},
		{"suffix":"/b","request_methods":["GET"],"credentials":["admin:admin"]}]}`)
	for _, c := range []struct {
		name, method, path, authorization string
		want                              Decision
	}{
		{"valid for both", "GET", "/a/b", admin, Pass},
		{"valid for the first only", "GET", "/a/b", userPass, BadCredentials},
		{"the second does not match the path", "GET", "/a/c", userPass, Pass},
		{"the second does not match the method", "POST", "/a/b", userPass, Pass},
		{"the second alone", "GET", "/x/b", userPass, BadCredentials},
		{"none matches", "GET", "/x", "", Pass},
	} {
		if got := rules.Decide(c.method, "h", c.path, c.authorization); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

func TestChallenge(t *testing.T) {
	t.Parallel()
	for configuration, want := range map[string]string{
		``:                                 "Basic realm=istio",
		`{}`:                               "Basic realm=istio",
		`{"realm":"two words"}`:            "Basic realm=two words",
		`{"realm":" spaces are  kept "}`:   "Basic realm= spaces are  kept ",
		`{"realm":"\"its own quotes\""}`:   `Basic realm="its own quotes"`,
		`{"realm":"na\u00efve \u4e2d"}`:    "Basic realm=naïve 中",
		`{"realm":"x","realm":"the last"}`: "Basic realm=the last",
	} {
		if got := mustParse(t, configuration).Challenge(); got != want {
			t.Errorf("%s: %q, want %q", configuration, got, want)
		}
	}
}

func TestZeroRulesGuardNothing(t *testing.T) {
	t.Parallel()
	if got := new(Rules).Decide("GET", "h", "/", ""); got != Pass {
		t.Errorf("%q", got)
	}
}

func BenchmarkDecide(b *testing.B) {
	r, err := Parse([]byte(credential(`"admin:admin","u:p"`)))
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if r.Decide("GET", "example.org:8080", "/productpage", userPass) != Pass {
			b.Fatal("denied")
		}
	}
}

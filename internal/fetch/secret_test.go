package fetch_test

import (
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"testing"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/fetch"
	"chandler.dev/chandler/internal/testenv/refusal"
)

func refuseSecret(t *testing.T, text string, code chandler.Code, want string) {
	t.Helper()
	seen := refusal.Begin(t)
	_, _, err := fetch.ParseSecret([]byte(text))
	var p *chandler.Problem
	if !errors.As(err, &p) || p.Code != code || p.Message != want || p.Hint == "" {
		t.Fatalf("%.80s\n got %v\nwant %s: %s", text, err, code, want)
	}
	seen.Saw(p.Code, p.Error())
}

func TestRefuse_B86(t *testing.T) {
	refuseSecret(t, "", chandler.CodeSecretType, "the secret has no .dockerconfigjson")
}

func TestRefuse_B87(t *testing.T) {
	refuseSecret(t, `{"auths":{"h":{"auth":secret}}}`, chandler.CodeSecretJSON, ".dockerconfigjson cannot be read at offset 23")
	refuseSecret(t, `[]`, chandler.CodeSecretJSON, ".dockerconfigjson cannot be read at offset 1")
	refuseSecret(t, `null`, chandler.CodeSecretJSON, ".dockerconfigjson has no auths")
	refuseSecret(t, strings.Repeat(" ", 1<<20+1), chandler.CodeSecretJSON, ".dockerconfigjson is 1048577 bytes, limit 1048576")
}

func TestRefuse_B88(t *testing.T) {
	auth := func(s string) string {
		return `{"auths":{"h.example":{"auth":"` + base64.StdEncoding.EncodeToString([]byte(s)) + `"}}}`
	}
	refuseSecret(t, `{"auths":{"h.example":{"auth":"!secret"}}}`, chandler.CodeSecretAuth, `entry 1 of 1 in auths, in the order of their names: auth is not base64 of user:password`)
	refuseSecret(t, auth("secret"), chandler.CodeSecretAuth, `entry 1 of 1 in auths, in the order of their names: auth is not base64 of user:password`)
	refuseSecret(t, auth("u:secret\x00"), chandler.CodeSecretAuth, `entry 1 of 1 in auths, in the order of their names: it has a control character, such as a NUL or the end of a line`)
	refuseSecret(t, auth("u:secret\n"), chandler.CodeSecretAuth, `entry 1 of 1 in auths, in the order of their names: it has a control character, such as a NUL or the end of a line`)
	refuseSecret(t, `{"auths":{"":{}}}`, chandler.CodeSecretAuth, "entry 1 of 1 in auths, in the order of their names: it names no host of a registry")
	refuseSecret(t, `{"auths":{"a.example":{},"user:secret":{"auth":"!"},"secret":{}}}`, chandler.CodeSecretAuth, "entry 3 of 3 in auths, in the order of their names: auth is not base64 of user:password")
}

func TestRefuse_B89(t *testing.T) {
	seen := refusal.Begin(t)
	s, warnings, err := fetch.ParseSecret([]byte(`{"auths":{},"credsStore":"evil","credHelpers":{"h":"evil"}}`))
	if err != nil || s.For(reference(t, "h.example/a")) != nil {
		t.Fatalf("%v %v", s, err)
	}
	var got []string
	for _, w := range warnings {
		got = append(got, w.Error())
	}
	want := []string{
		"credHelpers of the secret is ignored; only auths is used; write the credentials under auths",
		"credsStore of the secret is ignored; only auths is used; write the credentials under auths",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got %q", got)
	}
	for _, w := range warnings {
		seen.Warned(w.Code, w.Error())
	}
}

func TestSecretFor(t *testing.T) {
	t.Parallel()
	s, _, err := fetch.ParseSecret([]byte(`{"auths":{
		"https://index.docker.io/v1/": {"username":"hub","password":"secret"},
		"reg.example": {"username":"all","password":"secret"},
		"reg.example/team": {"username":"team","password":"secret"},
		"reg.example/team/a": {"username":"a","password":"secret"},
		"*.reg.example": {"username":"wild","password":"secret"},
		"x.reg.example:5000": {"username":"port","password":"secret"}}}`))
	if err != nil {
		t.Fatal(err)
	}
	for ref, want := range map[string]string{
		"busybox": "index.docker.io", "docker.io/a/b": "index.docker.io", "reg.example/b": "reg.example", "reg.example/teams/b": "reg.example",
		"reg.example/team/b": "reg.example/team", "reg.example/team/a": "reg.example/team/a", "reg.example/team/a/b": "reg.example/team/a",
		"y.reg.example/a": "*.reg.example", "x.reg.example:5000/a": "x.reg.example:5000", "y.x.reg.example/a": "", "x.reg.example:5001/a": "",
		"https://reg.example/x": "", "evil.example/reg.example": "",
	} {
		got := s.For(reference(t, ref))
		if (got == nil) != (want == "") || (got != nil && got.String() != "credentials for "+want) {
			t.Errorf("%s: got %v, want %q", ref, got, want)
		}
		for _, verb := range []string{"%v", "%+v", "%#v", "%s"} {
			if text := fmt.Sprintf(verb, got); strings.Contains(text, "secret") {
				t.Errorf("%s shows %s", verb, text)
			}
		}
	}
	if text := fmt.Sprintf("%v %+v %#v", s, *s, s); strings.Contains(text, "secret") {
		t.Errorf("a secret shows %s", text)
	}
}

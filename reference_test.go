package chandler_test

import (
	"net/netip"
	"strings"
	"testing"

	"chandler.dev/chandler"
	row "chandler.dev/chandler/internal/testenv/refusal"
)

var hex64 = strings.Repeat("0a", 32)

func TestParseReference(t *testing.T) {
	t.Parallel()
	digest := chandler.ArtifactDigest("sha256:" + hex64)
	for _, c := range []struct {
		in, canonical string
		want          chandler.Reference
	}{
		{"reg.example/a/b:v1", "oci://reg.example/a/b:v1", chandler.Reference{Scheme: "oci", Host: "reg.example", Repository: "a/b", Tag: "v1"}},
		{"OCI://Reg.Example/a/b", "oci://reg.example/a/b", chandler.Reference{Scheme: "oci", Host: "reg.example", Repository: "a/b"}},
		{"test", "oci://index.docker.io/library/test", chandler.Reference{Scheme: "oci", Host: "index.docker.io", Repository: "library/test"}},
		{"oci://test:v1", "oci://index.docker.io/library/test:v1", chandler.Reference{Scheme: "oci", Host: "index.docker.io", Repository: "library/test", Tag: "v1"}},
		{"test:5000", "oci://index.docker.io/library/test:5000", chandler.Reference{Scheme: "oci", Host: "index.docker.io", Repository: "library/test", Tag: "5000"}},
		{"me/test", "oci://index.docker.io/me/test", chandler.Reference{Scheme: "oci", Host: "index.docker.io", Repository: "me/test"}},
		{"docker.io/test@" + string(digest), "oci://index.docker.io/library/test@" + string(digest),
			chandler.Reference{Scheme: "oci", Host: "index.docker.io", Repository: "library/test", Digest: digest}},
		{"test@" + string(digest), "oci://index.docker.io/library/test@" + string(digest),
			chandler.Reference{Scheme: "oci", Host: "index.docker.io", Repository: "library/test", Digest: digest}},
		{"reg.example:5000/a:v1", "oci://reg.example:5000/a:v1", chandler.Reference{Scheme: "oci", Host: "reg.example:5000", Repository: "a", Tag: "v1"}},
		{"reg:5000/a:v1", "oci://reg:5000/a:v1", chandler.Reference{Scheme: "oci", Host: "reg:5000", Repository: "a", Tag: "v1"}},
		{"data:5000/a:v1", "oci://data:5000/a:v1", chandler.Reference{Scheme: "oci", Host: "data:5000", Repository: "a", Tag: "v1"}},
		{"10.0.0.1:5000/a:v1", "oci://10.0.0.1:5000/a:v1", chandler.Reference{Scheme: "oci", Host: "10.0.0.1:5000", Repository: "a", Tag: "v1"}},
		{"localhost/a", "oci://localhost/a", chandler.Reference{Scheme: "oci", Host: "localhost", Repository: "a"}},
		{"[::1]:05000/a", "oci://[::1]:5000/a", chandler.Reference{Scheme: "oci", Host: "[::1]:5000", Repository: "a"}},
		{"oci://reg.example/a-b/c_d.e__f--g:V1.2-x@" + string(digest), "oci://reg.example/a-b/c_d.e__f--g:V1.2-x@" + string(digest),
			chandler.Reference{Scheme: "oci", Host: "reg.example", Repository: "a-b/c_d.e__f--g", Tag: "V1.2-x", Digest: digest}},
		{"https://H.example:8443", "https://h.example:8443/", chandler.Reference{Scheme: "https", Host: "h.example:8443", Path: "/"}},
		{"http://h/a%20b/x.wasm?tok=1&u=%2f", "http://h/a%20b/x.wasm?tok=1&u=%2f", chandler.Reference{Scheme: "http", Host: "h", Path: "/a%20b/x.wasm?tok=1&u=%2f"}},
		{"http://h?tok=1", "http://h/?tok=1", chandler.Reference{Scheme: "http", Host: "h", Path: "/?tok=1"}},
		{"file:///opt/x.wasm", "file:///opt/x.wasm", chandler.Reference{Scheme: "file", Path: "/opt/x.wasm"}},
		{"file:///opt//my x%20.wasm", "file:///opt/my x%20.wasm", chandler.Reference{Scheme: "file", Path: "/opt/my x%20.wasm"}},
	} {
		got, p := chandler.ParseReference(c.in)
		if p != nil {
			t.Errorf("%s: refused: %v", c.in, p)
			continue
		}
		if got != c.want || got.String() != c.canonical {
			t.Errorf("%s:\n got %+v %s\nwant %+v %s", c.in, got, got, c.want, c.canonical)
		}
	}
}

type refusal struct {
	in   string
	code chandler.Code
	text string // message; hint
}

func checkRefusals(t *testing.T, cases []refusal) {
	t.Helper()
	for _, c := range cases {
		seen := row.Begin(t)
		_, p := chandler.ParseReference(c.in)
		if p == nil {
			t.Errorf("%q was accepted", c.in)
			continue
		}
		seen.Saw(p.Code, p.Error())
		if p.Code != c.code || p.Error() != c.text || p.Field != "" || p.Hint == "" {
			t.Errorf("%q\n got %s: %s\nwant %s: %s", c.in, p.Code, p, c.code, c.text)
		}
	}
}

func TestRefuse_B04(t *testing.T) {
	const hint = "; write a url such as oci://registry.example/plugin:v1 or https://host/plugin.wasm"
	checkRefusals(t, []refusal{
		{"", "URLSyntax", "url is required" + hint},
		{"oci://a.b/" + strings.Repeat("c", 2039), "URLSyntax", "url has 2049 bytes, limit 2048; use a shorter url"},
		{"oci://reg.example\n/a", "URLSyntax", "url contains byte 0x0a at 17; remove the control character"},
		{"oci://reg.example/\xff", "URLSyntax", "url is not valid UTF-8" + hint},
		{" oci://reg.example/a", "URLSyntax", "url contains a space at 0; write a space of a path as %20"},
		{"https:/h/x", "URLSyntax", `"https:" is not followed by //; write https://`},
		{"https://h/%zz?tok=secret", "URLSyntax", "path of the url cannot be read; write every % of a path as %25, or as % and two hex digits"},
	})
}

func TestRefuse_B05(t *testing.T) {
	const image = "; use oci, https, http or file; an image of that name is written oci://index.docker.io/library/..."
	checkRefusals(t, []refusal{
		{"ftp://h/x?tok=secret", "URLScheme", `scheme "ftp" is not allowed; use oci, https, http or file`},
		{"data:application/wasm,AGFzbQ", "URLScheme", `scheme "data" is not allowed` + image},
		{"unix:/run/x.sock", "URLScheme", `scheme "unix" is not allowed` + image},
		{"javascript:alert(1)", "URLScheme", `scheme "javascript" is not allowed` + image},
	})
}

func TestRefuse_B06(t *testing.T) {
	const who = "credentials in a url are not allowed; remove what stands before the @ and use imagePullSecret"
	checkRefusals(t, []refusal{
		{"oci://u:secret@reg.example/a", "URLPart", who},
		{"u:secret@reg.example/a", "URLPart", who},
		{"oci://u:secret@reg.example", "URLPart", who},
		{"https://u:secret@h/x", "URLPart", who},
		{"https://secret@h", "URLPart", who},
		{"oci://reg.example/a?x=secret", "URLPart", "an oci url has no query; remove the ? and what follows it"},
		{"oci://reg.example/a:v1#x", "URLPart", "an oci url has no fragment; remove the # and what follows it"},
		{"https://h/x?tok=secret#y", "URLPart", "url has a fragment; remove the # and what follows it"},
		{"file:///x.wasm?y", "URLPart", "a file url has no query and no fragment; remove what follows the path"},
	})
}

func TestRefuse_B08(t *testing.T) {
	const port = "; write a host name or an address, and a port from 1 to 65535 if there is one"
	const host = "; write a host name or an address"
	checkRefusals(t, []refusal{
		{"oci://reg.example:0/a", "URLHost", `port "0" is out of range 1-65535` + port},
		{"reg.example:65536/a", "URLHost", `port "65536" is out of range 1-65535` + port},
		{"https://h:99999999999999999999999/a", "URLHost", `port "99999999999999999999999" is out of range 1-65535` + port},
		{"test:v1/a", "URLHost", `port "v1" is not a number` + port},
		{"https://h:/a", "URLHost", `port "" is not a number` + port},
		{"https://[::1/a", "URLHost", `host "[::1" is not a valid IPv6 address in brackets` + port},
		{"https://[fe80::1%25eth0]/a", "URLHost", `host "[fe80::1%25eth0]" has a zone` + port},
		{"https:///x.wasm", "URLHost", "host is missing" + host},
		{"oci:///x", "URLHost", "host is missing" + host},
		{"https://a..b/x", "URLHost", `host "a..b" has a part that is empty, longer than 63 characters or begins or ends with a dash` + host},
		{"https://reg.example./x", "URLHost", `host "reg.example." has a part that is empty, longer than 63 characters or begins or ends with a dash` + host},
		{"https://bücher.example/x", "URLHost", `host "bücher.example" has a character that is not a letter, digit, dash or dot` + host},
		{"https://1.2.3.4.5/x", "URLHost", `host "1.2.3.4.5" is not a valid IPv4 address` + host},
		{"https://a.b.7/x", "URLHost", `host "a.b.7" is not a valid IPv4 address` + host},
		{"https://127.1/x", "URLHost", `host "127.1" is an address in an unusual form; write 127.0.0.1`},
		{"https://0x0A000001/x", "URLHost", `host "0x0a000001" is an address in an unusual form; write 10.0.0.1`},
	})
}

func TestRefuse_B09(t *testing.T) {
	const meta = " is 169.254.169.254 (metadata); nothing is fetched from there"
	checkRefusals(t, []refusal{
		{"http://169.254.169.254/x", "EgressDenied", `host "169.254.169.254"` + meta},
		{"http://2852039166/x", "EgressDenied", `host "2852039166"` + meta},
		{"http://0251.0376.0251.0376/x", "EgressDenied", `host "0251.0376.0251.0376"` + meta},
		{"oci://0xA9.0xfea9fe/x", "EgressDenied", `host "0xa9.0xfea9fe"` + meta},
		{"http://[::ffff:169.254.169.254]:80/x", "EgressDenied", `host "[::ffff:169.254.169.254]:80"` + meta},
		{"http://[fe80::1]/x", "EgressDenied", `host "[fe80::1]" is fe80::1 (link-local); nothing is fetched from there`},
		{"http://0/x", "EgressDenied", `host "0" is 0.0.0.0 (no address of a host); nothing is fetched from there`},
	})
}

func TestRefuse_B12(t *testing.T) {
	const hint = "; write registry/repository:tag; a repository has lower-case letters, digits and, between them, . - _ and /"
	const tag = "; a tag has letters, digits, dots, dashes and underscores, and begins with none of . and -"
	long := strings.Repeat("a", 256)
	checkRefusals(t, []refusal{
		{"reg.example/myOrg/a", "RefSyntax", `repository "myOrg/a" must be lower case; bad character 'O' at 2; write it in lower case`},
		{"reg.example/a//b", "RefSyntax", `repository "a//b" has an empty part at 2` + hint},
		{"reg.example/a/", "RefSyntax", `repository "a/" has an empty part at 1` + hint},
		{"reg.example/", "RefSyntax", "repository is missing" + hint},
		{"oci://", "RefSyntax", "repository is missing" + hint},
		{"reg.example/-a", "RefSyntax", `repository "-a" has a bad character '-' at 0` + hint},
		{"reg.example/a_/b", "RefSyntax", `repository "a_/b" has a bad character '_' at 1` + hint},
		{"reg.example/a___b", "RefSyntax", `repository "a___b" has a bad character '_' at 3` + hint},
		{"reg.example/a..b", "RefSyntax", `repository "a..b" has a bad character '.' at 2` + hint},
		{"reg.example/aé", "RefSyntax", `repository "aé" has a bad character 'é' at 1` + hint},
		{"reg.example/" + long, "RefSyntax", "repository " + chandler.Quote(long) + " has 256 characters, limit 255; use a shorter name"},
		{"reg.example/a:", "RefSyntax", "tag is empty; write a tag after the colon, or leave the colon out"},
		{"reg.example/a:v+1", "RefSyntax", `tag "v+1" has a bad character '+' at 1` + tag},
		{"reg.example/a:.v", "RefSyntax", `tag ".v" has a bad character '.' at 0` + tag},
		{"reg.example/a:" + long[:129], "RefSyntax", "tag " + chandler.Quote(long[:129]) + " has 129 characters, limit 128; use a shorter tag"},
	})
}

func TestRefuse_B13(t *testing.T) {
	ref, p := chandler.ParseReference("reg.example/a:v1@sha256:" + hex64)
	if p != nil {
		t.Fatal(p)
	}
	if p := ref.CheckPin(hex64); p != nil {
		t.Errorf("the same digest: %v", p)
	}
	if p := ref.CheckPin(""); p != nil {
		t.Errorf("no pin: %v", p)
	}
	seen := row.Begin(t)
	p = ref.CheckPin(strings.Repeat("b", 64))
	want := "url pins sha256:" + hex64 + `, sha256 says "` + strings.Repeat("b", 64) + `"; keep one of the two`
	if p == nil || p.Code != chandler.CodeRefConflict || p.Error() != want {
		t.Fatalf("got %v, want %s", p, want)
	}
	seen.Saw(p.Code, p.Error())
}

func TestRefuse_B14(t *testing.T) {
	const hint = "; a digest is sha256: and 64 lower-case hex digits"
	upper := "sha256:" + strings.ToUpper(hex64)
	checkRefusals(t, []refusal{
		{"reg.example/a@md5:00", "DigestSyntax", `digest algorithm "md5" is not allowed` + hint},
		{"reg.example/a@sha256:00", "DigestSyntax", `digest "sha256:00" has 2 hex digits, not 64` + hint},
		{"reg.example/a@" + upper, "DigestSyntax", `digest "` + upper + `" has other than lower-case hex digits` + hint},
		{"reg.example/a@latest", "DigestSyntax", `digest "latest" names no algorithm` + hint},
	})
}

func TestRefuse_B16(t *testing.T) {
	const hint = "; write an absolute path, such as file:///opt/plugins/x.wasm"
	checkRefusals(t, []refusal{
		{"file://x.wasm", "FileDenied", `file path "x.wasm" is relative` + hint},
		{"file://../x.wasm", "FileDenied", `file path "../x.wasm" is relative` + hint},
		{"file:///opt/../x.wasm", "FileDenied", `file path "/opt/../x.wasm" contains ".."` + hint},
		{"file:///opt/", "FileDenied", `file path "/opt/" names a directory` + hint},
		{"file://", "FileDenied", `file path "" is relative` + hint},
	})
}

func TestRedacted(t *testing.T) {
	t.Parallel()
	ref, p := chandler.ParseReference("https://h/x.wasm?X-Sig=secret&secret&e=")
	if p != nil {
		t.Fatal(p)
	}
	if got, want := ref.Redacted(), "https://h/x.wasm?X-Sig=***&***&e=***"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func FuzzParseReference(f *testing.F) {
	for _, s := range []string{"test", "oci://a.b:1/c:d@sha256:" + hex64, "http://h/x?y=z", "file:///x", "https://[::1]:2/%20", "https://0x7f.1/", "data:1/a"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		ref, p := chandler.ParseReference(s)
		if p != nil {
			if ref != (chandler.Reference{}) || p.Code == "" || p.Message == "" || p.Hint == "" || len(p.Message) > 4096 {
				t.Fatalf("%q: %+v %+v", s, ref, p)
			}
			return
		}
		again, p := chandler.ParseReference(ref.String())
		if p != nil && len(ref.String()) > chandler.MaxURL {
			return // escaping made it longer
		}
		if p != nil || again != ref {
			t.Fatalf("%q: %+v, and of its canonical form %s: %+v %v", s, ref, ref, again, p)
		}
	})
}

func TestDeniedAddress(t *testing.T) {
	t.Parallel()
	internal := netip.MustParsePrefix("10.0.0.0/8")
	for addr, want := range map[string]string{
		"169.254.169.254": "metadata", "::ffff:169.254.169.254": "metadata", "64:ff9b::a9fe:a9fe": "metadata",
		"2002:a9fe:a9fe::1": "metadata", "::a9fe:a9fe": "metadata", "fd00:ec2::254": "metadata", "fd20:ce::254": "metadata",
		"100.100.100.200": "metadata", "168.63.129.16": "metadata", "192.0.0.192": "metadata",
		"169.254.1.1": "link-local", "fe80::1%eth0": "link-local",
		"224.0.0.1": "multicast", "ff02::1": "multicast",
		"0.0.0.0": "no address of a host", "::": "no address of a host", "0.1.2.3": "no address of a host",
		"255.255.255.255": "broadcast",
		"10.1.2.3":        "of 10.0.0.0/8, which is denied", "::ffff:10.1.2.3": "of 10.0.0.0/8, which is denied",
		"64:ff9b::a01:203": "of 10.0.0.0/8, which is denied",
		"127.0.0.1":        "", "::1": "", "192.168.1.1": "", "fd00::1": "", "203.0.113.7": "", "2001:db8::1": "", "64:ff9b::cb00:7107": "",
	} {
		if got := chandler.DeniedAddress(netip.MustParseAddr(addr), internal); got != want {
			t.Errorf("%s: %q, want %q", addr, got, want)
		}
	}
	if chandler.DeniedAddress(netip.MustParseAddr("10.1.2.3")) != "" {
		t.Error("private networks are denied unasked")
	}
}

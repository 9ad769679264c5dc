package wire_test

import (
	"strings"
	"testing"
	"unicode/utf8"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/wire"
)

func TestMasked(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"Unable to create Wasm plugin auth":                                 "Unable to create Wasm plugin auth",
		"token expected at line 3, found secretive things":                  "token expected at line 3, found secretive things",
		`{"password":"a b\"c","user":"me"}`:                                 `{"password":***,"user":"me"}`,
		"password: hunter2, next":                                           "password: ***, next",
		"API_KEY=hunter2 rest":                                              "API_KEY=*** rest",
		"Authorization: Basic aHVudGVyMg==":                                 "Authorization: ***",
		"sent Bearer abc.def-123 to it":                                     "sent Bearer *** to it",
		"GET https://me:hunter2@reg.example/v2/":                            "GET https://***@reg.example/v2/",
		"jwt eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJtZSJ9.c2lnbmF0dXJl":            "jwt ***",
		"-----BEGIN EC PRIVATE KEY-----\nMHc\n-----END EC PRIVATE KEY-----": "***",
		"with chandler1.0123.abc_-x":                                        "with chandler1.***",
	} {
		if got := wire.Masked(text, 1000); got != want {
			t.Errorf("%q became %q, want %q", text, got, want)
		}
	}
	long := wire.Masked(strings.Repeat("ü", 1<<20), 4<<10)
	if len(long) > 4<<10+64 || !utf8.ValidString(long) || !strings.HasSuffix(long, "... (2097152 bytes)") {
		t.Errorf("%d bytes, ending with %q", len(long), long[len(long)-30:])
	}
}

func TestRefusal(t *testing.T) {
	t.Parallel()
	err := wire.Refusal(codes.PermissionDenied, chandler.CodeXDSIdentity, "%s may not", "a")
	if status.Code(err) != codes.PermissionDenied || wire.Reason(err) != chandler.CodeXDSIdentity || status.Convert(err).Message() != "a may not" {
		t.Errorf("%v, %q", err, wire.Reason(err))
	}
	if wire.Reason(status.Error(codes.Internal, "x")) != "" || wire.Reason(nil) != "" {
		t.Error("a code where there is none")
	}
}

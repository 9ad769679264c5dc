package quiet

import (
	"encoding/base64"
	"errors"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// request is what the headers of a stream say.
type request struct {
	method  string // "/package.Service/Method"
	md      metadata.MD
	timeout time.Duration // zero: none
}

// readRequest reads the headers of a stream. An error that is a gRPC status is for a
// client of gRPC; any other is for one that is none.
func readRequest(f *http2.MetaHeadersFrame) (request, error) {
	r := request{method: f.PseudoValue("path"), md: make(metadata.MD, len(f.Fields))}
	if f.PseudoValue("method") != "POST" {
		return r, errors.New("only POST is served")
	}
	if a := f.PseudoValue("authority"); a != "" {
		r.md[":authority"] = []string{a}
	}
	grpc := false
	var bad error
	for _, h := range f.RegularFields() {
		name, value := h.Name, h.Value
		switch {
		case name == "content-type":
			grpc = value == "application/grpc" || strings.HasPrefix(value, "application/grpc+") || strings.HasPrefix(value, "application/grpc;")
		case name == "grpc-timeout":
			var err error
			if r.timeout, err = readTimeout(value); err != nil {
				bad = status.Errorf(codes.Internal, "grpc-timeout: %v", err)
			}
			continue
		case name == "grpc-encoding" && value != "identity":
			bad = status.Error(codes.Unimplemented, "compressed messages are not taken")
		case name == "te", strings.HasPrefix(name, "grpc-"):
			continue
		case binaryHeader(name):
			for v := range strings.SplitSeq(value, ",") {
				b, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(v, "="))
				if err != nil {
					bad = status.Errorf(codes.Internal, "header %q is not base64", name)
				}
				r.md[name] = append(r.md[name], string(b))
			}
			continue
		}
		r.md[name] = append(r.md[name], value)
	}
	if !grpc {
		return r, errors.New("only gRPC is served")
	}
	return r, bad
}

// binaryHeader tells whether a header's value is base64.
func binaryHeader(name string) bool { return strings.HasSuffix(name, "-bin") }

// readTimeout reads the time that a call may take: at most eight digits and a unit.
func readTimeout(s string) (time.Duration, error) {
	units := map[byte]time.Duration{'H': time.Hour, 'M': time.Minute, 'S': time.Second, 'm': time.Millisecond, 'u': time.Microsecond, 'n': time.Nanosecond}
	if len(s) < 2 || len(s) > 9 {
		return 0, errors.New("not one to eight digits and a unit")
	}
	unit, ok := units[s[len(s)-1]]
	n, err := strconv.ParseUint(s[:len(s)-1], 10, 64)
	if !ok || err != nil {
		return 0, errors.New("not one to eight digits and a unit")
	}
	const most = 1 << 62 * time.Nanosecond
	if time.Duration(n) > most/unit {
		return most, nil
	}
	return max(time.Duration(n)*unit, time.Nanosecond), nil
}

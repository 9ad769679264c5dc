package wire

import (
	"fmt"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"chandler.dev/chandler"
)

// domain is whose the codes of refusals are, as google.rpc.ErrorInfo wants it.
const domain = "chandler.dev"

// Refusal is a gRPC status that carries a code of ours beside gRPC's and the words,
// as google.rpc.ErrorInfo: a program need not read the words. Foreign strings among
// args are the caller's to quote.
func Refusal(code codes.Code, reason chandler.Code, format string, args ...any) error {
	st := status.New(code, fmt.Sprintf(format, args...))
	if with, err := st.WithDetails(&errdetails.ErrorInfo{Reason: string(reason), Domain: domain}); err == nil {
		st = with
	}
	return st.Err()
}

// Reason gives the code of ours that a refusal carries; empty when there is none.
func Reason(err error) chandler.Code {
	for _, detail := range status.Convert(err).Details() {
		if d, ok := detail.(*errdetails.ErrorInfo); ok && d.GetDomain() == domain {
			return chandler.Code(d.GetReason())
		}
	}
	return ""
}

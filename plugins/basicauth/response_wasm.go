package main

import (
	"encoding/binary"
	"errors"
	"strconv"
	"unsafe"
)

// The SDK's SendHttpResponse has no way to pass response code details, so the
// host call is made here.
//
//go:wasmimport env proxy_send_local_response
func proxySendLocalResponse(status uint32, details *byte, detailsLen int32, body *byte, bodyLen int32,
	headers *byte, headersLen int32, grpcStatus int32) uint32

// fromHTTPStatus as a gRPC status asks the host to derive it.
const fromHTTPStatus = -1

// localResponse answers with an empty body.
func localResponse(status uint32, details string, headers [][2]string) error {
	h := encodeHeaders(headers)
	code := proxySendLocalResponse(status, unsafe.StringData(details), int32(len(details)), nil, 0,
		unsafe.SliceData(h), int32(len(h)), fromHTTPStatus)
	if code != 0 {
		return errors.New("proxy_send_local_response: status " + strconv.Itoa(int(code)))
	}
	return nil
}

// encodeHeaders writes the ABI's form of a header map: the number of pairs, the
// two lengths of each, then all names and values, each with a NUL behind it.
func encodeHeaders(headers [][2]string) []byte {
	out := binary.LittleEndian.AppendUint32(nil, uint32(len(headers)))
	for _, h := range headers {
		out = binary.LittleEndian.AppendUint32(out, uint32(len(h[0])))
		out = binary.LittleEndian.AppendUint32(out, uint32(len(h[1])))
	}
	for _, h := range headers {
		out = append(append(out, h[0]...), 0)
		out = append(append(out, h[1]...), 0)
	}
	return out
}

package quiet

import (
	"encoding/base64"
	"encoding/binary"
	"strconv"
	"sync"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

const (
	frameHeader   = 9 // bytes
	messagePrefix = 5 // bytes: whether it is compressed, and its size
	// maxOut is what is written at a time, and what somebody who writes holds of memory.
	maxOut = 32 << 10
)

// out is frames that are to be written at once.
type out struct {
	buf    []byte
	header *hpack.Encoder // writes to buf
}

// outs are shared by all connections: what is encoded depends on nothing that was before.
var outs = sync.Pool{New: func() any {
	o := &out{}
	o.header = hpack.NewEncoder(o)
	return o
}}

// Write implements io.Writer, for the encoder of headers.
func (o *out) Write(b []byte) (int, error) {
	o.buf = append(o.buf, b...)
	return len(b), nil
}

// frame begins a frame of a known size.
func (o *out) frame(size int, typ http2.FrameType, flags http2.Flags, id uint32) {
	o.buf = append(o.buf, byte(size>>16), byte(size>>8), byte(size), byte(typ), byte(flags))
	o.buf = binary.BigEndian.AppendUint32(o.buf, id)
}

// number appends a payload, or a part of it.
func (o *out) number(v uint32) { o.buf = binary.BigEndian.AppendUint32(o.buf, v) }

func (o *out) settings(all ...http2.Setting) {
	o.frame(6*len(all), http2.FrameSettings, 0, 0)
	for _, s := range all {
		o.buf = binary.BigEndian.AppendUint16(o.buf, uint16(s.ID))
		o.number(s.Val)
	}
}

func (o *out) settingsAck() { o.frame(0, http2.FrameSettings, http2.FlagSettingsAck, 0) }

func (o *out) ping(ack bool, data [8]byte) {
	var flags http2.Flags
	if ack {
		flags = http2.FlagPingAck
	}
	o.frame(len(data), http2.FramePing, flags, 0)
	o.buf = append(o.buf, data[:]...)
}

// credit lets the other side send so many bytes more, on a stream or with id 0 on the
// connection.
func (o *out) credit(id, bytes uint32) {
	o.frame(4, http2.FrameWindowUpdate, 0, id)
	o.number(bytes)
}

func (o *out) reset(id uint32, code http2.ErrCode) {
	o.frame(4, http2.FrameRSTStream, 0, id)
	o.number(uint32(code))
}

func (o *out) goAway(last uint32, code http2.ErrCode, why string) {
	o.frame(8+len(why), http2.FrameGoAway, 0, 0)
	o.number(last)
	o.number(uint32(code))
	o.buf = append(o.buf, why...)
}

// headers writes a block of headers, in as many frames as it takes.
func (o *out) headers(id uint32, end bool, maxFrame int, write func()) {
	at := len(o.buf)
	o.frame(0, http2.FrameHeaders, 0, id)
	write()
	size := len(o.buf) - at - frameHeader
	first := o.buf[at : at+frameHeader]
	flags := http2.Flags(0)
	if end {
		flags |= http2.FlagHeadersEndStream
	}
	if size <= maxFrame {
		first[0], first[1], first[2], first[4] = byte(size>>16), byte(size>>8), byte(size), byte(flags|http2.FlagHeadersEndHeaders)
		return
	}
	first[0], first[1], first[2], first[4] = byte(maxFrame>>16), byte(maxFrame>>8), byte(maxFrame), byte(flags)
	rest := append([]byte(nil), o.buf[at+frameHeader+maxFrame:]...)
	o.buf = o.buf[:at+frameHeader+maxFrame]
	for len(rest) > 0 {
		n := min(len(rest), maxFrame)
		flags = 0
		if n == len(rest) {
			flags = http2.FlagContinuationEndHeaders
		}
		o.frame(n, http2.FrameContinuation, flags, id)
		o.buf, rest = append(o.buf, rest[:n]...), rest[n:]
	}
}

// field writes one header. Sensitive ones are in nobody's table, so that an encoder has
// no memory of a connection.
func (o *out) field(name, value string) {
	_ = o.header.WriteField(hpack.HeaderField{Name: name, Value: value, Sensitive: true}) // out.Write does not fail
}

// reply writes what an answer begins with.
func (o *out) reply(md metadata.MD) {
	o.field(":status", "200")
	o.field("content-type", "application/grpc")
	o.metadata(md)
}

// ending writes how a stream ends.
func (o *out) ending(st *status.Status, md metadata.MD) {
	o.field("grpc-status", strconv.Itoa(int(st.Code())))
	if m := st.Message(); m != "" {
		o.field("grpc-message", percent(m))
	}
	if p := st.Proto(); len(p.GetDetails()) > 0 {
		if b, err := proto.Marshal(p); err == nil {
			o.field("grpc-status-details-bin", base64.RawStdEncoding.EncodeToString(b))
		}
	}
	o.metadata(md)
}

func (o *out) metadata(md metadata.MD) {
	for name, values := range md {
		for _, v := range values {
			if binaryHeader(name) {
				v = base64.RawStdEncoding.EncodeToString([]byte(v))
			}
			o.field(name, v)
		}
	}
}

// percent encodes a status's sentence (PROTOCOL-HTTP2.md, Percent-Encoded).
func percent(s string) string {
	const hex = "0123456789ABCDEF"
	plain := func(c byte) bool { return c >= ' ' && c <= '~' && c != '%' }
	at := 0
	for at < len(s) && plain(s[at]) {
		at++
	}
	if at == len(s) {
		return s
	}
	b := append(make([]byte, 0, len(s)+16), s[:at]...)
	for ; at < len(s); at++ {
		if c := s[at]; plain(c) {
			b = append(b, c)
		} else {
			b = append(b, '%', hex[c>>4], hex[c&15])
		}
	}
	return string(b)
}

package wasmhost

import (
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"

	"chandler.dev/chandler"
)

// maxTold is how much is told of a text.
const maxTold = 120

// described says of what kind the parameters of host calls are, a letter each: s for
// a text (an address and a size), p for pairs, m for a map, b for a buffer, u for a
// number, I for a long one; and for what is given back S, P, U, V (long).
func described() map[string]string {
	words := strings.Fields(`log us get_status US set_property ss get_property sS send_local_response usspu get_shared_data sSU set_shared_data ssu
		register_shared_queue sU resolve_shared_queue ssU dequeue_shared_queue uS enqueue_shared_queue us
		get_header_map_value msS add_header_map_value mss replace_header_map_value mss remove_header_map_value ms
		get_header_map_pairs mP set_header_map_pairs mp get_header_map_size mU get_buffer_status bUU get_buffer_bytes buuS
		set_buffer_bytes buus http_call spspuU grpc_call ssspsuU grpc_stream ssspU grpc_close u grpc_cancel u grpc_send usu
		set_tick_period_milliseconds u get_current_time_nanoseconds V define_metric usU increment_metric uI record_metric uI
		get_metric uV set_effective_context u call_foreign_function ssS get_configuration S continue_stream u close_stream u
		get_log_level U`)
	all := map[string]string{}
	for i := 0; i < len(words); i += 2 {
		all["proxy_"+words[i]] = words[i+1]
	}
	return all
}

// width is how many arguments a letter is for.
func width(letter rune) int {
	if strings.ContainsRune("spSP", letter) {
		return 2
	}
	return 1
}

// tell writes a call with what is given to it.
func (c call) tell(name, letters string) string {
	var b strings.Builder
	b.WriteString(name)
	b.WriteByte('(')
	at, first := 0, true
	for _, letter := range letters {
		if s := c.tellArgument(letter, at); s != "" {
			if !first {
				b.WriteString(", ")
			}
			b.WriteString(s)
			first = false
		}
		at += width(letter)
	}
	b.WriteByte(')')
	return b.String()
}

func (c call) tellArgument(letter rune, at int) string {
	switch letter {
	case 's', 'p':
		content, there := c.view(at)
		switch {
		case !there:
			return "beyond the memory"
		case letter == 'p':
			return tellPairs(content)
		}
		return quote(content)
	case 'm':
		names := [...]string{
			"request headers", "request trailers", "response headers", "response trailers",
			"gRPC initial metadata", "gRPC trailing metadata", "call's headers", "call's trailers",
		}
		if n := c.i32(at); n < headerMaps {
			return names[n]
		}
	case 'b':
		names := [...]string{
			"request body", "response body", "downstream data", "upstream data", "call's body", "gRPC message",
			"VM configuration", "plugin configuration", "call data",
		}
		if n := c.i32(at); n < buffers {
			return names[n]
		}
	case 'I':
		return strconv.FormatInt(int64(c.args[at]), 10)
	case 'S', 'P', 'U', 'V':
		return ""
	}
	return strconv.Itoa(int(int32(c.i32(at))))
}

// tellResult writes what a call gave.
func (c call) tellResult(letters string, r result) string {
	if r != ok || letters == "" {
		return " = " + r.String()
	}
	s, at, memory := " = ok", 0, c.module.Memory()
	for _, letter := range letters {
		switch letter {
		case 'S', 'P':
			where, _ := memory.ReadUint32Le(c.i32(at))
			size, _ := memory.ReadUint32Le(c.i32(at + 1))
			if content, there := memory.Read(where, size); !there {
			} else if letter == 'P' {
				s += " " + tellPairs(content)
			} else {
				s += " " + quote(content)
			}
		case 'U':
			n, _ := memory.ReadUint32Le(c.i32(at))
			s += " " + strconv.FormatUint(uint64(n), 10)
		case 'V':
			content, _ := memory.Read(c.i32(at), 8)
			if len(content) == 8 {
				s += " " + strconv.FormatUint(binary.LittleEndian.Uint64(content), 10)
			}
		}
		at += width(letter)
	}
	return s
}

func quote(b []byte) string {
	if len(b) > maxTold {
		return fmt.Sprintf("%q... (%d bytes)", b[:maxTold], len(b))
	}
	return strconv.Quote(string(b))
}

func tellPairs(b []byte) string {
	var s strings.Builder
	for i, f := range unmarshal(b) {
		if i > 0 {
			s.WriteString(", ")
		}
		if s.Len() > 4*maxTold {
			s.WriteString("...")
			break
		}
		s.WriteString(chandler.Printable(f.Name, maxTold) + ": " + chandler.Printable(f.Value, maxTold))
	}
	return "[" + s.String() + "]"
}

// tellCallback writes a call of one of the module's functions.
func tellCallback(name string, params []uint64) string {
	var b strings.Builder
	b.WriteString(name)
	for i, p := range params {
		b.WriteString([]string{"(", ", "}[min(i, 1)])
		b.WriteString(strconv.Itoa(int(int32(p))))
	}
	if len(params) > 0 {
		b.WriteByte(')')
	}
	return b.String()
}

// String names a result as the ABI does.
func (r result) String() string {
	switch r {
	case ok:
		return "ok"
	case notFound:
		return "not found"
	case badArgument:
		return "bad argument"
	case serializationFailure:
		return "serialization failure"
	case parseFailure:
		return "parse failure"
	case invalidMemoryAccess:
		return "invalid memory access"
	case empty:
		return "empty"
	case casMismatch:
		return "CAS mismatch"
	case internalFailure:
		return "internal failure"
	case unimplemented:
		return "unimplemented"
	}
	return strconv.Itoa(int(r))
}

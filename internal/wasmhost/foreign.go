package wasmhost

import (
	"bytes"
	"compress/zlib"
	"io"
	"strings"

	"google.golang.org/protobuf/encoding/protowire"
)

// foreign calls one of the functions that Envoy has besides those of the ABI. Of
// expressions and signatures it knows none.
func (c call) foreign() result {
	name, there := c.text(0)
	argument, there2 := c.view(2)
	if !there || !there2 {
		return invalidMemoryAccess
	}
	var given []byte
	r := notFound
	switch name {
	case "compress":
		given, r = compress(argument)
	case "uncompress":
		given, r = uncompress(argument)
	case "declare_property": // what is set is bytes here, whatever it is declared to be
		r = c.declare(argument)
	case "set_envoy_filter_state":
		r = c.setFilterState(argument)
	case "expr_evaluate", "expr_delete":
		if len(argument) != 4 { // which expression
			r = badArgument
		}
	case "sign", "verify_signature":
		if _, valid := words(argument); !valid {
			r = badArgument
		}
	case "clear_route_cache":
		r = c.clearRoute()
	}
	if address := c.i32(4); r == ok && address != 0 {
		return c.reply(4, given)
	}
	if c.i32(5) != 0 && !c.put(5, uint32(len(given))) {
		return invalidMemoryAccess
	}
	return r
}

// words reads the fields of a protobuf that are texts or bytes, by their numbers.
func words(b []byte) (map[protowire.Number]string, bool) {
	all := map[protowire.Number]string{}
	for len(b) > 0 {
		number, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return nil, false
		}
		size := protowire.ConsumeFieldValue(number, kind, b[n:])
		if size < 0 {
			return nil, false
		}
		if kind == protowire.BytesType {
			value, _ := protowire.ConsumeBytes(b[n:])
			all[number] = string(value)
		}
		b = b[n+size:]
	}
	return all, true
}

// declare says of what type a property is, once.
func (c call) declare(argument []byte) result {
	const name = 1
	fields, valid := words(argument)
	root := c.h.called.root
	if !valid || root.declared[fields[name]] || len(root.declared) >= maxShared {
		return badArgument
	}
	if root.declared == nil {
		root.declared = map[string]bool{}
	}
	root.declared[fields[name]] = true
	return ok
}

// setFilterState sets what Envoy's own filters read, of which there are none here.
func (c call) setFilterState(argument []byte) result {
	const path = 1
	fields, valid := words(argument)
	switch {
	case !valid:
		return badArgument
	case !strings.HasPrefix(fields[path], "envoy."):
		return notFound
	}
	return ok
}

func compress(b []byte) ([]byte, result) {
	var out bytes.Buffer
	w := zlib.NewWriter(&out)
	_, _ = w.Write(b) // to memory
	_ = w.Close()
	return out.Bytes(), ok
}

func uncompress(b []byte) ([]byte, result) {
	r, err := zlib.NewReader(bytes.NewReader(b))
	if err != nil {
		return nil, serializationFailure
	}
	out, err := io.ReadAll(io.LimitReader(r, maxBody+1))
	if err != nil || len(out) > maxBody {
		return nil, serializationFailure
	}
	return out, ok
}

package wasmhost

import (
	"bytes"
	"compress/zlib"
	"io"
)

// foreign calls one of the functions that Envoy has besides those of the ABI. Of
// expressions it knows none.
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
	case "declare_property":
		return ok // what is set is bytes here, whatever it is declared to be
	case "clear_route_cache":
		return ok
	}
	if r != ok {
		return r
	}
	if c.i32(4) == 0 {
		return stored(c.i32(5) == 0 || c.put(5, uint32(len(given))))
	}
	return c.reply(4, given)
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

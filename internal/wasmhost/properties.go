package wasmhost

import (
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// What a stream's ends are, where an exchange does not say.
const (
	sourceAddress      = "127.0.0.1:40000"
	destinationAddress = "127.0.0.1:8080"
	upstreamAddress    = "127.0.0.1:8081"

	nodeName             = "chandler-test" // as in package envoyhost, as the one before
	upstreamLocalAddress = "127.0.0.1:40001"
	upstreamName         = "chandler-upstream"
)

// property is a value as a plugin gets it; nil with notFound: there is none.
type property struct {
	bytes  []byte
	result result
}

func noProperty() property           { return property{result: notFound} }
func textProperty(s string) property { return property{bytes: []byte(s)} }
func numberProperty(n int64) property {
	return property{bytes: binary.LittleEndian.AppendUint64(nil, uint64(n))}
}

func flagProperty(b bool) property { return property{bytes: []byte{byte(truth(b))}} }

func maybe(s string, there bool) property {
	if !there {
		return noProperty()
	}
	return textProperty(s)
}

// numeric tells of paths whose values are numbers of 8 bytes, and not texts.
func numeric(path string) bool {
	switch path {
	case "request.size", "request.total_size", "request.time", "request.duration", "request.headers_bytes",
		"response.code", "response.flags", "response.grpc_status", "response.size", "response.total_size", "response.headers_bytes",
		"response.backend_latency", "source.port", "destination.port", "upstream.port", "connection.id", "connection_id",
		"upstream.request_attempt_count", "upstream.num_endpoints", "xds.listener_direction", "listener_direction":
		return true
	}
	return false
}

// encodeProperty makes of an exchange's property what a plugin gets.
func encodeProperty(path, value string) ([]byte, error) {
	switch {
	case path == "connection.mtls":
		b, err := strconv.ParseBool(value)
		return flagProperty(b).bytes, err
	case numeric(path):
		n, err := strconv.ParseInt(value, 10, 64)
		return numberProperty(n).bytes, err
	case path == "":
		return nil, fmt.Errorf("no path")
	}
	return []byte(value), nil
}

func (c call) getProperty() result {
	b, there := c.view(0)
	if !there {
		return invalidMemoryAccess
	}
	if len(b) == 0 {
		return serializationFailure
	}
	path := strings.TrimSuffix(string(b), "\x00")
	p := c.h.current.property(c.h, strings.Split(path, "\x00"))
	if p.result != ok {
		return p.result
	}
	return c.reply(2, p.bytes)
}

// property finds a value by the parts of its path.
func (c *scope) property(h *Host, path []string) property {
	x := c.stream
	if x != nil {
		if value, there := x.properties[strings.Join(path, ".")]; there {
			b, _ := encodeProperty(strings.Join(path, "."), value) // it was tried before
			return property{bytes: b}
		}
	}
	switch path[0] {
	case "plugin_name":
		return leaf(path, textProperty(c.root.plugin.Name))
	case "plugin_root_id":
		return leaf(path, textProperty(c.root.plugin.RootID))
	case "plugin_vm_id":
		return leaf(path, textProperty(c.root.plugin.VMID))
	case "xds":
		return x.xdsProperty(path[1:])
	}
	if x == nil {
		return noProperty()
	}
	known := map[string]func([]string) property{
		"request": x.requestProperty, "response": x.responseProperty, "connection": x.connectionProperty, "upstream": x.upstreamProperty,
		"source":      func(p []string) property { return address(p, sourceAddress) },
		"destination": func(p []string) property { return address(p, destinationAddress) },
	}
	find, there := known[path[0]]
	switch {
	case there && len(path) == 1:
		return property{result: serializationFailure}
	case there:
		return find(path[1:])
	}
	switch path[0] {
	case "connection_id":
		return leaf(path, numberProperty(1))
	case "metadata":
		switch {
		case len(path) == 1:
			return textProperty("")
		case len(path) == 2 && path[1] == "filter_metadata":
			return property{bytes: marshal(nil)}
		}
		return noProperty()
	case "upstream_filter_state":
		if len(path) == 1 && x.routed {
			return property{result: serializationFailure}
		}
		return noProperty()
	case "filter_state":
		if len(path) == 1 {
			return property{result: serializationFailure}
		}
		name, own := strings.CutPrefix(path[1], "wasm.")
		value, there := x.state[name]
		if !own || !there {
			return noProperty()
		}
		return leaf(path[1:], property{bytes: value})
	}
	if value, there := x.state[path[0]]; there {
		return leaf(path, property{bytes: value})
	}
	return noProperty()
}

// leaf is a value that has no parts.
func leaf(path []string, p property) property {
	if len(path) > 1 {
		return noProperty()
	}
	return p
}

func address(path []string, full string) property {
	switch path[0] {
	case "address":
		return leaf(path, textProperty(full))
	case "port":
		_, port, _ := strings.Cut(full, ":")
		n, _ := strconv.ParseInt(port, 10, 64)
		return leaf(path, numberProperty(n))
	}
	return noProperty()
}

// fields is a value in a map of fields, or the whole of it.
func fields(m *headerMap, path []string) property {
	if len(path) > 1 {
		value, there := m.all(strings.ToLower(path[1]))
		return leaf(path[1:], maybe(value, there))
	}
	if m.len() == 0 {
		return property{bytes: marshal(nil)}
	}
	return property{bytes: marshal(m.fields)}
}

// logged gives what a filter sees of a map, which when a stream is logged is all.
func (x *stream) logged(seen, all *headerMap) *headerMap {
	if seen == nil && x.logging {
		return all
	}
	return seen
}

func (x *stream) requestProperty(path []string) property {
	m := x.logged(x.request.seen.headers, x.request.headers)
	if path[0] == "headers" {
		return fields(m, path)
	}
	pseudo := map[string]string{
		"path": ":path", "host": ":authority", "scheme": ":scheme", "method": ":method",
		"referer": "referer", "id": "x-request-id", "useragent": "user-agent",
	}
	if name, there := pseudo[path[0]]; there {
		value, there := m.get(name)
		return leaf(path, maybe(value, there))
	}
	full, there := m.get(":path")
	before, query, _ := strings.Cut(full, "?")
	query, _, _ = strings.Cut(query, "#")
	received := int64(len(x.upstream.Body()))
	switch path[0] {
	case "url_path":
		return leaf(path, maybe(before, m != nil && there || m != nil))
	case "query":
		return leaf(path, maybe(query, m != nil))
	case "headers_bytes":
		return leaf(path, numberProperty(int64(m.size())))
	case "time":
		return leaf(path, numberProperty(x.host.time().Add(x.began-x.host.clock.now).UnixNano()))
	case "protocol":
		return leaf(path, textProperty("HTTP/1.1"))
	case "size":
		if value, there := m.get("content-length"); there {
			n, err := strconv.ParseInt(value, 10, 64)
			if err != nil {
				return noProperty()
			}
			return leaf(path, numberProperty(n))
		}
		return leaf(path, numberProperty(received))
	case "total_size":
		return leaf(path, numberProperty(received+int64(m.size())))
	case "duration":
		if x.over {
			return leaf(path, numberProperty(int64(max(x.host.clock.now-x.began, time.Microsecond))))
		}
	}
	return noProperty()
}

func (x *stream) responseProperty(path []string) property {
	headers := x.logged(x.response.seen.headers, x.response.headers)
	trailers := x.logged(x.response.seen.trailers, x.response.trailers)
	sent := int64(len(x.client.Body()))
	switch path[0] {
	case "headers":
		return fields(headers, path)
	case "trailers":
		return fields(trailers, path)
	case "code":
		value, there := x.response.headers.get(":status")
		n, err := strconv.ParseInt(value, 10, 64)
		if !there || err != nil {
			return noProperty()
		}
		return leaf(path, numberProperty(n))
	case "code_details":
		return leaf(path, maybe(x.details, x.details != ""))
	case "flags":
		return leaf(path, numberProperty(0))
	case "size":
		return leaf(path, numberProperty(sent))
	case "headers_bytes":
		return leaf(path, numberProperty(int64(headers.size())))
	case "total_size":
		return leaf(path, numberProperty(sent+int64(headers.size())+int64(trailers.size())))
	case "grpc_status":
		value, there := trailers.get("grpc-status")
		if !there {
			value, there = headers.get("grpc-status")
		}
		if n, err := strconv.ParseInt(value, 10, 64); there && err == nil {
			return leaf(path, numberProperty(n))
		}
		value, there = x.response.headers.get(":status")
		if n, err := strconv.Atoi(value); there && err == nil {
			return leaf(path, numberProperty(int64(grpcStatus(n))))
		}
	case "backend_latency":
		if x.asked && x.response.complete {
			return leaf(path, numberProperty(int64(time.Microsecond)))
		}
	}
	return noProperty()
}

func (x *stream) connectionProperty(path []string) property {
	switch path[0] {
	case "id":
		return leaf(path, numberProperty(1))
	case "mtls":
		return leaf(path, flagProperty(false))
	case "requested_server_name":
		return leaf(path, textProperty(""))
	}
	return noProperty()
}

func (x *stream) upstreamProperty(path []string) property {
	switch path[0] {
	case "request_attempt_count":
		return leaf(path, numberProperty(int64(truth(x.routed))))
	case "num_endpoints":
		return leaf(path, numberProperty(1))
	}
	if !x.routed {
		return noProperty()
	}
	switch path[0] {
	case "address", "port":
		return address(path, upstreamAddress)
	case "local_address":
		if x.asked {
			return leaf(path, textProperty(upstreamLocalAddress))
		}
	case "transport_failure_reason":
		return leaf(path, textProperty(""))
	case "cx_pool_ready_duration":
		return leaf(path, numberProperty(int64(time.Microsecond)))
	}
	return noProperty()
}

func (x *stream) xdsProperty(path []string) property {
	switch {
	case len(path) == 0:
		return property{result: serializationFailure}
	case path[0] == "node" && len(path) == 2 && (path[1] == "id" || path[1] == "cluster"):
		return textProperty(nodeName)
	case path[0] == "node":
		return property{result: serializationFailure}
	case x == nil:
		return noProperty()
	}
	switch path[0] {
	case "cluster_name":
		return leaf(path, textProperty(upstreamName))
	case "virtual_host_name":
		return leaf(path, textProperty("all"))
	case "route_name", "filter_chain_name", "listener_metadata", "cluster_metadata", "route_metadata":
		return leaf(path, textProperty(""))
	case "upstream_host_metadata":
		if x.routed {
			return property{result: serializationFailure}
		}
	case "listener_direction":
		return leaf(path, numberProperty(0))
	}
	return noProperty()
}

func (c call) setProperty() result {
	name, there := c.text(0)
	value, there2 := c.bytes(2)
	if !there || !there2 {
		return invalidMemoryAccess
	}
	x := c.h.current.stream
	if x == nil {
		return notFound
	}
	if _, known := x.state[name]; !known && len(x.state) >= maxShared || len(value) > maxEntry {
		return internalFailure
	}
	x.state[name] = value
	return ok
}

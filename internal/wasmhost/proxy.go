package wasmhost

import (
	"encoding/binary"
	"maps"

	"chandler.dev/chandler"
)

const (
	maxLog     = 4 << 10 // bytes of a logged line
	maxShared  = 1 << 10 // entries of shared data, queues, items of a queue, metrics
	maxEntry   = 1 << 20 // bytes of an entry
	metricKind = 3       // counter, gauge, histogram
)

// functions are all that a module may import, by their names.
func functions() map[string]func(*call) result {
	all := map[string]func(*call) result{
		"pthread_equal":                   func(c *call) result { return result(truth(c.i32(0) == c.i32(1))) },
		"emscripten_notify_memory_growth": func(*call) result { return ok },

		"proxy_log":                          (*call).log,
		"proxy_get_log_level":                func(c *call) result { return stored(c.put(0, uint32(LevelInfo))) },
		"proxy_get_status":                   func(c *call) result { return c.status() },
		"proxy_get_current_time_nanoseconds": func(c *call) result { return stored(c.put64(0, uint64(c.h.cfg.Now().UnixNano()))) },
		"proxy_set_tick_period_milliseconds": func(*call) result { return ok }, // nothing ticks here yet
		"proxy_set_effective_context":        (*call).setEffectiveContext,
		"proxy_done":                         func(*call) result { return notFound }, // nothing is being ended
		"proxy_call_foreign_function":        func(*call) result { return notFound },

		"proxy_get_configuration": func(c *call) result { return c.reply(0, c.configuration()) },
		"proxy_get_buffer_bytes":  (*call).getBufferBytes,
		"proxy_get_buffer_status": (*call).getBufferStatus,
		"proxy_get_property":      (*call).getProperty,
		"proxy_set_property":      (*call).setProperty,

		"proxy_get_shared_data":       (*call).getSharedData,
		"proxy_set_shared_data":       (*call).setSharedData,
		"proxy_register_shared_queue": (*call).registerQueue,
		"proxy_resolve_shared_queue":  (*call).resolveQueue,
		"proxy_enqueue_shared_queue":  (*call).enqueue,
		"proxy_dequeue_shared_queue":  (*call).dequeue,
		"proxy_define_metric":         (*call).defineMetric,
		"proxy_increment_metric":      (*call).incrementMetric,
		"proxy_record_metric":         (*call).recordMetric,
		"proxy_get_metric":            (*call).getMetric,
	}
	maps.Copy(all, streamless())
	maps.Copy(all, wasi())
	return all
}

// streamless are the calls about a stream, or to a cluster, as Envoy answers them to
// a root context when there is neither.
func streamless() map[string]func(*call) result {
	gives := func(r result) func(*call) result { return func(*call) result { return r } }
	return map[string]func(*call) result{
		"proxy_send_local_response":      gives(ok),
		"proxy_clear_route_cache":        gives(ok),
		"proxy_continue_request":         gives(ok),
		"proxy_continue_response":        gives(ok),
		"proxy_continue_stream":          gives(ok),
		"proxy_close_stream":             gives(ok),
		"proxy_get_header_map_value":     gives(badArgument),
		"proxy_add_header_map_value":     gives(badArgument),
		"proxy_replace_header_map_value": gives(badArgument),
		"proxy_remove_header_map_value":  gives(badArgument),
		"proxy_get_header_map_pairs":     func(c *call) result { return c.reply(1, nil) },
		"proxy_set_header_map_pairs":     gives(badArgument),
		"proxy_get_header_map_size":      gives(badArgument),
		"proxy_set_buffer_bytes":         gives(badArgument),
		"proxy_http_call":                gives(badArgument),
		"proxy_grpc_call":                gives(parseFailure),
		"proxy_grpc_stream":              gives(parseFailure),
		"proxy_grpc_close":               gives(badArgument),
		"proxy_grpc_cancel":              gives(badArgument),
		"proxy_grpc_send":                gives(badArgument),
	}
}

func truth(b bool) uint32 {
	if b {
		return 1
	}
	return 0
}

// stored is the result of a call that only writes.
func stored(written bool) result {
	if !written {
		return invalidMemoryAccess
	}
	return ok
}

func (c *call) log() result {
	text, there := c.bytes(1)
	if !there {
		return invalidMemoryAccess
	}
	if c.i32(0) > uint32(LevelCritical) {
		return badArgument
	}
	c.h.write(Level(c.i32(0)), string(text))
	return ok
}

// write logs what the module said.
func (h *Host) write(l Level, text string) { h.cfg.Log(l, chandler.Printable(text, maxLog)) }

func (c *call) status() result {
	if !c.put(0, 0) {
		return invalidMemoryAccess
	}
	return c.reply(1, nil)
}

func (c *call) setEffectiveContext() result {
	root := c.h.contexts[c.i32(0)]
	if root == nil {
		return badArgument
	}
	c.h.current = root
	return ok
}

func (c *call) configuration() []byte {
	b, _ := c.h.current.buffer(7)
	return b
}

func (c *call) getBufferBytes() result {
	b, there := c.h.current.buffer(c.i32(0))
	if !there {
		return notFound
	}
	start, length := uint64(c.i32(1)), uint64(c.i32(2))
	if start > uint64(len(b)) {
		start = uint64(len(b))
	}
	b = b[start:min(start+length, uint64(len(b)))]
	if len(b) == 0 {
		return ok // nothing is written then
	}
	return c.reply(3, b)
}

func (c *call) getBufferStatus() result {
	b, there := c.h.current.buffer(c.i32(0))
	if !there {
		return notFound
	}
	return stored(c.put(1, uint32(len(b))) && c.put(2, 0))
}

func (c *call) getProperty() result {
	path, there := c.bytes(0)
	if !there {
		return invalidMemoryAccess
	}
	if len(path) == 0 {
		return serializationFailure
	}
	p := c.h.current
	for name, value := range map[string]string{"plugin_name": p.plugin.Name, "plugin_root_id": p.plugin.RootID, "plugin_vm_id": p.plugin.VMID} {
		if s := string(path); s == name || s == name+"\x00" {
			return c.reply(2, []byte(value))
		}
	}
	return notFound
}

func (c *call) setProperty() result {
	if _, there := c.bytes(0); !there {
		return invalidMemoryAccess
	}
	if _, there := c.bytes(2); !there {
		return invalidMemoryAccess
	}
	return notFound // there is no stream to set it on
}

// sharedData is that of the plugins of one VM.
type sharedData map[string]sharedValue

type sharedValue struct {
	bytes []byte
	cas   uint32
}

func (c *call) getSharedData() result {
	key, there := c.bytes(0)
	if !there {
		return invalidMemoryAccess
	}
	v, there := c.h.shared[string(key)]
	if !there {
		return notFound
	}
	if r := c.reply(2, v.bytes); r != ok {
		return r
	}
	return stored(c.put(4, v.cas))
}

func (c *call) setSharedData() result {
	key, there := c.bytes(0)
	value, there2 := c.bytes(2)
	if !there || !there2 {
		return invalidMemoryAccess
	}
	before, known := c.h.shared[string(key)]
	switch cas := c.i32(4); {
	case cas != 0 && cas != before.cas:
		return casMismatch
	case !known && len(c.h.shared) >= maxShared || len(value) > maxEntry:
		return internalFailure
	}
	c.h.shared[string(key)] = sharedValue{value, before.cas + 1}
	return ok
}

// sharedQueues are by their tokens, the index with 1 added.
type sharedQueues []*sharedQueue

// sharedQueue is one of a VM.
type sharedQueue struct {
	vm, name string
	items    [][]byte
}

func (c *call) queue(token uint32) *sharedQueue {
	if token == 0 || uint64(token) > uint64(len(c.h.queues)) {
		return nil
	}
	return c.h.queues[token-1]
}

func (c *call) registerQueue() result {
	name, there := c.bytes(0)
	if !there {
		return invalidMemoryAccess
	}
	for i, q := range c.h.queues {
		if q.name == string(name) {
			return stored(c.put(2, uint32(i+1)))
		}
	}
	if len(c.h.queues) >= maxShared {
		return internalFailure
	}
	c.h.queues = append(c.h.queues, &sharedQueue{vm: c.h.current.plugin.VMID, name: string(name)})
	return stored(c.put(2, uint32(len(c.h.queues))))
}

func (c *call) resolveQueue() result {
	vm, there := c.bytes(0)
	name, there2 := c.bytes(2)
	if !there || !there2 {
		return invalidMemoryAccess
	}
	if len(vm) == 0 {
		vm = []byte(c.h.current.plugin.VMID)
	}
	for i, q := range c.h.queues {
		if q.name == string(name) && q.vm == string(vm) {
			return stored(c.put(4, uint32(i+1)))
		}
	}
	return notFound
}

func (c *call) enqueue() result {
	b, there := c.bytes(1)
	if !there {
		return invalidMemoryAccess
	}
	q := c.queue(c.i32(0))
	if q == nil {
		return notFound
	}
	if len(q.items) >= maxShared || len(b) > maxEntry {
		return internalFailure
	}
	q.items = append(q.items, b)
	return ok
}

func (c *call) dequeue() result {
	q := c.queue(c.i32(0))
	if q == nil {
		return notFound
	}
	if len(q.items) == 0 {
		return empty
	}
	b := q.items[0]
	q.items = q.items[1:]
	return c.reply(1, b)
}

// metrics are by their ids, the index with 1 added.
type metrics struct {
	byName map[string]uint32
	values []metric
}

type metric struct {
	kind  uint32
	value uint64
}

func (c *call) defineMetric() result {
	name, there := c.bytes(1)
	kind := c.i32(0)
	if !there {
		return invalidMemoryAccess
	}
	if kind >= metricKind {
		return badArgument
	}
	m := &c.h.metrics
	full := string(binary.LittleEndian.AppendUint32(name, kind))
	id, known := m.byName[full]
	if !known {
		if len(m.values) >= maxShared {
			return internalFailure
		}
		m.values = append(m.values, metric{kind: kind})
		id = uint32(len(m.values))
		m.byName[full] = id
	}
	return stored(c.put(2, id))
}

func (c *call) metric() *metric {
	if id := uint64(c.i32(0)); id > 0 && id <= uint64(len(c.h.metrics.values)) {
		return &c.h.metrics.values[id-1]
	}
	return nil
}

func (c *call) incrementMetric() result {
	m := c.metric()
	const counter, histogram = 0, 2
	switch {
	case m == nil:
		return notFound
	case m.kind == histogram, m.kind == counter && int64(c.args[1]) < 0:
		return badArgument
	}
	m.value += c.args[1]
	return ok
}

func (c *call) recordMetric() result {
	m := c.metric()
	if m == nil {
		return notFound
	}
	m.value = c.args[1]
	return ok
}

func (c *call) getMetric() result {
	const histogram = 2
	m := c.metric()
	switch {
	case m == nil:
		return notFound
	case m.kind == histogram:
		return badArgument
	}
	return stored(c.put64(1, m.value))
}

package wasmhost

import (
	"maps"
	"strings"
	"time"
	"unicode"
)

const (
	maxLog    = 16 << 10 // bytes of a logged line
	maxShared = 1 << 10  // entries of shared data, queues, items of a queue, metrics
	maxEntry  = 1 << 20  // bytes of an entry
)

// functions are all that a module may import, by their names.
func functions() map[string]func(call) result {
	all := map[string]func(call) result{
		"pthread_equal":                   func(c call) result { return result(truth(c.i32(0) == c.i32(1))) },
		"emscripten_notify_memory_growth": func(call) result { return ok },

		"proxy_log":                          call.log,
		"proxy_get_log_level":                func(c call) result { return stored(c.put(0, uint32(LevelTrace))) },
		"proxy_get_status":                   func(c call) result { return c.status() },
		"proxy_get_current_time_nanoseconds": func(c call) result { return stored(c.put64(0, uint64(c.h.time().UnixNano()))) },
		"proxy_set_tick_period_milliseconds": call.tick,
		"proxy_set_effective_context":        call.setEffectiveContext,
		"proxy_done":                         func(call) result { return notFound }, // nothing is being ended
		"proxy_call_foreign_function":        call.foreign,

		"proxy_get_configuration": func(c call) result { return c.reply(0, c.configuration()) },
		"proxy_get_property":      call.getProperty,
		"proxy_set_property":      call.setProperty,

		"proxy_get_shared_data":       call.getSharedData,
		"proxy_set_shared_data":       call.setSharedData,
		"proxy_register_shared_queue": call.registerQueue,
		"proxy_resolve_shared_queue":  call.resolveQueue,
		"proxy_enqueue_shared_queue":  call.enqueue,
		"proxy_dequeue_shared_queue":  call.dequeue,
		"proxy_define_metric":         call.defineMetric,
		"proxy_increment_metric":      call.incrementMetric,
		"proxy_record_metric":         call.recordMetric,
		"proxy_get_metric":            call.getMetric,
	}
	maps.Copy(all, streams())
	maps.Copy(all, wasi())
	return all
}

// streams are the functions about a stream, or a call to a cluster.
func streams() map[string]func(call) result {
	return map[string]func(call) result{
		"proxy_send_local_response":      call.sendLocalResponse,
		"proxy_clear_route_cache":        call.clearRoute,
		"proxy_continue_request":         func(c call) result { return c.goOn(requestStream) },
		"proxy_continue_response":        func(c call) result { return c.goOn(responseStream) },
		"proxy_continue_stream":          func(c call) result { return c.goOn(c.i32(0)) },
		"proxy_close_stream":             call.closeStream,
		"proxy_get_header_map_value":     call.getHeader,
		"proxy_add_header_map_value":     change(2, (*headerMap).add),
		"proxy_replace_header_map_value": change(2, (*headerMap).set),
		"proxy_remove_header_map_value":  change(1, func(m *headerMap, name, _ string) { m.remove(name) }),
		"proxy_get_header_map_pairs":     call.getPairs,
		"proxy_set_header_map_pairs":     call.setPairs,
		"proxy_get_header_map_size":      call.mapSize,
		"proxy_get_buffer_bytes":         call.getBufferBytes,
		"proxy_get_buffer_status":        call.getBufferStatus,
		"proxy_set_buffer_bytes":         call.setBufferBytes,
		"proxy_http_call":                call.httpCall,
		"proxy_grpc_call":                func(c call) result { return c.grpc(grpcCall, 5, 11) },
		"proxy_grpc_stream":              func(c call) result { return c.grpc(grpcStream, 4, 8) },
		"proxy_grpc_close":               call.grpcEnd,
		"proxy_grpc_cancel":              call.grpcEnd,
		"proxy_grpc_send":                call.grpcSend,
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

func (c call) log() result {
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

// write logs what the module said. Who shows it to people makes it fit to be shown.
func (h *Host) write(l Level, text string) { h.cfg.Log(l, text[:min(len(text), maxLog)]) }

func (c call) status() result {
	scope := c.h.current
	if !c.put(0, scope.status) {
		return invalidMemoryAccess
	}
	return c.reply(1, []byte(scope.message))
}

func (c call) setEffectiveContext() result {
	scope := c.h.contexts[c.i32(0)]
	switch {
	case scope == nil:
		return badArgument
	case scope.id == 0: // back to where it was
		scope = c.h.called
	}
	c.h.current = scope
	return ok
}

// configuration is what ABI 0.1.0 asks for: the plugin's, while it is being handed
// over, else the VM's.
func (c call) configuration() []byte {
	if scope := c.h.current; scope.configuring {
		return scope.plugin.Config
	}
	return c.h.cfg.VMConfig
}

// time is the clock, and what time was let pass.
func (h *Host) time() time.Time { return h.cfg.Now().Add(h.clock.now) }

// tick sets how often the root context is woken.
func (c call) tick() result {
	h, root := c.h, c.h.current.root
	before := root.period
	root.period = time.Duration(c.i32(0)) * time.Millisecond
	if before == 0 && root.period > 0 {
		h.wake(root)
	}
	return ok
}

// wake has a root context woken after its period, and so on.
func (h *Host) wake(root *scope) {
	h.clock.in(root.period, func() {
		if root.period == 0 || h.failed != nil {
			return
		}
		h.ticks++
		h.notify(root, "proxy_on_tick", uint64(root.id))
		if root.period > 0 {
			h.wake(root)
		}
	})
}

// The streams that a call can be about.
const (
	requestStream = iota
	responseStream
	downstream
	upstream
)

// goOn lets a stream go on that was stopped, once the callback is over.
func (c call) goOn(which uint32) result {
	x := c.h.current.stream
	switch which {
	case requestStream, responseStream:
	case downstream:
		return ok
	case upstream:
		return unimplemented
	default:
		return badArgument
	}
	if x == nil {
		return ok
	}
	lane := &x.request
	if which == responseStream {
		lane = &x.response
	}
	c.h.after = append(c.h.after, lane.proceed)
	x.request.seen.headers, x.request.seen.body, x.request.seen.trailers = nil, nil, nil
	return ok
}

// clearRoute has the route looked for anew.
func (c call) clearRoute() result {
	if x := c.h.current.stream; x != nil {
		x.rerouted = true
	}
	return ok
}

// closeStream cuts a stream off, once the callback is over.
func (c call) closeStream() result {
	which, x := c.i32(0), c.h.current.stream
	if which > upstream {
		return badArgument
	}
	if x == nil || which > responseStream {
		return ok
	}
	if x.details == "" {
		x.details = "wasm_close_stream"
	}
	c.h.after = append(c.h.after, func() {
		if !x.over {
			x.cutOff()
		}
	})
	return ok
}

// sendLocalResponse answers the request, once the callback is over.
func (c call) sendLocalResponse() result {
	details, there := c.text(1)
	content, there2 := c.text(3)
	pairs, there3 := c.view(5)
	if !there || !there2 || !there3 {
		return invalidMemoryAccess
	}
	r := localReply{
		status: int(c.i32(0)), headers: unmarshal(pairs), body: content, grpc: int(int32(c.i32(7))),
		details: strings.Join(strings.FieldsFunc(details, unicode.IsSpace), "_"),
	}
	if r.grpc > grpcKnown {
		r.grpc = -1
	}
	h := c.h
	if x := h.current.stream; x != nil && !x.logging {
		h.after = append(h.after, func() { x.localReply(r) })
	}
	h.answered = true
	return ok
}

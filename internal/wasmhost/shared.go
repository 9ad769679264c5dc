package wasmhost

// sharedData is that of the plugins of one VM. The numbers of versions are of all its
// keys.
type sharedData struct {
	values map[string]sharedValue
	last   uint32
}

type sharedValue struct {
	bytes []byte
	cas   uint32
}

func (c call) getSharedData() result {
	key, there := c.view(0)
	if !there {
		return invalidMemoryAccess
	}
	v, there := c.h.shared.values[string(key)]
	if !there {
		return notFound
	}
	if r := c.reply(2, v.bytes); r != ok {
		return r
	}
	return stored(c.put(4, v.cas))
}

func (c call) setSharedData() result {
	key, there := c.text(0)
	value, there2 := c.bytes(2)
	if !there || !there2 {
		return invalidMemoryAccess
	}
	d := &c.h.shared
	before, known := d.values[key]
	switch cas := c.i32(4); {
	case known && cas != 0 && cas != before.cas:
		return casMismatch
	case !known && len(d.values) >= maxShared || len(value) > maxEntry:
		return internalFailure
	}
	d.last++
	d.values[key] = sharedValue{value, d.last}
	return ok
}

// sharedQueues are by their tokens, the index with 1 added.
type sharedQueues []*sharedQueue

// sharedQueue is one of a VM. Its reader is the root context that registered it.
type sharedQueue struct {
	vm, name string
	reader   *scope
	items    [][]byte
}

func (c call) queue(token uint32) *sharedQueue {
	if token == 0 || uint64(token) > uint64(len(c.h.queues)) {
		return nil
	}
	return c.h.queues[token-1]
}

func (c call) registerQueue() result {
	name, there := c.text(0)
	if !there {
		return invalidMemoryAccess
	}
	root := c.h.current.root
	for i, q := range c.h.queues {
		if q.name == name && q.vm == root.plugin.VMID {
			q.reader = root
			return stored(c.put(2, uint32(i+1)))
		}
	}
	if len(c.h.queues) >= maxShared {
		return internalFailure
	}
	c.h.queues = append(c.h.queues, &sharedQueue{vm: root.plugin.VMID, name: name, reader: root})
	return stored(c.put(2, uint32(len(c.h.queues))))
}

func (c call) resolveQueue() result {
	vm, there := c.text(0)
	name, there2 := c.text(2)
	if !there || !there2 {
		return invalidMemoryAccess
	}
	if vm == "" {
		vm = c.h.current.root.plugin.VMID
	}
	for i, q := range c.h.queues {
		if q.name == name && q.vm == vm {
			return stored(c.put(4, uint32(i+1)))
		}
	}
	return notFound
}

func (c call) enqueue() result {
	b, there := c.bytes(1)
	if !there {
		return invalidMemoryAccess
	}
	h, token := c.h, c.i32(0)
	q := c.queue(token)
	if q == nil {
		return notFound
	}
	if len(q.items) >= maxShared || len(b) > maxEntry {
		return internalFailure
	}
	q.items = append(q.items, b)
	h.clock.in(0, func() { h.notify(q.reader, "proxy_on_queue_ready", uint64(q.reader.id), uint64(token)) })
	return ok
}

func (c call) dequeue() result {
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

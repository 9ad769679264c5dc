package wasmhost

// The kinds of metrics; a metric's id has its kind in the two lowest bits.
const (
	counter metricKind = iota
	gauge
	histogram
	metricKinds

	kindBits = 2
)

type metricKind uint32

// metrics are by their ids; those of one name and kind are one.
type metrics struct {
	byID   map[uint32]*metric
	byName map[metricName]*metric
	last   [metricKinds]uint32
}

type metricName struct {
	kind metricKind
	name string
}

// metric has a value; of a histogram it is how many were recorded.
type metric struct {
	kind  metricKind
	value uint64
}

func newMetrics() metrics {
	return metrics{byID: map[uint32]*metric{}, byName: map[metricName]*metric{}}
}

func (c call) defineMetric() result {
	name, there := c.text(1)
	kind := metricKind(c.i32(0))
	if !there {
		return invalidMemoryAccess
	}
	if kind >= metricKinds {
		return badArgument
	}
	all := &c.h.metrics
	m := all.byName[metricName{kind, name}]
	if m == nil {
		if len(all.byName) >= maxShared {
			return internalFailure
		}
		m = &metric{kind: kind}
		all.byName[metricName{kind, name}] = m
	}
	if len(all.byID) >= maxEntry {
		return internalFailure
	}
	all.last[kind]++
	id := all.last[kind]<<kindBits | uint32(kind)
	all.byID[id] = m
	return stored(c.put(3, id))
}

// metric gives the one that the first argument names; none is the given result, by
// the kind in its id.
func (c call) metric(histograms result) (*metric, result) {
	id := c.i32(0)
	if kind := metricKind(id & (1<<kindBits - 1)); kind >= histogram && histograms != ok {
		return nil, histograms
	}
	m := c.h.metrics.byID[id]
	if m == nil {
		return nil, notFound
	}
	return m, ok
}

func (c call) incrementMetric() result {
	m, r := c.metric(badArgument)
	if r != ok {
		return r
	}
	if m.kind == counter && int64(c.args[1]) <= 0 {
		return badArgument
	}
	m.value += c.args[1]
	return ok
}

func (c call) recordMetric() result {
	m, r := c.metric(ok)
	if r != ok {
		return r
	}
	switch m.kind {
	case counter:
		m.value += c.args[1]
	case gauge:
		m.value = c.args[1]
	default:
		m.value++
	}
	return ok
}

func (c call) getMetric() result {
	m, r := c.metric(badArgument)
	if r != ok {
		return r
	}
	return stored(c.put64(1, m.value))
}

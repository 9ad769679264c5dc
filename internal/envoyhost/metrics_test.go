package envoyhost_test

import (
	"testing"

	"chandler.dev/chandler/internal/exchange"
	"chandler.dev/chandler/internal/testenv/module"
)

// A session's metrics end with it. Envoy counts on where a name was known before, for as
// long as any of its threads has it.
func TestMetricsEndWithTheirSession(t *testing.T) {
	t.Parallel()
	e := engine(t)
	count := file(t, module.Script{On: map[string][]module.Turn{
		"proxy_on_configure": {{Gives: 1, Does: []module.Host{module.Do("proxy_define_metric", 0, "count", module.OutNumber), module.Do("proxy_set_tick_period_milliseconds", 10)}}},
		"proxy_on_tick":      {},
		"proxy_on_request_headers": {{Does: []module.Host{
			module.Do("proxy_define_metric", 0, "count", module.OutNumber), module.Do("proxy_increment_metric", module.Token, int64(1)),
		}}},
	}}.Encode())
	for n := range 100 {
		s := start(t, e, exchange.Setup{Module: count, Name: "count"})
		do(t, s, get("/"))
		m, err := s.Metrics(t.Context())
		if err != nil || m["count"] != 1 {
			t.Errorf("session %d begins with the metrics of the one before: %v, %v", n, m, err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

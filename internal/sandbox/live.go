package sandbox

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/attach"
	"chandler.dev/chandler/internal/xds/envoyads"
)

const (
	// place is the name of the one filter that a live Envoy is told of.
	place = "vet"
	// logged bounds the wait for Envoy's log after its refusal: they come on two ways. Only
	// of a plugin that says more than is kept does what is waited for never come.
	logged = 10 * time.Second
	// maxSocket is how long the path of a socket may be.
	maxSocket = 90
	// passedHeader marks answers of what stands behind the plugin.
	passedHeader = "x-chandler-probe"
)

// errGone: a live Envoy is of no use any more.
var errGone = errors.New("the Envoy has ended")

// live is an Envoy in a jail that serves, on a socket in its folder, and is told of
// one configuration after another. It is for one at a time.
type live struct {
	*child
	dir    string
	memory int64
	passed string // the value of passedHeader

	ads    *envoyads.Server
	events chan envoyads.Event
	stop   context.CancelFunc
	served chan struct{} // closed when ads serves no more

	last []byte            // the bytes that it was told last
	said *chandler.Problem // and what it said of them
}

// launch starts a live Envoy for plugins of c's kind, and tells it nothing yet. It
// lives until ctx ends or it is closed.
func (s *Sandbox) launch(ctx context.Context, c Case) (*live, error) {
	dir, err := s.jail.folder()
	if err != nil {
		return nil, err
	}
	l := &live{dir: dir, memory: s.memory(c), passed: rand.Text(), events: make(chan envoyads.Event, 16), served: make(chan struct{})}
	config, err := l.bootstrap(c.Attachment.Type)
	if err == nil {
		err = os.WriteFile(l.path("envoy.json"), config, 0o600)
	}
	var socket net.Listener
	if err == nil {
		socket, err = net.Listen("unix", l.path("ads.sock"))
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("sandbox: %w", err), os.RemoveAll(dir))
	}
	serving, stop := context.WithCancel(ctx)
	l.stop = stop
	l.ads = envoyads.New(envoyads.Config{Events: func(ev envoyads.Event) {
		select {
		case l.events <- ev:
		case <-serving.Done():
		}
	}})
	go func() { defer close(l.served); _ = l.ads.Serve(serving, socket) }()
	// Its memory is watched while it works, see watched.
	l.child, err = s.jail.start(ctx, dir, 0, "-c", l.path("envoy.json"), "--use-dynamic-base-id", "--disable-hot-restart", "--concurrency", "1",
		"-l", "warning", "--component-log-level", "wasm:info", "--log-format", logFormat)
	if err != nil {
		stop()
		<-l.served
		return nil, errors.Join(fmt.Errorf("sandbox: %w", err), os.RemoveAll(dir))
	}
	return l, nil
}

func (l *live) path(name string) string { return filepath.Join(l.dir, name) }

// close ends the Envoy and all that is there for it.
func (l *live) close() {
	l.kill()
	l.stop()
	<-l.served
	_ = os.RemoveAll(l.dir)
}

// watched does something with the Envoy while its memory is watched; the context it
// gives ends when that is too much.
func (l *live) watched(ctx context.Context, do func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		watchMemory(ctx, l.cmd.Process.Pid, l.memory, func() { cancel(errMemory) })
	}()
	err := do(ctx)
	if errors.Is(context.Cause(ctx), errMemory) {
		err = errMemory
	}
	cancel(nil)
	<-done
	return err
}

// judge tells Envoy of a plugin and gives what it has against it; nil: nothing. After
// an error it is to be closed.
func (l *live) judge(ctx context.Context, m attach.Member, version string) (problem *chandler.Problem, err error) {
	config := &corev3.TypedExtensionConfig{Name: place, TypedConfig: attach.Alone(m).TypedConfig}
	body := attach.Body(config)
	if bytes.Equal(body.Value, l.last) {
		return l.said, nil // Envoy would acknowledge it without a look
	}
	err = l.watched(ctx, func(ctx context.Context) error {
		l.out.empty()
		l.ads.Set(place, attach.Version(config), body)
		problem, err = l.answer(ctx, attach.Version(config), version)
		return err
	})
	l.last, l.said = body.Value, problem
	return problem, err
}

// answer waits for what Envoy says of what it was told.
func (l *live) answer(ctx context.Context, want, version string) (*chandler.Problem, error) {
	for {
		select {
		case ev := <-l.events:
			switch ev := ev.(type) {
			case envoyads.Acked:
				if ev.Version == want {
					return nil, nil
				}
			case envoyads.Nacked:
				if ev.Version == want {
					l.out.await(ctx, "rejected: ", logged)
					return explain(l.out.Bytes(), version), nil
				}
			}
		case <-l.ended:
			return nil, fmt.Errorf("%w: %v: %s", errGone, l.end, chandler.Printable(string(last(l.out.Bytes())), 512))
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// bootstrap is an Envoy whose one filter comes over the socket, and behind which
// every request is answered.
func (l *live) bootstrap(kind chandler.FilterType) ([]byte, error) {
	type object = map[string]any
	typed := func(name, kind string, config object) object {
		config["@type"] = "type.googleapis.com/envoy.extensions." + kind
		return object{"name": name, "typed_config": config}
	}
	pipe := func(name string) object { return object{"pipe": object{"path": l.path(name)}} }
	slot := func(types ...string) object {
		var urls []string
		for _, t := range types {
			urls = append(urls, "type.googleapis.com/envoy.extensions.filters."+t)
		}
		return object{"name": place, "config_discovery": object{
			"config_source": object{"ads": object{}, "resource_api_version": "V3", "initial_fetch_timeout": "0s"}, "type_urls": urls,
		}}
	}
	filters := []any{slot("network.wasm.v3.Wasm"), typed("end", "filters.network.direct_response.v3.Config", object{})}
	if kind != chandler.Network {
		filters = []any{typed("http", "filters.network.http_connection_manager.v3.HttpConnectionManager", object{
			"stat_prefix": "vet",
			"route_config": object{"virtual_hosts": []any{object{"name": "all", "domains": []string{"*"}, "routes": []any{object{
				"match": object{"prefix": "/"}, "direct_response": object{"status": 200},
				"response_headers_to_add": []any{object{"header": object{"key": passedHeader, "value": l.passed}}},
			}}}}},
			"http_filters": []any{slot("http.wasm.v3.Wasm", "http.lua.v3.Lua"), typed("router", "filters.http.router.v3.Router", object{})},
		})}
	}
	http2 := "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
	return json.Marshal(object{
		"node": object{"id": place, "cluster": place},
		"dynamic_resources": object{"ads_config": object{
			"api_type": "DELTA_GRPC", "transport_api_version": "V3", "set_node_on_first_message_only": true,
			"grpc_services": []any{object{"envoy_grpc": object{"cluster_name": "ads"}}},
		}},
		"static_resources": object{
			"clusters": []any{object{
				"name": "ads", "type": "STATIC", "connect_timeout": "1s",
				"typed_extension_protocol_options": object{http2: object{
					"@type": "type.googleapis.com/" + http2, "explicit_http_config": object{"http2_protocol_options": object{}},
				}},
				"load_assignment": object{"cluster_name": "ads", "endpoints": []any{object{"lb_endpoints": []any{object{"endpoint": object{"address": pipe("ads.sock")}}}}}},
			}},
			"listeners": []any{object{"name": "vet", "address": pipe("in.sock"), "filter_chains": []any{object{"filters": filters}}}},
		},
	})
}

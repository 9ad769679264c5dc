package upstream

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"chandler.dev/chandler/internal/attach"
	"chandler.dev/chandler/internal/testenv/authority"
	"chandler.dev/chandler/internal/testenv/module"
	controlplane "chandler.dev/chandler/internal/testenv/upstream"
)

// opaque hands messages on without reading them.
type opaque struct{}

func (opaque) Marshal(v any) ([]byte, error)   { return *v.(*[]byte), nil }
func (opaque) Unmarshal(b []byte, v any) error { *v.(*[]byte) = bytes.Clone(b); return nil }
func (opaque) Name() string                    { return "opaque" }

// messages are either end of a stream.
type messages interface {
	SendMsg(any) error
	RecvMsg(any) error
}

// between serves on a socket what the connection gives.
func between(t *testing.T, socket string, to *Conn) {
	t.Helper()
	pass := func(from, to messages, end func() error) error {
		for {
			var m []byte
			if err := from.RecvMsg(&m); err != nil {
				return errors.Join(err, end())
			}
			if err := to.SendMsg(&m); err != nil {
				return err
			}
		}
	}
	s := grpc.NewServer(grpc.WaitForHandlers(true), grpc.ForceServerCodec(opaque{}), grpc.UnknownServiceHandler(func(_ any, envoy grpc.ServerStream) error {
		method, _ := grpc.MethodFromServerStream(envoy)
		g, ctx := errgroup.WithContext(envoy.Context())
		up, err := to.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, method, grpc.ForceCodec(opaque{}))
		if err != nil {
			return err
		}
		g.Go(func() error { return pass(envoy, up, up.CloseSend) })
		g.Go(func() error { return pass(up, envoy, func() error { return nil }) })
		return g.Wait()
	}))
	done := make(chan error, 1)
	lis := listen(t, "unix", socket)
	go func() { done <- s.Serve(lis) }()
	t.Cleanup(func() {
		s.Stop()
		<-done
	})
}

// A real Envoy with the derived bootstrap takes everything through the agent's socket,
// and the control plane sees it as it saw it before: in every variant, over mutual TLS.
func TestEnvoyThroughSocket(t *testing.T) {
	t.Parallel()
	for _, v := range controlplane.Variants {
		t.Run(v.String(), func(t *testing.T) {
			t.Parallel()
			binary := module.Envoy(t)
			dir := t.TempDir()
			u := controlplane.New(t, controlplane.Config{Variant: v, Authority: authority.New(t), Mutual: true})
			u.Set("1", controlplane.Resources{
				v.Listener("l", filepath.Join(dir, "l"), "r"), v.Cluster("c"), controlplane.Route("r", "c", "mark"), controlplane.Backend("c", "127.0.0.1:1"),
			})
			config, err := attach.MergeConfig("e.yaml", []byte(u.Bootstrap("tester", filepath.Join(dir, "admin"))), "")
			if err != nil {
				t.Fatal(err)
			}
			d, err := attach.Derive(config, attach.DeriveConfig{ADSSocket: filepath.Join(dir, "ads"), UpstreamSocket: filepath.Join(dir, "up")})
			if err != nil || len(d.ControlPlanes) != 1 {
				t.Fatal(d.ControlPlanes, err)
			}
			c, err := New(d.ControlPlanes[0], Options{})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { c.Close() })
			between(t, d.ControlPlanes[0].Socket, c)
			bootstrap := filepath.Join(dir, "bootstrap.yaml")
			if err := os.WriteFile(bootstrap, d.Bootstrap, 0o600); err != nil {
				t.Fatal(err)
			}
			var log bytes.Buffer
			cmd := exec.Command(binary, "-c", bootstrap, "--use-dynamic-base-id", "--concurrency", "1", "-l", "warning")
			cmd.Stdout, cmd.Stderr = &log, &log
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				_ = cmd.Process.Kill()
				_ = cmd.Wait()
				if t.Failed() {
					t.Logf("Envoy's log:\n%.4000s", log.String())
				}
			})
			for _, kind := range []string{controlplane.Clusters, controlplane.Endpoints, controlplane.Listeners, controlplane.Routes} {
				u.Await(kind+" is acknowledged", func() bool { return u.Acked(kind, "1") })
			}
			if id := u.Requests()[0].Node.GetId(); id != "tester" {
				t.Errorf("the node is %q", id)
			}
		})
	}
}

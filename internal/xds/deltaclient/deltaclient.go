// Package deltaclient is the agent's side of the delta xDS stream: it keeps one
// stream to one of several control planes, says what it already has, hands every
// answer on and acknowledges or refuses it by what became of it.
//
// It subscribes to one resource type with the wildcard and does not read the
// resources. It keeps nothing: what is known is asked for at every connect.
package deltaclient

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	"chandler.dev/chandler"
)

// Limits in time. A peer that is gone without a word is noticed after
// keepaliveTime and keepaliveTimeout: 30 seconds.
const (
	MaxBackoff   = 3 * time.Second
	FirstTimeout = 15 * time.Second // from connect to the first answer

	minBackoff       = 20 * time.Millisecond
	firstSpread      = time.Second // over which agents come back that lost a control plane
	connectTimeout   = 3 * time.Second
	keepaliveTime    = 25 * time.Second
	keepaliveTimeout = 5 * time.Second
	maxMessage       = 32 << 20 // bytes of one answer
	maxDetail        = 4 << 10  // bytes of a refusal's reason
	window           = 1 << 20  // bytes that may be under way; modules come over the same connection
)

// Config says where to connect and what to do with what comes.
type Config struct {
	// Targets are control planes as gRPC names, tried in turn, beginning with the
	// one that worked last.
	Targets []string
	// Dial holds at least the transport credentials.
	Dial []grpc.DialOption
	Node *corev3.Node
	// TypeURL is the one resource type that is asked for.
	TypeURL string

	// Known gives name and version of every resource that is held; it is asked at
	// every connect, so that only differences are sent. Nil: nothing is known.
	Known func() map[string]string
	// Handle takes an update in; an error refuses it (NACK) with its text. It is
	// called from one goroutine, and the next update waits for it.
	Handle func(Update) error
	// Connected, when set, is told when a control plane has answered, and when it
	// was lost or could not be reached, with the reason.
	Connected func(ok bool, target string, err error)
	// Session, when set, runs beside the stream on the same connection, from the
	// first answer until ctx ends; the next connect waits for its return.
	Session func(ctx context.Context, conn *grpc.ClientConn)
	Log     *slog.Logger
}

// Update is one answer of the control plane. It may be empty: the first one
// tells then that nothing differs from what is known.
type Update struct {
	// First marks the first answer on a stream.
	First bool
	// From is the identity that the control plane gives itself; it may be empty.
	From    string
	Changed []Resource
	Removed []string
}

// Resource is one named body at one version.
type Resource struct {
	Name    string
	Version string
	Body    []byte
}

// Client keeps the stream. New starts nothing; Run does.
type Client struct{ cfg Config }

// New gives a client that is not running.
func New(cfg Config) *Client {
	if cfg.Known == nil {
		cfg.Known = func() map[string]string { return nil }
	}
	if cfg.Connected == nil {
		cfg.Connected = func(bool, string, error) {}
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Client{cfg: cfg}
}

// Run connects, and connects again, until ctx ends; then it returns nil. The
// only errors are those of the Config.
func (c *Client) Run(ctx context.Context) error {
	if len(c.cfg.Targets) == 0 || c.cfg.Handle == nil || c.cfg.TypeURL == "" {
		return errors.New("deltaclient: targets, type URL and handler are required")
	}
	failures, told := 0, away{log: c.cfg.Log}
	for at := 0; ctx.Err() == nil; {
		target, began := c.cfg.Targets[at], time.Now()
		answered, err := c.session(ctx, target)
		if ctx.Err() != nil {
			return nil
		}
		c.cfg.Connected(false, target, err)
		if answered && time.Since(began) >= MaxBackoff {
			failures, told = 0, away{log: c.cfg.Log} // one that answers and drops at once is no better than none
		}
		wait := Delay(failures, len(c.cfg.Targets), rand.Float64())
		if answered && outlived(failures, err) {
			wait = minBackoff
		}
		told.again(target, err, wait)
		failures++
		at = (at + 1) % len(c.cfg.Targets)
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
	return nil
}

// awayWords is how often is said at most that the control plane is still away.
const awayWords = time.Minute

// away tells that the control plane is away: at once, and then now and then with how
// often it was tried.
type away struct {
	log   *slog.Logger
	tries int
	at    time.Time // when it was told last
}

func (a *away) again(target string, err error, wait time.Duration) {
	a.tries++
	level := slog.LevelDebug
	if now := time.Now(); a.at.IsZero() || now.Sub(a.at) >= awayWords {
		level, a.at = slog.LevelWarn, now
	}
	a.log.Log(context.Background(), level, "control plane is away", "target", target, "error", err, "tries", a.tries, "retry_in", wait)
}

// Delay is how long to wait after a failure: any time up to a bound that doubles
// with every round of the targets. It is all chance from the first try on, because
// an agent cannot know whether a whole fleet lost the same control plane in the
// same moment, and a fleet must not come back in one.
func Delay(failures, targets int, chance float64) time.Duration {
	bound := firstSpread
	for range min(failures/targets, 16) {
		bound = min(2*bound, MaxBackoff)
	}
	return max(minBackoff, time.Duration(chance*float64(bound)))
}

// outlived tells whether a stream went well for a while and then outlived what was
// shown for it. What is shown next may be good, and not the whole fleet's ends in
// one moment.
func outlived(failures int, err error) bool {
	return failures == 0 && status.Code(err) == codes.Unauthenticated
}

// session is one connection from dial to loss; answered tells whether the
// control plane ever answered on it.
func (c *Client) session(ctx context.Context, target string) (answered bool, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	conn, err := grpc.NewClient(target, append(dialDefaults(), c.cfg.Dial...)...)
	if err != nil {
		return false, err
	}
	defer conn.Close()

	first := time.AfterFunc(FirstTimeout, func() {
		cancel(fmt.Errorf("no answer within %v", FirstTimeout))
	})
	defer first.Stop()
	because := func(err error) error {
		if cause := context.Cause(ctx); cause != nil {
			return cause
		}
		return err
	}
	stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
	if err != nil {
		return false, because(err)
	}
	if err := stream.Send(&discoveryv3.DeltaDiscoveryRequest{
		Node:                    c.cfg.Node,
		TypeUrl:                 c.cfg.TypeURL,
		ResourceNamesSubscribe:  []string{"*"},
		InitialResourceVersions: c.cfg.Known(),
	}); err != nil {
		return false, because(end(stream))
	}

	beside := make(chan struct{})
	defer func() {
		cancel(nil)
		if answered {
			<-beside
		}
	}()
	for {
		resp, err := stream.Recv()
		if err != nil {
			return answered, because(err)
		}
		isFirst := !answered
		if isFirst {
			if !first.Stop() {
				return false, because(context.DeadlineExceeded)
			}
			answered = true
			c.cfg.Connected(true, target, nil)
			go func() {
				defer close(beside)
				if c.cfg.Session != nil {
					c.cfg.Session(ctx, conn)
				}
			}()
		}
		if err := stream.Send(c.answer(resp, isFirst)); err != nil {
			return answered, because(end(stream))
		}
	}
}

// end gives the reason why a stream ended, of which Send says only EOF.
func end(stream discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesClient) error {
	for {
		if _, err := stream.Recv(); err != nil {
			return err
		}
	}
}

// answer handles a response and makes its ACK or NACK.
func (c *Client) answer(resp *discoveryv3.DeltaDiscoveryResponse, first bool) *discoveryv3.DeltaDiscoveryRequest {
	req := &discoveryv3.DeltaDiscoveryRequest{TypeUrl: resp.GetTypeUrl(), ResponseNonce: resp.GetNonce()}
	update, err := c.update(resp)
	if err == nil {
		update.First = first
		err = c.cfg.Handle(update)
	}
	if err != nil {
		c.cfg.Log.Warn("answer of the control plane refused", "error", err)
		var problem *chandler.Problem
		if errors.As(err, &problem) {
			err = fmt.Errorf("%s: %w", problem.Code, err)
		}
		req.ErrorDetail = &rpcstatus.Status{
			Code:    int32(codes.InvalidArgument),
			Message: chandler.Printable(err.Error(), maxDetail),
		}
	}
	return req
}

func (c *Client) update(resp *discoveryv3.DeltaDiscoveryResponse) (Update, error) {
	if resp.GetTypeUrl() != c.cfg.TypeURL {
		return Update{}, unasked("type %s was not asked for", chandler.Quote(resp.GetTypeUrl()))
	}
	u := Update{From: resp.GetControlPlane().GetIdentifier(), Removed: resp.GetRemovedResources()}
	for _, r := range resp.GetResources() {
		if t := r.GetResource().GetTypeUrl(); t != c.cfg.TypeURL {
			return Update{}, unasked("resource %s is of type %s", chandler.Quote(r.GetName()), chandler.Quote(t))
		}
		u.Changed = append(u.Changed, Resource{Name: r.GetName(), Version: r.GetVersion(), Body: r.GetResource().GetValue()})
	}
	return u, nil
}

func unasked(format string, args ...any) error {
	return chandler.Problemf(chandler.CodeXDSResource, "", "look at the control plane: it must not send this", format, args...)
}

// dialDefaults stand before the caller's options, which win. Windows that follow the
// bandwidth would cost the control plane a ping of every agent with every message.
func dialDefaults() []grpc.DialOption {
	return []grpc.DialOption{
		grpc.WithKeepaliveParams(keepalive.ClientParameters{
			Time: keepaliveTime, Timeout: keepaliveTimeout, PermitWithoutStream: true,
		}),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: firstSpread, Multiplier: 2, MaxDelay: MaxBackoff},
			MinConnectTimeout: connectTimeout,
		}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)),
		grpc.WithStaticStreamWindowSize(window),
		grpc.WithStaticConnWindowSize(window),
		grpc.WithIdleTimeout(0),
		grpc.WithDisableServiceConfig(),
	}
}

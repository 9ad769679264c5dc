package control

import (
	"context"
	"errors"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
)

// A replica whose source is silent while another's speaks is cut off: what it knows
// grows old, and an agent that came to it from the other would be given what was. It
// lowers itself then: it serves no agent until its source speaks again, or until no
// other replica is there to serve them. When the source is silent for all, all go on
// with what they know.

const (
	// sourceSilent is how long the source says nothing before others are asked.
	sourceSilent = 10 * time.Second
	// lookAround is between two looks.
	lookAround = time.Second
	// sourceService is the name under which health tells whether the source speaks.
	sourceService = "chandler.source"
)

var errCutOff = errors.New("this replica is cut off: its source does not answer, and another replica's does")

// hears tells whether the source spoke of late.
func (c *Control) hears() bool {
	if c.cfg.Peers == nil || c.cfg.Peers.Heard == nil {
		return true
	}
	last := c.cfg.Peers.Heard()
	if last.Before(c.begun) {
		last = c.begun // before, it could not be heard
	}
	return c.cfg.Now().Sub(last) < sourceSilent
}

// lookOut lowers this replica while it is cut off, until ctx ends.
func (c *Control) lookOut(ctx context.Context) error {
	tick := time.NewTicker(lookAround)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		cut := c.cutOff(ctx)
		switch before := c.lowered.Swap(cut); {
		case cut && !before:
			c.log.Error("agents are sent to the other replicas", "reason", errCutOff)
		case before && !cut:
			c.log.Info("agents are served again")
		}
		if cut { // those too that were let in at the last moment
			c.server.Dismiss(status.Error(codes.Unavailable, errCutOff.Error()))
		}
	}
}

// cutOff tells whether to be lowered. Once lowered it is better to stay so as long as
// any other replica answers: what that one knows is no older.
func (c *Control) cutOff(ctx context.Context) bool {
	if c.hears() {
		return false
	}
	answered := false
	for _, address := range c.others(ctx) {
		switch hears, err := c.asksSource(ctx, address); {
		case err != nil:
		case hears:
			return true
		default:
			answered = true
		}
	}
	return answered && c.lowered.Load()
}

// others are the addresses of other replicas.
func (c *Control) others(ctx context.Context) []string {
	var all []string
	if c.cfg.Peers.Addresses != nil {
		all = c.cfg.Peers.Addresses(ctx)
	}
	// Where names cannot be looked up any more either, the leader is known still.
	if l := c.Leader(); !l.Self && l.Address != "" && !slices.Contains(all, l.Address) {
		all = append([]string{l.Address}, all...)
	}
	return all[:min(len(all), maxPeers)]
}

// asksSource asks another replica whether its source speaks.
func (c *Control) asksSource(ctx context.Context, address string) (bool, error) {
	conn, err := c.cfg.Peers.Dial(address)
	if err != nil {
		return false, err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, peerTimeout)
	defer cancel()
	answer, err := healthv1.NewHealthClient(conn).Check(ctx, &healthv1.HealthCheckRequest{Service: sourceService})
	return answer.GetStatus() == healthv1.HealthCheckResponse_SERVING, err
}

// health is grpc.health.v1 on the agents' port, for anybody: as a whole, and whether
// the source speaks.
type health struct {
	healthv1.UnimplementedHealthServer
	c *Control
}

// Check implements healthv1.HealthServer.
func (h *health) Check(_ context.Context, req *healthv1.HealthCheckRequest) (*healthv1.HealthCheckResponse, error) {
	var serving bool
	switch req.GetService() {
	case "":
		serving = h.c.Ready() == nil
	case sourceService:
		serving = h.c.hears() && h.c.published.Load() != nil
	default:
		return nil, status.Error(codes.NotFound, "no such service")
	}
	if serving {
		return &healthv1.HealthCheckResponse{Status: healthv1.HealthCheckResponse_SERVING}, nil
	}
	return &healthv1.HealthCheckResponse{Status: healthv1.HealthCheckResponse_NOT_SERVING}, nil
}

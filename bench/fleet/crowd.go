package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"time"
)

// crowd is the swarm as seen from here: a process to which orders are given.
type crowd struct {
	*child
	size   int
	in     io.WriteCloser
	orders *json.Encoder
	said   *json.Decoder
}

// startCrowd has a swarm connect.
func startCrowd(m muster) (*crowd, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self, swarmCommand)
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, said, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	cmd.Stdout = said
	c := &crowd{size: m.Agents, in: in, orders: json.NewEncoder(in), said: json.NewDecoder(out)}
	if c.child, err = startChild(cmd); err != nil {
		return nil, errors.Join(err, out.Close(), said.Close())
	}
	go func() {
		<-c.done
		_ = out.Close()
	}()
	return c, errors.Join(said.Close(), c.orders.Encode(m))
}

// ask gives an order and waits for the answer.
func (c *crowd) ask(o order) (answer, error) {
	var a answer
	if err := c.orders.Encode(o); err != nil {
		return a, errors.Join(err, c.last())
	}
	if err := c.said.Decode(&a); err != nil {
		return a, errors.Join(err, c.last())
	}
	if a.Error != "" {
		return a, errors.New(a.Error)
	}
	return a, nil
}

// connect waits until all agents have an answer of the control plane.
func (c *crowd) connect(ctx context.Context, bound time.Duration) error {
	return c.await(ctx, fmt.Sprintf("all %d are connected", c.size), bound, func() (bool, error) {
		a, err := c.ask(order{What: orderConnected})
		return a.Count == int64(c.size), errors.Join(err, fmt.Errorf("%d are", a.Count))
	})
}

// know waits until so many agents know of a change.
func (c *crowd) know(ctx context.Context, plugin string, change int64, agents int, bound time.Duration) error {
	return c.await(ctx, fmt.Sprintf("%d agents know of change %d of %s", agents, change, plugin), bound, func() (bool, error) {
		a, err := c.ask(order{What: orderTold, Plugin: plugin, Change: change})
		return a.Count >= int64(agents), errors.Join(err, fmt.Errorf("%d do", a.Count))
	})
}

// delays gives how long after a moment each agent came to know of a change, the first
// one first.
func (c *crowd) delays(plugin string, change int64, since time.Time) ([]time.Duration, error) {
	a, err := c.ask(order{What: orderTimes, Plugin: plugin, Change: change})
	if err != nil {
		return nil, err
	}
	delays := make([]time.Duration, 0, len(a.Times))
	for _, at := range a.Times {
		delays = append(delays, time.Unix(0, at).Sub(since))
	}
	slices.Sort(delays)
	return delays, nil
}

// messages is how often agents were told something.
func (c *crowd) messages() (int64, error) {
	a, err := c.ask(order{What: orderMessages})
	return a.Count, err
}

// hush has agents not report, or again.
func (c *crowd) hush(hush bool) error {
	_, err := c.ask(order{What: orderHush, Hush: hush})
	return err
}

// leave has all agents go, and the process end.
func (c *crowd) leave() {
	_ = c.in.Close()
	select {
	case <-c.done:
	case <-time.After(30 * time.Second):
		c.stop()
	}
}

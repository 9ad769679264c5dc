package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	chandlerv1 "chandler.dev/chandler/api/chandler/v1"
	"chandler.dev/chandler/internal/testenv/ports"
)

// plane is the control plane, a process of its own.
type plane struct {
	*child
	program, dir  string
	listen, admin string
	flags         []string
	profiled      bool
	client        *http.Client // by its socket
}

// newPlane gives one that is not running, with its data in a folder.
func newPlane(program, dir string, flags ...string) (*plane, error) {
	p := &plane{program: program, dir: dir, flags: flags}
	for _, addr := range []*string{&p.listen, &p.admin} {
		var err error
		if *addr, err = ports.Free(); err != nil {
			return nil, err
		}
	}
	p.client = &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(dir, "admin.sock"))
		},
	}}
	return p, nil
}

// start has it run, and returns when it serves.
func (p *plane) start(ctx context.Context) error {
	args := append([]string{"serve", "--data", p.dir, "--listen", p.listen, "--admin", p.admin, "--no-vet", "--debug", "--log-level", "error"}, p.flags...)
	cmd := exec.Command(p.program, args...)
	if p.profiled { // of allocations every few, as a hundred agents make few
		cmd.Env = append(os.Environ(), "GODEBUG=memprofilerate=4096")
	}
	var err error
	if p.child, err = startChild(cmd); err != nil {
		return err
	}
	return p.await(ctx, "the control plane serves", 30*time.Second, func() (bool, error) {
		resp, err := p.client.Get("http://localhost/healthz/ready")
		if err != nil {
			return false, err
		}
		_ = resp.Body.Close()
		return resp.StatusCode == http.StatusOK, nil
	})
}

// apply applies a manifest.
func (p *plane) apply(ctx context.Context, manifest string) error {
	body, err := proto.Marshal(&chandlerv1.ApplyRequest{Manifest: []byte(manifest)})
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://localhost/chandler.v1.Admin/Apply", bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/proto")
	var resp chandlerv1.ApplyResponse
	if err := p.call(req, func(b []byte) error { return proto.Unmarshal(b, &resp) }); err != nil {
		return err
	}
	for _, r := range resp.GetResults() {
		if r.GetAction() == chandlerv1.Action_ACTION_REFUSED {
			return fmt.Errorf("%s is refused: %v", r.GetRef().GetName(), r.GetProblems())
		}
	}
	return nil
}

// metric is the sum of a metric over its labels.
func (p *plane) metric(ctx context.Context, name string) (sum float64, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://localhost/metrics", nil)
	if err != nil {
		return 0, err
	}
	found := false
	err = p.call(req, func(b []byte) error {
		for line := range strings.Lines(string(b)) {
			rest, ok := strings.CutPrefix(line, name)
			if !ok || rest[0] != ' ' && rest[0] != '{' {
				continue
			}
			v, err := strconv.ParseFloat(strings.TrimSpace(rest[strings.LastIndexByte(rest, ' ')+1:]), 64)
			if err != nil {
				return err
			}
			sum, found = sum+v, true
		}
		return nil
	})
	if err == nil && !found {
		err = errors.New("there is no metric " + name)
	}
	return sum, err
}

// profile saves a profile of the control plane, if there is a folder for it.
func (p *plane) profile(ctx context.Context, dir, kind, name string) error {
	if dir == "" {
		return nil
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://localhost/debug/pprof/"+kind, nil)
	if err != nil {
		return err
	}
	return p.call(req, func(b []byte) error { return os.WriteFile(filepath.Join(dir, name+".pprof"), b, 0o644) })
}

// maxAnswer bounds an answer of the control plane.
const maxAnswer = 64 << 20

func (p *plane) call(req *http.Request, read func([]byte) error) error {
	resp, err := p.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s %s: %s: %s", req.Method, req.URL.Path, resp.Status, b[:min(len(b), 1024)])
	}
	return read(b)
}

package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"runtime"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	chandlerv1 "chandler.dev/chandler/api/chandler/v1"
	"chandler.dev/chandler/internal/source"
)

// Bounds of a report: of one file in it, and of all together.
const (
	maxReportFile = 16 << 20
	maxReport     = 64 << 20
)

func reportCommand(e *env) *cobra.Command {
	var out string
	cmd := &cobra.Command{
		Use:   "bug-report",
		Short: "Collect what somebody needs to understand a fault, without secrets",
		Long: `Collect what somebody needs to understand a fault into one archive: versions, flags and
configuration of the control plane, resources, their status, proxies, events, rollouts,
metrics, readiness and, where it is allowed (chandler serve --debug), goroutines.

Values of configurations, of variables and of secrets are replaced, also where a proxy
or a plugin repeats one of four characters or more. Whatever may not be seen is left out,
and named in the archive. Read it before you pass it on: names of plugins, proxies,
registries and people are in it.`,
		Example: `  chandler bug-report -o report.tar.gz`,
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if out == "" {
				out = "chandler-bug-report-" + time.Now().UTC().Format("20060102-150405") + ".tar.gz"
			}
			return e.reportTo(cmd.Context(), out)
		},
	}
	cmd.Flags().StringVarP(&out, "output", "o", "", "file to write, which must not be there; - for standard output")
	e.planeFlags(cmd)
	return cmd
}

func (e *env) reportTo(ctx context.Context, out string) error {
	if out == "-" {
		return e.report(ctx, e.exact)
	}
	f, err := os.OpenFile(out, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	err = errors.Join(e.report(ctx, f), f.Close())
	if err != nil {
		return errors.Join(err, os.Remove(out))
	}
	_, err = fmt.Fprintln(e.stdout, out)
	return err
}

// report is an archive that is being written.
type report struct {
	e    *env
	tar  *tar.Writer
	now  time.Time
	left int
	// lacking says what is not in it, and why.
	lacking []string
	veils   veils
}

const aboutReport = `What is known of a fleet, collected by "chandler bug-report".

versions.txt    the command and the control plane
setup.txt       the flags that the control plane was started with
config.yaml     its --config file, without comments and hashes of tokens
objects.yaml    the resources, with values replaced
status.json     what is true of them, with a line for every proxy
proxies.json    the proxies, their listeners and slots
events.json     what happened last
rollouts.json   how far releases have come, and the last ten of each plugin
metrics.txt     the control plane's metrics
ready.txt       whether it answers agents
goroutines.txt  what it is at
lacking.txt     what is not in here, and why
`

func (e *env) report(ctx context.Context, out io.Writer) error {
	zip := gzip.NewWriter(out)
	r := &report{e: e, tar: tar.NewWriter(zip), now: time.Now().UTC(), left: maxReport, veils: veils{}}
	var failed error
	keep := func(err error) { failed = errors.Join(failed, err) }
	keep(r.file("README.txt", []byte(aboutReport)))
	keep(r.setup(ctx))
	keep(r.objects(ctx))
	keep(r.proxies(ctx))
	keep(r.events(ctx))
	keep(r.rollouts(ctx))
	keep(r.page(ctx, "metrics.txt", "/metrics"))
	keep(r.page(ctx, "ready.txt", "/healthz/ready"))
	keep(r.page(ctx, "goroutines.txt", "/debug/pprof/goroutine?debug=1"))
	for _, why := range r.lacking {
		fmt.Fprintln(e.stderr, "not in the report:", why)
	}
	r.left = maxReportFile // there is always room for what is lacking
	keep(r.file("lacking.txt", []byte(strings.Join(append(r.lacking, ""), "\n"))))
	return errors.Join(failed, r.tar.Close(), zip.Close())
}

// file adds a file, as much of it as there is room for.
func (r *report) file(name string, content []byte) error {
	if room := min(r.left, maxReportFile); len(content) > room {
		r.lack(name, fmt.Errorf("%d of its %d bytes; there is no more room", room, len(content)))
		content = content[:room]
	}
	r.left -= len(content)
	err := r.tar.WriteHeader(&tar.Header{Name: "chandler-bug-report/" + name, Mode: 0o600, Size: int64(len(content)), ModTime: r.now, Format: tar.FormatPAX})
	if err != nil {
		return err
	}
	_, err = r.tar.Write(content)
	return err
}

// lack notes that something, or the rest of it, is not in the report.
func (r *report) lack(what string, err error) {
	r.lacking = append(r.lacking, escape([]byte(fmt.Sprintf("%s: %v", what, err))))
}

// message adds an answer as JSON.
func (r *report) message(name string, m proto.Message) error {
	b, err := protojson.Marshal(m)
	if err != nil {
		return err
	}
	var tidy bytes.Buffer
	if err := json.Indent(&tidy, b, "", "  "); err != nil {
		return err
	}
	return r.file(name, tidy.Bytes())
}

func (r *report) setup(ctx context.Context) error {
	text := fmt.Sprintf("command: %s, %s, %s/%s\n", version, runtime.Version(), runtime.GOOS, runtime.GOARCH)
	res, err := call(ctx, r.e, r.e.fleet().GetSetup, &chandlerv1.GetSetupRequest{})
	if err != nil {
		r.lack("setup.txt, config.yaml", err)
		return r.file("versions.txt", []byte(text))
	}
	text += fmt.Sprintf("control plane: %s, %s, %s, started %s\n", res.Version, res.GoVersion, res.Platform, res.Started.AsTime().Format(time.RFC3339))
	return errors.Join(
		r.file("versions.txt", []byte(text)),
		r.file("setup.txt", []byte(strings.Join(append(res.Flags, ""), "\n"))),
		r.file("config.yaml", []byte(res.Config)),
	)
}

// objects adds the resources and their statuses, and learns which values are to be
// replaced in all that follows.
func (r *report) objects(ctx context.Context) error {
	res, err := call(ctx, r.e, r.e.admin().List, &chandlerv1.ListRequest{Proxies: true})
	if err != nil {
		r.lack("objects.yaml, status.json", err)
		r.veils = nil // nobody knows what is secret
		return nil
	}
	var texts [][]byte
	for _, o := range res.Objects {
		r.veils.learn(o)
		r.veils.object(o)
		texts = append(texts, source.Redact(o.Manifest))
		o.Manifest = nil
	}
	for _, b := range res.Broken { // they may quote what is in the file
		for _, p := range b.Problems {
			p.Message, p.Hint = leftOut, ""
		}
	}
	return errors.Join(r.file("objects.yaml", bytes.Join(texts, []byte("---\n"))), r.message("status.json", res))
}

func (r *report) proxies(ctx context.Context) error {
	res, err := call(ctx, r.e, r.e.fleet().ListProxies, &chandlerv1.ListProxiesRequest{Details: true})
	if err != nil {
		r.lack("proxies.json", err)
		return nil
	}
	for _, p := range res.Proxies {
		for _, one := range p.Plugins {
			r.veils.proxy(one.Ref, one.Status)
		}
	}
	return r.message("proxies.json", res)
}

func (r *report) events(ctx context.Context) error {
	res, err := call(ctx, r.e, r.e.fleet().ListEvents, &chandlerv1.ListEventsRequest{Limit: 2000})
	if err != nil {
		r.lack("events.json", err)
		return nil
	}
	for _, ev := range res.Events {
		if ev.Ref != nil {
			r.veils.event(ev)
		}
	}
	return r.message("events.json", res)
}

func (r *report) rollouts(ctx context.Context) error {
	res, err := call(ctx, r.e, r.e.rollouts().ListRollouts, &chandlerv1.ListRolloutsRequest{})
	if err != nil {
		r.lack("rollouts.json", err)
		return nil
	}
	for _, one := range res.Rollouts {
		r.veils.rollout(one)
	}
	return r.message("rollouts.json", res)
}

// page adds what the admin port shows at a path.
func (r *report) page(ctx context.Context, name, path string) error {
	ctx, cancel := context.WithTimeout(ctx, r.e.timeout)
	defer cancel()
	client, base := r.e.caller()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, base+path, nil)
	if err != nil {
		return err
	}
	resp, err := client.Transport.RoundTrip(req)
	if err != nil {
		r.lack(name, err)
		return nil
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxReportFile+1))
	switch {
	case err != nil:
		r.lack(name, err)
		return nil
	case resp.StatusCode == http.StatusNotFound, resp.StatusCode == http.StatusForbidden, resp.StatusCode == http.StatusUnauthorized:
		r.lack(name, fmt.Errorf("%s answers %s", path, resp.Status))
		return nil
	}
	return r.file(name, b)
}

// Package fed is what a control plane takes in, where a test says it: its plugins, and
// the one module that there is. For real ones see internal/testenv/registry and kube.
package fed

import (
	"bytes"
	"context"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/fetch"
	"chandler.dev/chandler/internal/source"
)

// Source is a source of plugins: what is sent to it is what there is.
type Source chan source.Snapshot

// Run hands on what is sent, until ctx ends.
func (s Source) Run(ctx context.Context, deliver func(source.Snapshot)) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case snapshot := <-s:
			deliver(snapshot)
		}
	}
}

// Module is a registry that has nothing else: whatever is asked for, this module.
type Module []byte

// Resolve gives its digest.
func (m Module) Resolve(context.Context, fetch.Request) (fetch.Resolved, error) {
	return fetch.Resolved{Digest: chandler.Digest[chandler.ArtifactDigest](m)}, nil
}

// Pull gives its bytes.
func (m Module) Pull(_ context.Context, _ fetch.Request, sink fetch.Sink) (fetch.Artifact, error) {
	d, size, err := sink.Ingest(bytes.NewReader(m), "")
	return fetch.Artifact{Digest: chandler.Digest[chandler.ArtifactDigest](m), Module: d, Size: size}, err
}

package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/schema"
	"chandler.dev/chandler/internal/store"
)

// A configuration is judged by the schema that the module's artifact carries before
// its release is recorded: whatever it is edited to, proxies keep the last that was
// right. The schema is in the store beside the module, so that a registry which is away
// lets nothing wrong pass. One that is of no use holds nothing up: Envoy, and the plugin,
// have their say all the same.

// conform judges the configuration of a release, and tells whether it is secret. A
// release that was judged as it is is not judged again.
func (c *Control) conform(ctx context.Context, j *job, r *chandler.Release, o *outcome) error {
	if r.Schema == nil || j.judge {
		return nil
	}
	o.schema = r.Schema
	s, err := c.schema(ctx, j, r)
	if err != nil {
		return err
	}
	verdict := chandler.Verdict{Judge: chandler.JudgeSchema, At: r.ResolvedAt}
	if verdict.Unusable, err = s.judge(j.plugin, r, o.config); err != nil {
		return err
	}
	if verdict.Unusable != "" {
		c.log.Warn("the schema of a module's configuration is of no use", "plugin", r.Key.String(), "schema", r.Schema.Digest, "reason", verdict.Unusable)
	}
	*r = r.WithID()
	r.Verdicts = append(r.Verdicts, verdict)
	return nil
}

// judge judges a release's configuration, of which whole has the secrets' values in it
// where there are any, and notes whether it is secret. The error is what is wrong.
func (s compiled) judge(p *chandler.Plugin, r *chandler.Release, whole []byte) (unusable string, err error) {
	if s.problem != nil {
		return s.problem.Error(), nil
	}
	r.SecretConfig = len(s.schema.Hidden(r.Config)) > 0
	c := schema.Config{Whole: r.Config, Written: r.Config, Field: configField(p)}
	if len(r.ConfigFrom) > 0 {
		c.Whole = whole
	}
	wrong, err := s.schema.Check(c)
	var problem *chandler.Problem
	switch {
	case errors.As(err, &problem):
		return problem.Error(), nil
	case err != nil:
		return "", err
	case len(wrong) > 0:
		return "", together(wrong)
	}
	return "", nil
}

// configField is where a plugin's configuration stands in its resource.
func configField(p *chandler.Plugin) string {
	if p.Kind == chandler.KindTrafficExtension {
		return "spec.wasm.pluginConfig"
	}
	return "spec.pluginConfig"
}

// together makes one problem of several: the first, which tells of the others.
func together(wrong []chandler.Problem) *chandler.Problem {
	const most = 5
	p := wrong[0]
	for i := range wrong[1:min(len(wrong), most)] {
		p.Message += fmt.Sprintf("; %s: %s", wrong[i+1].Field, wrong[i+1].Message)
	}
	if more := len(wrong) - most; more > 0 {
		p.Message += "; and more"
	}
	return &p
}

// schema gives the schema of a release, from another replica or the registry when the
// store lost it.
func (c *Control) schema(ctx context.Context, j *job, r *chandler.Release) (compiled, error) {
	s, err := c.schemas.get(r.Schema.Digest)
	if !errors.Is(err, fs.ErrNotExist) {
		return s, err
	}
	if c.fromPeers(ctx, chandler.ModuleDigest(r.Schema.Digest)) == nil {
		return c.schemas.get(r.Schema.Digest)
	}
	creds, err := j.secrets.credentials(j.plugin)
	if err != nil {
		return compiled{}, err
	}
	if err := c.cfg.Resolver.Restore(ctx, j.plugin, r, creds); err != nil {
		return compiled{}, err
	}
	return c.schemas.get(r.Schema.Digest)
}

func sameSchema(a, b *chandler.ConfigSchema) bool {
	return (a == nil) == (b == nil) && (a == nil || *a == *b)
}

// schemas gives the entry's: of the release that is put in force, and of the last try.
func (e *entry) schemas() []chandler.ConfigSchema {
	var out []chandler.ConfigSchema
	if e.target != nil && e.target.Schema != nil {
		out = append(out, *e.target.Schema)
	}
	if e.met != nil && (len(out) == 0 || *e.met != out[0]) {
		out = append(out, *e.met)
	}
	return out
}

// schemas keeps the schemas that are looked at. It is safe for concurrent use.
type schemas struct {
	store *store.Store
	mu    sync.Mutex
	known map[chandler.SchemaDigest]compiled
}

// compiled is a schema, or why it is of no use.
type compiled struct {
	schema  *schema.Schema
	problem *chandler.Problem
}

// maxKnownSchemas bounds those that are kept. What is forgotten is read again.
const maxKnownSchemas = 1024

// get gives a schema of the store. The error is fs.ErrNotExist when it is not there.
func (s *schemas) get(d chandler.SchemaDigest) (compiled, error) {
	s.mu.Lock()
	known, ok := s.known[d]
	s.mu.Unlock()
	if ok {
		return known, nil
	}
	text, err := s.read(d)
	if err != nil {
		return compiled{}, err
	}
	known.schema, known.problem = schema.Compile(text)
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.known) >= maxKnownSchemas {
		clear(s.known)
	}
	s.known[d] = known
	return known, nil
}

func (s *schemas) read(d chandler.SchemaDigest) ([]byte, error) {
	lease, err := s.store.Acquire(chandler.ModuleDigest(d))
	if err != nil {
		return nil, err
	}
	defer lease.Release()
	f, err := lease.Open()
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, schema.MaxSize+1))
}

// of gives the schema of an entry, and what is to be hidden by any that it has to do
// with; of one that cannot be read nobody knows, so everything is.
func (s *schemas) of(e *entry) (shown *schema.Schema, hidden func([]byte) [][]string) {
	var all []*schema.Schema
	for _, one := range e.schemas() {
		got, err := s.get(one.Digest)
		if err != nil {
			return nil, func([]byte) [][]string { return [][]string{{}} }
		}
		if got.schema != nil {
			all = append(all, got.schema)
		}
	}
	if len(all) == 0 {
		return nil, nil
	}
	return all[0], func(config []byte) [][]string {
		var places [][]string
		for _, one := range all {
			places = append(places, one.Hidden(config)...)
		}
		return places
	}
}

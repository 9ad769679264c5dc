// Package fetch gets modules from OCI registries and HTTP servers and pushes them
// to registries. It knows references, credentials, manifests and the layouts in
// which modules are wrapped. A pull is bounded in memory, disk and time whatever
// the other side sends: the blob goes to a temporary file, its size and digest
// are checked here, and only then is it opened and its module streamed to a Sink.
//
// It is not a cache, does not retry, keeps no two pulls of one reference from
// running at once, and does not look inside a module: those are the matter of its
// callers.
package fetch

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"runtime"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"

	"chandler.dev/chandler"
)

// Config is what a Client works with; its zero value works.
type Config struct {
	// Dir holds the temporary file of a pull; empty is the system's own place.
	// Nothing is left in it, not even by a process that is killed.
	Dir string
	// Transport is the way to the network, under authentication. Nil: an own one
	// with Proxy, TLS, Resolver and what Hosts says of them, that connects to no
	// address which is denied. Another one has to see to that by itself.
	Transport http.RoundTripper
	// Deny are networks from which nothing is fetched, beside those that
	// chandler.DeniedAddress never allows. Loopback and private networks are
	// allowed unless they are here.
	Deny []netip.Prefix
	// Own gives the addresses on which this program listens itself, from which
	// nothing is fetched either. Of an unspecified one every address of this
	// machine is meant. Nil: none.
	Own func() []netip.AddrPort
	// Resolver finds the addresses of hosts; nil is the system's.
	Resolver *net.Resolver
	// Proxy finds the proxy of a request; nil is none.
	Proxy func(*http.Request) (*url.URL, error)
	// TLS holds the roots to trust; nil is the system's.
	TLS *tls.Config
	// Keychain has the operator's credentials, for requests that bring none; nil
	// is anonymous.
	Keychain authn.Keychain
	// Insecure tells which registries (host, with a port if there is one) may be
	// spoken to in plain HTTP when they have no TLS. Loopback always may. It is
	// not asked about http URLs, which are plain by their author's choice.
	Insecure func(host string) bool
	// Hosts has the operator's mirrors, authorities and client certificates; nil is
	// none.
	Hosts Hosts
	// OnlyMirrors is for those who have another source: of all places only the mirrors
	// in Hosts are asked, never a registry itself or a web server.
	OnlyMirrors bool
	// TokenRealm tells whether the operator lets credentials for a registry (host,
	// with a port if there is one) go to a token server (host) of another domain.
	// Nil: never.
	TokenRealm func(registry, realm string) bool
	// Strict tells whether plain HTTP is refused where the operator has not allowed
	// it for the host, or no digest says what must come. Nil: it is not.
	Strict func() bool
	// Log is told of mirrors that fail; nil: nobody.
	Log *slog.Logger
	// Progress is told of blobs as they go either way: what one is, how much of it
	// went and of how much. It must be quick. Nil: nobody.
	Progress func(what string, done, size int64)

	// MaxBlob bounds what is transferred and MaxModule what is unpacked, in
	// bytes; zero is 64 MiB.
	MaxBlob, MaxModule int64
	// IdleTimeout bounds the wait for an answer and is the window in which
	// MinRate is measured; zero is 15 s.
	IdleTimeout time.Duration
	// MinRate is the least speed of a body in bytes a second; zero is 1 KiB/s.
	MinRate int64
	// Arch is the architecture looked for in an index without a Wasm entry;
	// empty is this process's own.
	Arch string
}

const (
	defaultMaxBytes    = 64 << 20
	defaultIdleTimeout = 15 * time.Second
	defaultMinRate     = 1 << 10
)

func (c Config) withDefaults() Config {
	if c.Dir == "" {
		c.Dir = os.TempDir()
	}
	if c.MaxBlob <= 0 {
		c.MaxBlob = defaultMaxBytes
	}
	if c.MaxModule <= 0 {
		c.MaxModule = defaultMaxBytes
	}
	if c.IdleTimeout <= 0 {
		c.IdleTimeout = defaultIdleTimeout
	}
	if c.MinRate <= 0 {
		c.MinRate = defaultMinRate
	}
	if c.Keychain == nil {
		c.Keychain = anonymousKeychain{}
	}
	if c.Arch == "" {
		c.Arch = runtime.GOARCH
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c
}

// Client pulls and pushes modules. It may be used by several goroutines.
type Client struct {
	Config
	base  *guard
	auths authCache
}

// New gives a Client; nothing is started.
func New(cfg Config) *Client {
	cfg = cfg.withDefaults()
	if cfg.Transport == nil {
		cfg.Transport = newRoutes(cfg)
	}
	c := &Client{Config: cfg}
	c.base = &guard{inner: cfg.Transport, egress: cfg.egress(), plain: c.mayBePlain, idle: cfg.IdleTimeout, minRate: cfg.MinRate}
	return c
}

// Close ends idle connections. The Client can still be used.
func (c *Client) Close() {
	if t, ok := c.Transport.(interface{ CloseIdleConnections() }); ok {
		t.CloseIdleConnections()
	}
}

// Request says what to pull.
type Request struct {
	Reference chandler.Reference
	// SHA256 is the sha256 field of a plugin, 64 hex digits or empty: for OCI
	// the digest of the manifest or index, for HTTP that of the unpacked module.
	SHA256 string
	// Credentials are those of a pull secret for this reference; with nil the
	// operator's keychain is asked. They go nowhere but to the host and the
	// repository they are bound to.
	Credentials *Credentials
	// Via is the way to a web server instead of the Client's own; whoever gives it sees to
	// where it leads. Redirects are not followed then. Nil: the Client's.
	Via http.RoundTripper
}

// Resolved is what a tag means now. It is zero for http and https.
type Resolved struct {
	// Reference is the canonical URL with the digest, its tag kept.
	Reference string
	Digest    chandler.ArtifactDigest
}

// Artifact is what was pulled.
type Artifact struct {
	// Reference is the canonical URL, for oci with the digest and the tag kept.
	// For http and https it may hold secrets in its query.
	Reference string
	// Digest is over the manifest or index that the reference names; empty for
	// http and https.
	Digest chandler.ArtifactDigest
	// Blob is over the layer or body as transferred, of BlobSize bytes.
	Blob     chandler.BlobDigest
	BlobSize int64
	// Module is over the unpacked module, of Size bytes.
	Module chandler.ModuleDigest
	Size   int64
}

// Sink takes modules in; *store.Store is one. With want, what r gives must have
// that digest, and r need not be read when the sink has it already. What r gave
// before an error other than io.EOF must not be kept.
type Sink interface {
	Ingest(r io.Reader, want chandler.ModuleDigest) (chandler.ModuleDigest, int64, error)
}

// Copy is the work of a Sink that keeps what r gives in w: it gives the digest and the
// size of that.
func Copy(w io.Writer, r io.Reader) (chandler.ModuleDigest, int64, error) {
	h := sha256.New()
	n, err := io.Copy(io.MultiWriter(w, h), r)
	if err != nil {
		return "", 0, err
	}
	return chandler.DigestOf[chandler.ModuleDigest](h.Sum(nil)), n, nil
}

// Resolve finds the digest that a reference means, with one small request and
// none when a digest is pinned. The error is an *Error.
func (c *Client) Resolve(ctx context.Context, req Request) (Resolved, error) {
	if err := check(req); err != nil {
		return Resolved{}, err
	}
	if req.Reference.Scheme != chandler.SchemeOCI {
		return Resolved{}, nil
	}
	d := pin(req)
	if d == "" {
		var err error
		if d, err = c.head(ctx, req); err != nil {
			return Resolved{}, asError(ctx, err)
		}
	}
	req.Reference.Digest = d
	return Resolved{Reference: req.Reference.String(), Digest: d}, nil
}

// Pull fetches the module that req means and streams it into sink. The error is
// an *Error, also when the sink failed.
func (c *Client) Pull(ctx context.Context, req Request, sink Sink) (Artifact, error) {
	if err := check(req); err != nil {
		return Artifact{}, err
	}
	if c.OnlyMirrors && req.Reference.Scheme != chandler.SchemeOCI {
		return Artifact{}, refuse(chandler.CodeNotFound, "push it to a registry", "nothing at %s urls has a mirror", req.Reference.Scheme)
	}
	pull := c.pullHTTP
	if req.Reference.Scheme == chandler.SchemeOCI {
		pull = c.pullOCI
	}
	a, err := pull(ctx, req, sink)
	if err != nil {
		return Artifact{}, asError(ctx, err)
	}
	return a, nil
}

func check(req Request) error {
	switch req.Reference.Scheme {
	case chandler.SchemeOCI, chandler.SchemeHTTP, chandler.SchemeHTTPS:
	default:
		return refuse(chandler.CodeURLScheme, "use oci, https or http", "scheme %s is not fetched over the network",
			chandler.Quote(string(req.Reference.Scheme)))
	}
	if req.SHA256 != "" && !chandler.IsSHA256Hex(req.SHA256) {
		return refuse(chandler.CodeDigestSyntax, "write 64 lower-case hex digits", "sha256 %s is not a digest", chandler.Quote(req.SHA256))
	}
	if p := req.Reference.CheckPin(req.SHA256); p != nil {
		return &Error{Problem: *p}
	}
	return nil
}

// pin gives the manifest that req names by digest, if any.
func pin(req Request) chandler.ArtifactDigest {
	if req.Reference.Digest == "" && req.SHA256 != "" {
		return chandler.ArtifactDigest("sha256:" + req.SHA256)
	}
	return req.Reference.Digest
}

// spool is the temporary file of one pull: it has no name, so that it is gone
// whatever ends the process.
func (c *Client) spool() (*os.File, error) {
	f, err := os.CreateTemp(c.Dir, "pull-*")
	if err != nil {
		return nil, diskError(err)
	}
	if err := os.Remove(f.Name()); err != nil {
		f.Close()
		return nil, diskError(err)
	}
	return f, nil
}

// blobName says which blob a message is about.
func blobName(index int) string { return fmt.Sprintf("layer %d", index) }

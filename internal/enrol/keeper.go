package enrol

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"chandler.dev/chandler"
	chandlerv1 "chandler.dev/chandler/api/chandler/v1"
	"chandler.dev/chandler/internal/credential"
	"chandler.dev/chandler/internal/durable"
	"chandler.dev/chandler/internal/later"
)

// Times of a keeper. What fails is tried again after retryFirst, twice as long each
// time up to retryMost; a token's file is looked at every look.
const (
	look        = 10 * time.Second
	retryFirst  = time.Second
	retryMost   = 30 * time.Second
	callTimeout = 10 * time.Second
	maxAnswer   = 256 << 10
	maxFile     = 1 << 20
)

// KeeperConfig is what an agent's side of enrolment is told.
type KeeperConfig struct {
	FS durable.FS
	// Dir is where key and certificate are kept.
	Dir string
	// TokenFile has the token; another token in it enrols the node anew.
	TokenFile string
	// Targets are control planes, asked in turn.
	Targets []string
	// CA is a file with the authorities of the control planes' certificates; empty:
	// the one that the token names, then what the control plane says.
	CA string
	// ServerName is the name in the control plane's certificate, when it is not the
	// one that is dialled.
	ServerName string
	// Node is namespace and name to be enrolled as.
	Node chandler.Node
	Now  func() time.Time // time.Now when nil
	Log  *slog.Logger
}

// Keeper gets a node its certificate and keeps it new. The key is made here, and
// never leaves.
type Keeper struct {
	cfg     KeeperConfig
	missing atomic.Pointer[error]
}

// NewKeeper gives a keeper. It asks nobody yet, but a certificate that is there from before
// can be shown at once.
func NewKeeper(cfg KeeperConfig) *Keeper {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	k := &Keeper{cfg: cfg}
	if _, err := k.identity(); err != nil {
		k.say(errors.New("this node is not enrolled yet"))
	} else {
		k.say(nil)
	}
	return k
}

// Files are what to show to the control plane, for credential.NewClient.
func (k *Keeper) Files() credential.Files {
	own := k.path(identityFile)
	f := credential.Files{Cert: own, Key: own, CA: k.cfg.CA, ServerName: k.cfg.ServerName, Missing: k.why, Now: k.cfg.Now, Log: k.cfg.Log}
	if f.CA == "" {
		f.CA = k.path(authoritiesFile)
	}
	return f
}

// The keeper's files: key and certificate in one, so that they are always of each
// other, the authorities that the control plane told, and how far it has come.
const (
	identityFile    = "identity.pem"
	authoritiesFile = "authorities.pem"
	stateFile       = "state.json"
)

// keeperState is how far a keeper has come.
type keeperState struct {
	// Token is the hash of the token that the certificate is from.
	Token string `json:"token,omitempty"`
	// Pending is a key that may have been enrolled already with a token, of this hash.
	Pending    string `json:"pending,omitempty"`
	PendingKey []byte `json:"pendingKey,omitempty"`
}

func (k *Keeper) path(name string) string { return filepath.Join(k.cfg.Dir, name) }

// say notes why there is no certificate to show; nil: there is one.
func (k *Keeper) say(err error) { k.missing.Store(&err) }

func (k *Keeper) why() error { return *k.missing.Load() }

// Run enrols the node if need be and renews its certificate until ctx ends.
func (k *Keeper) Run(ctx context.Context) error {
	if err := durable.Mkdir(k.cfg.FS, k.cfg.Dir); err != nil {
		return err
	}
	if err := durable.Sweep(k.cfg.FS, k.cfg.Dir); err != nil {
		k.cfg.Log.Warn("what a crash left behind stays", "error", err)
	}
	failures := 0
	for ctx.Err() == nil {
		wait, err := k.step(ctx)
		if ctx.Err() != nil {
			break
		}
		if err != nil {
			wait = min(retryFirst<<min(failures, 16), retryMost)
			failures++
			k.cfg.Log.Warn("no certificate from the control plane", "error", err, "retry_in", wait)
		} else {
			failures = 0
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
	return nil
}

// step does what is due, and tells when to look again.
func (k *Keeper) step(ctx context.Context) (time.Duration, error) {
	state, err := k.state()
	if err == nil {
		err = k.advance(ctx, &state)
	}
	own, ownErr := k.identity()
	if ownErr != nil {
		err = cmp.Or(err, ownErr)
		k.say(fmt.Errorf("this node is not enrolled: %w", err))
		return 0, err
	}
	k.say(nil)
	return min(look, max(retryFirst, renewAt(own.Leaf).Sub(k.cfg.Now()))), err
}

// advance enrols the node when there is a token that it has not used, and renews its
// certificate when that is due. A token that is no good is no reason to lose the
// certificate there is.
func (k *Keeper) advance(ctx context.Context, state *keeperState) error {
	var err error
	token, tokenErr := k.token()
	if tokenErr == nil && tokenHash(token) != state.Token {
		if err = k.enrol(ctx, state, token); err == nil {
			return nil
		}
	}
	own, ownErr := k.identity()
	switch {
	case ownErr == nil && k.cfg.Now().Before(renewAt(own.Leaf)):
		return err
	case ownErr == nil:
		return errors.Join(err, k.renew(ctx, own))
	case err != nil:
		return err
	case tokenErr != nil:
		return tokenErr
	}
	return fmt.Errorf("the token in %s was used already, and the certificate is of no use: %w", k.cfg.TokenFile, ownErr)
}

// renewAt is when two thirds of a certificate's time are over.
func renewAt(c *x509.Certificate) time.Time {
	begin := c.NotBefore.Add(clocksApart)
	return begin.Add(c.NotAfter.Sub(begin) * 2 / 3)
}

// identity reads what there is to show, if it is good now.
func (k *Keeper) identity() (*tls.Certificate, error) {
	b, err := durable.Read(k.cfg.FS, k.path(identityFile), maxFile)
	if err != nil {
		return nil, err
	}
	pair, err := tls.X509KeyPair(b, b)
	if err != nil {
		return nil, err
	}
	if !k.cfg.Now().Before(pair.Leaf.NotAfter) {
		return nil, fmt.Errorf("the certificate expired at %s", pair.Leaf.NotAfter.UTC().Format(time.RFC3339))
	}
	return &pair, nil
}

func (k *Keeper) state() (keeperState, error) {
	var s keeperState
	b, err := durable.Read(k.cfg.FS, k.path(stateFile), maxFile)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return s, nil
	case err != nil:
		return s, err
	}
	if json.Unmarshal(b, &s) != nil {
		return keeperState{}, nil // as if nothing had been done yet
	}
	return s, nil
}

// save writes the state, and with it what a later version wrote into the one before.
func (k *Keeper) save(s *keeperState) error {
	before, err := durable.Read(k.cfg.FS, k.path(stateFile), maxFile)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	b, err := json.Marshal(s)
	if err == nil {
		b, err = later.Of(before, *s).AddTo(b)
	}
	if err != nil {
		return err
	}
	return durable.Write(k.cfg.FS, k.path(stateFile), b)
}

func (k *Keeper) token() (Token, error) {
	b, err := durable.Read(k.cfg.FS, k.cfg.TokenFile, maxToken)
	if err != nil {
		return Token{}, err
	}
	t, err := ParseToken(string(bytes.TrimSpace(b)))
	if err != nil {
		return Token{}, fmt.Errorf("%s: %w", k.cfg.TokenFile, err)
	}
	return t, nil
}

func tokenHash(t Token) string {
	h := sha256.Sum256([]byte(t.String()))
	return hex.EncodeToString(h[:])
}

// enrol trades a token for a certificate. The key is on disk before anybody hears of
// it, so that an answer that is lost can be asked for again.
func (k *Keeper) enrol(ctx context.Context, state *keeperState, token Token) error {
	key, err := k.pendingKey(state, token)
	if err != nil {
		return err
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return err
	}
	req := &chandlerv1.EnrolRequest{Token: token.String(), Csr: csr, Namespace: k.cfg.Node.Namespace, Name: k.cfg.Node.Name}
	err = k.each(ctx, func(target string) error {
		authorities, err := k.authorities(ctx, target, token)
		if err != nil {
			return err
		}
		var got *chandlerv1.EnrolResponse
		if err := k.call(ctx, target, trusting(authorities), func(ctx context.Context, c chandlerv1.EnrolmentClient) (err error) {
			got, err = c.Enrol(ctx, req)
			return err
		}); err != nil {
			return err
		}
		if len(got.GetAuthorities()) > 0 {
			authorities = got.GetAuthorities()
		}
		return k.take(key, got.GetCertificate(), authorities)
	})
	if err != nil {
		return err
	}
	k.cfg.Log.Info("this node is enrolled", "node", k.cfg.Node.ID(), "token", token.ID)
	return k.save(&keeperState{Token: tokenHash(token)})
}

// pendingKey is the key to be enrolled with a token.
func (k *Keeper) pendingKey(state *keeperState, token Token) (*ecdsa.PrivateKey, error) {
	if state.Pending == tokenHash(token) {
		if key, err := x509.ParseECPrivateKey(state.PendingKey); err == nil {
			return key, nil
		}
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	state.Pending = tokenHash(token)
	if state.PendingKey, err = x509.MarshalECPrivateKey(key); err != nil {
		return nil, err
	}
	return key, k.save(state)
}

// authorities are those of a control plane's certificate, in PEM: from the file that
// is configured, or what the token names, or what was told before.
func (k *Keeper) authorities(ctx context.Context, target string, token Token) ([]byte, error) {
	switch {
	case k.cfg.CA != "":
		return durable.Read(k.cfg.FS, k.cfg.CA, maxFile)
	case token.Pinned():
		return k.discover(ctx, target, token)
	}
	b, err := durable.Read(k.cfg.FS, k.path(authoritiesFile), maxFile)
	if errors.Is(err, fs.ErrNotExist) {
		err = errors.New("the token does not say which control plane to believe: give --tls-ca")
	}
	return b, err
}

// discover asks whoever answers for the authority whose hash a token has. Nothing is
// told on that connection, and nothing else of the answer is believed.
func (k *Keeper) discover(ctx context.Context, target string, token Token) ([]byte, error) {
	var got *chandlerv1.AuthoritiesResponse
	if err := k.call(ctx, target, &tls.Config{InsecureSkipVerify: true}, func(ctx context.Context, c chandlerv1.EnrolmentClient) (err error) {
		got, err = c.Authorities(ctx, &chandlerv1.AuthoritiesRequest{})
		return err
	}); err != nil {
		return nil, err
	}
	for rest := got.GetAuthorities(); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return nil, errors.New("it is not the control plane that the token is from: it does not have the authority whose hash the token has")
		}
		if sha256.Sum256(block.Bytes) == token.Pin {
			return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: block.Bytes}), nil
		}
	}
}

// renew gets a newer certificate with the one there is, for the same key.
func (k *Keeper) renew(ctx context.Context, own *tls.Certificate) error {
	key, ok := own.PrivateKey.(*ecdsa.PrivateKey)
	if !ok {
		return fmt.Errorf("%s has another key than is made here", k.path(identityFile))
	}
	authorities, err := durable.Read(k.cfg.FS, cmp.Or(k.cfg.CA, k.path(authoritiesFile)), maxFile)
	if err != nil {
		return err
	}
	config := trusting(authorities)
	config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return own, nil }
	return k.each(ctx, func(target string) error {
		var got *chandlerv1.RenewResponse
		if err := k.call(ctx, target, config, func(ctx context.Context, c chandlerv1.EnrolmentClient) (err error) {
			got, err = c.Renew(ctx, &chandlerv1.RenewRequest{})
			return err
		}); err != nil {
			return err
		}
		if err := k.take(key, got.GetCertificate(), got.GetAuthorities()); err != nil {
			return err
		}
		newer, err := k.identity()
		if err == nil && !newer.Leaf.NotAfter.After(own.Leaf.NotAfter) {
			err = fmt.Errorf("the newer certificate ends at %s too: so does the authority that signs", newer.Leaf.NotAfter.UTC().Format(time.RFC3339))
		}
		if err != nil {
			return err
		}
		k.cfg.Log.Info("the certificate is renewed", "node", k.cfg.Node.ID(), "until", newer.Leaf.NotAfter)
		return nil
	})
}

// take keeps what the control plane gave.
func (k *Keeper) take(key *ecdsa.PrivateKey, chain, authorities []byte) error {
	secret, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return err
	}
	all := append(bytes.Clone(chain), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: secret})...)
	pair, err := tls.X509KeyPair(all, all)
	if err != nil {
		return fmt.Errorf("the control plane gave no certificate for this key: %w", err)
	}
	if now := k.cfg.Now(); !now.Before(pair.Leaf.NotAfter) || now.Before(pair.Leaf.NotBefore) {
		return fmt.Errorf("the control plane gave a certificate that is good from %s to %s: one of the two clocks is wrong",
			pair.Leaf.NotBefore.UTC().Format(time.RFC3339), pair.Leaf.NotAfter.UTC().Format(time.RFC3339))
	}
	if k.cfg.CA == "" && len(authorities) > 0 {
		if !x509.NewCertPool().AppendCertsFromPEM(authorities) {
			return errors.New("the control plane gave authorities that are none")
		}
		if err := durable.Write(k.cfg.FS, k.path(authoritiesFile), authorities); err != nil {
			return err
		}
	}
	return durable.Write(k.cfg.FS, k.path(identityFile), all)
}

// each asks the control planes in turn until one does it.
func (k *Keeper) each(ctx context.Context, do func(target string) error) error {
	if len(k.cfg.Targets) == 0 {
		return errors.New("no control plane is named")
	}
	var errs []error
	for _, target := range k.cfg.Targets {
		err := do(target)
		if err == nil {
			return nil
		}
		errs = append(errs, fmt.Errorf("%s: %s", target, chandler.Printable(status.Convert(err).Message(), 512)))
		if ctx.Err() != nil {
			break
		}
	}
	return errors.Join(errs...)
}

// trusting is for connections to servers of these authorities.
func trusting(authorities []byte) *tls.Config {
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(authorities)
	return &tls.Config{RootCAs: pool}
}

// call makes one call on a connection of its own.
func (k *Keeper) call(ctx context.Context, target string, config *tls.Config, do func(context.Context, chandlerv1.EnrolmentClient) error) error {
	config = config.Clone()
	config.MinVersion, config.Time, config.ServerName = tls.VersionTLS13, k.cfg.Now, k.cfg.ServerName
	conn, err := grpc.NewClient(target,
		grpc.WithTransportCredentials(credentials.NewTLS(config)), grpc.WithDisableServiceConfig(),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxAnswer)),
	)
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return do(ctx, chandlerv1.NewEnrolmentClient(conn))
}

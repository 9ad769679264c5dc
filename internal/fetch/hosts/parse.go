package hosts

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/BurntSushi/toml"
	"golang.org/x/net/http/httpguts"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/airgap"
	"chandler.dev/chandler/internal/fetch"
)

// folderHost is what a folder is called where hosts are; there is no such server.
const folderHost = "folder.invalid"

const (
	maxHosts   = 32
	maxFiles   = 32 // of authorities, and of certificates, for one host
	maxHeaders = 32
)

// config is a hosts.toml: mirrors in their order, and last the registry.
type config struct {
	hosts []host
	sum   [sha256.Size]byte // of all that it was made of
}

// host is one of them. An empty Host of its Endpoint means the registry's own.
type host struct {
	fetch.Endpoint
	folder string // of artifacts, in place of a server
	ca     []string
	client [][2]string // certificate and key; an empty key is in the certificate's file
	verify bool
}

// document is the file as containerd writes it down.
type document struct {
	Server string `toml:"server"`
	table
	Host map[string]table `toml:"host"`
}

type table struct {
	Capabilities []string       `toml:"capabilities"`
	CA           any            `toml:"ca"`     // a file or several
	Client       any            `toml:"client"` // a file, several, or pairs of certificate and key
	SkipVerify   bool           `toml:"skip_verify"`
	Header       map[string]any `toml:"header"` // a text or several
	OverridePath bool           `toml:"override_path"`
	DialTimeout  string         `toml:"dial_timeout"`
	Proxy        string         `toml:"proxy"`
}

// parse reads a hosts.toml, without the files that it names. What it does not know
// is an error, so that nothing is meant and not done.
func parse(raw []byte) (*config, error) {
	var doc document
	meta, err := toml.Decode(string(raw), &doc)
	if err != nil {
		var at toml.ParseError
		if errors.As(err, &at) {
			return nil, fmt.Errorf("line %d: %s", at.Position.Line, chandler.Printable(at.Message, 200))
		}
		return nil, errors.New(chandler.Printable(err.Error(), 200))
	}
	for _, key := range meta.Undecoded() {
		// What is below a key of any type counts as not decoded.
		if last := slices.Index(key, "header"); last >= 0 && len(key) == last+2 {
			continue
		}
		return nil, fmt.Errorf("unknown key %s", chandler.Quote(key.String()))
	}
	var order []string
	for _, key := range meta.Keys() {
		if len(key) > 1 && key[0] == "host" && !slices.Contains(order, key[1]) {
			order = append(order, key[1])
		}
		if len(order) > maxHosts {
			return nil, fmt.Errorf("more than %d hosts", maxHosts)
		}
	}
	var c config
	for _, at := range order {
		if at == "" {
			return nil, errors.New("a host has no url")
		}
		if c.hosts, err = add(c.hosts, at, doc.Host[at]); err != nil {
			return nil, fmt.Errorf("host %s: %w", shown(at), err)
		}
	}
	if c.hosts, err = add(c.hosts, doc.Server, doc.table); err != nil {
		return nil, err
	}
	return &c, nil
}

// shown is a host's URL without the password that does not belong there.
func shown(at string) string {
	u, err := url.Parse(at)
	if err != nil {
		return "that is no url"
	}
	return chandler.Quote(u.Redacted())
}

func add(all []host, at string, t table) ([]host, error) {
	h := host{verify: !t.SkipVerify}
	if folder, ok := strings.CutPrefix(at, "file://"); ok {
		if err := h.shelve(folder, t); err != nil {
			return nil, err
		}
		return append(all, h), nil
	}
	for _, step := range []func() error{
		func() error { return h.locate(at, t.OverridePath) },
		func() error { return h.trust(t.Capabilities) },
		func() (err error) { h.ca, err = texts("ca", t.CA); return err },
		func() (err error) { h.client, err = pairs(t.Client); return err },
		func() (err error) { h.Header, err = headers(t.Header); return err },
		func() (err error) { h.DialTimeout, err = patience(t.DialTimeout); return err },
		func() (err error) { h.Proxy, err = proxy(t.Proxy); return err },
	} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	return append(all, h), nil
}

// shelve takes a folder for a host.
func (h *host) shelve(folder string, t table) error {
	if !filepath.IsAbs(folder) || strings.ContainsAny(folder, "%?#\x00") {
		return errors.New("write file:// and an absolute path, without %, ? and #")
	}
	if t.CA != nil || t.Client != nil || t.SkipVerify || t.Header != nil || t.OverridePath || t.DialTimeout != "" || t.Proxy != "" {
		return errors.New("a folder has no settings but capabilities")
	}
	if err := h.trust(t.Capabilities); err != nil {
		return err
	}
	if h.Push && len(t.Capabilities) > 0 {
		return errors.New("a folder is not pushed to; chandler load puts artifacts into it")
	}
	h.folder, h.Push = filepath.Clean(folder), false
	h.Scheme, h.Host, h.Path = "https", folderHost, "/v2"
	h.Local = airgap.NewFolder(h.folder)
	return nil
}

// locate reads the URL of a host; empty is the registry itself.
func (h *host) locate(at string, overridePath bool) error {
	h.Path = "/v2"
	if at == "" {
		return nil
	}
	if !strings.Contains(at, "://") {
		at = "https://" + at
	}
	u, err := url.Parse(at)
	switch {
	case err != nil:
		return errors.New("it is no url")
	case u.Scheme != "http" && u.Scheme != "https":
		return fmt.Errorf("scheme %s is none of https, http and file", chandler.Quote(u.Scheme))
	case u.User != nil:
		return errors.New("credentials in a url are not used; put them into docker's configuration, for this host")
	case u.RawQuery != "" || u.Fragment != "":
		return errors.New("the url has a query or a fragment")
	}
	where, problem := chandler.ParseReference(u.Scheme + "://" + u.Host + "/")
	if problem != nil {
		return errors.New(problem.Message)
	}
	h.Scheme, h.Host = u.Scheme, where.Host
	if u.Path == "" && overridePath {
		h.Path = ""
	} else if u.Path != "" {
		h.Path = strings.TrimSuffix(path.Clean(u.Path), "/")
		if !overridePath && !strings.HasSuffix(h.Path, "/v2") {
			h.Path += "/v2"
		}
	}
	return nil
}

func (h *host) trust(capabilities []string) error {
	if len(capabilities) == 0 {
		h.Pull, h.Resolve, h.Push = true, true, true
	}
	for _, c := range capabilities {
		switch strings.ToLower(c) {
		case "pull":
			h.Pull = true
		case "resolve":
			h.Resolve = true
		case "push":
			h.Push = true
		default:
			return fmt.Errorf("capability %s is none of pull, resolve and push", chandler.Quote(c))
		}
	}
	return nil
}

// texts reads a text or a list of them.
func texts(key string, v any) ([]string, error) {
	list, isList := v.([]any)
	if !isList && v != nil {
		list = []any{v}
	}
	if len(list) > maxFiles {
		return nil, fmt.Errorf("%s has %d entries, limit %d", key, len(list), maxFiles)
	}
	var all []string
	for _, e := range list {
		s, ok := e.(string)
		if !ok || s == "" {
			return nil, fmt.Errorf("%s is neither a text nor a list of texts", key)
		}
		all = append(all, s)
	}
	return all, nil
}

// pairs reads client certificates: files that have the key too, or pairs.
func pairs(v any) (all [][2]string, err error) {
	const bad = "client is neither a file, nor a list of files, nor one of pairs of certificate and key"
	list, isList := v.([]any)
	if !isList && v != nil {
		list = []any{v}
	}
	if len(list) > maxFiles {
		return nil, fmt.Errorf("client has %d entries, limit %d", len(list), maxFiles)
	}
	for _, e := range list {
		var p [2]string
		ok := true
		switch e := e.(type) {
		case string:
			p[0] = e
		case []any:
			for i := range p {
				if ok = ok && len(e) == len(p); ok {
					p[i], ok = e[i].(string)
				}
			}
		default:
			ok = false
		}
		if !ok || p[0] == "" {
			return nil, errors.New(bad)
		}
		all = append(all, p)
	}
	return all, nil
}

func headers(all map[string]any) (http.Header, error) {
	if len(all) > maxHeaders {
		return nil, fmt.Errorf("header has %d entries, limit %d", len(all), maxHeaders)
	}
	h := http.Header{}
	for name, v := range all {
		values, err := texts("header."+chandler.Quote(name), v)
		if err != nil {
			return nil, err
		}
		canonical := http.CanonicalHeaderKey(name)
		if !httpguts.ValidHeaderFieldName(name) || canonical == "Host" || !slices.ContainsFunc(values, httpguts.ValidHeaderFieldValue) {
			return nil, fmt.Errorf("header %s cannot be sent", chandler.Quote(name))
		}
		h[canonical] = append(h[canonical], values...)
	}
	return h, nil
}

func patience(s string) (time.Duration, error) {
	if s == "" {
		return 0, nil
	}
	d, err := time.ParseDuration(s)
	if err != nil || d <= 0 {
		return 0, fmt.Errorf("dial_timeout %s is not a time such as 5s", chandler.Quote(s))
	}
	return d, nil
}

func proxy(s string) (*url.URL, error) {
	if s == "" {
		return nil, nil
	}
	u, err := url.Parse(s)
	if err != nil || u.Host == "" || !slices.Contains([]string{"http", "https", "socks5", "socks5h"}, u.Scheme) ||
		strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "" {
		return nil, errors.New("proxy is no url of http, https, socks5 or socks5h with a host and nothing behind it") // it may hold a password
	}
	return u, nil
}

// open reads the files that c names. Relative ones are in dir.
func (c *config) open(dir string, read func(string) ([]byte, error)) error {
	sum := sha256.New()
	at := func(name string) string {
		if filepath.IsAbs(name) {
			return name
		}
		return filepath.Join(dir, name)
	}
	hashed := func(name string) ([]byte, error) {
		b, err := read(at(name))
		put(sum, string(b))
		return b, err
	}
	for i := range c.hosts {
		h := &c.hosts[i]
		put(sum, fmt.Sprintf("%q %q %q %q %t %t %t %t %v %v %v %q", h.Scheme, h.Host, h.Path, h.folder, h.Pull, h.Resolve, h.Push, h.verify, h.Header, h.DialTimeout, h.Proxy, h.ca))
		if len(h.ca) == 0 && len(h.client) == 0 && h.verify {
			continue
		}
		// skip_verify is the operator's word for this one host.
		h.TLS = &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: !h.verify}
		if err := h.authorities(hashed); err != nil {
			return err
		}
		if err := h.certificates(hashed); err != nil {
			return err
		}
	}
	sum.Sum(c.sum[:0])
	return nil
}

func put(sum hash.Hash, s string) { fmt.Fprintf(sum, "%d %s", len(s), s) }

// authorities adds those of the files to the system's.
func (h *host) authorities(read func(string) ([]byte, error)) error {
	if len(h.ca) == 0 {
		return nil
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool()
	}
	for _, name := range h.ca {
		pem, err := read(name)
		if err != nil {
			return err
		}
		if !pool.AppendCertsFromPEM(pem) {
			return fmt.Errorf("ca %s has no certificate in PEM", chandler.Quote(name))
		}
	}
	h.TLS.RootCAs = pool
	return nil
}

func (h *host) certificates(read func(string) ([]byte, error)) error {
	for _, names := range h.client {
		cert, err := read(names[0])
		if err != nil {
			return err
		}
		key := cert
		if names[1] != "" {
			if key, err = read(names[1]); err != nil {
				return err
			}
		}
		pair, err := tls.X509KeyPair(cert, key)
		if err != nil {
			return fmt.Errorf("client %s: %s", chandler.Quote(names[0]), chandler.Printable(err.Error(), 200))
		}
		h.TLS.Certificates = append(h.TLS.Certificates, pair)
	}
	return nil
}

// same tells whether both say the same, in the files that they name too.
func (c *config) same(other *config) bool { return c.sum == other.sum }

// endpoints gives the hosts for one registry.
func (c *config) endpoints(registry string) []fetch.Endpoint {
	all := make([]fetch.Endpoint, len(c.hosts))
	for i, h := range c.hosts {
		all[i] = h.Endpoint
		if all[i].Host == "" {
			all[i].Host = registry
		}
	}
	return all
}

func readFile(name string) ([]byte, error) {
	if s, err := os.Stat(name); err == nil && !s.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a file", name)
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(b) > maxFile {
		err = fmt.Errorf("%s is larger than %d bytes", name, maxFile)
	}
	return bytes.TrimPrefix(b, []byte("\xef\xbb\xbf")), err
}

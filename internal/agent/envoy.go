package agent

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/durable"
)

// envoyBinary is what is known of the Envoy that will run.
type envoyBinary struct {
	path    string
	Version string `json:"version"` // "1.40.0"
	Digest  string `json:"digest"`
	Slots   bool   `json:"slots"` // it has the filter_chain filter
}

var versionPattern = regexp.MustCompile(`/(\d+\.\d+\.\d+[^/]*)/`)

// probeTimeout bounds each question to the Envoy binary.
const probeTimeout = 20 * time.Second

// filterChainProbe is a bootstrap that only an Envoy with slots accepts.
const filterChainProbe = `{static_resources: {listeners: [{name: probe, address: {pipe: {path: probe.sock}}, filter_chains: [{filters: [{
name: h, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager,
stat_prefix: p, route_config: {}, http_filters: [
{name: s, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.filter_chain.v3.FilterChainConfig}},
{name: r, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}]}}]}]}]}}`

// probeEnvoy tells what the binary is. What was found out once is kept in the file
// memory, under the identity of the binary's file: to hash 100 MB and to run it
// twice would hold up every start.
func probeEnvoy(ctx context.Context, path, memory string) (envoyBinary, error) {
	found, err := FindEnvoy(path)
	if err != nil {
		return envoyBinary{}, err
	}
	identity, err := fileIdentity(found)
	if err != nil {
		return envoyBinary{}, err
	}
	remembered := map[string]envoyBinary{}
	if b, err := os.ReadFile(memory); err == nil && json.Unmarshal(b, &remembered) == nil && remembered[identity].Digest != "" {
		bin := remembered[identity]
		bin.path = found
		return bin, nil
	}
	bin, err := askEnvoy(ctx, found)
	if err != nil {
		return bin, err
	}
	b, err := json.Marshal(map[string]envoyBinary{identity: bin})
	if err == nil {
		err = durable.Write(durable.OS(), memory, b)
	}
	return bin, err
}

// FindEnvoy gives the absolute path of an Envoy binary that is named by its path, or by
// a name that is looked up in PATH. This very program is none, whatever it is called.
func FindEnvoy(path string) (string, error) {
	found, err := exec.LookPath(path)
	if err == nil && isThisProgram(found) {
		err = fmt.Errorf("%s is this agent itself", chandler.Quote(found))
	}
	if err != nil {
		return "", fmt.Errorf("no Envoy binary: %w; give the path of the real one with --envoy, or in CHANDLER_AGENT_ENVOY", err)
	}
	return filepath.Abs(found) // it is run from elsewhere too
}

func isThisProgram(path string) bool {
	own, err := os.Executable()
	if err != nil {
		return false
	}
	a, errA := os.Stat(own)
	b, errB := os.Stat(path)
	return errA == nil && errB == nil && os.SameFile(a, b)
}

// InsideVariable is in the environment of every Envoy that an agent runs: an agent that
// finds it was started in the place of an Envoy by another, and would start yet another.
const InsideVariable = "CHANDLER_AGENT_INSIDE"

// envoyCommand is a call of Envoy.
func envoyCommand(ctx context.Context, path string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = append(cmd.Environ(), InsideVariable+"=1")
	return cmd
}

// fileIdentity changes whenever the file is replaced or written.
func fileIdentity(path string) (string, error) {
	st, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	identity := fmt.Sprintf("%s %d %d", path, st.Size(), st.ModTime().UnixNano())
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		identity += fmt.Sprintf(" %d %d", sys.Dev, sys.Ino)
	}
	return identity, nil
}

// askEnvoy runs the binary for its version and for whether it has slots.
func askEnvoy(ctx context.Context, path string) (bin envoyBinary, err error) {
	bin = envoyBinary{path: path}
	if bin.Digest, err = fileDigest(path); err != nil {
		return bin, err
	}
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	out, err := envoyCommand(ctx, path, "--version").CombinedOutput()
	m := versionPattern.FindSubmatch(out)
	if m == nil {
		how := "it ended well"
		if err != nil {
			how = err.Error()
		}
		return bin, fmt.Errorf("%s --version says no Envoy version (%s): %s", path, how, chandler.Printable(string(out), 256))
	}
	bin.Version = string(m[1])
	dir, err := os.MkdirTemp("", "chandler-probe-")
	if err != nil {
		return bin, err
	}
	defer os.RemoveAll(dir)
	cmd := envoyCommand(ctx, path, "--mode", "validate", "--use-dynamic-base-id", "-l", "off", "--config-yaml", filterChainProbe)
	cmd.Dir = dir
	err = cmd.Run()
	bin.Slots = err == nil
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && exit.Exited() {
		err = nil // it refuses the filter; all else would be remembered wrongly
	}
	return bin, err
}

func fileDigest(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return chandler.DigestOf[string](h.Sum(nil)), nil
}

// adminAddress is where an admin interface is. The address stands in file if there is
// one, as Envoy writes it.
type adminAddress struct{ network, address, file string }

func (at adminAddress) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	address := at.address
	if at.file != "" {
		b, err := os.ReadFile(at.file)
		if err != nil {
			return nil, err
		}
		address = strings.TrimSpace(string(b))
	}
	var d net.Dialer
	return d.DialContext(ctx, at.network, address)
}

func (at adminAddress) String() string {
	switch {
	case at.file != "":
		return "the address in " + at.file
	case at.network == "unix":
		return "unix://" + at.address
	}
	return at.address
}

// adminClient speaks to Envoy's admin interface.
type adminClient struct {
	adminAddress
	http http.Client
	base string
}

// adminLimit bounds what is read of an answer.
const adminLimit = 64 << 20

func newAdminClient(at adminAddress) *adminClient {
	return &adminClient{
		adminAddress: at,
		base:         "http://envoy",
		http:         http.Client{Transport: &http.Transport{DialContext: at.dial, MaxIdleConns: 2, IdleConnTimeout: 5 * time.Second}},
	}
}

func (c *adminClient) get(ctx context.Context, path string) ([]byte, error) {
	return c.do(ctx, http.MethodGet, path)
}

func (c *adminClient) post(ctx context.Context, path string) ([]byte, error) {
	return c.do(ctx, http.MethodPost, path)
}

func (c *adminClient) do(ctx context.Context, method, path string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, adminLimit))
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("envoy admin %s: status %d: %s", path, resp.StatusCode, chandler.Printable(string(body), 256))
	}
	return body, nil
}

// stat sums the statistics whose name matches a regular expression, but for
// those of the admin interface itself.
func (c *adminClient) stat(ctx context.Context, pattern string) (int64, error) {
	stats, err := c.stats(ctx, pattern)
	var sum int64
	for name, n := range stats {
		if !strings.HasPrefix(name, "listener.admin.") {
			sum += n
		}
	}
	return sum, err
}

// stats gives the counters and gauges whose name matches a regular expression.
func (c *adminClient) stats(ctx context.Context, pattern string) (map[string]int64, error) {
	body, err := c.get(ctx, "/stats?filter="+url.QueryEscape(pattern))
	if err != nil {
		return nil, err
	}
	return readStats(string(body)), nil
}

// readStats reads lines of a name and a number; others are passed over.
func readStats(text string) map[string]int64 {
	stats := map[string]int64{}
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
		if n, err := strconv.ParseInt(value, 10, 64); err == nil {
			stats[name] = n
		}
	}
	return stats
}

func (c *adminClient) activeConnections(ctx context.Context) (int64, error) {
	return c.stat(ctx, `^listener\..*\.downstream_cx_active$`)
}

// listenersStat is what Envoy says of its listeners.
type listenersStat struct {
	version string // of the listeners file that it took in last
	refused int64  // how often it refused one, or a part of one
	warming int64
	active  int64
}

func (c *adminClient) listeners(ctx context.Context) (listenersStat, error) {
	const manager = "listener_manager."
	body, err := c.get(ctx, "/stats?filter="+url.QueryEscape(`^listener_manager\.(lds\.(update_rejected|update_failure|version_text)|total_listeners_(warming|active))$`))
	if err != nil {
		return listenersStat{}, err
	}
	var st listenersStat
	for line := range strings.Lines(string(body)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
		n, _ := strconv.ParseInt(value, 10, 64)
		switch name {
		case manager + "lds.version_text":
			st.version = strings.Trim(value, `"`)
		case manager + "lds.update_rejected", manager + "lds.update_failure": // the latter of one that it cannot read
			st.refused += n
		case manager + "total_listeners_warming":
			st.warming = n
		case manager + "total_listeners_active":
			st.active = n
		}
	}
	return st, nil
}

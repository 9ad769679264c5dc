package upstream

import (
	"errors"
	"fmt"
	"io"
	"os"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/attach"
)

// maxFile bounds a file of certificates, a key or a token.
const maxFile = 1 << 20

// source is a text in the bootstrap or in a file, which is read each time.
type source struct {
	data *corev3.DataSource // nil: none
	path string             // in the bootstrap
}

// checkData refuses what cannot be read from here.
func checkData(d *corev3.DataSource, path string) error {
	if d.GetEnvironmentVariable() != "" {
		return problem(path+".environment_variable", "use filename, inline_string or inline_bytes", "the agent reads no variables of Envoy's environment")
	}
	return nil
}

func (s source) read() ([]byte, error) {
	switch d := s.data.GetSpecifier().(type) {
	case *corev3.DataSource_Filename:
		return readFile(d.Filename)
	case *corev3.DataSource_InlineBytes:
		return d.InlineBytes, nil
	case *corev3.DataSource_InlineString:
		return []byte(d.InlineString), nil
	}
	return nil, fmt.Errorf("%s has no text", s.path)
}

func readFile(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil {
		return nil, err
	} else if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a file", name)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	switch {
	case err != nil:
		return nil, err
	case len(b) > maxFile:
		return nil, fmt.Errorf("%s is larger than %d bytes", name, maxFile)
	case len(b) == 0:
		return nil, fmt.Errorf("%s is empty", name)
	}
	return b, nil
}

// Find gives what a control plane has of a type under a name; not ok: nothing.
type Find func(typeURL, name string) (body []byte, ok bool)

// secretSource names a secret that comes by the discovery protocol: from a file or, with
// find, from the control plane.
type secretSource struct {
	name, file string
	find       Find
}

// readSecretSource reads where a secret comes from. For the connection to a control plane
// itself, without find, those that one serves would need a connection to it first.
func readSecretSource(c *tlsv3.SdsSecretConfig, path string, find Find) (secretSource, error) {
	s := secretSource{name: c.GetName()}
	config := c.GetSdsConfig()
	//lint:ignore SA1019 Bootstraps still have it.
	if s.file = config.GetPath(); s.file == "" {
		s.file = config.GetPathConfigSource().GetPath()
	}
	switch {
	case s.file != "":
	case find != nil:
		s.find = find
	default:
		return s, problem(path+".sds_config", "use path_config_source, or name the files in the bootstrap itself", "the agent takes secrets of a control plane's connection from files only")
	}
	return s, nil
}

func (s secretSource) String() string {
	if s.find != nil {
		return "the secret " + chandler.Quote(s.name)
	}
	return s.file
}

// load reads the secret of that name.
func (s secretSource) load() (*tlsv3.Secret, error) {
	if s.find != nil {
		body, ok := s.find(secretType, s.name)
		var secret tlsv3.Secret
		if !ok || proto.Unmarshal(body, &secret) != nil {
			return nil, fmt.Errorf("the control plane has sent no secret %s", chandler.Quote(s.name))
		}
		return &secret, nil
	}
	text, err := readFile(s.file)
	if err != nil {
		return nil, err
	}
	var response discoveryv3.DiscoveryResponse
	if text, err = attach.JSON(text); err == nil {
		err = decode(attach.Part{JSON: text}, &response)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", s.file, err)
	}
	for _, r := range response.GetResources() {
		var secret tlsv3.Secret
		if err := r.UnmarshalTo(&secret); err == nil && (secret.GetName() == s.name || s.name == "") {
			return &secret, nil
		}
	}
	return nil, fmt.Errorf("%s has no secret %s", s.file, chandler.Quote(s.name))
}

var errNoSecret = errors.New("it is a secret of another kind")

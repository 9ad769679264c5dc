package attach

import (
	"slices"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"chandler.dev/chandler"
)

// RemoteWasm is an extension config of another control plane whose Wasm module is
// elsewhere, with what is wanted and how.
type RemoteWasm struct {
	// Name is the resource's. Network: it stands among network filters.
	Name    string
	Network bool
	// Nowhere: the resource does not say at all where the module is.
	Nowhere bool
	// Reference is where the module is, SHA256 its pin, bare hex or empty: of the manifest
	// for oci, of the unpacked module otherwise. Cluster is the one through which Envoy
	// would reach it.
	Reference chandler.Reference
	SHA256    string
	Cluster   string
	// Timeout bounds one try, Retries are how many may follow the first one, with pauses
	// from RetryBase to RetryMax. Zero: the resource does not say.
	Timeout             time.Duration
	Retries             uint32
	RetryBase, RetryMax time.Duration
	// PullSecret is the content of a .dockerconfigjson, nil without one. It is no text for
	// logs.
	PullSecret []byte `json:"-"`
	PullPolicy chandler.PullPolicy
	// ResourceVersion changes when the plugin of the control plane does: under PullAlways
	// the module is to be asked for anew then. Empty: the resource does not say.
	ResourceVersion string
	FailStrategy    chandler.FailStrategy
	// Problem says why the module cannot even be asked for; nil: it can.
	Problem *chandler.Problem

	config *corev3.TypedExtensionConfig
	form   wasmForm
	log    bool // an access log's
}

// wasmForm is a Wasm filter's configuration as it is written.
type wasmForm interface {
	// remote is where the code is; nil: it is here already, or nowhere.
	remote() (*corev3.RemoteDataSource, error)
	// variables are those of the VM's environment that have a value here.
	variables() map[string]string
	failStrategy() chandler.FailStrategy
	// local is the configuration with the code in a file and without private variables;
	// what it is called on stays as it is.
	local(path string) *anypb.Any
	// public is the configuration without private variables.
	public() *anypb.Any
	// discreet is the configuration with an empty pull secret, if it has one.
	discreet() *anypb.Any
}

// Istio tells its agent what is not for the plugin in variables of the VM.
const (
	privatePrefix     = "ISTIO_META_"
	pullSecretEnv     = privatePrefix + "WASM_IMAGE_PULL_SECRET"
	pullPolicyEnv     = privatePrefix + "WASM_IMAGE_PULL_POLICY"
	versionEnv        = privatePrefix + "WASM_PLUGIN_RESOURCE_VERSION"
	unsetSHA256       = "nil" // for no pin: Istio's own reader refuses an empty one
	remotePath        = "typed_config.config.vm_config.code.remote"
	environmentPath   = "typed_config.config.vm_config.environment_variables.key_values."
	secretMissingHint = "name a Secret of type kubernetes.io/dockerconfigjson in the plugin's namespace"
)

// ReadRemoteWasm reads an extension config whose filter is Wasm, for HTTP or for
// connections, as a message or as a TypedStruct, and whose code is remote. It gives nil
// for every other resource: that is handed on as it is. So is one that cannot be read,
// for which the error, a *chandler.Problem, says why: Envoy will refuse it.
func ReadRemoteWasm(resource *anypb.Any) (*RemoteWasm, error) {
	if typeName(resource.GetTypeUrl()) != typeName(ExtensionConfigType) {
		return nil, nil
	}
	config := &corev3.TypedExtensionConfig{}
	if err := proto.Unmarshal(resource.GetValue(), config); err != nil {
		return nil, problem("", "", "the extension config cannot be read: %s", chandler.Printable(err.Error(), 256))
	}
	form, kind, err := wasmFormOf(config.GetTypedConfig(), wasmType, networkWasmType)
	if err != nil || form == nil {
		return nil, err
	}
	r, err := remoteOf(form, kind)
	if r != nil {
		r.Name, r.config = config.GetName(), config
	}
	return r, err
}

// remoteOf reads a filter; nil: its code is not remote.
func remoteOf(form wasmForm, kind string) (*RemoteWasm, error) {
	remote, err := form.remote()
	if err != nil || remote == nil {
		return nil, err
	}
	r := &RemoteWasm{Network: kind == networkWasmType, FailStrategy: form.failStrategy(), form: form, log: kind == wasmLogType}
	r.readSource(remote)
	r.readPrivate(form.variables())
	return r, nil
}

// Public gives an extension config of Wasm that is not remote as it may go on: without what
// is private to Istio's agent. Nil: it goes on as it is, as does what is no Wasm.
func Public(resource *anypb.Any) (public *anypb.Any, isWasm bool) {
	config := &corev3.TypedExtensionConfig{}
	if typeName(resource.GetTypeUrl()) != typeName(ExtensionConfigType) || proto.Unmarshal(resource.GetValue(), config) != nil {
		return nil, false
	}
	form, _, err := wasmFormOf(config.GetTypedConfig(), wasmType, networkWasmType)
	if err != nil || form == nil {
		return nil, false
	}
	for name := range form.variables() {
		if isPrivate(name, "") {
			r := &RemoteWasm{config: config}
			return r.with(form.public()), true
		}
	}
	return nil, true
}

// wasmFormOf tells in which form a configuration is Wasm's, of one of those types; nil: in
// none.
func wasmFormOf(typed *anypb.Any, kinds ...string) (form wasmForm, kind string, err error) {
	switch kind := typeName(typed.GetTypeUrl()); {
	case slices.Contains(kinds, kind):
		form, err := readPlainWasm(typed)
		return form, kind, err
	case kind == udpaTypedStruct || kind == xdsTypedStruct:
		inner, value, err := typeAndValue(typed.GetValue(), (*place)(nil).field("typed_config"))
		if inner = typeName(inner); err != nil || !slices.Contains(kinds, inner) {
			return nil, "", err
		}
		form, err := readTreeWasm(typed, value)
		return form, inner, err
	}
	return nil, "", nil
}

// readSource reads where the module is.
func (r *RemoteWasm) readSource(remote *corev3.RemoteDataSource) {
	r.Nowhere = remote.GetHttpUri().GetUri() == ""
	reference, p := chandler.ParseReference(remote.GetHttpUri().GetUri())
	if r.SHA256 = remote.GetSha256(); r.SHA256 == unsetSHA256 {
		r.SHA256 = ""
	}
	if p == nil {
		r.Reference = reference
		p = reference.CheckPin(r.SHA256)
	}
	r.because(remotePath, p)
	r.Cluster = remote.GetHttpUri().GetCluster()
	r.Timeout = max(0, remote.GetHttpUri().GetTimeout().AsDuration())
	retry := remote.GetRetryPolicy()
	r.Retries = retry.GetNumRetries().GetValue()
	r.RetryBase = max(0, retry.GetRetryBackOff().GetBaseInterval().AsDuration())
	r.RetryMax = max(0, retry.GetRetryBackOff().GetMaxInterval().AsDuration())
}

// readPrivate reads what Istio says to its agent.
func (r *RemoteWasm) readPrivate(variables map[string]string) {
	if secret, ok := variables[pullSecretEnv]; ok {
		r.PullSecret = []byte(secret)
		if secret == "" {
			// The control plane found no secret of the name that the plugin has.
			r.because(environmentPath+pullSecretEnv, chandler.Problemf(chandler.CodeSecretType, "", secretMissingHint, "the control plane sent no pull secret"))
		}
	}
	switch policy := chandler.PullPolicy(variables[pullPolicyEnv]); policy {
	case chandler.PullAlways, chandler.PullIfNotPresent:
		r.PullPolicy = policy
	}
	r.ResourceVersion = variables[versionEnv]
}

// because notes the first reason why the module cannot be asked for.
func (r *RemoteWasm) because(field string, p *chandler.Problem) {
	if p != nil && r.Problem == nil {
		told := *p
		told.Field = field
		r.Problem = &told
	}
}

// String names the resource and its module, without secrets.
func (r *RemoteWasm) String() string {
	if r.Reference.Scheme == "" {
		return r.Name + " from nowhere"
	}
	return r.Name + " from " + r.Reference.Redacted()
}

// Local gives the resource with the module in a file of this machine. Variables that
// are private to Istio's agent are taken out, all else stays as it is. The same path
// gives the same bytes.
func (r *RemoteWasm) Local(path string) *anypb.Any { return r.with(r.form.local(text(path))) }

// Discreet gives the resource with an empty pull secret in the place of its own, for what
// is kept. What is read of it later says that a secret is missing, so that nobody goes to
// a registry without it.
func (r *RemoteWasm) Discreet() *anypb.Any { return r.with(r.form.discreet()) }

// StandIn gives the resource with what stands there while the module cannot be had:
// nothing for FAIL_OPEN, a denial otherwise, as for chandler's own plugins. It is an
// RBAC filter: an Envoy whose listener allows no such type there (type_urls) refuses it.
func (r *RemoteWasm) StandIn() *anypb.Any { return r.with(r.standIn()) }

// standIn gives nil for an access log: it denies nothing, and nothing can take its place.
func (r *RemoteWasm) standIn() *anypb.Any {
	if r.log {
		return nil
	}
	return inPlace(r.Network, r.FailStrategy != chandler.FailOpen)
}

// Own is the filter's configuration without a pull secret, by which versions of it are told
// apart.
func (r *RemoteWasm) Own() []byte { return r.form.discreet().GetValue() }

// with gives the resource with another configuration.
func (r *RemoteWasm) with(typed *anypb.Any) *anypb.Any {
	config := proto.CloneOf(r.config)
	config.TypedConfig = typed
	return packed(config)
}

// isPrivate tells whether a variable is for Istio's agent only.
func isPrivate(name, _ string) bool { return strings.HasPrefix(name, privatePrefix) }

// withValue gives an Any or a TypedStruct that holds another value.
func withValue(b, value []byte) []byte {
	out := make([]byte, 0, len(b)+len(value))
	for s := scan(b, nil); s.next(); {
		if s.num != anyValue {
			out = s.keep(out)
		}
	}
	return protowire.AppendBytes(protowire.AppendTag(out, anyValue, protowire.BytesType), value)
}

package wire

import (
	"errors"
	"fmt"
	"path"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"

	"chandler.dev/chandler"
	chandlerv1 "chandler.dev/chandler/api/chandler/v1"
)

// AttachmentTypeURL is the one resource type on the agents' stream.
const AttachmentTypeURL = "type.googleapis.com/chandler.v1.Attachment"

// The tables are read only.
var (
	filterTypes = newEnum("filter type", map[chandler.FilterType]chandlerv1.FilterType{
		chandler.HTTP:    chandlerv1.FilterType_FILTER_TYPE_HTTP,
		chandler.Network: chandlerv1.FilterType_FILTER_TYPE_NETWORK,
	})
	phases = newEnum("phase", map[chandler.Phase]chandlerv1.Phase{
		chandler.PhaseUnspecified: chandlerv1.Phase_PHASE_UNSPECIFIED,
		chandler.PhaseAuthn:       chandlerv1.Phase_PHASE_AUTHN,
		chandler.PhaseAuthz:       chandlerv1.Phase_PHASE_AUTHZ,
		chandler.PhaseStats:       chandlerv1.Phase_PHASE_STATS,
	})
	modes = newEnum("mode", map[chandler.Mode]chandlerv1.Mode{
		chandler.ModeAny:    chandlerv1.Mode_MODE_UNDEFINED,
		chandler.ModeClient: chandlerv1.Mode_MODE_CLIENT,
		chandler.ModeServer: chandlerv1.Mode_MODE_SERVER,
	})
	failStrategies = newEnum("fail strategy", map[chandler.FailStrategy]chandlerv1.FailStrategy{
		"":                  chandlerv1.FailStrategy_FAIL_STRATEGY_UNSPECIFIED,
		chandler.FailClose:  chandlerv1.FailStrategy_FAIL_STRATEGY_FAIL_CLOSE,
		chandler.FailOpen:   chandlerv1.FailStrategy_FAIL_STRATEGY_FAIL_OPEN,
		chandler.FailReload: chandlerv1.FailStrategy_FAIL_STRATEGY_FAIL_RELOAD,
	})
	firstAttaches = newEnum("first attach", map[chandler.FirstAttach]chandlerv1.FirstAttach{
		chandler.FirstAttachHold: chandlerv1.FirstAttach_FIRST_ATTACH_HOLD,
		chandler.FirstAttachDeny: chandlerv1.FirstAttach_FIRST_ATTACH_DENY,
	})
)

// MarshalAttachment gives an attachment as it travels, and its version: the hash of the
// bytes. The same attachment always gives the same bytes.
func MarshalAttachment(a *chandler.Attachment) (body *anypb.Any, version string, err error) {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(AttachmentToProto(a))
	if err != nil {
		return nil, "", fmt.Errorf("attachment %s: %w", a.Key, err)
	}
	return &anypb.Any{TypeUrl: AttachmentTypeURL, Value: b}, Version(b), nil
}

// Version is the version of a marshalled attachment: the hash of its bytes.
func Version(body []byte) string {
	return string(chandler.Digest[chandler.ModuleDigest](body))[len("sha256:"):]
}

// UnmarshalAttachment reads what MarshalAttachment wrote; body is the value of the
// Any. What it refuses is a *chandler.Problem, XDSResource or XDSPathEscape. Fields
// that it does not know are passed over, and InPart says so: a control plane that is
// newer says more, and names in Requires what must be understood. One that cannot be read and requires
// what this version has never heard of has no Program, for whoever gets it to refuse it
// by that name.
func UnmarshalAttachment(body []byte) (chandler.Attachment, error) {
	var m chandlerv1.Attachment
	err := proto.Unmarshal(body, &m)
	if err != nil {
		err = fmt.Errorf("attachment: %w", err)
	} else {
		var a chandler.Attachment
		if a, err = AttachmentFromProto(&m); err == nil {
			a.InPart = a.InPart || saysMore(m.ProtoReflect())
			return a, nil
		}
	}
	code := chandler.CodeXDSResource
	if errors.Is(err, errPath) {
		code = chandler.CodeXDSPathEscape
	}
	return chandler.Attachment{}, chandler.Problemf(code, "", "look at the control plane: it must not send this", "%s", chandler.Printable(err.Error(), MaxMessage))
}

// AttachmentToProto translates an attachment for the wire. Slices are shared.
func AttachmentToProto(a *chandler.Attachment) *chandlerv1.Attachment {
	m := &chandlerv1.Attachment{
		Plugin:        encodeRef(a.Key, a.UID),
		Generation:    a.Generation,
		Release:       string(a.Release),
		Sequence:      a.Sequence,
		Type:          filterTypes.to[a.Type],
		Phase:         phases.to[a.Phase],
		Order:         &chandlerv1.Order{Priority: a.Priority, Created: encodeTime(a.Created)},
		FailStrategy:  failStrategies.to[a.FailStrategy],
		FirstAttach:   firstAttaches.to[a.FirstAttach],
		Strict:        a.Strict,
		RootId:        a.RootID,
		Configuration: a.Config,
		SecretConfig:  a.SecretConfig,
		Capabilities:  a.Capabilities,
		Requires:      a.Requires,
	}
	if a.FetchDeadline > 0 {
		m.FetchDeadline = durationpb.New(a.FetchDeadline)
	}
	switch p := a.Program; {
	case p.Module != nil:
		m.Code = &chandlerv1.Attachment_Module{Module: encodeModule(*p.Module)}
	case p.File != nil:
		m.Code = &chandlerv1.Attachment_File{File: &chandlerv1.LocalFile{Path: p.File.Path, Digest: string(p.File.Digest)}}
	case p.Lua != nil:
		m.Code = &chandlerv1.Attachment_Lua{Lua: &chandlerv1.Lua{InlineCode: p.Lua.InlineCode}}
	case p.Deny:
		m.Code = &chandlerv1.Attachment_Denial{Denial: &chandlerv1.Denial{}}
	}
	for _, match := range a.Match {
		m.Match = append(m.Match, &chandlerv1.Match{Mode: modes.to[match.Mode], Ports: match.Ports})
	}
	for _, e := range a.Env {
		v := &chandlerv1.EnvVar{Name: e.Name, Source: &chandlerv1.EnvVar_Value{Value: e.Value}}
		if e.Host {
			v.Source = &chandlerv1.EnvVar_Host{Host: true}
		}
		m.Env = append(m.Env, v)
	}
	for _, s := range a.Standby {
		m.Standby = append(m.Standby, encodeModule(s))
	}
	return m
}

func encodeModule(m chandler.Module) *chandlerv1.Module {
	return &chandlerv1.Module{Digest: string(m.Digest), Size: uint64(max(m.Size, 0)), Origins: m.Origins}
}

// AttachmentFromProto checks and translates an attachment from the wire.
func AttachmentFromProto(m *chandlerv1.Attachment) (chandler.Attachment, error) {
	a := chandler.Attachment{
		Generation:   m.GetGeneration(),
		Sequence:     m.GetSequence(),
		Strict:       m.GetStrict(),
		SecretConfig: m.GetSecretConfig(),
		Capabilities: m.GetCapabilities(),
		Requires:     m.GetRequires(),
	}
	var err error
	if a.Key, a.UID, err = decodeRef(m.GetPlugin()); err != nil {
		return chandler.Attachment{}, err
	}
	for _, step := range []func(*chandlerv1.Attachment, *chandler.Attachment) error{
		decodeIdentity, decodeProgram, decodeBehaviour, decodeLists,
	} {
		if err := step(m, &a); err != nil {
			if isOfLater(&a) {
				return refusable(&a), nil
			}
			return chandler.Attachment{}, fmt.Errorf("attachment %s: %w", a.Key, err)
		}
	}
	return a, nil
}

// isOfLater tells of an attachment that cannot be read whether that may be because it
// needs what only a later version knows, and says so.
func isOfLater(a *chandler.Attachment) bool {
	known := a.Release != "" && len(a.Requires) <= maxList
	later := false
	for _, f := range a.Requires {
		known = known && checkName("required feature", f) == nil
		later = later || !chandler.KnownFeature(f)
	}
	return known && later
}

// refusable is what has to be known of such an attachment to refuse it by the name of
// what it needs: no program and no behaviour, of which half may be misread.
func refusable(a *chandler.Attachment) chandler.Attachment {
	return chandler.Attachment{
		Key: a.Key, UID: a.UID, Generation: a.Generation, Release: a.Release, Sequence: a.Sequence,
		Created: a.Created, FetchDeadline: a.FetchDeadline, SecretConfig: a.SecretConfig, Requires: a.Requires, InPart: true,
	}
}

// saysMore tells whether a message, or one in it, has fields that are not known here.
func saysMore(m protoreflect.Message) bool {
	more := len(m.GetUnknown()) > 0
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case f.Message() == nil: // none of the messages has a map
		case f.IsList():
			for i := range v.List().Len() {
				more = more || saysMore(v.List().Get(i).Message())
			}
		default:
			more = more || saysMore(v.Message())
		}
		return !more
	})
	return more
}

func decodeIdentity(m *chandlerv1.Attachment, a *chandler.Attachment) (err error) {
	if a.Release, err = decodeRelease("release", m.GetRelease()); err != nil {
		return err
	}
	if a.Created, err = decodeTime("created", m.GetOrder().GetCreated()); err != nil {
		return err
	}
	if m.GetOrder() != nil {
		a.Priority = m.GetOrder().Priority
	}
	if d := m.GetFetchDeadline(); d != nil {
		if err := d.CheckValid(); err != nil || d.AsDuration() < 0 {
			return errors.New("fetch deadline is out of range")
		}
		a.FetchDeadline = d.AsDuration()
	}
	return nil
}

func decodeProgram(m *chandlerv1.Attachment, a *chandler.Attachment) error {
	switch code := m.GetCode().(type) {
	case *chandlerv1.Attachment_Module:
		mod, err := decodeModule(code.Module)
		a.Program.Module = &mod
		return err
	case *chandlerv1.Attachment_File:
		f := &chandler.LocalFile{Path: code.File.GetPath(), Digest: chandler.ModuleDigest(code.File.GetDigest())}
		if err := checkLen("path", len(f.Path), MaxPath); err != nil {
			return err
		}
		if !strings.HasPrefix(f.Path, "/") || !chandler.IsPlain(f.Path) || path.Clean(f.Path) != f.Path || f.Path == "/" {
			return fmt.Errorf("%w: %s", errPath, chandler.Quote(f.Path))
		}
		a.Program.File = f
		if f.Digest == "" {
			return nil
		}
		return checkDigest(f.Digest)
	case *chandlerv1.Attachment_Lua:
		a.Program.Lua = &chandler.Lua{InlineCode: code.Lua.GetInlineCode()}
		return checkLen("inline code", len(a.Program.Lua.InlineCode), MaxCode)
	case *chandlerv1.Attachment_Denial:
		a.Program.Deny = true
		return nil
	}
	return errors.New("no code that this version knows")
}

// errPath: a path that would have to be followed to see where it leads.
var errPath = errors.New("path is not absolute and plain")

func decodeModule(m *chandlerv1.Module) (chandler.Module, error) {
	mod := chandler.Module{Digest: chandler.ModuleDigest(m.GetDigest()), Size: int64(m.GetSize()), Origins: m.GetOrigins()}
	if mod.Size < 0 {
		return mod, fmt.Errorf("module size %d is out of range", m.GetSize())
	}
	if err := checkLen("origins", len(mod.Origins), maxList); err != nil {
		return mod, err
	}
	for _, o := range mod.Origins {
		if err := checkLen("origin", len(o), MaxPath); err != nil {
			return mod, err
		}
	}
	return mod, checkDigest(mod.Digest)
}

func checkDigest(d chandler.ModuleDigest) error {
	if _, ok := chandler.ParseDigest[chandler.ModuleDigest](string(d)); !ok {
		return fmt.Errorf("digest %s is not sha256: and 64 lower-case hex digits", chandler.Quote(string(d)))
	}
	return nil
}

func decodeBehaviour(m *chandlerv1.Attachment, a *chandler.Attachment) (err error) {
	if a.Type, err = filterTypes.decode(m.GetType()); err != nil {
		return err
	}
	if a.Phase, err = phases.decode(m.GetPhase()); err != nil {
		return err
	}
	if a.FailStrategy, err = failStrategies.decode(m.GetFailStrategy()); err != nil {
		return err
	}
	if m.GetFirstAttach() != chandlerv1.FirstAttach_FIRST_ATTACH_UNSPECIFIED {
		if a.FirstAttach, err = firstAttaches.decode(m.GetFirstAttach()); err != nil {
			return err
		}
	}
	a.RootID, a.Config = m.GetRootId(), m.Configuration
	if err := checkOptionalName("root id", a.RootID); err != nil {
		return err
	}
	return checkLen("configuration", len(a.Config), MaxConfig)
}

func decodeLists(m *chandlerv1.Attachment, a *chandler.Attachment) error {
	for field, n := range map[string]int{
		"match": len(m.GetMatch()), "env": len(m.GetEnv()), "standby": len(m.GetStandby()),
		"capabilities": len(m.GetCapabilities()), "requires": len(m.GetRequires()),
	} {
		if err := checkLen(field, n, maxList); err != nil {
			return err
		}
	}
	for _, x := range m.GetMatch() {
		mode := x.GetMode()
		if mode == chandlerv1.Mode_MODE_CLIENT_AND_SERVER {
			mode = chandlerv1.Mode_MODE_UNDEFINED
		}
		md, err := modes.decode(mode)
		if err != nil {
			return err
		}
		if err := checkLen("match ports", len(x.GetPorts()), maxList); err != nil {
			return err
		}
		a.Match = append(a.Match, chandler.Match{Mode: md, Ports: x.GetPorts()})
	}
	for _, x := range m.GetEnv() {
		e := chandler.EnvVar{Name: x.GetName(), Value: x.GetValue(), Host: x.GetHost()}
		if err := checkName("env name", e.Name); err != nil {
			return err
		}
		if err := checkLen("env value", len(e.Value), MaxMessage); err != nil {
			return err
		}
		a.Env = append(a.Env, e)
	}
	for _, x := range m.GetStandby() {
		mod, err := decodeModule(x)
		if err != nil {
			return err
		}
		a.Standby = append(a.Standby, mod)
	}
	for _, s := range m.GetCapabilities() {
		if err := checkName("capability", s); err != nil {
			return err
		}
	}
	for _, s := range m.GetRequires() {
		if err := checkName("required feature", s); err != nil {
			return err
		}
	}
	return nil
}

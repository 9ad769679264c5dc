package attach

import (
	"math"
	"strings"

	"google.golang.org/protobuf/encoding/protowire"

	"chandler.dev/chandler"
)

// wireFilter is a filter of a chain as far as it is read.
type wireFilter struct {
	Filter
	// slot: it is one of chandler's, from an earlier time.
	slot bool
	// typed: its configuration is there. wrapped: in a TypedStruct. Otherwise discovered
	// are the types that may come from elsewhere; nil: nothing comes from there.
	typed, wrapped bool
	discovered     []string
	// config is what its configuration consists of, where it is a connection manager.
	config []byte
}

// manager tells whether it is a connection manager that can be edited.
func (f wireFilter) manager() bool { return f.typed && !f.wrapped && typeName(f.TypeURL) == hcmType }

// checkManager refuses a connection manager, or what may be one, that cannot be edited.
func (f wireFilter) checkManager(at *place) error {
	switch {
	case f.slot, f.manager():
		return nil
	case f.discovered != nil:
		if mayBeManager(f.discovered) {
			return at.field("config_discovery").problem("", "a connection manager whose configuration comes from elsewhere cannot be given plugins")
		}
	case f.typed && isManagerType(f.TypeURL):
		return at.field("typed_config").problemf("a connection manager of type %s, or written in this way, cannot be given plugins", chandler.Quote(typeName(f.TypeURL)))
	case !f.typed && (f.Name == hcmFilterName || f.Name == hcmFilterNameBefore):
		return at.field("typed_config").problem("", "the connection manager has no configuration of a known type")
	}
	return nil
}

// edit writes a filter anew with the message in its typed_config edited.
func (f wireFilter) edit(b []byte, at *place, message func([]byte, *place) ([]byte, error)) ([]byte, error) {
	at = at.field("typed_config")
	return rewrite(b, at, func(s *scanner, out []byte) ([]byte, error) {
		if s.num != filterTyped {
			return s.keep(out), nil
		}
		packed, err := rewrite(s.bytes("typed_config"), at, func(s *scanner, out []byte) ([]byte, error) {
			if s.num != anyValue {
				return s.keep(out), nil
			}
			edited, err := message(s.bytes("value"), at)
			return s.replace(out, edited), err
		})
		return s.replace(out, packed), err
	})
}

// readFilter reads a network filter or an HTTP filter.
func readFilter(b []byte, at *place) (wireFilter, error) {
	var f wireFilter
	var typed, discovery []byte
	s := scan(b, at)
	for s.next() {
		switch s.num {
		case filterName:
			f.Name = string(s.one("name"))
		case filterTyped:
			typed = s.one("typed_config")
		case filterDiscovery:
			discovery = s.one("config_discovery")
		}
	}
	err := s.err
	switch {
	case err != nil:
	case typed != nil && discovery != nil:
		err = at.problem("", "typed_config and config_discovery are both given")
	case typed != nil:
		f.typed = true
		f.TypeURL, f.wrapped, err = configType(typed, at.field("typed_config"), true)
		if err == nil && f.manager() {
			_, f.config, err = typeAndValue(typed, at.field("typed_config"))
		}
	case discovery != nil:
		f.discovered, err = discoveredTypes(discovery, at.field("config_discovery"))
		f.TypeURL = strings.Join(f.discovered[:min(len(f.discovered), 1)], "")
	}
	if err != nil || !strings.HasPrefix(f.Name, slotPrefix) {
		return f, err
	}
	if _, f.slot = ParseSlot(f.Name); !f.slot || discovery == nil {
		return f, at.field("name").problemf("the name %s belongs to a slot", chandler.Quote(f.Name))
	}
	return f, nil
}

// discoveredTypes are the types that a configuration from elsewhere may have; not nil.
func discoveredTypes(discovery []byte, at *place) ([]string, error) {
	types := []string{}
	s := scan(discovery, at)
	for s.next() {
		if s.num == discoveryTypes {
			types = append(types, string(s.bytes("type_urls")))
		}
	}
	return types, s.err
}

// configType is the type of a configuration, looking into a TypedStruct and, if match,
// into a filter that runs only for some requests: it is still one of its family.
func configType(packed []byte, at *place, match bool) (kind string, wrapped bool, err error) {
	kind, value, err := typeAndValue(packed, at)
	if err != nil {
		return "", false, err
	}
	switch typeName(kind) {
	case udpaTypedStruct, xdsTypedStruct:
		kind, _, err = typeAndValue(value, at)
		return kind, true, err
	case matcherType:
		if !match {
			return kind, false, nil
		}
		inner, err := child(value, matcherInner, at, "extension_config")
		if err != nil || inner == nil {
			return kind, false, err
		}
		at = at.field("extension_config")
		typed, err := child(inner, extensionTyped, at, "typed_config")
		if err != nil || typed == nil {
			return kind, false, err
		}
		return configType(typed, at.field("typed_config"), false)
	}
	return kind, false, nil
}

// typeAndValue takes an Any or a TypedStruct apart.
func typeAndValue(b []byte, at *place) (kind string, value []byte, err error) {
	s := scan(b, at)
	for s.next() {
		switch s.num {
		case anyType:
			kind = string(s.one("type_url"))
		case anyValue:
			value = s.one("value")
		}
	}
	return kind, value, s.err
}

// child is the content of one field of a message; nil when it is absent.
func child(b []byte, num protowire.Number, at *place, name string) (content []byte, err error) {
	s := scan(b, at)
	for s.next() {
		if s.num == num {
			content = s.one(name)
		}
	}
	return content, s.err
}

// destinationPort is the port that a chain's match names; 0: none.
func destinationPort(match []byte, at *place) (uint32, error) {
	wrapped, err := child(match, matchPort, at, "destination_port")
	var port uint64
	s := scan(wrapped, at.field("destination_port"))
	for err == nil && s.next() {
		if s.num == 1 {
			port = s.number("value")
		}
	}
	if err = firstOf(err, s.err); err == nil && port > math.MaxUint32 {
		err = s.at.problemf("%d is not a port", port)
	}
	return uint32(port), err
}

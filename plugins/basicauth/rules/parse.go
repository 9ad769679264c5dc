package rules

import (
	"encoding/base64"
	"strconv"
	"strings"
)

const defaultRealm = "istio"

// Error says why a configuration is refused. It quotes nothing of the
// configuration, which holds passwords, and so it is short and safe to log.
type Error struct {
	Field  string // path of the field, such as basic_auth_rules[0].credentials[1]; empty for the whole
	Reason string // one line
}

func (e *Error) Error() string {
	if e.Field == "" {
		return e.Reason
	}
	return e.Field + ": " + e.Reason
}

// Parse reads a configuration:
//
//	{"basic_auth_rules": [RULE...], "realm": STRING}
//
// Both fields are optional and unknown ones are ignored. No bytes at all mean no
// rules. The error, if any, is an [*Error] that names the first fault found.
func Parse(configuration []byte) (*Rules, error) {
	r := &Rules{realm: defaultRealm, byMethod: map[string][]*rule{}}
	if len(configuration) == 0 {
		return r, nil
	}
	document, err := decodeJSON(string(configuration))
	if err != nil {
		return nil, err
	}
	top, err := as[map[string]any](document, "")
	if err != nil {
		return nil, err
	}
	if v, ok := top["realm"]; ok {
		if r.realm, err = parseRealm(v); err != nil {
			return nil, err
		}
	}
	if v, ok := top["basic_auth_rules"]; ok {
		if err := r.addAll(v, "basic_auth_rules"); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// parseRealm refuses control characters: a line break would end the header.
func parseRealm(v any) (string, error) {
	realm, err := as[string](v, "realm")
	if err != nil {
		return "", err
	}
	if strings.ContainsFunc(realm, func(c rune) bool { return c < ' ' || c == 0x7f }) {
		return "", &Error{"realm", "must not contain control characters, it becomes part of a header"}
	}
	return realm, nil
}

func (r *Rules) addAll(v any, field string) error {
	list, err := as[[]any](v, field)
	if err != nil {
		return err
	}
	for i, v := range list {
		rule, methods, err := parseRule(v, item(field, i))
		if err != nil {
			return err
		}
		for _, m := range methods {
			r.byMethod[m] = append(r.byMethod[m], rule)
		}
	}
	return nil
}

func parseRule(v any, field string) (_ *rule, methods []string, err error) {
	object, err := as[map[string]any](v, field)
	if err != nil {
		return nil, nil, err
	}
	r := &rule{}
	if r.path, err = parsePath(object, field); err != nil {
		return nil, nil, err
	}
	if v, ok := object["hosts"]; ok {
		hosts, err := texts(v, field+".hosts")
		if err != nil {
			return nil, nil, err
		}
		for _, h := range hosts {
			r.hosts = append(r.hosts, hostMatcher(h))
		}
	}
	if methods, err = someTexts(object, field, "request_methods"); err != nil {
		return nil, nil, err
	}
	credentials, err := someTexts(object, field, "credentials")
	if err != nil {
		return nil, nil, err
	}
	for i, c := range credentials {
		encoded, ok := encode(c)
		if !ok {
			return nil, nil, &Error{item(field+".credentials", i), "must be user:password, or the base64 of it"}
		}
		r.credentials = append(r.credentials, []byte(encoded))
	}
	return r, methods, nil
}

// parsePath wants exactly one of the three ways to name paths. It refuses an
// empty one: it looks as if it guarded everything and guards nothing.
func parsePath(object map[string]any, field string) (matcher, error) {
	var found []string
	var m matcher
	for _, way := range []struct {
		name    string
		compare func(text, pattern string) bool
	}{{"prefix", strings.HasPrefix}, {"exact", equal}, {"suffix", strings.HasSuffix}} {
		v, ok := object[way.name]
		if !ok {
			continue
		}
		pattern, err := as[string](v, field+"."+way.name)
		if err != nil {
			return matcher{}, err
		}
		if pattern == "" {
			return matcher{}, &Error{field + "." + way.name, `must not be empty; for every path write {"prefix": "/"}`}
		}
		found = append(found, way.name)
		m = matcher{way.compare, pattern}
	}
	switch len(found) {
	case 0:
		return matcher{}, &Error{field, "exactly one of prefix, exact and suffix is required, and there is none"}
	case 1:
		return m, nil
	}
	return matcher{}, &Error{field, "exactly one of prefix, exact and suffix is required, and there are " + strings.Join(found, " and ")}
}

// encode gives a credential the form that it has in a request. What has a colon
// is user:password in plain. All else is taken to be encoded already, has to
// prove it, and is kept as it stands, with its padding or without.
func encode(credential string) (string, bool) {
	if strings.Contains(credential, ":") {
		return base64.StdEncoding.EncodeToString([]byte(credential)), true
	}
	if strings.ContainsAny(credential, "\r\n") { // which the decoder would skip
		return "", false
	}
	bare := strings.TrimSuffix(strings.TrimSuffix(credential, "="), "=")
	plain, err := base64.RawStdEncoding.DecodeString(bare)
	return credential, err == nil && len(plain) > 0
}

// someTexts reads a required list of strings that must not be empty.
func someTexts(object map[string]any, parent, name string) ([]string, error) {
	field := parent + "." + name
	v, ok := object[name]
	if !ok {
		return nil, &Error{field, "is required"}
	}
	list, err := texts(v, field)
	if err == nil && len(list) == 0 {
		return nil, &Error{field, "must not be empty"}
	}
	return list, err
}

func texts(v any, field string) ([]string, error) {
	list, err := as[[]any](v, field)
	if err != nil {
		return nil, err
	}
	out := make([]string, len(list))
	for i, v := range list {
		if out[i], err = as[string](v, item(field, i)); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// as gives v as a JSON value of the wanted kind, or says which kind it is.
func as[T any](v any, field string) (T, error) {
	t, ok := v.(T)
	if !ok {
		return t, &Error{field, "must be " + kind(any(t)) + ", not " + kind(v)}
	}
	return t, nil
}

func kind(v any) string {
	switch v.(type) {
	case map[string]any:
		return "a JSON object"
	case []any:
		return "an array"
	case string:
		return "a string"
	case bool:
		return "a boolean"
	case number:
		return "a number"
	}
	return "null"
}

func item(field string, i int) string { return field + "[" + strconv.Itoa(i) + "]" }

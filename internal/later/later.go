// Package later keeps what a later version of these programs wrote, in files that this
// one writes anew: fields at the top of a JSON object that are not known here go over
// into what takes its place. The later version would miss them when it comes back.
//
// It is no migration: what such a field means nobody here knows. What must not be kept
// when the rest changes takes another format, which this version leaves alone.
package later

import (
	"bytes"
	"encoding/json"
	"maps"
	"reflect"
	"slices"
)

// Fields are those that are not known here, in JSON; mostly there are none.
type Fields map[string]json.RawMessage

// Of gives the fields at the top of b that the struct v has not. What is no JSON object
// has none.
func Of(b []byte, v any) Fields {
	var all Fields
	if json.Unmarshal(b, &all) != nil {
		return nil
	}
	maps.DeleteFunc(all, func(name string, _ json.RawMessage) bool { return knows(v, name) })
	return all
}

// knows tells whether a struct has a field by that name, as package json looks for it.
func knows(v any, name string) bool {
	one, err := json.Marshal(map[string]any{name: nil})
	if err != nil { // names are texts
		return false
	}
	d := json.NewDecoder(bytes.NewReader(one))
	d.DisallowUnknownFields()
	return d.Decode(reflect.New(reflect.TypeOf(v)).Interface()) == nil
}

// AddTo gives the JSON object b with the fields behind its own; b itself if there are
// none.
func (f Fields) AddTo(b []byte) ([]byte, error) {
	b = bytes.TrimRight(b, " \n")
	end := len(b) - 1
	if len(f) == 0 || end < 1 || b[end] != '}' {
		return b, nil
	}
	out := bytes.TrimRight(slices.Clone(b[:end]), " \n")
	for _, name := range slices.Sorted(maps.Keys(f)) {
		quoted, err := json.Marshal(name)
		if err != nil {
			return nil, err
		}
		if out[len(out)-1] != '{' {
			out = append(out, ',')
		}
		out = append(append(append(out, quoted...), ':'), f[name]...)
	}
	return append(out, '}'), nil
}

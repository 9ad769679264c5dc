package main

import (
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"chandler.dev/chandler"
	chandlerv1 "chandler.dev/chandler/api/chandler/v1"
	"chandler.dev/chandler/internal/source"
)

// leftOut stands for words in which there may be a value that is not to be shown.
const leftOut = "<left out, as it may repeat a value>"

// shortestVeiled is how long a value is at least that is looked for in what proxies and
// plugins say: shorter ones are parts of words.
const shortestVeiled = 4

// veils take the values of plugins' configurations out of what is said of them. What was
// said of a plugin under another text, of whose values nobody knows any more, is left out;
// and so is all of one of which not all values are known, or that is not known at all.
type veils map[string]*veil

// veil is of one plugin.
type veil struct {
	values *strings.Replacer
	// generation and release are of the text that there is; empty: it has none yet.
	generation int64
	release    string
}

func veilName(ref *chandlerv1.ObjectRef) string {
	return ref.GetKind() + "/" + ref.GetNamespace() + "/" + ref.GetName()
}

// learn takes note of the values in an object.
func (v veils) learn(o *chandlerv1.Object) {
	var whole, shown any
	if o.Redacted || o.Hidden || yaml.Unmarshal(o.Manifest, &whole) != nil || yaml.Unmarshal(source.Redact(o.Manifest), &shown) != nil {
		v[veilName(o.Ref)] = nil
		return
	}
	var values []string
	collect(whole, shown, &values)
	slices.SortFunc(values, func(a, b string) int { return len(b) - len(a) }) // a long one may begin as a short one
	var pairs []string
	for _, value := range slices.Compact(values) {
		pairs = append(pairs, value, source.Redacted)
	}
	one := &veil{values: strings.NewReplacer(pairs...), generation: o.Generation}
	if accepted(o) && condition(o.Status, chandler.ConditionResolvedRefs).Status == string(chandler.True) {
		one.release = o.Status.GetResolved().GetRelease()
	}
	v[veilName(o.Ref)] = one
}

// collect gathers the texts that are not shown.
func collect(whole, shown any, values *[]string) {
	switch w := whole.(type) {
	case map[string]any:
		s, _ := shown.(map[string]any)
		for name, below := range w {
			collect(below, s[name], values)
		}
	case []any:
		s, _ := shown.([]any)
		for i, below := range w {
			var other any
			if i < len(s) {
				other = s[i]
			}
			collect(below, other, values)
		}
	case string:
		if s, _ := shown.(string); s != w {
			addValue(w, values)
		}
	case int, int64, uint64, float64:
		if b, err := json.Marshal(w); err == nil && shown == source.Redacted {
			addValue(string(b), values)
		}
	}
}

// addValue adds a text as it may be repeated: itself, its lines, as JSON has it, and of a
// URL the values of its query.
func addValue(text string, values *[]string) {
	all := append([]string{text}, strings.Split(text, "\n")...)
	if b, err := json.Marshal(text); err == nil {
		all = append(all, string(b[1:len(b)-1]))
	}
	if u, err := url.Parse(text); err == nil && u.RawQuery != "" {
		all = append(all, u.RawQuery)
		for _, list := range u.Query() {
			all = append(all, list...)
		}
	}
	for _, one := range all {
		if one = strings.TrimSpace(one); len(one) >= shortestVeiled {
			*values = append(*values, one)
		}
	}
}

func accepted(o *chandlerv1.Object) bool {
	return observed(o) && condition(o.Status, chandler.ConditionAccepted).Status == string(chandler.True)
}

// object covers what is said of an object.
func (v veils) object(o *chandlerv1.Object) {
	one, st := v[veilName(o.Ref)], o.Status
	if one == nil {
		blank(o)
		return
	}
	for _, c := range st.GetConditions() {
		switch chandler.ConditionType(c.Type) {
		case chandler.ConditionAccepted:
			one.cover(c)
		case chandler.ConditionResolvedRefs:
			one.coverIf(accepted(o), c)
		default: // they repeat what a proxy says
			one.coverIf(one.release != "", c)
		}
	}
	for _, p := range slices.Concat(st.GetProxies(), st.GetFailures()) {
		v.proxy(o.Ref, p)
	}
	for _, p := range slices.Concat(st.GetProblems(), st.GetWarnings()) {
		one.cover(p)
	}
}

// proxy covers what a proxy says of a plugin: it may be of another release.
func (v veils) proxy(ref *chandlerv1.ObjectRef, p *chandlerv1.ProxyStatus) {
	one := v[veilName(ref)]
	mixed := p.State == string(chandler.StateInForce) && p.InForce != p.Release
	if one == nil || one.release == "" || p.Release != one.release || mixed {
		blank(p)
		return
	}
	one.cover(p)
}

// event covers an event about a plugin, if it says that it is of the text that there is,
// or repeats nobody's words.
func (v veils) event(ev *chandlerv1.Event) {
	one := v[veilName(ev.Ref)]
	if one == nil {
		blank(ev)
		return
	}
	says := func(what string) bool { return what != "" && strings.Contains(ev.Message, what) }
	switch chandler.EventReason(ev.Reason) {
	case chandler.EventApplied, chandler.EventNotResolved:
		one.coverIf(!ev.Warning || says(fmt.Sprintf("generation %d ", one.generation)), ev)
	case chandler.EventDeleted, chandler.EventResolved, chandler.EventInForce, chandler.EventSteered, chandler.EventDisabled, chandler.EventEnabled:
		one.cover(ev)
	default:
		one.coverIf(says(chandler.ReleaseID(one.release).Short()), ev)
	}
}

// rollout covers what is said of a rollout, and leaves out why there were others.
func (v veils) rollout(r *chandlerv1.Rollout) {
	one := v[veilName(r.Ref)]
	if one == nil || one.release == "" {
		blank(r)
		return
	}
	for _, h := range r.History {
		blank(h)
	}
	one.cover(r)
}

// cover takes the values out of all the words of a message.
func (one *veil) cover(m proto.Message) { coverIn(m.ProtoReflect(), one.values.Replace) }

func (one *veil) coverIf(known bool, m proto.Message) {
	if known {
		one.cover(m)
	} else {
		blank(m)
	}
}

// blank leaves all words of a message out.
func blank(m proto.Message) {
	coverIn(m.ProtoReflect(), func(string) string { return leftOut })
}

// words are the fields that hold sentences. A reason is one where a person gives it, and
// else a code, which no veil changes.
var words = []protoreflect.Name{"message", "hint", "why", "unusable"}

func coverIn(m protoreflect.Message, veil func(string) string) {
	m.Range(func(f protoreflect.FieldDescriptor, value protoreflect.Value) bool {
		switch {
		case f.IsList() && f.Kind() == protoreflect.MessageKind:
			for i := range value.List().Len() {
				coverIn(value.List().Get(i).Message(), veil)
			}
		case f.IsList(), f.IsMap():
		case f.Kind() == protoreflect.MessageKind:
			coverIn(value.Message(), veil)
		case f.Kind() == protoreflect.StringKind && slices.Contains(words, f.Name()):
			m.Set(f, protoreflect.ValueOfString(veil(value.String())))
		}
		return true
	})
}

package inspect

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// maxShown is how many names of a list are written.
const maxShown = 60

// Write writes the report for people.
func (r *Report) Write(w io.Writer) error {
	t := &table{w: tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)}
	t.row("Name", r.Name)
	t.row("Reference", r.Reference)
	t.row("Layout", r.Layout)
	if r.Artifact != nil {
		t.row("Artifact", fmt.Sprintf("%s  %s", r.Artifact.Digest, r.Artifact.MediaType))
	}
	for _, e := range r.Entries {
		t.row("Entry", fmt.Sprintf("%s  %s%s", e.Digest, cmp.Or(e.Platform, "no platform"), chosen(e.Module)))
	}
	if r.Manifest != nil {
		t.row("Manifest", fmt.Sprintf("%s  %s", r.Manifest.Digest, r.Manifest.MediaType))
	}
	if r.Config != nil {
		t.row("Config", fmt.Sprintf("%s  %s, %s", r.Config.Digest, r.Config.MediaType, SizeText(r.Config.Size)))
	}
	for i, l := range r.Layers {
		t.row(fmt.Sprintf("Layer %d", i), fmt.Sprintf("%s  %s, %s%s", l.Digest, l.MediaType, SizeText(l.Size), chosen(l.Module)))
	}
	if r.Module != nil {
		r.Module.write(t)
	}
	r.about(t)
	for _, k := range slices.Sorted(maps.Keys(r.Annotations)) {
		t.row("Annotation", k+"="+r.Annotations[k])
	}
	for _, k := range slices.Sorted(maps.Keys(r.Labels)) {
		t.row("Label", k+"="+r.Labels[k])
	}
	for _, p := range r.Problems {
		t.row("Problem", fmt.Sprintf("%s: %s", p.Code, p.Message))
		if p.Hint != "" {
			t.row("Hint", p.Hint)
		}
	}
	return t.w.Flush()
}

// about writes what travels with the module, and who signed it.
func (r *Report) about(t *table) {
	if r.Artifact == nil {
		return
	}
	t.row("Schema", r.Schema.text())
	readme := "none"
	if r.Readme != nil {
		readme = fmt.Sprintf("%s (%s)", r.Readme.FirstLine, SizeText(int64(r.Readme.Size)))
	}
	t.row("Readme", readme)
	if r.Signatures == nil {
		return
	}
	var found []string
	for _, s := range r.Signatures.Found {
		found = append(found, s.Where)
	}
	t.row("Signatures", list(found, "none"))
	if len(r.Signatures.By) > 0 {
		t.row("Signed by", strings.Join(r.Signatures.By, ", "))
	}
}

func (s *Schema) text() string {
	if s == nil {
		return "none"
	}
	var names []string
	for _, p := range s.Properties {
		name := strings.TrimSpace(p.Path + " " + p.Type)
		if p.Required {
			name += " (required)"
		}
		names = append(names, name)
	}
	if s.More {
		names = append(names, "and more")
	}
	return cmp.Or(s.Title, "yes") + ": " + list(names, "no properties")
}

func (m *Module) write(t *table) {
	t.row("Module", fmt.Sprintf("%s  %s", m.Digest, SizeText(m.Size)))
	if m.ABI == "" {
		return // it could not be read
	}
	t.row("ABI", m.ABI)
	t.row("Load time", fmt.Sprintf("about %s in Envoy, for %s of code", LoadText(time.Duration(m.LoadMillis)*time.Millisecond), SizeText(m.CodeBytes)))
	t.names("Imports", m.Imports)
	t.names("Callbacks", m.Callbacks)
	for _, w := range m.Warnings {
		t.row("Warning", w)
	}
}

// table is lines of a name and what it is.
type table struct{ w *tabwriter.Writer }

func (t *table) row(name, text string) {
	if text != "" {
		fmt.Fprintf(t.w, "%s:\t%s\n", name, strings.NewReplacer("\n", " ", "\t", " ").Replace(text)) // kept until Flush
	}
}

// names writes a list on as many lines as it takes.
func (t *table) names(name string, names []string) {
	const width = 90
	line := ""
	for i, n := range strings.Split(list(names, "none"), ", ") {
		switch {
		case i == 0:
			line = name + ":\t" + n
		case len(line)+len(n) > width:
			fmt.Fprintf(t.w, "%s,\n", line) // kept until Flush
			line = "\t" + n
		default:
			line += ", " + n
		}
	}
	fmt.Fprintln(t.w, line)
}

func chosen(yes bool) string {
	if yes {
		return " (the module)"
	}
	return ""
}

func list(names []string, none string) string {
	if len(names) == 0 {
		return none
	}
	if more := len(names) - maxShown; more > 0 {
		names = append(slices.Clone(names[:maxShown]), fmt.Sprintf("and %d more", more))
	}
	return strings.Join(names, ", ")
}

// SizeText is a number of bytes for people.
func SizeText(n int64) string {
	switch {
	case n < 10_000:
		return fmt.Sprintf("%d bytes", n)
	case n < 1_000_000:
		return fmt.Sprintf("%d kB", (n+500)/1000)
	case n < 1_000_000_000:
		return fmt.Sprintf("%.1f MB", float64(n)/1e6)
	}
	return fmt.Sprintf("%.1f GB", float64(n)/1e9)
}

// LoadText is a predicted time for people: no more digits than it is good for.
func LoadText(d time.Duration) string {
	if d < time.Second {
		return max(d, time.Millisecond).Round(time.Millisecond).String()
	}
	return fmt.Sprintf("%.1f s", d.Seconds())
}

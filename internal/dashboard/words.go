package dashboard

import (
	"fmt"
	"html/template"
	"net/url"
	"strconv"
	"strings"
	"time"

	"chandler.dev/chandler"
)

// words are the functions of the templates.
func words() template.FuncMap {
	return template.FuncMap{
		"time": moment, "number": number, "short": short, "bytes": size, "join": strings.Join,
		"plugin": pluginPath, "proxy": proxyPath, "rollout": rolloutPath, "node": splitNode,
		"proxies": func(n int) string { return plural(n, "proxy", "proxies") },
		"count":   plural,
		"span":    span,
		"add":     func(a, b int) int { return a + b },
		"meter":   meter, "legends": legends, "sign": sign, "root": func() string { return Root },
	}
}

// moment shows a time, which does not depend on when it is looked at; a script adds
// how long ago that is.
func moment(t time.Time) template.HTML {
	if t.IsZero() {
		return "–"
	}
	t = t.UTC()
	return template.HTML(`<time datetime="` + t.Format(time.RFC3339) + `">` + t.Format("2006-01-02 15:04:05") + `</time>`)
}

// number writes a count with its thousands apart.
func number(n int) string {
	if n < 0 {
		return "-" + number(-n)
	}
	s := strconv.Itoa(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

func plural(n int, one, more string) string {
	if n == 1 {
		return "1 " + one
	}
	return number(n) + " " + more
}

// short gives the first twelve digits of a digest or a release.
func short(id any) string {
	s := fmt.Sprint(id)
	_, hex, found := strings.Cut(s, ":")
	if !found {
		hex = s
	}
	return hex[:min(len(hex), 12)]
}

// span writes a length of time without what is none of it: "5m", not "5m0s".
func span(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// size writes a count of bytes.
func size(n int64) string {
	switch f := float64(n); {
	case n >= 1<<30:
		return fmt.Sprintf("%.1f GiB", f/(1<<30))
	case n >= 1<<20:
		return fmt.Sprintf("%.1f MiB", f/(1<<20))
	case n >= 1<<10:
		return fmt.Sprintf("%.1f KiB", f/(1<<10))
	}
	return fmt.Sprintf("%d B", n)
}

func keyPath(under string, k chandler.Key) string {
	return Root + under + "/" + url.PathEscape(k.Kind) + "/" + url.PathEscape(k.Namespace) + "/" + url.PathEscape(k.Name)
}

func pluginPath(k chandler.Key) string  { return keyPath("plugins", k) }
func rolloutPath(k chandler.Key) string { return keyPath("rollouts", k) }

// proxyPath leads to a proxy, by its "namespace/name".
func proxyPath(id string) string {
	namespace, name, _ := strings.Cut(id, "/")
	return Root + "proxies/" + url.PathEscape(namespace) + "/" + url.PathEscape(name)
}

func splitNode(id string) [2]string {
	namespace, name, _ := strings.Cut(id, "/")
	return [2]string{namespace, name}
}

// sign draws the shape of a mark.
func sign(l legend) template.HTML {
	var b strings.Builder
	fmt.Fprintf(&b, `<svg class="sign" width="%d" height="%d" viewBox="0 0 %d %d" aria-hidden="true"><path class="m-%s" d="`, cell+1, cell+1, cell, cell, l.Class)
	b.WriteString(l.mark.shape(0, 0))
	b.WriteString(`"/></svg>`)
	return template.HTML(b.String())
}

// meter draws how many of all have each mark, as a bar. The words for it stand beside
// it.
func meter(c counts) template.HTML {
	const width, height = 96, 8
	total := c.Total()
	var b strings.Builder
	fmt.Fprintf(&b, `<svg class="meter" width="%d" height="%d" viewBox="0 0 %d %d" preserveAspectRatio="none" role="img" aria-label="%s"><rect class="ground" width="%d" height="%d"/>`,
		width, height, width, height, template.HTMLEscapeString(c.sentence()), width, height)
	at := 0.0
	for _, l := range legends() {
		n := c[l.mark]
		if n == 0 || total == 0 {
			continue
		}
		w := max(float64(n)/float64(total)*width, 1.5) // few of many are to be seen, too
		fmt.Fprintf(&b, `<rect class="m-%s" x="%.1f" width="%.1f" height="%d"/>`, l.Class, min(at, width-w), w, height)
		at += float64(n) / float64(total) * width
	}
	b.WriteString(`</svg>`)
	return template.HTML(b.String())
}

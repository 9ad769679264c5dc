package dashboard

import (
	"fmt"
	"html/template"
	"strconv"
	"strings"
)

// Measures of the map, in its own units.
const (
	cell      = 7   // a square
	pitch     = 9   // from one to the next
	maxAcross = 104 // squares beside each other, in all columns together
	minDown   = 3
)

// stripHeight is how many squares stand on each other, so that all columns have room
// beside each other. There are at most maxStrips of them.
func stripHeight(sizes []int) int {
	for down := minDown; ; down++ {
		across := 0
		for _, n := range sizes {
			across += (n+down-1)/down + 1
		}
		if across <= maxAcross {
			return down
		}
	}
}

// strip draws a plugin's squares of one column, from top to bottom and then to the
// right, a path for every mark, and adds them to what is shown.
func strip(p *plugin, c *column, down int, shown *counts) template.HTML {
	var its counts
	spelt := make([]byte, len(c.Proxies))
	var paths [marks]strings.Builder
	for i, on := range c.Proxies {
		m := p.marks[on.index]
		its[m]++
		shown[m]++
		spelt[i] = letters[m]
		if m != notSelected {
			paths[m].WriteString(m.shape(i/down*pitch, i%down*pitch))
		}
	}
	if its.Total() == 0 {
		return ""
	}
	width, height := (len(c.Proxies)+down-1)/down*pitch, down*pitch
	var b strings.Builder
	fmt.Fprintf(&b, `<svg class="strip" role="img" width="%d" height="%d" viewBox="0 0 %d %d" data-down="%d" data-marks="%s" aria-label="%s"><rect class="ground" width="%d" height="%d"/>`,
		width, height, width, height, down, spelt, template.HTMLEscapeString(c.Word+": "+its.sentence()), width, height)
	for _, l := range legends() {
		if paths[l.mark].Len() > 0 {
			b.WriteString(`<path class="m-` + l.Class + `" d="` + paths[l.mark].String() + `"/>`)
		}
	}
	b.WriteString(`</svg>`)
	return template.HTML(b.String())
}

// shape draws a mark, as a part of a path whose upper left corner is at x and y. The
// style sheet says which are filled and which are lines.
func (m mark) shape(x, y int) string {
	var form string
	switch m {
	case inForce: // a square
		form = "h7v7h-7z"
	case inForceOther: // half of one
		form = "v7h7z"
	case onItsWay: // an empty one, as a line
		x, y = x*2+1, y*2+1
		return "M" + half(x) + " " + half(y) + "h6v6h-6z"
	case rejected: // a cross, as lines
		return "M" + half(x*2+1) + " " + half(y*2+1) + "l6 6m0-6l-6 6"
	case failed: // a triangle, point up
		return "M" + half(x*2+7) + " " + strconv.Itoa(y) + "l3.5 7h-7z"
	case faulting: // a full diamond
		return "M" + half(x*2+7) + " " + strconv.Itoa(y) + "l3.5 3.5l-3.5 3.5l-3.5-3.5z"
	case takenOut: // a diamond, as a line
		return "M" + half(x*2+7) + " " + half(y*2+1) + "l3 3l-3 3l-3-3z"
	case unmatched: // a dot
		x, y, form = x+2, y+2, "h3v3h-3z"
	case away: // a dash
		y, form = y+3, "h7v1.5h-7z"
	default:
		return ""
	}
	return "M" + strconv.Itoa(x) + " " + strconv.Itoa(y) + form
}

// half writes half of a number.
func half(n int) string {
	if n%2 == 0 {
		return strconv.Itoa(n / 2)
	}
	return strconv.Itoa(n/2) + ".5"
}

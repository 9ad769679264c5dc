package table

import (
	"fmt"
	"html"
	"io"
	"math"
	"strings"
)

// Measures of the plot, in pixels.
const (
	rowHeight  = 22
	nameWidth  = 430
	plotWidth  = 420
	tailWidth  = 170
	headHeight = 56
	footHeight = 34
)

// The plot's ends: a hundredth of the target and ten times of it.
const (
	lowest  = 0.01
	highest = 10
)

// SVG draws each figure that has a target as its share of that: a bar which ends left
// of the line reached it. A ring is the peer. The scale is logarithmic, so that equal
// ratios look alike; what is beyond its ends is drawn at them.
func (r Run) SVG(w io.Writer) error {
	var rows []Figure
	for _, f := range r.Figures {
		if f.Limit != nil {
			rows = append(rows, f)
		}
	}
	height := headHeight + rowHeight*len(rows) + footHeight
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="12" role="img">`+"\n",
		nameWidth+plotWidth+tailWidth, height)
	fmt.Fprintf(&b, "<title>%s</title>\n<rect width=\"100%%\" height=\"100%%\" fill=\"#fff\"/>\n", html.EscapeString(r.Title))
	fmt.Fprintf(&b, `<text x="12" y="22" font-size="14" font-weight="bold">%s</text>`+"\n", html.EscapeString(r.Title))
	fmt.Fprintf(&b, `<text x="12" y="40" fill="#666">%s</text>`+"\n", html.EscapeString(fmt.Sprintf("%s, %d cores; share of the target, logarithmic; ring: the peer", r.Machine.CPU, r.Machine.Cores)))
	for _, tick := range []float64{0.01, 0.1, 1, 10} {
		colour, width := "#ddd", 1
		if tick == 1 {
			colour, width = "#333", 2
		}
		fmt.Fprintf(&b, `<line x1="%[1]d" x2="%[1]d" y1="%d" y2="%d" stroke="%s" stroke-width="%d"/>`+"\n", across(tick), headHeight-6, height-footHeight+4, colour, width)
		fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="middle" fill="#666">%s</text>`+"\n", across(tick), height-footHeight+20, tickName(tick))
	}
	for i, f := range rows {
		f.draw(&b, headHeight+rowHeight*i)
	}
	b.WriteString("</svg>\n")
	_, err := io.WriteString(w, b.String())
	return err
}

func tickName(tick float64) string {
	if tick == 1 {
		return "target"
	}
	return fmt.Sprintf("%g x", tick)
}

func (f Figure) draw(b *strings.Builder, top int) {
	colour := "#3a7d44"
	if !f.Reached() {
		colour = "#c0392b"
	}
	middle := top + rowHeight/2
	fmt.Fprintf(b, `<text x="12" y="%d">%s</text>`+"\n", middle+4, html.EscapeString(f.Name))
	fmt.Fprintf(b, `<rect x="%d" y="%d" width="%d" height="10" fill="%s"/>`+"\n", nameWidth, middle-5, across(share(f.Measured, *f.Limit))-nameWidth, colour)
	if f.Peer != nil {
		fmt.Fprintf(b, `<circle cx="%d" cy="%d" r="5" fill="none" stroke="#1f4e79" stroke-width="2"/>`+"\n", across(share(*f.Peer, *f.Limit)), middle)
	}
	fmt.Fprintf(b, `<text x="%d" y="%d">%s</text>`+"\n", nameWidth+plotWidth+12, middle+4, html.EscapeString(quantity(f.Measured, f.Unit)))
}

// share of a limit. A limit of nothing is kept by nothing alone.
func share(v, limit float64) float64 {
	switch {
	case limit > 0:
		return v / limit
	case v <= limit:
		return lowest
	default:
		return highest
	}
}

// across is where a share stands, from left to right.
func across(share float64) int {
	share = min(max(share, lowest), highest)
	return nameWidth + int(math.Round(plotWidth*math.Log(share/lowest)/math.Log(highest/lowest)))
}

package main

import (
	"fmt"
	"html"
	"io"
	"math"
	"strings"
)

// curves are lines in one picture, both of whose scales are logarithmic: what grows with
// the fleet is a line upwards, what does not a level one.
type curves struct {
	Title, Across, Up string
	Lines             []curve
}

type curve struct {
	Name   string
	Dashed bool
	Points []point
}

type point struct{ x, y float64 }

// Measures of the picture, in pixels.
const (
	width, height         = 860, 460
	left, right           = 70, 220
	top, bottom           = 50, 50
	minDecade     float64 = 1e-6
)

// colours are told apart by those who see few of them.
var colours = []string{"#1b6ca8", "#c0392b", "#2e8b57", "#8e5ea2"}

// frame is where numbers stand in the picture: between whole powers of ten.
type frame struct{ x0, x1, y0, y1 float64 }

func (c curves) frame() frame {
	f := frame{math.Inf(1), math.Inf(-1), math.Inf(1), math.Inf(-1)}
	for _, l := range c.Lines {
		for _, p := range l.Points {
			x, y := math.Log10(max(p.x, minDecade)), math.Log10(max(p.y, minDecade))
			f.x0, f.x1 = min(f.x0, math.Floor(x)), max(f.x1, math.Ceil(x))
			f.y0, f.y1 = min(f.y0, math.Floor(y)), max(f.y1, math.Ceil(y))
		}
	}
	if math.IsInf(f.x0, 0) {
		return frame{0, 1, 0, 1}
	}
	f.x1, f.y1 = max(f.x1, f.x0+1), max(f.y1, f.y0+1)
	return f
}

func (f frame) x(v float64) float64 {
	return left + (width-left-right)*(math.Log10(max(v, minDecade))-f.x0)/(f.x1-f.x0)
}

func (f frame) y(v float64) float64 {
	return height - bottom - (height-top-bottom)*(math.Log10(max(v, minDecade))-f.y0)/(f.y1-f.y0)
}

// SVG draws the picture.
func (c curves) SVG(w io.Writer) error {
	f := c.frame()
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="12" role="img">`+"\n", width, height)
	fmt.Fprintf(&b, "<title>%s</title>\n<rect width=\"100%%\" height=\"100%%\" fill=\"#fff\"/>\n", html.EscapeString(c.Title))
	text := func(x, y float64, anchor, more, s string) {
		fmt.Fprintf(&b, `<text x="%.0f" y="%.0f" text-anchor="%s"%s>%s</text>`+"\n", x, y, anchor, more, html.EscapeString(s))
	}
	text(left, 24, "start", ` font-size="15" font-weight="bold"`, c.Title)
	text(left, 42, "start", ` fill="#666"`, c.Up)
	text((left+width-right)/2, height-12, "middle", ` fill="#666"`, c.Across)
	for e := f.x0; e <= f.x1; e++ {
		v := math.Pow(10, e)
		fmt.Fprintf(&b, `<line x1="%.0[1]f" x2="%.0[1]f" y1="%d" y2="%d" stroke="#ddd"/>`+"\n", f.x(v), top, height-bottom)
		text(f.x(v), height-bottom+18, "middle", ` fill="#666"`, fmt.Sprintf("%g", v))
	}
	for e := f.y0; e <= f.y1; e++ {
		v := math.Pow(10, e)
		fmt.Fprintf(&b, `<line x1="%d" x2="%d" y1="%.0[3]f" y2="%.0[3]f" stroke="#ddd"/>`+"\n", left, width-right, f.y(v))
		text(left-8, f.y(v)+4, "end", ` fill="#666"`, fmt.Sprintf("%g", v))
	}
	for i, l := range c.Lines {
		l.draw(&b, f, colours[i%len(colours)], float64(top+20*i))
	}
	b.WriteString("</svg>\n")
	_, err := io.WriteString(w, b.String())
	return err
}

// draw draws a line with its points, and its name beside the picture.
func (l curve) draw(b *strings.Builder, f frame, colour string, at float64) {
	dash := ""
	if l.Dashed {
		dash = ` stroke-dasharray="6 4"`
	}
	var points []string
	for _, p := range l.Points {
		points = append(points, fmt.Sprintf("%.1f,%.1f", f.x(p.x), f.y(p.y)))
		fmt.Fprintf(b, `<circle cx="%.1f" cy="%.1f" r="3" fill="%s"/>`+"\n", f.x(p.x), f.y(p.y), colour)
	}
	fmt.Fprintf(b, `<polyline points="%s" fill="none" stroke="%s" stroke-width="2"%s/>`+"\n", strings.Join(points, " "), colour, dash)
	fmt.Fprintf(b, `<line x1="%d" x2="%d" y1="%.0f" y2="%.0f" stroke="%s" stroke-width="2"%s/>`+"\n", width-right+16, width-right+44, at, at, colour, dash)
	fmt.Fprintf(b, `<text x="%d" y="%.0f">%s</text>`+"\n", width-right+52, at+4, html.EscapeString(l.Name))
}

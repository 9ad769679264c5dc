package store

import (
	"fmt"
	"strconv"
	"strings"

	"chandler.dev/chandler"
)

// Size is a number of bytes as people write it, for flags.
type Size int64

var units = []struct {
	name string
	n    float64
}{{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}, {"TB", 1e12}, {"GB", 1e9}, {"MB", 1e6}, {"kB", 1e3}, {"B", 1}, {"", 1}}

func (s Size) String() string {
	for _, u := range units[:4] {
		if float64(s) >= u.n {
			return strconv.FormatFloat(float64(s)/u.n, 'f', 1, 64) + " " + u.name
		}
	}
	return strconv.FormatInt(int64(s), 10) + " B"
}

// Set reads a number with a unit, or of bytes; what it cannot read leaves s as it
// was.
func (s *Size) Set(text string) error {
	for _, u := range units {
		number, ok := strings.CutSuffix(text, u.name)
		n, err := strconv.ParseFloat(strings.TrimSpace(number), 64)
		if ok && err == nil && n >= 0 && n*u.n < 1<<62 {
			*s = Size(n * u.n)
			return nil
		}
	}
	return fmt.Errorf("%s is not a size such as 500MiB or 2GiB", chandler.Quote(text))
}

// Type is what help texts call it.
func (Size) Type() string { return "size" }

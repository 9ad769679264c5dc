// Package clock finds times that would move with the machine's clock. No test can
// set that clock, and Go's own times are safe from it as long as they keep the
// monotonic reading that time.Now gives them: waits and comparisons go by that
// then. So a test has a program's state filled and looks through it.
package clock

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"
)

// Wall gives the paths of all times that can be reached from v and are neither
// zero nor have a monotonic reading. Struct fields of the names in except are left
// out, and so are functions and channels.
func Wall(v any, except ...string) []string {
	w := walk{except: except, seen: map[uintptr]bool{}}
	w.value("", reflect.ValueOf(v))
	slices.Sort(w.found)
	return slices.Compact(w.found)
}

type walk struct {
	except []string
	seen   map[uintptr]bool
	found  []string
}

// monotonic is the bit of a time.Time's first word that says it has a reading.
const monotonic = 1 << 63

var timeType = reflect.TypeFor[time.Time]()

func (w *walk) value(path string, v reflect.Value) {
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() && !w.seen[v.Pointer()] {
			w.seen[v.Pointer()] = true
			w.value(path, v.Elem())
		}
	case reflect.Interface:
		if !v.IsNil() {
			w.value(path, v.Elem())
		}
	case reflect.Struct:
		if v.Type() == timeType {
			if word := v.Field(0).Uint(); word&monotonic == 0 && !(word == 0 && v.Field(1).Int() == 0) {
				w.found = append(w.found, path)
			}
			return
		}
		// What messages have of protobuf's own is the whole process's, and written to
		// by whoever uses it first.
		if strings.HasPrefix(v.Type().PkgPath(), "google.golang.org/protobuf/") {
			return
		}
		for i := range v.NumField() {
			if name := v.Type().Field(i).Name; !slices.Contains(w.except, name) {
				w.value(path+"."+name, v.Field(i))
			}
		}
	case reflect.Map:
		for entries := v.MapRange(); entries.Next(); {
			w.value(path+"[]", entries.Key())
			w.value(path+"[]", entries.Value())
		}
	case reflect.Slice, reflect.Array:
		if v.Type().Elem().Kind() == reflect.Uint8 {
			return
		}
		for i := range v.Len() {
			w.value(path+"[]", v.Index(i))
		}
	}
}

// Kept fails with words when a time is found; for tests that have nothing to add.
func Kept(v any, except ...string) error {
	if found := Wall(v, except...); len(found) > 0 {
		return fmt.Errorf("times that a jump of the clock moves: %v", found)
	}
	return nil
}

package agent

import (
	"maps"
	"strings"

	"chandler.dev/chandler"
)

// Under FAIL_OPEN a VM that failed stays dead and requests pass it by; Envoy counts
// nothing of it. Its log has a line about the fault, which does not say of whom. But
// what a plugin in Go or Rust has to say as it panics stands right before that line, of
// the same thread, and has the plugin's name on it.

// Bounds of what is remembered: the threads that spoke, and the plugins that were named.
const (
	maxThreads = 256
	maxNamed   = 256
)

// faultLog finds faults of VMs in Envoy's log.
type faultLog struct {
	words   map[string]dyingWords // by thread
	named   map[chandler.Key]uint64
	unnamed uint64
}

// dyingWords are the words of one plugin, without others of that thread between.
type dyingWords struct {
	plugin string
	panics bool
}

// take takes a line in.
func (f *faultLog) take(line string) {
	thread, ok := threadOf(line)
	if !ok {
		return // a further line of what came before
	}
	m := logHead.FindStringSubmatch(line)
	if m == nil || m[2] != "wasm" {
		delete(f.words, thread)
		return
	}
	if said := pluginHead.FindStringSubmatch(m[3]); said != nil {
		f.say(thread, said[1], said[2])
		return
	}
	if strings.HasPrefix(m[3], "Function: proxy_on_") && strings.Contains(m[3], " failed: ") {
		w := f.words[thread]
		if key, ok := chandler.ParseKey(w.plugin); ok && w.panics {
			if f.named == nil {
				f.named = map[chandler.Key]uint64{}
			}
			if _, known := f.named[key]; known || len(f.named) < maxNamed {
				f.named[key]++
			}
		} else {
			f.unnamed++
		}
	}
	delete(f.words, thread)
}

// say notes a plugin's own words.
func (f *faultLog) say(thread, plugin, text string) {
	w := f.words[thread]
	if w.plugin != plugin {
		w = dyingWords{plugin: plugin}
	}
	for _, mark := range []string{"panic: ", "fatal error: ", "panicked at "} {
		w.panics = w.panics || strings.HasPrefix(text, mark)
	}
	if f.words == nil {
		f.words = map[string]dyingWords{}
	}
	if _, known := f.words[thread]; known || len(f.words) < maxThreads {
		f.words[thread] = w
	}
}

// threadOf reads the second field of a line in Envoy's default format.
func threadOf(line string) (string, bool) {
	if !strings.HasPrefix(line, "[") {
		return "", false
	}
	_, rest, ok := strings.Cut(line, "][")
	thread, _, ok2 := strings.Cut(rest, "]")
	return thread, ok && ok2
}

// loggedFaults are the faults that the log told of, since it is followed.
type loggedFaults struct {
	named   map[chandler.Key]uint64
	unnamed uint64
}

func (f loggedFaults) equal(o loggedFaults) bool {
	return f.unnamed == o.unnamed && maps.Equal(f.named, o.named)
}

// faulted tells what the log has told so far.
func (l *envoyLog) faulted() loggedFaults {
	l.mu.Lock()
	defer l.mu.Unlock()
	return loggedFaults{maps.Clone(l.faults.named), l.faults.unnamed}
}

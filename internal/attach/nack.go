package attach

import (
	"strings"

	"chandler.dev/chandler"
)

// The two ways in which Envoy says what it refuses a composition for.
const (
	nackedPlugin = "Unable to create Wasm plugin "
	nackedPath   = "Invalid path: "
)

// PluginOfNack finds the plugin that Envoy's refusal of a composition is about:
// Envoy names a plugin that does not load, or the path of a file that is
// missing. For other refusals, such as of a Lua script, it names neither. Of
// plugins that share a missing file the first by key is told.
func PluginOfNack(message string, members []Member) (chandler.Key, bool) {
	var found chandler.Key
	var ok bool
	for _, m := range members {
		key := m.Attachment.Key
		named := mentions(message, nackedPlugin, key.String()) ||
			m.runsWasm() && MissingFile(message, m.ModulePath)
		if named && (!ok || key.Compare(found) < 0) {
			found, ok = key, true
		}
	}
	return found, ok
}

// MissingFile tells whether Envoy refused a composition because the file at path is
// missing.
func MissingFile(message, path string) bool {
	return path != "" && mentions(message, nackedPath, path)
}

// mentions tells whether message holds lead followed by name, where the name
// ends as well: plugins may be called "a" and "a-b".
func mentions(message, lead, name string) bool {
	for {
		_, rest, found := strings.Cut(message, lead)
		if !found {
			return false
		}
		if after, ok := strings.CutPrefix(rest, name); ok && !continues(after) {
			return true
		}
		message = rest
	}
}

// continues tells whether after goes on with a name or a path, rather than with
// the next word or a full stop.
func continues(after string) bool {
	after = strings.TrimPrefix(after, ".")
	return after != "" && strings.Contains("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_/", after[:1])
}

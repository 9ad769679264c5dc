// Package attach knows where plugins stand in Envoy's configuration: which
// places of a filter chain belong to which phase, how the content of a slot is
// composed, and how a user's bootstrap is edited so that its connection managers
// have slots.
//
// It is pure: it reads no file, starts no Envoy and remembers nothing. It does
// not decide which plugins a slot should hold; that is the agent's matter.
package attach

// Filter is a filter of a chain, as far as its place matters.
type Filter struct {
	Name string
	// TypeURL names the type of its configuration, with or without the part up
	// to the last slash.
	TypeURL string
}

// Places gives for each phase, in the order of chandler.Phases(), the index in
// chain before which its slot stands. The last filter of a chain is its terminal
// one, whatever its type; for an empty chain all places are 0.
func Places(chain []Filter) [4]int { return [4]int{} }

// Package policy holds the operator's rules on what plugins may do, and judges
// plugins and releases by them. It is pure: what it is told of a plugin decides,
// and nothing else.
//
// It verifies no signatures and reads no files.
package policy

// Policy is what the operator allows. The zero value allows everything that the
// resources' own rules do.
type Policy struct {
	// Strict makes refusals of what is accepted otherwise because Istio does: a url
	// without scheme, plain http, file urls, a pull secret that is of no use, very
	// many variables.
	Strict bool `yaml:"strict"`
}

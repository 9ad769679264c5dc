// Package peer measures what Istio's agent does between the control plane and Envoy
// with Wasm plugins: its module cache and its conversion of ECDS resources, as
// published. It is a module of its own, so that nothing of Istio is among the
// dependencies of chandler, and it is run by make bench alone.
package peer

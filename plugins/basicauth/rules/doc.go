// Package rules is the whole of basicauth's judgement: it reads a configuration
// into [Rules], or says in one line why it cannot, and decides whether a request
// may pass. It is pure: it knows neither Proxy-Wasm nor Envoy, does no I/O and
// writes no log, so that every rule can be tested natively in microseconds.
//
// It avoids encoding/json and fmt on purpose. They would make the module almost
// half as large again, and what a proxy pays for when it loads a module is
// compiling its bytes.
package rules

module chandler.dev/chandler/plugins/basicauth

go 1.26.0

require (
	github.com/proxy-wasm/proxy-wasm-go-sdk v0.0.0-20250212164326-ab4161dcf924
	github.com/santhosh-tekuri/jsonschema/v6 v6.0.2
)

require (
	github.com/tetratelabs/wazero v1.7.2 // indirect
	golang.org/x/text v0.14.0 // indirect
)

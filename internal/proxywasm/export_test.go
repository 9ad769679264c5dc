package proxywasm

// HostFunctions is hostFunctions for tests.
func HostFunctions(abi string) map[string]string {
	host := map[string]string{}
	for name, s := range hostFunctions(abi) {
		host[name] = string(s)
	}
	return host
}

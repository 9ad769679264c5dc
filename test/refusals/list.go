package main

// row is a row of the table: a bad input, and what is to come of it.
type row struct {
	number int
	what   string
	// code is what the input is refused with, or the other outcome that it is to
	// have; every row has a case that ends so.
	code string
	// also are codes that single cases of the row end with.
	also []string
	// why says the reason for those, or where the design answers differently from
	// what one may expect.
	why string
}

// outcomes are what is in place of a code where an input is not refused; see
// internal/testenv/refusal.
var outcomes = []string{"accepted", "ignored", "warning", "narrowed", "cut", "same"}

// Reasons that several rows share.
const (
	bare     = "a single field that is missing or of the wrong kind has the codes that all fields have"
	nearest  = "the code tells the nearest thing that is wrong"
	unstrict = "without strict it is a warning"
)

// rows are all of them. Gaps in the numbering stay: a number never changes.
var rows = []row{
	{number: 1, what: "spec null, no map, of another kind or version", code: "SpecShape", also: []string{"SpecRequired", "SpecValue"}, why: bare},
	{number: 2, what: "a field that is unknown or misspelt", code: "SpecUnknown", also: []string{"SpecValue"}, why: bare},
	{number: 3, what: "YAML: alias bombs, over 256 KiB, NUL, no UTF-8, a key twice", code: "SpecParse"},
	{number: 4, what: "url missing, empty, over 2,048 bytes, with control characters", code: "URLSyntax", also: []string{"SpecValue"}, why: bare},
	{number: 5, what: "scheme ftp, data, unix, javascript", code: "URLScheme"},
	{number: 6, what: "url with user, fragment, or query on oci", code: "URLPart"},
	{number: 7, what: "no scheme and no clear image reference", code: "URLAmbiguous"},
	{number: 8, what: "port 0, 65536 or no number; bad IPv6, zone", code: "URLHost"},
	{number: 9, what: "a denied address in decimal, octal or IPv4-mapped form", code: "EgressDenied", also: []string{"HTTPRedirect"},
		why: "an answer that leads there is a bad redirect"},
	{number: 10, what: "http where policy wants https; an insecure host without a digest", code: "URLInsecure"},
	{number: 12, what: "repository in upper case, with an empty part, over 255; bad tag", code: "RefSyntax"},
	{number: 13, what: "tag, digest and sha256 that disagree", code: "RefConflict", also: []string{"DigestMismatch", "NotFound"},
		why: "whether a tag and a pin disagree only the registry knows"},
	{number: 14, what: "a digest of another algorithm, length or in upper case", code: "DigestSyntax"},
	{number: 15, what: "sha256 nil, short, no hex", code: "DigestSyntax"},
	{number: 16, what: "file:// by a tenant, relative, with .., through a link", code: "FileDenied"},
	{number: 18, what: "imagePullSecret with a slash, a namespace, over 253", code: "SecretRef"},
	{number: 19, what: "a pull secret for an http or a file url", code: "SecretUnused", also: []string{"warning"}, why: unstrict},
	{number: 20, what: "env name reserved, empty, with = or NUL, twice; too many", code: "EnvName", also: []string{"SpecValue"}, why: "a value that is too long is no matter of the name"},
	{number: 21, what: "a value with source HOST; a host variable that is not allowed", code: "EnvHost", also: []string{"SpecEnum"}, why: bare},
	{number: 22, what: "pluginConfig too large, too deep, NaN, a huge number", code: "ConfigSize"},
	{number: 23, what: "phase, type, failStrategy, pull policy unknown; priority out of range", code: "SpecEnum", also: []string{"SpecValue"}, why: bare},
	{number: 24, what: "selector and targetRefs, over 16, wrong kind, other namespace", code: "Target"},
	{number: 26, what: "an empty selector in the root namespace by one who may not", code: "ScopeDenied"},
	{number: 27, what: "match port 0, over 65535, twice", code: "MatchPort"},
	{number: 28, what: "one plugin from two sources", code: "SpecDuplicate"},
	{number: 29, what: "a runtime other than v8 is asked for", code: "Runtime"},
	{number: 30, what: "status written by the user", code: "ignored", also: []string{"SpecUnknown"}, why: "under spec it is a field that nobody knows"},
	{number: 31, what: "manifest over 1 MiB, trailing data, keys twice, no UTF-8, depth over 32", code: "ManifestParse"},
	{number: 32, what: "manifest of schema 1, of an unknown or no media type", code: "ManifestType", also: []string{"ManifestAmbiguous"}, why: nearest},
	{number: 34, what: "both layers and manifests", code: "ManifestAmbiguous"},
	{number: 35, what: "index over 32, nested, naming itself, no or several matches", code: "Index"},
	{number: 36, what: "descriptor size negative, 0, over the cap, not that of the bytes", code: "DescSize"},
	{number: 37, what: "descriptor digest of another algorithm or malformed", code: "DigestSyntax"},
	{number: 38, what: "a layer elsewhere (urls)", code: "DescForeign"},
	{number: 39, what: "embedded data that does not match", code: "DescData"},
	{number: 41, what: "single-layer Wasm artifacts of all known shapes", code: "accepted"},
	{number: 42, what: "config over the cap, no JSON, of a component", code: "ConfigBlob", also: []string{"DescSize"},
		why: "of a config the descriptor alone is looked at: what a module is, its bytes tell"},
	{number: 43, what: "annotations over 64 KiB, control characters", code: "ManifestAnnotation"},
	{number: 44, what: "media type says gzip, the bytes do not", code: "LayerType"},
	{number: 45, what: "gzip bomb", code: "LayerRatio"},
	{number: 46, what: "gzip truncated, bad CRC, trailing junk, 10,000 members", code: "LayerGzip"},
	{number: 48, what: "zstd window bomb", code: "LayerZstd"},
	{number: 49, what: "tar with too many entries", code: "TarEntries"},
	{number: 50, what: "tar entry that declares 4 GiB, 2^63-1, a negative size", code: "TarSize", also: []string{"TarHeader"}, why: "a header that is no valid one has no size"},
	{number: 51, what: "plugin.wasm of no bytes", code: "WasmEmpty", also: []string{"NotFound"}, why: "a registry need not have a blob of no bytes"},
	{number: 52, what: "plugin.wasm twice, or in two directories", code: "TarDuplicate"},
	{number: 54, what: "tar names with .., absolute, NUL, backslash, over 255", code: "TarPath"},
	{number: 55, what: "GNU sparse, giant PAX header", code: "TarHeader"},
	{number: 56, what: "a whiteout of plugin.wasm in a later layer", code: "TarWhiteout"},
	{number: 57, what: "no plugin.wasm", code: "TarMissing"},
	{number: 59, what: "bytes after the last byte of the module", code: "WasmTrailing"},
	{number: 60, what: "under 8 bytes, other magic, text format, ELF, HTML", code: "WasmMagic", also: []string{"TarDuplicate", "WasmEmpty"}, why: nearest},
	{number: 61, what: "WebAssembly version 2", code: "WasmVersion", also: []string{"WasmComponent"}, why: "components have a code of their own"},
	{number: 62, what: "truncated section, length past the end, overlong LEB, order, section twice", code: "WasmParse", also: []string{"WasmCount"}, why: nearest},
	{number: 63, what: "a vector that counts more than there are bytes", code: "WasmCount"},
	{number: 64, what: "4 Gi locals", code: "WasmLocals"},
	{number: 65, what: "over 100,000 functions, 7 MiB of body, 1,000,000 of anything", code: "WasmLimit"},
	{number: 67, what: "table of 2^27, many tables", code: "WasmTable"},
	{number: 68, what: "data or element segment out of range", code: "WasmSegment"},
	{number: 69, what: "an import that Envoy does not have, or of another type", code: "WasmImport"},
	{number: 70, what: "no proxy_abi_version export, or no function", code: "WasmABI"},
	{number: 71, what: "two ABI exports; 0.1.0 alone", code: "WasmABI", also: []string{"warning"}, why: "ABI 0.1.0 is a warning"},
	{number: 72, what: "no malloc, no memory export", code: "WasmExport"},
	{number: 73, what: "start loops, traps, exits", code: "WasmStart", also: []string{"WasmTimeout"}, why: "of a loop nobody knows what it does"},
	{number: 75, what: "grows past the cap when it is tried", code: "WasmMemory"},
	{number: 76, what: "precompiled section; 60 MiB of custom sections", code: "WasmSection",
		why: "a signature inside of a module is nothing that anybody here goes by"},
	{number: 77, what: "features that the runtime does not have", code: "WasmFeature"},
	{number: 78, what: "unsigned where policy demands a signature", code: "SigMissing"},
	{number: 79, what: "signature over another digest or repository", code: "SigSubject"},
	{number: 80, what: "bundle whose log entry is about something else", code: "SigLog"},
	{number: 81, what: "wrong issuer or identity; an unanchored pattern in the policy", code: "SigIdentity", also: []string{"Policy"}, why: "a pattern is the policy's"},
	{number: 83, what: "10,000 signatures, 100 MiB attached, endless pages", code: "SigLimit"},
	{number: 84, what: "payload or predicate that does not parse", code: "SigParse"},
	{number: 85, what: "no key, a key that is no PEM, RSA under 2048, no authority", code: "Policy", also: []string{"SpecValue"}, why: "a key on the resource is a value of the resource"},
	{number: 86, what: "secret missing, of another type, without .dockerconfigjson", code: "SecretType"},
	{number: 87, what: "secret of broken JSON, null, a list, over 1 MiB", code: "SecretJSON"},
	{number: 88, what: "auth no base64, without colon, NUL or line feed in the password", code: "SecretAuth"},
	{number: 89, what: "credsStore or credHelpers in the secret", code: "warning"},
	{number: 91, what: "unknown type URL", code: "XDSType"},
	{number: 92, what: "first message without node; node changes later", code: "XDSNode"},
	{number: 93, what: "an identity that does not own the node or namespace it claims", code: "XDSIdentity", also: []string{"XDSNode"}, why: "a claim that cannot be read is nobody's"},
	{number: 94, what: "name of 1 MiB, 100,000 names, control characters", code: "XDSName"},
	{number: 95, what: "asks for another tenant's plugin or secret", code: "same"},
	{number: 96, what: "asks for everything", code: "narrowed"},
	{number: 98, what: "error_detail of 1 MiB, with secrets or escape codes", code: "cut"},
	{number: 99, what: "1,000,000 initial versions, doubles", code: "XDSLimit"},
	{number: 100, what: "request over 1 MiB, 1,000 streams of one identity, a silent stream", code: "XDSLimit", also: []string{"DeadlineExceeded"}, why: "who says nothing has asked for nothing yet"},
	{number: 101, what: "unknown method, path without slash, HTTP/1 on the port", code: "XDSPath"},
	{number: 102, what: "Any of another inner type, unknown fields, deep nesting", code: "XDSResource",
		why: "a field that is only unknown is passed over: a newer control plane says more"},
	{number: 103, what: "a local path outside the store, from a rogue control plane", code: "XDSPathEscape",
		why: "a file is copied into the store, so Envoy is given no path outside of it; refused is a path that leads elsewhere than it says"},
	{number: 105, what: "206 or 304 unasked, wrong Content-Range, a flood of 1xx", code: "HTTPStatus", also: []string{"HTTPHeader"},
		why: "a flood of 1xx answers is one of headers"},
	{number: 106, what: "Content-Length over the cap, negative, twice, not that of the body", code: "HTTPLength", also: []string{"FetchShort"},
		why: "a body that falls short may come whole the next time"},
	{number: 107, what: "Content-Encoding that was not asked for", code: "HTTPEncoding"},
	{number: 108, what: "headers over 64 KiB, 10,000 of them", code: "HTTPHeader"},
	{number: 109, what: "challenge: realm missing, http, another scheme, internal", code: "AuthRealm"},
	{number: 111, what: "token reply no JSON, over 64 KiB, empty, absurd expiry", code: "AuthToken"},
	{number: 112, what: "pagination to another host, in a loop, over 100 pages", code: "HTTPLink"},
	{number: 113, what: "operator's file: unknown key, bad duration; port in use; key that all may read", code: "ConfUnknown",
		also: []string{"ConfRead", "ConfParse", "ConfSize", "ConfValue", "ConfListen", "ConfTLS", "ConfKeyMode"}, why: "a code for each kind of mistake"},
}

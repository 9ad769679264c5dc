package chandler

// The comment of a code says what it means and, behind a semicolon, what to do: the
// reference of docs/reference/codes.md is made of it.

// Codes about a resource as written.
const (
	CodeSpecShape     Code = "SpecShape"     // not an object of a kind that is known; write the fields where the message says, or one of the two kinds
	CodeSpecUnknown   Code = "SpecUnknown"   // a field or annotation that nobody knows; see its spelling, or remove it
	CodeSpecParse     Code = "SpecParse"     // not YAML, or YAML that is refused; correct the place that is named
	CodeSpecEnum      Code = "SpecEnum"      // a value outside of its list or range; write one of those that are named
	CodeSpecRequired  Code = "SpecRequired"  // a field that must be there; add it
	CodeSpecValue     Code = "SpecValue"     // a value of the wrong type or range; write it as the message says
	CodeSpecDuplicate Code = "SpecDuplicate" // the same object from two places; keep one of the two
	CodeTarget        Code = "Target"        // selector and targetRefs do not hold; name the proxies by one of them, as the message says
	CodeMatchPort     Code = "MatchPort"     // a port of match is none; write a number from 1 to 65535, once
	CodeEnvName       Code = "EnvName"       // a variable's name or value, or their number, is refused; correct it, or put settings into pluginConfig
	CodeEnvHost       Code = "EnvHost"       // a variable of the proxy may not be copied; write the value itself, or ask the operator to allow it
	CodeConfigSize    Code = "ConfigSize"    // pluginConfig is too large, or nested too deeply; have the plugin read large data from elsewhere
	CodeURLSyntax     Code = "URLSyntax"     // the url cannot be read; correct it
	CodeURLScheme     Code = "URLScheme"     // the url has a scheme that is not known; use oci, https, http or file
	CodeURLPart       Code = "URLPart"       // the url has a part that has no meaning, or a user; remove the part that is named
	CodeURLHost       Code = "URLHost"       // the url has a host that is none; write a host name or an address, with a port if it has one
	CodeURLAmbiguous  Code = "URLAmbiguous"  // the url has no scheme, where the operator is strict; write oci:// before it
	CodeURLInsecure   Code = "URLInsecure"   // plain http, where the operator is strict; use https, or have the operator allow the host and pin the digest
	CodeRefSyntax     Code = "RefSyntax"     // the reference names no repository or tag that there can be; correct it
	CodeRefConflict   Code = "RefConflict"   // two digests, and they differ; keep one
	CodeDigestSyntax  Code = "DigestSyntax"  // a digest that is none; write sha256: and 64 lower-case hex digits
	CodeFileDenied    Code = "FileDenied"    // a file of the proxy's machine that the operator does not allow; push the module to a registry, or ask the operator
	CodeSecretRef     Code = "SecretRef"     // imagePullSecret is no name of a secret; write its name only, it is in the plugin's namespace
	CodeSecretUnused  Code = "SecretUnused"  // a pull secret for a url that is not oci; remove it, or use an oci url
	CodeRuntime       Code = "Runtime"       // vmConfig names a runtime; remove it: the platform has one
	CodeScopeDenied   Code = "ScopeDenied"   // a phase or a scope that the operator does not allow; use one that the operator's file allows
	CodeLock          Code = "Lock"          // a lock file that cannot be gone by; mend it at the place that is named, or write it with chandler lock
	CodeEnvoyConfig   Code = "EnvoyConfig"   // a proxy's own configuration that cannot be taken over; correct the field that is named, then start the agent again
)

// Codes about a pull secret.
const (
	CodeSecretType Code = "SecretType" // a pull secret is missing, or of another type; create it in the plugin's namespace, with type kubernetes.io/dockerconfigjson
	CodeSecretJSON Code = "SecretJSON" // a pull secret is no docker configuration; write one with auths
	CodeSecretAuth Code = "SecretAuth" // a pull secret has an entry that cannot be read; write base64 of user:password
)

// Codes about the secrets that a configuration is from.
const (
	CodeSecretKey   Code = "SecretKey"   // no such secret, or not with that key; create it in the plugin's namespace, with the key
	CodeSecretValue Code = "SecretValue" // not base64, or no object to merge; write an object of YAML or JSON
)

// Codes about fetching.
const (
	CodeFetchFailed         Code = "FetchFailed"         // network or server, worth another try; wait: it is tried again by itself, look at the network if it stays
	CodeUnauthorized        Code = "Unauthorized"        // the registry answers 401 or 403; give credentials that may pull, by imagePullSecret or the docker configuration
	CodeNotFound            Code = "NotFound"            // the registry answers 404, or has no such tag; correct the url, or push the module
	CodeFetchShort          Code = "FetchShort"          // the download broke off; wait: it is tried again by itself
	CodeDigestMismatch      Code = "DigestMismatch"      // the bytes are others than the digest says; change the url or its pin to take the new module, if it is meant
	CodeDigestHeader        Code = "DigestHeader"        // the registry says another digest than its bytes have; look at the registry, or at what stands before it
	CodeEgressDenied        Code = "EgressDenied"        // the address is one that modules may not come from; use another host, or have the operator allow the network
	CodeHTTPRedirect        Code = "HTTPRedirect"        // the server redirects too often, or to where nobody may go; give the final url
	CodeHTTPStatus          Code = "HTTPStatus"          // the server answers with a status that is no module; mend the server, or give another url
	CodeHTTPLength          Code = "HTTPLength"          // the file is longer than it may be, or has no length that holds; serve a smaller module, or have the limit raised
	CodeHTTPEncoding        Code = "HTTPEncoding"        // the reply is encoded in a way that was not asked for; serve the file as it is
	CodeHTTPHeader          Code = "HTTPHeader"          // the reply has too many headers, or too large ones; mend the server
	CodeHTTPLink            Code = "HTTPLink"            // pages of a list that lead elsewhere, or to no end; mend the registry, or remove what refers to the artifact and is not needed
	CodeAuthRealm           Code = "AuthRealm"           // the registry sends to a token server that is refused; have the operator allow it, or mend the registry
	CodeAuthToken           Code = "AuthToken"           // the token server's answer cannot be used; mend the token server
	CodeTLS                 Code = "TLS"                 // no TLS where there must be, or a certificate that is not trusted; use https, or name the authority in hosts.toml
	CodeManifestParse       Code = "ManifestParse"       // the manifest cannot be read; push it again
	CodeManifestType        Code = "ManifestType"        // a manifest of a form that is not known; push it again in one of the known forms
	CodeManifestAmbiguous   Code = "ManifestAmbiguous"   // a manifest that is two things at once; push it again
	CodeManifestAnnotation  Code = "ManifestAnnotation"  // annotations that are too large, or hold control characters; push it again without
	CodeIndex               Code = "Index"               // an index without a manifest that is meant; name a manifest by digest
	CodeDescSize            Code = "DescSize"            // a blob has another size than is said, or a larger one than it may have; push it again, smaller
	CodeDescForeign         Code = "DescForeign"         // a layer that is elsewhere; push all layers into the registry
	CodeDescData            Code = "DescData"            // data in the manifest that is not what its digest says; push it again
	CodeConfigBlob          Code = "ConfigBlob"          // the artifact's configuration or its documents cannot be read, or are too large; push it again with smaller ones
	CodeLayerType           Code = "LayerType"           // no layer that a module can be in; push one of the layouts that the message names
	CodeLayerRatio          Code = "LayerRatio"          // a layer that unpacks to far more than it is; push it with less compression, or leave out what is not needed
	CodeLayerGzip           Code = "LayerGzip"           // a layer is no gzip that can be read; push it again
	CodeLayerZstd           Code = "LayerZstd"           // a layer is no zstd that can be read; push it again
	CodeTarEntries          Code = "TarEntries"          // an archive with too many entries; leave out what is not needed
	CodeTarSize             Code = "TarSize"             // an archive with an entry that is too large; leave out what is not needed, or have the limit raised
	CodeTarDuplicate        Code = "TarDuplicate"        // an archive has the module twice; leave one
	CodeTarPath             Code = "TarPath"             // an archive with a name that leads out of it, or is too long; pack it with short, relative names
	CodeTarHeader           Code = "TarHeader"           // an archive has a link, a device or a sparse file; put the file itself into it
	CodeTarWhiteout         Code = "TarWhiteout"         // a layer deletes the module; put the module into the last layer
	CodeTarMissing          Code = "TarMissing"          // an archive without a module, or without an index; put the module into it under the name that the message says
	CodeModuleTooLarge      Code = "ModuleTooLarge"      // the module is larger than it may be; build it smaller, or have the limit raised
	CodeCacheFull           Code = "CacheFull"           // no room for the module in the store; raise the store's limit, or remove plugins
	CodeCacheLocked         Code = "CacheLocked"         // the store's folder is used by another process; end that one, or name another folder
	CodeCacheUnwritable     Code = "CacheUnwritable"     // the store cannot be written; see to the disk, and to the rights on the folder
	CodeControlUnreachable  Code = "ControlUnreachable"  // the control plane cannot be reached; look at the address, the network and the certificates: it is tried again by itself
	CodeFileMissing         Code = "FileMissing"         // no module at the path on the proxy's machine; put it there, or use an oci url
	CodeFeatureNotSupported Code = "FeatureNotSupported" // the agent or its Envoy is too old for it; upgrade the one that the message names
)

// Codes about what is asked on the agents' port.
const (
	CodeXDSType     Code = "XDSType"     // a resource type that is not served; connect agents, not Envoys, to this port
	CodeXDSNode     Code = "XDSNode"     // who asks does not say which node it is, or says another later; connect agents, not Envoys, to this port
	CodeXDSIdentity Code = "XDSIdentity" // the credential does not allow what is claimed; give the node the name, namespace and labels of its certificate or token, or change the rule
	CodeXDSName     Code = "XDSName"     // a name that is too long, or too many of them; connect agents of this project
	CodeXDSLimit    Code = "XDSLimit"    // more than one node may have of streams, plugins or bytes; give the proxy fewer plugins, or see whether two agents have one name
	CodeXDSPath     Code = "XDSPath"     // a method that is not served; connect agents to this port, and commands to the admin port
)

// Codes about a module's bytes.
const (
	CodeWasmEmpty     Code = "WasmEmpty"     // the module is empty; build it again
	CodeWasmMagic     Code = "WasmMagic"     // the file is no Wasm; give a core Wasm module
	CodeWasmVersion   Code = "WasmVersion"   // another version of WebAssembly's binary format; build for version 1
	CodeWasmComponent Code = "WasmComponent" // a component, not a core module; build for wasm32-wasip1
	CodeWasmParse     Code = "WasmParse"     // the module cannot be read; push what the compiler made, uncompressed
	CodeWasmCount     Code = "WasmCount"     // a count in the module that its bytes cannot hold; build it again
	CodeWasmLocals    Code = "WasmLocals"    // a function with too many variables; build with optimisation, or split the function
	CodeWasmLimit     Code = "WasmLimit"     // the module or a function of it is too large; build it smaller
	CodeWasmTable     Code = "WasmTable"     // too many tables, or too large ones; build with one table
	CodeWasmSegment   Code = "WasmSegment"   // a segment that ends outside of its memory or table; build it again
	CodeWasmImport    Code = "WasmImport"    // it asks for a function that no proxy has; link what is missing, or use an SDK for this version of the ABI
	CodeWasmABI       Code = "WasmABI"       // no version of the Proxy-Wasm ABI that is known, or two; link one SDK, for ABI 0.1.0, 0.2.0 or 0.2.1
	CodeWasmExport    Code = "WasmExport"    // it lacks what a proxy has to call; export memory, and malloc or proxy_on_memory_allocate
	CodeWasmSection   Code = "WasmSection"   // sections that are not as they should be, or need no proxy; strip the module
	CodeWasmFeature   Code = "WasmFeature"   // it needs more of WebAssembly than a proxy has; build for wasm32 with fewer features
	CodeWasmTrailing  Code = "WasmTrailing"  // bytes behind the end of the module; cut them off, or build it again
	CodeWasmStart     Code = "WasmStart"     // the trial says that it does not start; see what the plugin does when its VM starts
	CodeWasmConfigure Code = "WasmConfigure" // the trial says that it refuses its configuration; correct pluginConfig, as its own words say
	CodeWasmTimeout   Code = "WasmTimeout"   // the trial came to no end; look for a loop in what it does when it starts
	CodeWasmMemory    Code = "WasmMemory"    // the trial took too much memory; have the plugin allocate less while it starts
	CodeWasmCrash     Code = "WasmCrash"     // the trial ended in a crash of what ran it; see what the plugin calls, and with what
	CodeLuaSyntax     Code = "LuaSyntax"     // the script cannot be loaded; correct it
	CodeProbeFailed   Code = "ProbeFailed"   // it loads, and answers a probe otherwise than it is to; correct the plugin, its configuration or the probe
)

// Codes about a plugin's source, for its author.
const (
	CodeSourceName     Code = "SourceName"     // a name that a plugin cannot have; use lower-case letters, digits and hyphens
	CodeSourceFolder   Code = "SourceFolder"   // a folder that cannot be read, or has something in it already; name another one
	CodeSourceLanguage Code = "SourceLanguage" // the language is not known, or not clear; name it with --lang
	CodeToolchain      Code = "Toolchain"      // a compiler is not there; install it with the command that the message has
	CodeBuild          Code = "Build"          // a compiler failed; correct the source, as the compiler says
)

// Codes about the schema of a plugin's configuration that its artifact carries.
const (
	CodeConfigSchema   Code = "ConfigSchema"   // the configuration is not as the module's schema has it; correct the field that is named
	CodeSchemaUnusable Code = "SchemaUnusable" // the module's schema cannot be judged by; have its author mend it: configurations are not held to it
)

// Codes about the proxies that a release is for.
const (
	CodeEnvoyUntried Code = "EnvoyUntried" // nobody tried it in the version of Envoy that they run; name such an Envoy to chandler serve --envoy
)

// Codes about what a control plane sends, in the reason of a NACK.
const (
	CodeXDSResource   Code = "XDSResource"   // a resource that is not what was asked for, or cannot be read; look at the control plane, which must not send this
	CodeXDSPathEscape Code = "XDSPathEscape" // a local path that is not what it seems; look at the control plane, which must not send this
)

// Codes about signatures, and about what the operator demands.
const (
	CodePolicy      Code = "Policy"      // a rule of the operator's file that cannot hold; correct the rule
	CodeSigMissing  Code = "SigMissing"  // not signed where it must be; sign the digest that is named
	CodeSigSubject  Code = "SigSubject"  // signed is another digest, or another repository; sign the artifact itself, where it is
	CodeSigLog      Code = "SigLog"      // the log or the time of the signature does not hold; sign it again with the log that the rule asks for
	CodeSigIdentity Code = "SigIdentity" // signed by somebody else; have somebody sign it whom the rule names, or change the rule
	CodeSigLimit    Code = "SigLimit"    // too many signatures, or too large ones; remove those that are not needed
	CodeSigParse    Code = "SigParse"    // a signature that cannot be read; sign it again
)

// Reasons of conditions and of a proxy's state that are no mistake of the
// resource.
const (
	CodeAccepted          Code = "Accepted"          // the resource is valid; nothing
	CodeInvalid           Code = "Invalid"           // the resource has several problems; mend those that are listed
	CodeResolved          Code = "Resolved"          // the module is fetched, verified and tried; nothing
	CodeResolving         Code = "Resolving"         // the module is being resolved; wait
	CodeProgrammed        Code = "Programmed"        // in force wherever it is desired; nothing
	CodeProgressing       Code = "Progressing"       // on its way to proxies; wait, chandler status NAME says which are left
	CodeNoProxies         Code = "NoProxies"         // no connected proxy is selected; look at selector, namespace and chandler nodes
	CodeRejected          Code = "Rejected"          // Envoy refused it, the release before stays; see Envoy's words in the message, and correct the plugin or its configuration
	CodeVMTrap            Code = "VMTrap"            // the plugin fails while it serves; see Envoy's log, and go back to the release before: chandler rollout undo
	CodeBypassed          Code = "Bypassed"          // taken out by somebody on the proxy's machine; chandler-agent bypass NAME --undo, there
	CodeStale             Code = "Stale"             // the last that is known, as its source is away; see why the source cannot be read
	CodeEnvoyDown         Code = "EnvoyDown"         // no live Envoy beside the agent; see the agent's log, with Envoy's last words
	CodeInternal          Code = "Internal"          // a mistake of ours; report it, with chandler bug-report
	CodeDeadlinePassed    Code = "DeadlinePassed"    // the module did not come within the fetch deadline; see why it cannot be fetched: it is tried again by itself
	CodeReady             Code = "Ready"             // accepted, resolved and in force; nothing
	CodeNoListener        Code = "NoListener"        // it matches no listener of the proxy; look at spec.match, and at chandler node
	CodeUnsupportedTarget Code = "UnsupportedTarget" // what it is for runs no plugins, such as a waypoint; select proxies of gateways or workloads
	CodeUnvetted          Code = "Unvetted"          // a file on the proxy's machine, which nobody has tried; push the module to a registry, to have it tried
)

// Reasons of conditions that have to do with rollouts and orders.
const (
	CodeRolloutProgressing Code = "RolloutProgressing" // some proxies have the release before, as they are to; wait, chandler rollout status NAME
	CodeRolloutPaused      Code = "RolloutPaused"      // likewise, and somebody has to say how to go on; chandler rollout promote, resume or abort
	CodeRolloutFailed      Code = "RolloutFailed"      // the release was taken back; see what was measured, then change the plugin, or chandler rollout retry
	CodeRolloutAborted     Code = "RolloutAborted"     // the release was taken back by somebody's order; change the plugin, or chandler rollout retry
	CodePinned             Code = "Pinned"             // an earlier release is held by an undo; chandler rollout unpin, or change the resource
	CodeDisabled           Code = "Disabled"           // taken out by somebody's order; chandler enable
	CodeSecretChanged      Code = "SecretChanged"      // values that a release was made with are known no more; apply the plugin again, to make a release with those of today
)

// Codes about rollouts.
const (
	CodeGateFailed       Code = "GateFailed"       // a release does worse than the one before; see which gate, and correct the plugin
	CodeGateInconclusive Code = "GateInconclusive" // too little was seen to tell; wait for more requests, or chandler rollout promote
	CodePaused           Code = "Paused"           // a rollout stands still by somebody's word; chandler rollout resume
)

// Codes about policy, and about files that are read strictly: the operator's, and a
// plugin's tests.
const (
	CodePolicyDenied Code = "PolicyDenied" // against the operator's rules; change the plugin, or ask the operator
	CodeConfRead     Code = "ConfRead"     // the file cannot be read; see its path and rights
	CodeConfParse    Code = "ConfParse"    // the file is not YAML, or YAML that is refused; correct the place that is named
	CodeConfSize     Code = "ConfSize"     // the file is too large; make it smaller, or divide it
	CodeConfUnknown  Code = "ConfUnknown"  // a key that nobody knows; write one of those that are named
	CodeConfValue    Code = "ConfValue"    // a value of the wrong type or range; write it as the message says
	CodeConfListen   Code = "ConfListen"   // an address that cannot be listened to; give one that is free
	CodeConfTLS      Code = "ConfTLS"      // a certificate and key that are of no use; give a certificate, its key and authorities in PEM that belong together
	CodeConfKeyMode  Code = "ConfKeyMode"  // a private key that everybody may read; take that right away with chmod o-r
)

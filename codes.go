package chandler

// Codes about a resource as written.
const (
	CodeSpecShape     Code = "SpecShape"     // not an object of a kind that is known
	CodeSpecUnknown   Code = "SpecUnknown"   // a field nobody knows
	CodeSpecParse     Code = "SpecParse"     // not YAML, or YAML that is refused
	CodeSpecEnum      Code = "SpecEnum"      // a value outside its list
	CodeSpecRequired  Code = "SpecRequired"  // a field that must be there
	CodeSpecValue     Code = "SpecValue"     // a value of the wrong type or range
	CodeSpecDuplicate Code = "SpecDuplicate" // the same object from two places
	CodeTarget        Code = "Target"        // selector and targetRefs
	CodeMatchPort     Code = "MatchPort"
	CodeEnvName       Code = "EnvName"
	CodeEnvHost       Code = "EnvHost"
	CodeConfigSize    Code = "ConfigSize"
	CodeURLSyntax     Code = "URLSyntax"
	CodeURLScheme     Code = "URLScheme"
	CodeURLPart       Code = "URLPart"
	CodeURLHost       Code = "URLHost"
	CodeURLAmbiguous  Code = "URLAmbiguous" // strict only
	CodeURLInsecure   Code = "URLInsecure"  // strict only
	CodeRefSyntax     Code = "RefSyntax"
	CodeRefConflict   Code = "RefConflict"
	CodeDigestSyntax  Code = "DigestSyntax"
	CodeFileDenied    Code = "FileDenied"
	CodeSecretRef     Code = "SecretRef"
	CodeSecretUnused  Code = "SecretUnused"
	CodeRuntime       Code = "Runtime"
	CodeScopeDenied   Code = "ScopeDenied"
	CodeLock          Code = "Lock"        // a lock file that cannot be gone by
	CodeEnvoyConfig   Code = "EnvoyConfig" // a proxy's own configuration that cannot be taken over
)

// Codes about a pull secret.
const (
	CodeSecretType Code = "SecretType" // missing, or of another type
	CodeSecretJSON Code = "SecretJSON"
	CodeSecretAuth Code = "SecretAuth"
)

// Codes about the secrets that a configuration is from.
const (
	CodeSecretKey   Code = "SecretKey"   // no such secret, or not with that key
	CodeSecretValue Code = "SecretValue" // not base64, or no object to merge
)

// Codes about fetching.
const (
	CodeFetchFailed         Code = "FetchFailed"  // network or server, worth another try
	CodeUnauthorized        Code = "Unauthorized" // 401 or 403
	CodeNotFound            Code = "NotFound"     // 404, or no such tag
	CodeFetchShort          Code = "FetchShort"
	CodeDigestMismatch      Code = "DigestMismatch"
	CodeDigestHeader        Code = "DigestHeader"
	CodeEgressDenied        Code = "EgressDenied"
	CodeHTTPRedirect        Code = "HTTPRedirect"
	CodeHTTPStatus          Code = "HTTPStatus"
	CodeHTTPLength          Code = "HTTPLength"
	CodeHTTPEncoding        Code = "HTTPEncoding"
	CodeHTTPHeader          Code = "HTTPHeader"
	CodeHTTPLink            Code = "HTTPLink" // pages of a list that lead elsewhere, or to no end
	CodeAuthRealm           Code = "AuthRealm"
	CodeAuthToken           Code = "AuthToken"
	CodeTLS                 Code = "TLS"
	CodeManifestParse       Code = "ManifestParse"
	CodeManifestType        Code = "ManifestType"
	CodeManifestAmbiguous   Code = "ManifestAmbiguous"
	CodeManifestAnnotation  Code = "ManifestAnnotation"
	CodeIndex               Code = "Index"
	CodeDescSize            Code = "DescSize"
	CodeDescForeign         Code = "DescForeign"
	CodeDescData            Code = "DescData"
	CodeConfigBlob          Code = "ConfigBlob"
	CodeLayerType           Code = "LayerType"
	CodeLayerRatio          Code = "LayerRatio"
	CodeLayerGzip           Code = "LayerGzip"
	CodeLayerZstd           Code = "LayerZstd"
	CodeTarEntries          Code = "TarEntries"
	CodeTarSize             Code = "TarSize"
	CodeTarDuplicate        Code = "TarDuplicate"
	CodeTarPath             Code = "TarPath"
	CodeTarHeader           Code = "TarHeader"
	CodeTarWhiteout         Code = "TarWhiteout"
	CodeTarMissing          Code = "TarMissing"
	CodeModuleTooLarge      Code = "ModuleTooLarge"
	CodeCacheFull           Code = "CacheFull"
	CodeCacheLocked         Code = "CacheLocked"
	CodeCacheUnwritable     Code = "CacheUnwritable"
	CodeControlUnreachable  Code = "ControlUnreachable"
	CodeFileMissing         Code = "FileMissing" // a file:// url on the proxy's machine
	CodeFeatureNotSupported Code = "FeatureNotSupported"
)

// Codes about what is asked on the agents' port.
const (
	CodeXDSType     Code = "XDSType"     // a resource type that is not served
	CodeXDSNode     Code = "XDSNode"     // who asks does not say which node it is, or says another later
	CodeXDSIdentity Code = "XDSIdentity" // the credential does not allow what is claimed
	CodeXDSName     Code = "XDSName"
	CodeXDSLimit    Code = "XDSLimit"
	CodeXDSPath     Code = "XDSPath" // a method that is not served
)

// Codes about a module's bytes.
const (
	CodeWasmEmpty     Code = "WasmEmpty"
	CodeWasmMagic     Code = "WasmMagic"
	CodeWasmVersion   Code = "WasmVersion"
	CodeWasmComponent Code = "WasmComponent"
	CodeWasmParse     Code = "WasmParse"
	CodeWasmCount     Code = "WasmCount"
	CodeWasmLocals    Code = "WasmLocals"
	CodeWasmLimit     Code = "WasmLimit"
	CodeWasmTable     Code = "WasmTable"
	CodeWasmSegment   Code = "WasmSegment"
	CodeWasmImport    Code = "WasmImport"
	CodeWasmABI       Code = "WasmABI"
	CodeWasmExport    Code = "WasmExport"
	CodeWasmSection   Code = "WasmSection"
	CodeWasmFeature   Code = "WasmFeature"
	CodeWasmTrailing  Code = "WasmTrailing"
	CodeWasmStart     Code = "WasmStart"     // the trial: it does not start
	CodeWasmConfigure Code = "WasmConfigure" // the trial: it refuses its configuration
	CodeWasmTimeout   Code = "WasmTimeout"   // the trial: it comes to no end
	CodeWasmMemory    Code = "WasmMemory"    // the trial: it takes too much memory
	CodeWasmCrash     Code = "WasmCrash"     // the trial: what runs it crashes
	CodeLuaSyntax     Code = "LuaSyntax"
	CodeProbeFailed   Code = "ProbeFailed" // it loads, and answers a probe otherwise than it is to
)

// Codes about a plugin's source, for its author.
const (
	CodeSourceName     Code = "SourceName"     // a name that a plugin cannot have
	CodeSourceFolder   Code = "SourceFolder"   // a folder that cannot be read, or has something in it already
	CodeSourceLanguage Code = "SourceLanguage" // it is not known, or not clear
	CodeToolchain      Code = "Toolchain"      // a compiler is not there
	CodeBuild          Code = "Build"          // a compiler failed
)

// Codes about the schema of a plugin's configuration that its artifact carries.
const (
	CodeConfigSchema   Code = "ConfigSchema"   // the configuration is not as the schema has it
	CodeSchemaUnusable Code = "SchemaUnusable" // the schema cannot be judged by
)

// Codes about the proxies that a release is for.
const (
	CodeEnvoyUntried Code = "EnvoyUntried" // nobody tried it in the version that they run
)

// Codes about what a control plane sends, in the reason of a NACK.
const (
	CodeXDSResource   Code = "XDSResource"   // not what was asked for, or it cannot be read
	CodeXDSPathEscape Code = "XDSPathEscape" // a local path that is not what it seems
)

// Codes about signatures, and about what the operator demands.
const (
	CodePolicy      Code = "Policy"      // the operator's file: a rule that cannot hold, or one that forbids
	CodeSigMissing  Code = "SigMissing"  // not signed where it must be
	CodeSigSubject  Code = "SigSubject"  // signed is another digest, or another repository
	CodeSigLog      Code = "SigLog"      // the log or the time of the signature
	CodeSigIdentity Code = "SigIdentity" // signed by somebody else
	CodeSigLimit    Code = "SigLimit"    // too many signatures, or too large
	CodeSigParse    Code = "SigParse"    // a signature that cannot be read
)

// Reasons of conditions and of a proxy's state that are no mistake of the
// resource.
const (
	CodeAccepted          Code = "Accepted"
	CodeInvalid           Code = "Invalid"        // Accepted=False, several problems
	CodeResolved          Code = "Resolved"       // ResolvedRefs=True
	CodeResolving         Code = "Resolving"      // ResolvedRefs=Unknown
	CodeProgrammed        Code = "Programmed"     // in force wherever it is desired
	CodeProgressing       Code = "Progressing"    // on its way
	CodeNoProxies         Code = "NoProxies"      // nothing selects it
	CodeRejected          Code = "Rejected"       // Envoy refused it
	CodeVMTrap            Code = "VMTrap"         // faults while serving
	CodeBypassed          Code = "Bypassed"       // taken out by somebody on the proxy's machine
	CodeStale             Code = "Stale"          // the last known, its source is away
	CodeEnvoyDown         Code = "EnvoyDown"      // no live Envoy beside the agent
	CodeInternal          Code = "Internal"       // ours; please report
	CodeDeadlinePassed    Code = "DeadlinePassed" // the fetch deadline
	CodeReady             Code = "Ready"
	CodeNoListener        Code = "NoListener"        // it matches no listener of the proxy
	CodeUnsupportedTarget Code = "UnsupportedTarget" // what it is for runs no plugins: a waypoint
	CodeUnvetted          Code = "Unvetted"          // a file on the proxy's machine, seen by nobody
)

// Reasons of conditions that have to do with rollouts and orders.
const (
	CodeRolloutProgressing Code = "RolloutProgressing" // some proxies have the release before, as they are to
	CodeRolloutPaused      Code = "RolloutPaused"      // likewise, and somebody has to say how to go on
	CodeRolloutFailed      Code = "RolloutFailed"      // the release was taken back
	CodeRolloutAborted     Code = "RolloutAborted"     // likewise, by somebody's order
	CodePinned             Code = "Pinned"             // an earlier release is held by an undo
	CodeDisabled           Code = "Disabled"           // taken out by somebody's order
	CodeSecretChanged      Code = "SecretChanged"      // values that a release was made with are known no more
)

// Codes about rollouts.
const (
	CodeGateFailed       Code = "GateFailed"       // a release does worse than the one before
	CodeGateInconclusive Code = "GateInconclusive" // too little was seen to tell
	CodePaused           Code = "Paused"           // by somebody's word
)

// Codes about policy, and about files that are read strictly: the operator's, and a
// plugin's tests.
const (
	CodePolicyDenied Code = "PolicyDenied" // against the operator's rules
	CodeConfRead     Code = "ConfRead"     // the file cannot be read
	CodeConfParse    Code = "ConfParse"    // it is not YAML, or YAML that is refused
	CodeConfSize     Code = "ConfSize"
	CodeConfUnknown  Code = "ConfUnknown" // a key that nobody knows
	CodeConfValue    Code = "ConfValue"   // a value of the wrong type or range
	CodeConfListen   Code = "ConfListen"  // an address that cannot be listened to
	CodeConfTLS      Code = "ConfTLS"     // a certificate and key that are of no use
	CodeConfKeyMode  Code = "ConfKeyMode" // a private key that everybody may read
)

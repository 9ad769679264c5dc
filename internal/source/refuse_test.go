package source_test

import (
	"fmt"
	"strings"
	"testing"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/source"
)

var (
	hex64   = strings.Repeat("0a", 32)
	other64 = strings.Repeat("0b", 32)
)

func TestRefuse_B01(t *testing.T) {
	head := "apiVersion: extensions.istio.io/v1alpha1\nkind: WasmPlugin\nmetadata: {name: p}\n"
	const hint = "; write the plugin's fields under spec"
	refuse(t,
		refusal{head, "SpecShape", "spec", "spec must be an object of kind WasmPlugin v1alpha1; it is missing" + hint},
		refusal{head + "spec: null", "SpecShape", "spec", "spec must be an object of kind WasmPlugin v1alpha1; it is missing" + hint},
		refusal{head + "spec: [a]", "SpecShape", "spec", "spec must be an object of kind WasmPlugin v1alpha1; it is a list" + hint},
		refusal{"- a", "SpecShape", "", "the document must be an object of kind WasmPlugin v1alpha1, not a list; write apiVersion, kind, metadata and spec"},
		refusal{"a: 1", "SpecShape", "kind", "kind is missing; the document must be an object of kind WasmPlugin v1alpha1; " +
			"write apiVersion: extensions.istio.io/v1alpha1 and kind: WasmPlugin or TrafficExtension"},
		refusal{strings.Replace(wasmPlugin(""), "v1alpha1", "v1", 1), "SpecShape", "apiVersion",
			`apiVersion "extensions.istio.io/v1" has no WasmPlugin; write extensions.istio.io/v1alpha1`},
		refusal{strings.Replace(wasmPlugin(""), "WasmPlugin", "WasmPlugn", 1), "SpecShape", "kind",
			`kind "WasmPlugn" of "extensions.istio.io/v1alpha1" is not known; did you mean WasmPlugin?`},
		refusal{"apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: x}", "SpecShape", "kind",
			`kind "Deployment" of "apps/v1" is not read here; keep it in another folder; WasmPlugin, TrafficExtension and Secret are read here`},
		refusal{strings.Replace(wasmPlugin(""), "name: p", "name: P_", 1), "SpecValue", "metadata.name",
			`name "P_" is not valid; use at most 253 lower-case letters, digits, dashes and dots, with a letter or digit at both ends`},
		refusal{strings.Replace(wasmPlugin(""), "name: p", "generateName: p-", 1), "SpecRequired", "metadata.name",
			"metadata.name is required; write a name; generateName is for the Kubernetes API"},
	)
}

func TestRefuse_B02(t *testing.T) {
	extension := "apiVersion: extensions.istio.io/v1alpha1\nkind: TrafficExtension\nmetadata: {name: p}\nspec:\n  lua: {inlineCode: x}\n"
	refuse(t,
		refusal{wasmPlugin("imagePullPolcy: Always"), "SpecUnknown", "spec.imagePullPolcy", `unknown field "imagePullPolcy"; did you mean imagePullPolicy?`},
		refusal{wasmPlugin("plugin_config: {}"), "SpecUnknown", "spec.plugin_config", `unknown field "plugin_config"; write it in camelCase: pluginConfig`},
		refusal{wasmPlugin("zzz: {}"), "SpecUnknown", "spec.zzz", `unknown field "zzz"; remove it`},
		refusal{wasmPlugin("match: [{ports: [{number: 1, nubmer: 2}]}]"), "SpecUnknown", "spec.match[0].ports[0].nubmer", `unknown field "nubmer"; did you mean number?`},
		refusal{strings.Replace(wasmPlugin(""), "  name: p", "  name: p\n  lables: {}", 1), "SpecUnknown", "metadata.lables", `unknown field "lables"; did you mean labels?`},
		refusal{wasmPlugin("") + "pluginConfig: {}\n", "SpecUnknown", "pluginConfig", `unknown field "pluginConfig"; write it under spec; see its indentation`},
		refusal{wasmPlugin("\"a.b\\n\": 1"), "SpecUnknown", `spec["a.b\n"]`, `unknown field "a.b\n"; remove it`},
		refusal{extension + "  url: a\n", "SpecUnknown", "spec.url", `unknown field "url"; write it under spec.wasm`},
		refusal{wasmPlugin("priority: \"1\""), "SpecValue", "spec.priority", "priority must be a number, not a string; write a number"},
		refusal{wasmPlugin("selector: {matchLabels: {version: 1.10}}"), "SpecValue", "spec.selector.matchLabels.version",
			"version must be a string, not a number; put it in quotes"},
		refusal{wasmPlugin("pluginConfig: text"), "SpecValue", "spec.pluginConfig", "pluginConfig must be an object, not a string; write an object"},
	)
}

func TestRefuse_B03(t *testing.T) {
	refuse(t,
		refusal{"a: 1\nb: \x00", "SpecParse", "", "2:4: control character 0x00; save the file as UTF-8 text"},
		refusal{"a: 1\nb: é\xff", "SpecParse", "", "2:5: byte 0xff is not valid UTF-8; save the file as UTF-8 text"},
		refusal{"a: [1, 2\nb: 3", "SpecParse", "", "2: did not find expected ',' or ']'; see whether indentation, quotes and brackets are as they should be near it"},
		refusal{"a:\n\tb: 1", "SpecParse", "", "2: found character that cannot start any token; see whether indentation, quotes and brackets are as they should be near it"},
		refusal{wasmPlugin("phase: AUTHN\nphase: AUTHZ"), "SpecParse", "spec.phase", `8:3: duplicate key "phase"; keep one of them`},
		refusal{wasmPlugin("pluginConfig: {a: {b: 1, b: 2}}"), "SpecParse", "spec.pluginConfig.a.b", `7:28: duplicate key "b"; keep one of them`},
		refusal{wasmPlugin("pluginConfig: {a: !env HOME}"), "SpecParse", "spec.pluginConfig.a", `7:21: tag "!env" is not known; remove the tag`},
		refusal{wasmPlugin("pluginConfig: {? [a] : 1}"), "SpecParse", "spec.pluginConfig", "7:20: the name of a field is no string; name a field by a string"},
		refusal{"{a: 1}\n{b: 2}\n", "SpecParse", "", "2: did not find expected <document start>; see whether indentation, quotes and brackets are as they should be near it"},
		refusal{wasmPlugin("pluginConfig: {a: " + strings.Repeat("x", 256<<10) + "}"), "SpecParse", "",
			"1:1: the document has 262280 bytes, limit 262144; make it smaller; a module reads large data from elsewhere"},
	)
}

func TestRefuse_B04(t *testing.T) {
	const hint = "; write a url such as oci://registry.example/plugin:v1 or https://host/plugin.wasm"
	missing := strings.Replace(wasmPlugin("phase: AUTHN"), "  url: oci://reg.example/a:v1\n", "", 1)
	refuse(t,
		refusal{missing, "URLSyntax", "spec.url", "url is required" + hint},
		refusal{wasmPlugin(`url: ""`), "URLSyntax", "spec.url", "url is required" + hint},
		refusal{wasmPlugin(`url: "oci://reg.example\n/a"`), "URLSyntax", "spec.url", "url contains byte 0x0a at 17; remove the control character"},
		refusal{wasmPlugin("url: oci://reg.example/" + strings.Repeat("a", 2048)), "URLSyntax", "spec.url", "url has 2066 bytes, limit 2048; use a shorter url"},
		refusal{wasmPlugin("url: 1"), "SpecValue", "spec.url", "url must be a string, not a number; put it in quotes"},
	)
}

func TestRefuse_B05(t *testing.T) {
	const hint = "; use oci, https, http or file"
	refuse(t,
		refusal{wasmPlugin("url: ftp://h/x.wasm"), "URLScheme", "spec.url", `scheme "ftp" is not allowed` + hint},
		refusal{wasmPlugin("url: unix:///x"), "URLScheme", "spec.url", `scheme "unix" is not allowed` + hint},
	)
}

func TestRefuse_B06(t *testing.T) {
	refuse(t,
		refusal{wasmPlugin("url: oci://me:secret@reg.example/a"), "URLPart", "spec.url",
			"credentials in a url are not allowed; remove what stands before the @ and use imagePullSecret"},
		refusal{wasmPlugin("url: oci://reg.example/a?x=y"), "URLPart", "spec.url", "an oci url has no query; remove the ? and what follows it"},
		refusal{wasmPlugin("url: 'https://h/a#f'"), "URLPart", "spec.url", "url has a fragment; remove the # and what follows it"},
	)
}

func TestRefuse_B08(t *testing.T) {
	const hint = "; write a host name or an address, and a port from 1 to 65535 if there is one"
	refuse(t,
		refusal{wasmPlugin("url: oci://reg.example:0/a"), "URLHost", "spec.url", `port "0" is out of range 1-65535` + hint},
		refusal{wasmPlugin("url: https://h:65536/a"), "URLHost", "spec.url", `port "65536" is out of range 1-65535` + hint},
	)
}

func TestRefuse_B09(t *testing.T) {
	refuse(t,
		refusal{wasmPlugin("url: http://0xa9fea9fe/x"), "EgressDenied", "spec.url", `host "0xa9fea9fe" is 169.254.169.254 (metadata); nothing is fetched from there`},
	)
}

func TestRefuse_B12(t *testing.T) {
	refuse(t,
		refusal{wasmPlugin("url: oci://reg.example/Abc"), "RefSyntax", "spec.url",
			`repository "Abc" must be lower case; bad character 'A' at 0; write it in lower case`},
		refusal{wasmPlugin("url: 'oci://reg.example/a:'"), "RefSyntax", "spec.url", "tag is empty; write a tag after the colon, or leave the colon out"},
	)
}

func TestRefuse_B13(t *testing.T) {
	refuse(t,
		refusal{wasmPlugin("url: oci://reg.example/a@sha256:" + hex64 + "\nsha256: " + other64), "RefConflict", "spec.sha256",
			"url pins sha256:" + hex64 + ", sha256 says \"" + other64 + "\"; keep one of the two"},
	)
}

func TestAccept_B13_SameDigestTwice(t *testing.T) {
	t.Parallel()
	p := accept(t, wasmPlugin("url: oci://reg.example/a@sha256:"+hex64+"\nsha256: "+hex64))
	if p.Wasm.SHA256 != hex64 {
		t.Errorf("%+v", p.Wasm)
	}
}

func TestRefuse_B14(t *testing.T) {
	const hint = "; a digest is sha256: and 64 lower-case hex digits"
	refuse(t,
		refusal{wasmPlugin("url: oci://reg.example/a@md5:00"), "DigestSyntax", "spec.url", `digest algorithm "md5" is not allowed` + hint},
		refusal{wasmPlugin("url: oci://reg.example/a@sha256:00"), "DigestSyntax", "spec.url", `digest "sha256:00" has 2 hex digits, not 64` + hint},
	)
}

func TestRefuse_B15(t *testing.T) {
	refuse(t,
		refusal{wasmPlugin("sha256: nil"), "DigestSyntax", "spec.sha256", `sha256 "nil" is not a digest; leave the field out`},
		refusal{wasmPlugin("sha256: abc"), "DigestSyntax", "spec.sha256", `sha256 "abc" is not a digest; write 64 lower-case hex digits`},
		refusal{wasmPlugin("sha256: " + strings.ToUpper(hex64)), "DigestSyntax", "spec.sha256",
			`sha256 "` + strings.ToUpper(hex64) + `" is not a digest; write it in lower case`},
		refusal{wasmPlugin("sha256: sha256:" + hex64), "DigestSyntax", "spec.sha256",
			`sha256 "sha256:` + hex64 + `" is not a digest; leave sha256: out, the field says so`},
	)
}

func TestRefuse_B16(t *testing.T) {
	const hint = "; write an absolute path, such as file:///opt/plugins/x.wasm"
	refuse(t,
		refusal{wasmPlugin("url: file://x.wasm"), "FileDenied", "spec.url", `file path "x.wasm" is relative` + hint},
		refusal{wasmPlugin("url: file:///opt/../x.wasm"), "FileDenied", "spec.url", `file path "/opt/../x.wasm" contains ".."` + hint},
	)
}

func TestRefuse_B18(t *testing.T) {
	const hint = "; write its name only; it must be in the plugin's namespace"
	refuse(t,
		refusal{wasmPlugin("imagePullSecret: ns/s"), "SecretRef", "spec.imagePullSecret", `imagePullSecret "ns/s" is not the name of a secret` + hint},
		refusal{wasmPlugin(`imagePullSecret: ""`), "SecretRef", "spec.imagePullSecret", "imagePullSecret is empty; leave the field out, or write a value"},
		refusal{wasmPlugin("imagePullSecret: " + strings.Repeat("a", 254)), "SecretRef", "spec.imagePullSecret",
			"imagePullSecret has 254 characters, limit 253; use a shorter one"},
	)
}

// Without the strict policy a pull secret beside an http url is a warning.
func TestRefuse_B19(t *testing.T) {
	t.Parallel()
	d := source.Decode([]byte(wasmPlugin("url: https://h/x.wasm\nimagePullSecret: s")), "")[0]
	if d.Plugin == nil || len(d.Warnings) != 1 {
		t.Fatalf("%v %v", d.Problems, d.Warnings)
	}
	if w := d.Warnings[0]; w.Code != chandler.CodeSecretUnused || w.Field != "spec.imagePullSecret" ||
		w.Message != "a pull secret works only with oci urls; this one is https" || w.Hint == "" {
		t.Errorf("%+v", w)
	}
}

func TestRefuse_B20(t *testing.T) {
	env := func(s string) string { return wasmPlugin("vmConfig:\n  env:\n  - " + s) }
	const at = "spec.vmConfig.env[0].name"
	many := ""
	for i := range 257 {
		many += fmt.Sprintf("{name: a%d}, ", i)
	}
	refuse(t,
		refusal{env("name: ISTIO_META_X\n    value: a"), "EnvName", at, `env name "ISTIO_META_X" is reserved; use another name`},
		refusal{env("name: CHANDLER_X\n    valueFrom: HOST"), "EnvName", at, `env name "CHANDLER_X" is reserved; use another name`},
		refusal{env("value: a"), "EnvName", at, "env name is required; write a name"},
		refusal{env(`name: ""`), "EnvName", at, "env name is required; write a name"},
		refusal{env("name: a=b"), "EnvName", at, `env name "a=b" contains = or a control character; use letters, digits and _`},
		refusal{env(`name: "a\0"`), "EnvName", at, `env name "a\x00" contains = or a control character; use letters, digits and _`},
		refusal{env("name: A\n  - name: A"), "EnvName", "spec.vmConfig.env[1].name", `env name "A" is listed twice; keep one of them`},
		refusal{env("name: " + strings.Repeat("A", 257)), "EnvName", at,
			`env name "` + strings.Repeat("A", 128) + `"... (257 bytes) has 257 characters, limit 256; use a shorter one`},
		refusal{wasmPlugin("vmConfig: {env: [" + many + "]}"), "EnvName", "spec.vmConfig.env", "env has 257 entries, limit 256; put settings into pluginConfig"},
		refusal{env("name: A\n    value: " + strings.Repeat("x", 2049)), "SpecValue", "spec.vmConfig.env[0].value", "value has 2049 characters, limit 2048; use a shorter one"},
	)
}

func TestRefuse_B21(t *testing.T) {
	refuse(t,
		refusal{wasmPlugin("vmConfig: {env: [{name: A, valueFrom: HOST, value: x}]}"), "EnvHost", "spec.vmConfig.env[0].value",
			"value has no meaning with valueFrom: HOST; leave it out, or write valueFrom: INLINE"},
		refusal{wasmPlugin("vmConfig: {env: [{name: A, valueFrom: HOSTS}]}"), "SpecEnum", "spec.vmConfig.env[0].valueFrom",
			`valueFrom "HOSTS" is unknown; write one of INLINE, HOST; did you mean HOST?`},
	)
}

func TestRefuse_B22(t *testing.T) {
	deep := strings.Repeat("{a: ", 33) + "1" + strings.Repeat("}", 33)
	refuse(t,
		refusal{wasmPlugin("pluginConfig: {a: " + strings.Repeat("x", 131070) + "}"), "ConfigSize", "spec.pluginConfig",
			"pluginConfig is 131078 bytes, limit 131072; have the plugin read large data from elsewhere"},
		refusal{wasmPlugin("pluginConfig: " + deep), "ConfigSize", "spec.pluginConfig" + strings.Repeat(".a", 32), "pluginConfig is nested deeper than 32; nest less"},
		refusal{wasmPlugin("pluginConfig: {a: .nan}"), "ConfigSize", "spec.pluginConfig.a", "number is NaN; write a smaller number, or a string"},
		refusal{wasmPlugin("pluginConfig: {a: [-.inf]}"), "ConfigSize", "spec.pluginConfig.a[0]", "number is infinite; write a smaller number, or a string"},
		refusal{wasmPlugin("pluginConfig: {a: 1e400}"), "ConfigSize", "spec.pluginConfig.a", "number is out of range; write a smaller number, or a string"},
		refusal{wasmPlugin("pluginConfig: {a: 18446744073709551616}"), "ConfigSize", "spec.pluginConfig.a", "number does not fit 64 bits; write a smaller number, or a string"},
	)
}

func TestRefuse_B23(t *testing.T) {
	refuse(t,
		refusal{wasmPlugin("phase: AUTH"), "SpecEnum", "spec.phase",
			`phase "AUTH" is unknown; write one of AUTHN, AUTHZ, STATS, UNSPECIFIED_PHASE, UNSPECIFIED; did you mean AUTHN?`},
		refusal{wasmPlugin("type: TCP"), "SpecEnum", "spec.type", `type "TCP" is unknown; write one of HTTP, NETWORK, UNSPECIFIED_PLUGIN_TYPE`},
		refusal{wasmPlugin("failStrategy: FAIL_CLOSED"), "SpecEnum", "spec.failStrategy",
			`failStrategy "FAIL_CLOSED" is unknown; write one of FAIL_CLOSE, FAIL_OPEN, FAIL_RELOAD; did you mean FAIL_CLOSE?`},
		refusal{wasmPlugin("imagePullPolicy: always"), "SpecEnum", "spec.imagePullPolicy",
			`imagePullPolicy "always" is unknown; write one of IfNotPresent, Always, UNSPECIFIED_POLICY; did you mean Always?`},
		refusal{wasmPlugin("match: [{mode: BOTH}]"), "SpecEnum", "spec.match[0].mode", `mode "BOTH" is unknown; write one of CLIENT, SERVER, CLIENT_AND_SERVER, UNDEFINED`},
		refusal{wasmPlugin("priority: 2147483648"), "SpecEnum", "spec.priority",
			"priority 2147483648 is out of range -2147483648-2147483647; write a number from -2147483648 to 2147483647"},
		refusal{wasmPlugin("priority: 1.5"), "SpecValue", "spec.priority", "priority 1.5 is not a whole number; write a whole number"},
		refusal{strings.Replace(wasmPlugin(""), "name: p", "name: p\n  annotations: {chandler.dev/first-attach: refuse}", 1), "SpecEnum",
			`metadata.annotations["chandler.dev/first-attach"]`, `chandler.dev/first-attach "refuse" is unknown; write deny or hold`},
	)
}

func TestRefuse_B24(t *testing.T) {
	target := func(s string) string { return wasmPlugin("targetRefs: [{" + s + "}]") }
	many := strings.Repeat("{group: gateway.networking.k8s.io, kind: Gateway, name: g}, ", 17)
	refuse(t,
		refusal{wasmPlugin("selector: {matchLabels: {a: b}}\ntargetRefs: [{kind: Service, name: s}]"), "Target", "spec.targetRefs",
			"use selector or targetRefs, not both; keep one of them"},
		refusal{wasmPlugin("targetRefs: [" + many + "]"), "Target", "spec.targetRefs", "targetRefs has 17 entries, limit 16; write several plugins"},
		refusal{target("kind: Pod, name: p"), "Target", "spec.targetRefs[0].kind", `kind "Pod" cannot be a target; write Gateway, GatewayClass, Service or ServiceEntry`},
		refusal{target("kind: Gateway, name: g"), "Target", "spec.targetRefs[0].group", `Gateway is not of group ""; write group: "gateway.networking.k8s.io"`},
		refusal{target("kind: Service, name: s, namespace: x"), "Target", "spec.targetRefs[0].namespace",
			`no grant in namespace "x"; leave it out; a target is in the plugin's own namespace`},
		refusal{target("kind: Service"), "Target", "spec.targetRefs[0].name", "name is required; write the target's name"},
		refusal{wasmPlugin("selector: {matchLabels: {\"a*\": b}}"), "Target", `spec.selector.matchLabels["a*"]`, `label "a*" has a wildcard; write the label out`},
		refusal{wasmPlugin("selector: {matchLabels: {\"\": b}}"), "Target", "spec.selector.matchLabels", "matchLabels has an empty key; name a label"},
		refusal{wasmPlugin("selector: {matchLabels: {a: " + strings.Repeat("b", 64) + "}}"), "Target", "spec.selector.matchLabels.a",
			`value "` + strings.Repeat("b", 64) + `" has 64 characters, limit 63; no label has a longer value`},
	)
}

func TestRefuse_B27(t *testing.T) {
	const hint = "; write a number from 1 to 65535"
	refuse(t,
		refusal{wasmPlugin("match: [{ports: [{number: 80}, {number: 70000}]}]"), "MatchPort", "spec.match[0].ports[1].number", "number 70000 is out of range 1-65535" + hint},
		refusal{wasmPlugin("match: [{ports: [{number: 0}]}]"), "MatchPort", "spec.match[0].ports[0].number", "number 0 is out of range 1-65535" + hint},
		refusal{wasmPlugin("match: [{ports: [{number: 80}, {number: 80}]}]"), "MatchPort", "spec.match[0].ports[1].number", "port 80 is listed twice; remove one"},
		refusal{wasmPlugin("match: [{ports: [{}]}]"), "MatchPort", "spec.match[0].ports[0].number", "number is required; write the number of a port"},
	)
}

func TestRefuse_B29(t *testing.T) {
	refuse(t, refusal{wasmPlugin("vmConfig: {runtime: \"null\"}"), "Runtime", "spec.vmConfig.runtime", "runtime is set by the platform: v8; remove it"})
}

func TestRefuse_B85(t *testing.T) {
	const field, hint = "spec.verificationKey", "; write one or more PEM blocks of type PUBLIC KEY"
	written := func(key string) string { return wasmPlugin(fmt.Sprintf("verificationKey: %q", key)) }
	pem := func(header string) string {
		return "-----BEGIN " + header + "-----\nMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEEVs/o5+uQbTjL3chynL4wXgUg2R9\n" +
			"q9UU8I5mEovUf86QZ7kOBIjJwqnzD1omageEHWwHdBO6B+dFabmdT9POxg==\n-----END " + header + "-----\n"
	}
	key := pem("PUBLIC KEY")
	refuse(t,
		refusal{written("abc"), "SpecValue", field, "verificationKey is not PEM" + hint},
		refusal{written(pem("PRIVATE KEY")), "SpecValue", field, `verificationKey has a PEM block of type "PRIVATE KEY"` + hint},
		refusal{written(key + "x"), "SpecValue", field, "verificationKey has something after its last PEM block" + hint},
		refusal{written("x\n" + key), "SpecValue", field, "verificationKey has something before its PEM block 1" + hint},
		refusal{written(key + strings.Replace(key, "MFkw", "MFkx", 1)), "SpecValue", field, "verificationKey has a block 2 that is no public key" + hint},
		refusal{wasmPlugin(fmt.Sprintf("url: https://h.example/p.wasm\nverificationKey: %q", key)), "SpecValue", field,
			"a verificationKey works only with oci urls; nothing at https urls can be signed; " +
				"push the module to a registry and sign it there, or remove the key and pin the module by sha256"},
	)
}

func TestRefuse_B86(t *testing.T) {
	secret := func(s string) string { return "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\n" + s }
	refuse(t,
		refusal{secret("type: Opaque\ndata: {}"), "SecretType", "type",
			`secret is of type "Opaque"; needs kubernetes.io/dockerconfigjson; only pull secrets are read here; write type: kubernetes.io/dockerconfigjson`},
		refusal{secret("type: kubernetes.io/dockerconfigjson\ndata: {x: eA==}"), "SecretType", "data", "secret has no .dockerconfigjson; put the docker config there"},
	)
}

func TestRefuse_B87(t *testing.T) {
	secret := func(s string) string {
		return "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\ntype: kubernetes.io/dockerconfigjson\n" + s
	}
	const hint = "; write a docker config with auths"
	refuse(t,
		refusal{secret("stringData: {.dockerconfigjson: '{\"hunter2'}"), "SecretJSON", `stringData[".dockerconfigjson"]`, "not JSON at offset 9" + hint},
		refusal{secret("data: {.dockerconfigjson: bnVsbA==}"), "SecretJSON", `data[".dockerconfigjson"]`, "not a JSON object" + hint},
		refusal{secret("data: {.dockerconfigjson: '***'}"), "SecretJSON", `data[".dockerconfigjson"]`,
			"not base64; write the base64 of the docker config, or put the config itself into stringData"},
	)
}

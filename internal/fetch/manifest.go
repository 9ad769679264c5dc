package fetch

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"chandler.dev/chandler"
)

const (
	maxManifest    = 1 << 20
	maxDepth       = 32
	maxIndex       = 32
	maxLayers      = 16
	maxAnnotations = 64 << 10
	maxConfigBlob  = 1 << 20
	// maxValues is how many values a JSON document may have: each costs many times
	// what it takes to write it.
	maxValues = 16 << 10
)

// Media types of manifests.
const (
	typeOCIManifest    = "application/vnd.oci.image.manifest.v1+json"
	typeOCIIndex       = "application/vnd.oci.image.index.v1+json"
	typeDockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	typeDockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
)

var manifestTypes = []string{typeOCIManifest, typeOCIIndex, typeDockerManifest, typeDockerList}

// Media types of configurations that are known.
const (
	typeCNCFConfig   = "application/vnd.wasm.config.v0+json"
	typeDockerConfig = "application/vnd.docker.container.image.v1+json"
	typeOCIConfig    = "application/vnd.oci.image.config.v1+json"
)

// Media types of layers that hold a module as it is.
const (
	typeWasm       = "application/wasm"
	typeWasmModule = "application/vnd.module.wasm.content.layer.v1+wasm"
	typeWasmOld    = "application/vnd.wasm.content.layer.v1+wasm"
)

// Media types of an image's layers that are packed as most are.
const (
	typeDockerLayer = "application/vnd.docker.image.rootfs.diff.tar.gzip"
	typeOCILayer    = "application/vnd.oci.image.layer.v1.tar+gzip"
)

// packing is how the bytes of a blob hold the module.
type packing struct {
	compression string // "", "gzip" or "zstd"
	tar         bool
}

// layerTypes has every layer that can be read.
var layerTypes = map[string]packing{
	typeWasm:        {},
	typeWasmModule:  {},
	typeWasmOld:     {},
	typeDockerLayer: {"gzip", true},
	"application/vnd.docker.image.rootfs.diff.tar":      {"", true},
	"application/vnd.docker.image.rootfs.diff.tar.zstd": {"zstd", true},
	"application/vnd.oci.image.layer.v1.tar":            {"", true},
	typeOCILayer:                                        {"gzip", true},
	"application/vnd.oci.image.layer.v1.tar+zstd":       {"zstd", true},
}

const readableLayers = "an image whose last layer (tar, tar+gzip or tar+zstd) has plugin.wasm, or an artifact with a layer of " + typeWasm

type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int64             `json:"size"`
	URLs        []string          `json:"urls"`
	Data        *string           `json:"data"`
	Annotations map[string]string `json:"annotations"`
	Platform    *platform         `json:"platform"`
}

type platform struct {
	Architecture string `json:"architecture"`
	OS           string `json:"os"`
	Variant      string `json:"variant"`
}

func (p *platform) String() string {
	if p == nil {
		return "no platform"
	}
	s := p.OS + "/" + p.Architecture
	if p.Variant != "" {
		s += "/" + p.Variant
	}
	return chandler.Printable(s, 64)
}

// manifest is a manifest or an index.
type manifest struct {
	SchemaVersion int               `json:"schemaVersion"`
	MediaType     string            `json:"mediaType"`
	Config        *descriptor       `json:"config"`
	Layers        []descriptor      `json:"layers"`
	Manifests     []descriptor      `json:"manifests"`
	Annotations   map[string]string `json:"annotations"`
}

func (m *manifest) isIndex() bool {
	return m.MediaType == typeOCIIndex || m.MediaType == typeDockerList
}

// parseManifest reads a manifest or an index strictly. contentType is what the
// registry said of it; it counts where the document is silent.
func parseManifest(raw []byte, contentType string) (*manifest, error) {
	if err := checkJSON(raw); err != nil {
		return nil, err
	}
	var m manifest
	if err := json.Unmarshal(raw, &m); err != nil {
		return nil, manifestProblem("it does not fit a manifest at offset %d", offsetOf(err))
	}
	contentType, _, _ = strings.Cut(contentType, ";")
	contentType = strings.TrimSpace(contentType)
	switch {
	case m.MediaType == "":
		m.MediaType = contentType
	case slices.Contains(manifestTypes, contentType) && contentType != m.MediaType:
		return nil, refuse(chandler.CodeManifestAmbiguous, "push it again", "the manifest calls itself %s and the registry calls it %s", chandler.Quote(m.MediaType), contentType)
	}
	if !slices.Contains(manifestTypes, m.MediaType) {
		return nil, refuse(chandler.CodeManifestType, "push it in one of these: "+strings.Join(manifestTypes, ", "),
			"media type of the manifest is %s", chandler.Quote(m.MediaType))
	}
	if m.SchemaVersion != 2 {
		return nil, refuse(chandler.CodeManifestType, "push it with schema version 2", "schema version of the manifest is %d", m.SchemaVersion)
	}
	if m.Layers != nil && m.Manifests != nil {
		return nil, refuse(chandler.CodeManifestAmbiguous, "push it again", "the manifest has both layers and manifests")
	}
	if err := m.check(); err != nil {
		return nil, err
	}
	return &m, nil
}

func (m *manifest) check() error {
	if err := checkAnnotations("", m.Annotations); err != nil {
		return err
	}
	if m.isIndex() {
		if len(m.Manifests) > maxIndex {
			return refuse(chandler.CodeIndex, "name one by digest", "the index has %d entries, limit %d", len(m.Manifests), maxIndex)
		}
		for i := range m.Manifests {
			if err := m.Manifests[i].check(fmt.Sprintf("entry %d", i)); err != nil {
				return err
			}
		}
		return nil
	}
	if len(m.Layers) > maxLayers {
		return manifestProblem("it has %d layers, limit %d", len(m.Layers), maxLayers)
	}
	for i := range m.Layers {
		if err := m.Layers[i].check(blobName(i)); err != nil {
			return err
		}
	}
	if m.Config == nil {
		return nil
	}
	if err := m.Config.check("config"); err != nil {
		return err
	}
	if m.Config.Size > maxConfigBlob {
		return refuse(chandler.CodeConfigBlob, "push it with a smaller configuration", "the config declares %d bytes, limit %d", m.Config.Size, maxConfigBlob)
	}
	return nil
}

func (d *descriptor) check(what string) error {
	if _, ok := chandler.ParseDigest[chandler.BlobDigest](d.Digest); !ok {
		return refuse(chandler.CodeDigestSyntax, "push it again with sha256 digests", "%s: digest %s is not sha256: and 64 lower-case hex digits", what, chandler.Quote(d.Digest))
	}
	if d.Size < 1 {
		return refuse(chandler.CodeDescSize, "push it again", "%s: declared size is %d", what, d.Size)
	}
	if len(d.URLs) > 0 {
		return refuse(chandler.CodeDescForeign, "push all layers into the registry", "%s points to an outside url, which is not followed", what)
	}
	if d.Data != nil {
		b, err := base64.StdEncoding.DecodeString(*d.Data)
		if err != nil || string(chandler.Digest[chandler.BlobDigest](b)) != d.Digest || int64(len(b)) != d.Size {
			return refuse(chandler.CodeDescData, "push it again", "%s: its embedded data does not hash to its digest", what)
		}
	}
	return checkAnnotations(what+": ", d.Annotations)
}

func checkAnnotations(where string, all map[string]string) error {
	size := 0
	for k, v := range all {
		size += len(k) + len(v)
		bad := func(r rune) bool { return unicode.IsControl(r) && r != '\n' && r != '\r' && r != '\t' }
		if strings.ContainsFunc(k, unicode.IsControl) || strings.ContainsFunc(v, bad) {
			return refuse(chandler.CodeManifestAnnotation, "push it again without", "%sannotation %s has a control character", where, chandler.Quote(k))
		}
	}
	if size > maxAnnotations {
		return refuse(chandler.CodeManifestAnnotation, "push it again with less", "%sannotations are %d bytes, limit %d", where, size, maxAnnotations)
	}
	return nil
}

// choose finds the one entry of an index that is meant: of a Wasm platform, else
// the only one, else the one for linux and arch.
func (m *manifest) choose(arch string) (*descriptor, error) {
	var real, wasm, native []*descriptor
	var seen []string
	for i := range m.Manifests {
		d := &m.Manifests[i]
		p := d.Platform
		switch {
		case d.Annotations["vnd.docker.reference.type"] == "attestation-manifest":
			continue // about another entry
		case p != nil && p.Architecture == "wasm" && p.OS == "wasip2":
			seen = append(seen, p.String()+" (a component)")
			continue
		case p != nil && p.Architecture == "wasm":
			wasm = append(wasm, d)
		case p != nil && p.OS == "linux" && p.Architecture == arch:
			native = append(native, d)
		}
		real = append(real, d)
		seen = append(seen, p.String())
	}
	fit := wasm
	if len(fit) == 0 {
		fit = real
	}
	if len(fit) > 1 && len(wasm) == 0 {
		fit = native
	}
	switch {
	case len(fit) > 1:
		return nil, refuse(chandler.CodeIndex, "name one by digest", "the index has %d entries that fit", len(fit))
	case len(fit) == 0:
		return nil, refuse(chandler.CodeIndex, "push one for a Wasm platform, or name one by digest",
			"the index has no entry for wasm or linux/%s; it has %s", arch, list(seen))
	case fit[0].MediaType == typeOCIIndex || fit[0].MediaType == typeDockerList:
		return nil, refuse(chandler.CodeIndex, "name a manifest by digest", "the index names another index")
	case fit[0].Size > maxManifest:
		return nil, refuse(chandler.CodeDescSize, "push it again", "the entry of the index declares %d bytes, limit %d", fit[0].Size, maxManifest)
	}
	return fit[0], nil
}

// layer finds the layer that holds the module and how.
func (m *manifest) layer() (index int, how packing, err error) {
	if len(m.Layers) == 0 {
		return 0, packing{}, refuse(chandler.CodeLayerType, "push "+readableLayers, "the manifest has no layers")
	}
	var wasm, titled []int
	var types []string
	for i, l := range m.Layers {
		types = append(types, chandler.Printable(l.MediaType, 100))
		if how, ok := layerTypes[l.MediaType]; ok && !how.tar {
			wasm = append(wasm, i)
			if l.Annotations["org.opencontainers.image.title"] == moduleName {
				titled = append(titled, i)
			}
		}
	}
	if len(titled) == 1 {
		wasm = titled
	}
	switch last := len(m.Layers) - 1; {
	case len(wasm) > 1:
		return 0, packing{}, refuse(chandler.CodeManifestAmbiguous, "push one module an artifact, or title one of them "+moduleName, "the manifest has %d Wasm layers", len(wasm))
	case len(wasm) == 1:
		return wasm[0], layerTypes[m.Layers[wasm[0]].MediaType], nil
	default:
		how, ok := layerTypes[m.Layers[last].MediaType]
		if !ok {
			return 0, packing{}, refuse(chandler.CodeLayerType, "push "+readableLayers, "no layer can be read; there is %s", list(types))
		}
		return last, how, nil
	}
}

// list writes up to ten foreign words.
func list(words []string) string {
	if len(words) == 0 {
		return "none"
	}
	if len(words) > 10 {
		words = append(slices.Clone(words[:10]), fmt.Sprintf("and %d more", len(words)-10))
	}
	return strings.Join(words, ", ")
}

func manifestProblem(format string, args ...any) *Error {
	return refuse(chandler.CodeManifestParse, "push it again", "manifest: "+format, args...)
}

// CheckJSON refuses a document that two readers of JSON could read in two ways, or
// that takes far more memory than its bytes. The error is an *Error.
func CheckJSON(raw []byte) error { return checkJSON(raw) }

// checkJSON is CheckJSON, of a manifest.
func checkJSON(raw []byte) error {
	if len(raw) > maxManifest {
		return manifestProblem("over %d bytes", maxManifest)
	}
	if !utf8.Valid(raw) {
		return manifestProblem("not valid UTF-8")
	}
	if tooManyValues(raw) {
		return manifestProblem("it has more than %d values", maxValues)
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	if err := checkValue(dec, 0); err != nil {
		var known *Error
		if errors.As(err, &known) {
			return known
		}
		return manifestProblem("not JSON at offset %d", dec.InputOffset())
	}
	if _, err := dec.Token(); err != io.EOF {
		return manifestProblem("something follows it at offset %d", dec.InputOffset())
	}
	return nil
}

// tooManyValues counts what separates values, before anything is made of them.
func tooManyValues(raw []byte) bool {
	n, text := 0, false
	for i := 0; i < len(raw) && n < maxValues; i++ {
		switch c := raw[i]; {
		case c == '"':
			text = !text
		case text && c == '\\':
			i++
		case !text && (c == ',' || c == '{' || c == '['):
			n++
		}
	}
	return n >= maxValues
}

func checkValue(dec *json.Decoder, depth int) error {
	tok, err := dec.Token()
	if err != nil {
		return err
	}
	delim, ok := tok.(json.Delim)
	if !ok {
		return nil
	}
	if depth++; depth > maxDepth {
		return manifestProblem("deeper than %d at offset %d", maxDepth, dec.InputOffset())
	}
	keys := map[string]bool{}
	for dec.More() {
		if delim == '{' {
			tok, err := dec.Token()
			if err != nil {
				return err
			}
			key := tok.(string)
			// Go reads keys without regard to case, others do not.
			if folded := strings.ToLower(key); keys[folded] {
				return manifestProblem("duplicate key %s at offset %d", chandler.Quote(key), dec.InputOffset())
			} else {
				keys[folded] = true
			}
		}
		if err := checkValue(dec, depth); err != nil {
			return err
		}
	}
	_, err = dec.Token()
	return err
}

package control

import (
	"errors"
	"slices"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/fetch"
	"chandler.dev/chandler/internal/source"
)

// secrets are those that plugins name.
type secrets map[source.SecretName]source.Secret

// of gives the pull secret that a plugin names.
func (s secrets) of(p *chandler.Plugin) (source.Secret, bool) {
	if p.Wasm == nil || p.Wasm.PullSecret == "" {
		return source.Secret{}, false
	}
	secret, ok := s[source.SecretName{Namespace: p.Namespace, Name: p.Wasm.PullSecret}]
	return secret, ok
}

// same tells whether the secrets that a plugin names are the same in both.
func (s secrets) same(o secrets, p *chandler.Plugin) bool {
	a, oka := s.of(p)
	b, okb := o.of(p)
	if oka != okb || (a.Problem == nil) != (b.Problem == nil) || string(a.DockerConfigJSON) != string(b.DockerConfigJSON) {
		return false
	}
	// That a secret is missing has no version, and nor has one that cannot be read.
	return slices.Equal(s.versions(p), o.versions(p))
}

// credentials finds what a plugin's pull secret holds for its registry; nil when
// it names no secret, or the secret has nothing for that registry.
func (s secrets) credentials(p *chandler.Plugin) (*fetch.Credentials, error) {
	if p.Wasm == nil || p.Wasm.PullSecret == "" {
		return nil, nil
	}
	field := "spec.imagePullSecret"
	if p.Kind == chandler.KindTrafficExtension {
		field = "spec.wasm.imagePullSecret"
	}
	secret, ok := s.of(p)
	if !ok {
		return nil, chandler.Problemf(chandler.CodeSecretType, field, "create it in the plugin's own namespace",
			"secret %s is not in namespace %s", chandler.Quote(p.Wasm.PullSecret), p.Namespace)
	}
	var parsed *fetch.Secret
	why := secret.Problem
	if why == nil && secret.DockerConfigJSON == nil {
		why = chandler.Problemf(chandler.CodeSecretType, "", "make it with: kubectl create secret docker-registry",
			"secret %s is of type %s; needs %s", chandler.Quote(p.Wasm.PullSecret), chandler.Quote(secret.Type), source.PullSecretType)
	}
	if why == nil {
		var err error
		if parsed, _, err = fetch.ParseSecret(secret.DockerConfigJSON); err != nil && !errors.As(err, &why) {
			return nil, err
		}
	}
	if why != nil {
		p := *why
		p.Field = field
		return nil, &p
	}
	return parsed.For(p.Wasm.Reference), nil
}

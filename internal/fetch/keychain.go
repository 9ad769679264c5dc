package fetch

import "github.com/google/go-containerregistry/pkg/authn"

// DockerKeychain has the credentials of docker's own configuration, credential
// helpers included: the file that DOCKER_CONFIG or the home folder says. It is
// the operator's choice, never a tenant's.
func DockerKeychain() authn.Keychain { return authn.DefaultKeychain }

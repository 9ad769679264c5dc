package fetch

import (
	"context"

	"github.com/docker/cli/cli/config"
	"github.com/docker/cli/cli/config/types"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
)

// DockerKeychain has the credentials of docker's own configuration, credential
// helpers included: the file that DOCKER_CONFIG or the home folder says. It is
// the operator's choice, never a tenant's.
func DockerKeychain() authn.Keychain { return authn.DefaultKeychain }

// DockerConfig has the credentials of the docker configuration in dir, credential
// helpers included, and of no other. The file is read at every use, as it may be
// renewed.
func DockerConfig(dir string) authn.Keychain { return dockerConfig(dir) }

type dockerConfig string

func (dir dockerConfig) Resolve(target authn.Resource) (authn.Authenticator, error) {
	return dir.ResolveContext(context.Background(), target)
}

func (dir dockerConfig) ResolveContext(_ context.Context, target authn.Resource) (authn.Authenticator, error) {
	file, err := config.Load(string(dir))
	if err != nil {
		return nil, err
	}
	for _, key := range []string{target.String(), target.RegistryStr()} {
		if key == name.DefaultRegistry {
			key = authn.DefaultAuthKey
		}
		found, err := file.GetAuthConfig(key)
		if err != nil {
			return nil, err
		}
		found.ServerAddress = "" // set in any case
		if found != (types.AuthConfig{}) {
			return authn.FromConfig(authn.AuthConfig{
				Username: found.Username, Password: found.Password, Auth: found.Auth,
				IdentityToken: found.IdentityToken, RegistryToken: found.RegistryToken,
			}), nil
		}
	}
	return authn.Anonymous, nil
}

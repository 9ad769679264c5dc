package agent

import (
	"cmp"
	"maps"
	"os"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/attach"
)

// Identify fills in what cfg.Node does not say of this proxy: from the node of Envoy's
// configuration as other control planes write it, else host and "default". What is
// said stays: labels of the configuration are not claimed but told of, for the control
// plane to take those that this proxy may have.
//
// A configuration that cannot be read says nothing; that is told when Envoy is to run.
func Identify(cfg *Config, host string) {
	told := toldOf(cfg.EnvoyArgs)
	cfg.Node.Name = cmp.Or(cfg.Node.Name, told.Name, host)
	cfg.Node.Namespace = cmp.Or(cfg.Node.Namespace, told.Namespace, "default")
	cfg.Node.Found = maps.Clone(told.Labels)
	for key := range cfg.Node.Labels {
		delete(cfg.Node.Found, key)
	}
	if cfg.Node.Namespace != told.Namespace {
		delete(cfg.Node.Found, chandler.LabelGateway) // it is one in another namespace
	}
}

func toldOf(args []string) attach.Told {
	parsed, err := parseEnvoyArgs(args)
	if err != nil {
		return attach.Told{}
	}
	var file []byte
	if parsed.configPath != "" {
		if file, err = os.ReadFile(parsed.configPath); err != nil {
			return attach.Told{}
		}
	}
	config, err := attach.MergeConfig(parsed.configPath, file, parsed.configYAML)
	if err != nil {
		return attach.Told{}
	}
	return config.Told(parsed.serviceNode, parsed.serviceCluster)
}

package agent

import (
	"slices"
	"strings"
	"testing"
)

func TestEnvoyArgs(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		args string
		want envoyArgs
	}{
		{"-c a.yaml", envoyArgs{configPath: "a.yaml"}},
		{"--config-path a.yaml", envoyArgs{configPath: "a.yaml"}},
		{"--config-path=a.yaml", envoyArgs{configPath: "a.yaml"}},
		{"--config-yaml {a:1}", envoyArgs{configYAML: "{a:1}"}},
		{"--config-yaml={a:b=c}", envoyArgs{configYAML: "{a:b=c}"}},
		{"-c a.yaml --config-yaml {}", envoyArgs{configPath: "a.yaml", configYAML: "{}"}},
		{"-c a.json --log-path /var/log/e", envoyArgs{configPath: "a.json", logPath: "/var/log/e"}},
		{"--service-node n1 -c a --service-cluster=c1", envoyArgs{configPath: "a", serviceNode: "n1", serviceCluster: "c1"}},
		{"-l debug -c a --concurrency 2", envoyArgs{configPath: "a", rest: []string{"-l", "debug", "--concurrency", "2"}}},
		{"--service-zone z -c a --log-format %v", envoyArgs{configPath: "a", rest: []string{"--service-zone", "z", "--log-format", "%v"}}},
	} {
		got, err := parseEnvoyArgs(strings.Fields(c.args))
		if err != nil {
			t.Errorf("%s: %v", c.args, err)
			continue
		}
		same := got.configPath == c.want.configPath && got.configYAML == c.want.configYAML && got.logPath == c.want.logPath &&
			got.serviceNode == c.want.serviceNode && got.serviceCluster == c.want.serviceCluster && slices.Equal(got.rest, c.want.rest)
		if !same {
			t.Errorf("%s is read as %+v, want %+v", c.args, got, c.want)
		}
	}
}

func TestEnvoyArgsRefused(t *testing.T) {
	t.Parallel()
	for args, why := range map[string]string{
		"":                              "name no configuration",
		"-l debug":                      "name no configuration",
		"-c":                            "-c lacks its value",
		"-c a --service-node":           "--service-node lacks its value",
		"-c a -c b":                     "given twice",
		"-c a --config-path b":          "given twice",
		"-c a.pb":                       "not .pb",
		"-c a.pb_text":                  "not .pb_text",
		"-c a --mode validate":          "call envoy itself",
		"-c a --mode=validate":          "call envoy itself",
		"-c a --restart-epoch 1":        "hot restart",
		"-c a --base-id-path f":         "hot restart",
		"-c a --parent-shutdown-time-s": "hot restart",
		"--hot-restart-version":         "call envoy itself",
		"-c a --allow-unknown-fields":   "--allow-unknown-static-fields",
		"-c a --bootstrap-version 2":    "not an option",
	} {
		if _, err := parseEnvoyArgs(strings.Fields(args)); err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("%q: error %v, want one that says %q", args, err, why)
		}
	}
}

func TestEnvoyCommandLine(t *testing.T) {
	t.Parallel()
	for args, want := range map[string]string{
		"-c a":                    "-c boot --disable-hot-restart --reject-unknown-dynamic-fields --drain-time-s 10",
		"--config-yaml {} -l off": "-c boot --disable-hot-restart --reject-unknown-dynamic-fields --drain-time-s 10 -l off",
		"-c a --log-path l":       "-c boot --log-path l --disable-hot-restart --reject-unknown-dynamic-fields --drain-time-s 10",
		"-c a --service-node n --service-cluster c": "-c boot --service-node n --service-cluster c --disable-hot-restart --reject-unknown-dynamic-fields --drain-time-s 10",
		"-c a --drain-time-s 3":                     "-c boot --disable-hot-restart --reject-unknown-dynamic-fields --drain-time-s 3",
		"-c a --allow-unknown-static-fields":        "-c boot --disable-hot-restart --drain-time-s 10 --allow-unknown-static-fields",
		"-c a --disable-hot-restart":                "-c boot --reject-unknown-dynamic-fields --drain-time-s 10 --disable-hot-restart",
	} {
		a, err := parseEnvoyArgs(strings.Fields(args))
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(a.commandLine("boot", "10"), " "); got != want {
			t.Errorf("%s becomes\n%s, want\n%s", args, got, want)
		}
	}
}

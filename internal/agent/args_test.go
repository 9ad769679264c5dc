package agent

import (
	"errors"
	"io/fs"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"chandler.dev/chandler/internal/testenv/module"
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
		{"-c a --concurrency=2 --stats-tag a:b --stats-tag c:d", envoyArgs{configPath: "a", rest: []string{"--concurrency", "2", "--stats-tag", "a:b", "--stats-tag", "c:d"}}},
		{"-c a --log-format -- --cpuset-threads -- --run-id 5", envoyArgs{configPath: "a", rest: []string{"--log-format", "--", "--cpuset-threads"}}},
		{"-c a --ignore_rest --no-such-option", envoyArgs{configPath: "a"}},
		{"-c a --restart-epoch 0 --parent-shutdown-time-s 4 --base-id-path f --mode serve --allow-unknown-fields", envoyArgs{configPath: "a",
			rest: []string{"--parent-shutdown-time-s", "4", "--base-id-path", "f", "--mode", "serve", "--allow-unknown-fields"}}},
		{"-c a --admin-address-path f", envoyArgs{configPath: "a", adminAddressPath: "f"}},
		{"--service-zone z -c a --log-format %v", envoyArgs{configPath: "a", rest: []string{"--service-zone", "z", "--log-format", "%v"}}},
	} {
		got, err := parseEnvoyArgs(strings.Fields(c.args))
		if err != nil {
			t.Errorf("%s: %v", c.args, err)
			continue
		}
		same := got.configPath == c.want.configPath && got.configYAML == c.want.configYAML && got.logPath == c.want.logPath &&
			got.serviceNode == c.want.serviceNode && got.adminAddressPath == c.want.adminAddressPath && got.serviceCluster == c.want.serviceCluster && slices.Equal(got.rest, c.want.rest)
		if !same {
			t.Errorf("%s is read as %+v, want %+v", c.args, got, c.want)
		}
	}
}

func TestEnvoyArgsRefused(t *testing.T) {
	t.Parallel()
	for args, why := range map[string]string{
		"":                                     "name no configuration",
		"-l debug":                             "name no configuration",
		"-c":                                   "-c lacks its value",
		"-c a --service-node":                  "--service-node lacks its value",
		"-c a -c b":                            "given twice",
		"-c a --config-path b":                 "given twice",
		"-c a.pb":                              "not .pb",
		"-c a.pb_text":                         "not .pb_text",
		"-c a -l off --log-level info":         "given twice",
		"-c a --concurrency 1 --concurrency=2": "given twice",
		"-c a --restart-epoch 1":               "hot restart",
		"-c a --restart-epoch=2":               "hot restart",
		"-- -c a":                              "name no configuration",
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
		"-c a --service-node n --service-cluster c":               "-c boot --service-node n --service-cluster c --disable-hot-restart --reject-unknown-dynamic-fields --drain-time-s 10",
		"-c a --drain-time-s 3":                                   "-c boot --disable-hot-restart --reject-unknown-dynamic-fields --drain-time-s 3",
		"-c a --allow-unknown-static-fields":                      "-c boot --disable-hot-restart --drain-time-s 10 --allow-unknown-static-fields",
		"-c a --admin-address-path f --allow-unknown-fields -- x": "-c boot --admin-address-path f --disable-hot-restart --drain-time-s 10 --allow-unknown-fields",
		"-c a --disable-hot-restart":                              "-c boot --reject-unknown-dynamic-fields --drain-time-s 10 --disable-hot-restart",
	} {
		a, err := parseEnvoyArgs(strings.Fields(args))
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(a.commandLine("boot", "10", true), " "); got != want {
			t.Errorf("%s becomes\n%s, want\n%s", args, got, want)
		}
		want = strings.Replace(want, " --reject-unknown-dynamic-fields", "", 1)
		if got := strings.Join(a.commandLine("boot", "10", false), " "); got != want {
			t.Errorf("under a control plane %s becomes\n%s, want\n%s", args, got, want)
		}
	}
}

// What Envoy answers is Envoy's to answer.
func TestEnvoyAnswers(t *testing.T) {
	t.Parallel()
	for args, want := range map[string]bool{
		"--version": true, "-c a --version": true, "--version --nonsense": true, "-h": true, "--help": true, "--hot-restart-version": true,
		"-c a --mode validate": true, "-c a --mode=validate": true, "--mode init_only -c a": true, "--mode bogus -c a": true,
		"": false, "-c a": false, "-c a --mode serve": false, "-c --version": false, "-c a -- --version": false, "-c a --mode": false,
	} {
		if got := EnvoyAnswers(strings.Fields(args)); got != want {
			t.Errorf("%q: %v", args, got)
		}
	}
}

// Envoy is asked about the user's configuration with all that would be given to it, and
// with nothing by which it would serve.
func TestEnvoyValidateLine(t *testing.T) {
	t.Parallel()
	for args, want := range map[string]string{
		"-c a --config-yaml {} --service-node n --concurrency=1 -- --run-id 1": "--mode validate -c a --config-yaml {} --service-node n --disable-hot-restart --concurrency 1",
		"--config-yaml {} --mode serve --disable-hot-restart":                  "--mode validate --config-yaml {} --disable-hot-restart",
	} {
		a, err := parseEnvoyArgs(strings.Fields(args))
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(a.validateLine(), " "); got != want {
			t.Errorf("%s becomes\n%s, want\n%s", args, got, want)
		}
	}
}

// Every option that an Envoy of today names in its help is known, with whether it has
// a value.
func TestEnvoyOptionsAreKnown(t *testing.T) {
	t.Parallel()
	for _, envoy := range []string{module.Envoy(t), strings.TrimSuffix(module.Envoy(t), "envoy") + "envoy-oldest"} {
		help, err := exec.Command(envoy, "--help").Output()
		if errors.Is(err, fs.ErrNotExist) {
			continue // make test brings the oldest one
		}
		if err != nil {
			t.Fatal(err)
		}
		_, where, ok := strings.Cut(string(help), "Where:")
		if !ok {
			t.Fatalf("%s --help says\n%s", envoy, help)
		}
		named := 0
		for line := range strings.Lines(where) {
			if !strings.HasPrefix(line, "   -") {
				continue
			}
			for option := range strings.SplitSeq(line, ",") {
				name, kind, valued := strings.Cut(strings.TrimSpace(option), " ")
				if valued = valued && strings.HasPrefix(kind, "<"); name == "--" || name == "--ignore_rest" {
					continue
				}
				named++
				if _, known := options[name]; known != valued {
					t.Errorf("%s: %s has a value: %v", envoy, name, valued)
				}
			}
		}
		if named < 40 {
			t.Errorf("%s names %d options", envoy, named)
		}
	}
}

//go:build !wasm

package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/proxy-wasm/proxy-wasm-go-sdk/proxywasm/proxytest"
	"github.com/proxy-wasm/proxy-wasm-go-sdk/proxywasm/types"
)

// The SDK's emulator keeps its state in package variables: no test here may be
// parallel to another.

const guarded = `{"realm":"the shop","basic_auth_rules":[{"prefix":"/productpage","request_methods":["GET"],"credentials":["admin3:admin3"]}]}`

// TestShell runs the same expectations on the shell as Go code and as the module
// that a proxy loads. Only the latter can send response code details.
func TestShell(t *testing.T) {
	t.Run("native", func(t *testing.T) { testShell(t, &vm{}, false) })
	t.Run("wasm", func(t *testing.T) {
		module, err := proxytest.NewWasmVMContext(build(t))
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := module.Close(); err != nil {
				t.Error(err)
			}
		}()
		testShell(t, module, true)
	})
}

func TestNoConfigurationIsAccepted(t *testing.T) {
	host, reset := proxytest.NewHostEmulator(proxytest.NewEmulatorOption().WithVMContext(&vm{}))
	defer reset()
	if host.StartPlugin() != types.OnPluginStartStatusOK {
		t.Fatal("refused: ", host.GetErrorLogs())
	}
	if response := ask(t, host, "GET", "/", ""); response != nil {
		t.Errorf("answered %d", response.StatusCode)
	}
}

// build makes the module as README.md says.
func build(t *testing.T) []byte {
	t.Helper()
	// The go tool keeps a test's result until a file changes that the test looked
	// at, and it does not see what the compiler below looks at.
	if _, err := os.Stat("response_wasm.go"); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "basicauth.wasm")
	cmd := exec.Command("go", "build", "-buildmode=c-shared", "-ldflags=-s -w", "-o", file, ".")
	cmd.Env = append(os.Environ(), "GOOS=wasip1", "GOARCH=wasm")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	module, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return module
}

func testShell(t *testing.T, vm types.VMContext, details bool) {
	configuration := []byte(guarded) // the host gives what is in here when it is asked
	host, reset := proxytest.NewHostEmulator(proxytest.NewEmulatorOption().
		WithVMContext(vm).WithPluginConfiguration(configuration))
	defer reset()
	t.Run("guards nothing before it is configured", func(t *testing.T) {
		if response := ask(t, host, "GET", "/productpage", ""); response != nil {
			t.Errorf("answered %d", response.StatusCode)
		}
	})
	t.Run("judges requests", func(t *testing.T) { testJudge(t, host, details) })
	t.Run("a new configuration replaces the rules, a refused one does not", func(t *testing.T) {
		testReplace(t, host, configuration)
	})
}

func testJudge(t *testing.T, host proxytest.HostEmulator, details bool) {
	if host.StartPlugin() != types.OnPluginStartStatusOK {
		t.Fatal("the configuration was refused: ", host.GetErrorLogs())
	}
	for _, c := range []struct{ method, path, authorization, denied string }{
		{"GET", "/productpage", "", "no Basic information found"},
		{"GET", "/productpage", "Basic d3Jvbmc6d3Jvbmc=", "invalid username and/or password"},
		{"GET", "/productpage", "Basic YWRtaW4zOmFkbWluMw==", ""},
		{"HEAD", "/productpage", "", ""},
		{"GET", "/other", "", ""},
	} {
		response := ask(t, host, c.method, c.path, c.authorization)
		switch {
		case c.denied == "" && response != nil:
			t.Errorf("%v: answered %d", c, response.StatusCode)
		case c.denied != "" && response == nil:
			t.Errorf("%v: passed", c)
		case response != nil:
			checkDenial(t, response, "Basic realm=the shop")
			if details && response.StatusCodeDetail != c.denied {
				t.Errorf("%v: details %q", c, response.StatusCodeDetail)
			}
		}
	}
}

// testReplace configures the plugin again and again by what it writes to configuration.
func testReplace(t *testing.T, host proxytest.HostEmulator, configuration []byte) {
	for _, step := range []struct {
		text     string
		accepted bool
		guards   string
	}{
		{guarded, true, "/productpage"},
		{strings.Replace(guarded, "/productpage", "/login", 1), true, "/login"},
		{`{"realm":0}`, false, "/login"},
		{`{}`, true, ""},
	} {
		copy(configuration, step.text+strings.Repeat(" ", len(configuration)-len(step.text)))
		if got := host.StartPlugin(); got != types.OnPluginStartStatus(step.accepted) {
			t.Fatalf("%s: accepted %v: %v", step.text, got, host.GetErrorLogs())
		}
		for _, path := range []string{"/productpage", "/login"} {
			if denied := ask(t, host, "GET", path, "") != nil; denied != (path == step.guards) {
				t.Errorf("after %s: %s denied: %v", step.text, path, denied)
			}
		}
	}
	want := []string{"basicauth: configuration refused: realm: must be a string, not a number"}
	if got := host.GetErrorLogs(); !slices.Equal(got, want) {
		t.Errorf("log at error level:\n got %q\nwant %q", got, want)
	}
}

// ask sends the headers of one request and gives the answer, nil if it passed.
func ask(t *testing.T, host proxytest.HostEmulator, method, path, authorization string) *proxytest.LocalHttpResponse {
	t.Helper()
	headers := [][2]string{{":method", method}, {":authority", "shop.example:8080"}, {":path", path}}
	if authorization != "" {
		headers = append(headers, [2]string{"authorization", authorization})
	}
	id := host.InitializeHttpContext()
	defer host.CompleteHttpContext(id)
	action := host.CallOnRequestHeaders(id, headers, true)
	response := host.GetSentLocalResponse(id)
	if paused := action == types.ActionPause; paused != (response != nil) {
		t.Errorf("%s %s: paused %v, answered %v", method, path, paused, response != nil)
	}
	return response
}

func checkDenial(t *testing.T, r *proxytest.LocalHttpResponse, challenge string) {
	t.Helper()
	if r.StatusCode != 401 || len(r.Data) != 0 || r.GRPCStatus != -1 {
		t.Errorf("status %d, body %q, gRPC %d", r.StatusCode, r.Data, r.GRPCStatus)
	}
	if want := [][2]string{{"WWW-Authenticate", challenge}}; !slices.Equal(r.Headers, want) {
		t.Errorf("headers %q, want %q", r.Headers, want)
	}
}

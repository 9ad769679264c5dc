package wasmhost

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/proxywasm"
)

// Trial is a plugin that is to be loaded, started and configured. It travels to a
// child as JSON.
type Trial struct {
	Plugin
	// Module is the path of its module.
	Module string
	Env    map[string]string
	// Memory bounds the module's memory, in bytes.
	Memory int64
}

// Verdict is what a child says of a trial.
type Verdict struct {
	// Judged is true: the trial came to its end.
	Judged bool
	// Problem is what there is against the plugin; nil: nothing.
	Problem *chandler.Problem
}

// Serve is the child's whole life: it reads the trial in a file and writes the
// verdict. Without a file it says only that it is there.
func Serve(ctx context.Context, file string, out io.Writer) error {
	verdict := Verdict{Judged: file != ""}
	if verdict.Judged {
		b, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		var t Trial
		if err := json.Unmarshal(b, &t); err != nil {
			return err
		}
		if verdict.Problem, err = Try(ctx, t); err != nil {
			return err
		}
	}
	return json.NewEncoder(out).Encode(verdict)
}

const (
	maxSaid  = 3   // lines of the plugin's own that are told
	maxWords = 512 // bytes of each
)

// Try tells what there is against a plugin; nil: nothing. The error is that it could
// not be tried.
func Try(ctx context.Context, t Trial) (*chandler.Problem, error) {
	code, err := os.ReadFile(t.Module)
	if err != nil {
		return nil, err
	}
	m, err := proxywasm.Inspect(bytes.NewReader(code), int64(len(code)))
	if p := (*chandler.Problem)(nil); errors.As(err, &p) {
		return p, nil
	} else if err != nil {
		return nil, err
	}
	var said []string
	cfg := Config{ABI: m.ABI, Memory: t.Memory, Env: t.Env, Log: func(l Level, text string) {
		if l >= LevelInfo {
			said = append(said[max(0, len(said)-maxSaid+1):], chandler.Printable(text, maxWords))
		}
	}}
	h, err := New(ctx, cfg, code)
	if err == nil {
		defer h.Close(ctx)
		err = h.Configure(ctx, t.Plugin)
	}
	if err == nil || ctx.Err() != nil {
		return nil, ctx.Err()
	}
	return explain(err, said), nil
}

// firstLine leaves out the stack of calls that follows.
func firstLine(err error) string {
	text, _, _ := strings.Cut(err.Error(), "\n")
	return chandler.Printable(text, maxLog)
}

// explain makes a problem of what went wrong, in the plugin's own words where it said
// any.
func explain(err error, said []string) *chandler.Problem {
	p := &chandler.Problem{Code: chandler.CodeWasmStart, Hint: "see what the plugin does when its VM starts"}
	text := firstLine(err)
	switch {
	case errors.Is(err, ErrMemory):
		p.Code, p.Hint, said = chandler.CodeWasmMemory, "have the plugin allocate less while it starts", nil
	case errors.Is(err, ErrConfigure):
		p.Code, p.Hint = chandler.CodeWasmConfigure, "correct pluginConfig"
	case errors.Is(err, ErrCompile):
		p.Code, p.Hint, said = chandler.CodeWasmFeature, "name an Envoy, which may know more of WebAssembly (chandler serve --envoy), or build for less", nil
	}
	if len(said) > 0 {
		text = strings.Join(said, "; ")
	}
	p.Message = fmt.Sprintf("the Proxy-Wasm host refuses it: %s", chandler.Printable(text, maxSaid*maxWords))
	return p
}

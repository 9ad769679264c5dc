package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/agent"
)

// exitFound is the exit code when a check found something.
const exitFound = 3

// defaultAdmin is where an agent answers when it is not told otherwise.
const defaultAdmin = "127.0.0.1:9912"

// console is what a command that looks at an agent works with.
type console struct {
	env            map[string]string
	stdin          io.Reader
	stdout, stderr io.Writer
}

// flags begins a set with what such commands have in common with the agent.
func (c console) flags(name string, data, admin *string) *flag.FlagSet {
	set := flag.NewFlagSet(name, flag.ContinueOnError)
	set.SetOutput(io.Discard)
	if data != nil {
		set.StringVar(data, "data", defaultData(c.env), "directory of the agent")
	}
	if admin != nil {
		set.StringVar(admin, "admin", defaultAdmin, "address of the running agent")
	}
	return set
}

// parse reads variables and flags, which may stand before and behind arguments.
// When ok is false the command ends with code.
func (c console) parse(set *flag.FlagSet, args []string, usage string) (rest []string, code int, ok bool) {
	err := fromVariables(set, c.env)
	for len(args) > 0 && err == nil {
		if args[0] == "-" || len(args[0]) == 0 || args[0][0] != '-' {
			rest, args = append(rest, args[0]), args[1:]
			continue
		}
		err = set.Parse(args)
		if err == nil && len(set.Args()) < len(args) && args[len(args)-len(set.Args())-1] == "--" {
			return append(rest, set.Args()...), 0, true
		}
		args = set.Args()
	}
	switch {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprint(c.stdout, usage)
		set.SetOutput(c.stdout)
		set.PrintDefaults()
		return nil, 0, false
	case err != nil:
		fmt.Fprintf(c.stderr, "chandler-agent: %v\nTry \"%s --help\".\n", err, set.Name())
		return nil, exitUsage, false
	}
	if f := set.Lookup("data"); f != nil {
		if data, err := filepath.Abs(f.Value.String()); err == nil {
			_ = f.Value.Set(data)
		}
	}
	return rest, 0, true
}

// answerLimit bounds what is read of an agent's answer, and patience how long it
// is waited for: to hash a full store takes a while.
const (
	answerLimit = 64 << 20
	patience    = 10 * time.Minute
)

// ask asks a running agent.
func (c console) ask(method, admin, path string, answer any) error {
	if admin == "" {
		return errors.New("it has no admin address")
	}
	req, err := http.NewRequest(method, "http://"+admin+path, nil)
	if err != nil {
		return err
	}
	client := http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, answerLimit))
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answers %s: %s", admin, resp.Status, chandler.Printable(string(body), 512))
	}
	if err := json.Unmarshal(body, answer); err != nil {
		return fmt.Errorf("what answers at %s is no agent: %w", admin, err)
	}
	return nil
}

// look asks the agent that runs on a directory. Another one, of the same machine, has not heard
// of what is ordered there, keeps a store of its own, and must not be taken for it.
func (c console) look(data, admin string, st *agent.Status) error {
	if err := c.ask(http.MethodGet, admin, "/status", st); err != nil {
		return err
	}
	theirs, err := os.Stat(st.Data)
	if err != nil {
		return nil // it has another view of the disk, or is of a version before it said so
	}
	if ours, err := os.Stat(data); err == nil && !os.SameFile(ours, theirs) {
		return fmt.Errorf("the one at %s runs on %s; --admin says where another one is", admin, st.Data)
	}
	return nil
}

// json prints v.
func (c console) json(v any) (int, error) {
	enc := json.NewEncoder(c.stdout)
	enc.SetIndent("", "  ")
	if err := enc.Encode(v); err != nil {
		return exitFailed, err
	}
	return 0, nil
}

// subcommands are what stands in place of flags; ok is false when args are an
// agent's.
func subcommand(args, environ []string, stdout, stderr io.Writer) (code int, ok bool) {
	if len(args) == 0 {
		return 0, false
	}
	c := console{env: variables(environ), stdin: os.Stdin, stdout: stdout, stderr: stderr}
	switch args[0] {
	case "store":
		return runStore(c, args[1:]), true
	case "bypass":
		return runBypass(c, args[1:]), true
	case "bootstrap":
		return runBootstrap(c, args[1:]), true
	case "status":
		return runStatus(c, args[1:]), true
	}
	return 0, false
}

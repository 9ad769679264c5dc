package main

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/agent"
)

const bypassUsage = `chandler-agent bypass takes a plugin out on this machine: nothing stands in for it,
not even a denial, whatever the control plane says or when it is gone. That holds, also
over restarts, until --undo. It is done by a file in the agent's directory, for whoever
may write there.

Usage:
  chandler-agent bypass NAME --reason WHY        take it out
  chandler-agent bypass NAME --undo              put it in force again
  chandler-agent bypass                          list what is taken out

It ends with 4 when the agent has not done so in time; the order holds all the same.

Flags:
`

// exitTimedOut is the exit code when something was begun and has not ended in time.
const exitTimedOut = 4

// bypass is one call of the command.
type bypass struct {
	console
	data, admin, kind, namespace, reason string
	undo                                 bool
	wait                                 time.Duration
}

// runBypass is chandler-agent bypass.
func runBypass(c console, args []string) int {
	// The agent's own variables are about its proxy: only these two are for plugins, too.
	env := map[string]string{}
	for _, name := range []string{"CHANDLER_AGENT_DATA", "CHANDLER_AGENT_ADMIN"} {
		if v, ok := c.env[name]; ok {
			env[name] = v
		}
	}
	for _, name := range []string{"STATE_DIRECTORY", "XDG_STATE_HOME", "HOME"} {
		env[name] = c.env[name]
	}
	user := cmp.Or(c.env["SUDO_USER"], c.env["USER"])
	c.env = env
	b := bypass{console: c}
	flags := c.flags("chandler-agent bypass", &b.data, &b.admin)
	flags.StringVar(&b.kind, "kind", "", "kind of the plugin, where two kinds have one of that name")
	flags.StringVar(&b.namespace, "namespace", "", "namespace of the plugin, where two have one of that name")
	flags.StringVar(&b.reason, "reason", "", "why, for those who find it taken out")
	flags.BoolVar(&b.undo, "undo", false, "put it in force again")
	flags.DurationVar(&b.wait, "timeout", 10*time.Second, "how long to wait until it is done")
	rest, code, ok := c.parse(flags, args, bypassUsage)
	if !ok {
		return code
	}
	if why := b.misuse(rest); why != "" {
		fmt.Fprintf(c.stderr, "chandler-agent: %s\nTry \"chandler-agent bypass --help\".\n", why)
		return exitUsage
	}
	code, err := b.run(rest, user)
	if err != nil {
		fmt.Fprintf(c.stderr, "chandler-agent: %v\n", err)
	}
	return code
}

func (b *bypass) misuse(names []string) string {
	switch {
	case len(names) > 1:
		return "one plugin at a time"
	case len(names) == 1 && b.undo == (b.reason != ""):
		return "give --reason to take the plugin out, or --undo"
	case len(names) == 0 && (b.undo || b.reason != ""):
		return "which plugin? give its name"
	case len(b.reason) > agent.MaxBypassWords:
		return fmt.Sprintf("a reason of %d bytes, limit %d", len(b.reason), agent.MaxBypassWords)
	}
	return ""
}

func (b *bypass) run(names []string, user string) (int, error) {
	orders, err := agent.ListBypasses(b.data)
	if len(names) == 0 {
		return b.list(orders, err)
	}
	key, err := b.find(names[0], orders)
	if err != nil {
		return exitFailed, err
	}
	if b.undo {
		err = agent.RemoveBypass(b.data, key)
		if errors.Is(err, fs.ErrNotExist) {
			return exitFailed, fmt.Errorf("%s is not taken out here", key)
		}
	} else {
		err = agent.WriteBypass(b.data, agent.BypassOrder{Bypass: chandler.Bypass{Key: key, Reason: b.reason, At: time.Now()}, By: user})
	}
	if err != nil {
		return exitFailed, fmt.Errorf("the order is not given: %w", err)
	}
	return b.await(key)
}

func (b *bypass) list(orders []agent.BypassOrder, err error) (int, error) {
	for _, o := range orders {
		fmt.Fprintf(b.stdout, "%s\tsince %s\t%s\n", o.Key, o.At.Format(time.RFC3339), o.Reason)
	}
	switch {
	case err != nil:
		return exitFailed, err
	case len(orders) > 0:
		return exitFound, nil
	}
	fmt.Fprintln(b.stderr, "nothing is taken out on this machine")
	return 0, nil
}

// find tells which plugin is meant: one that is known here, or is named in full.
func (b *bypass) find(name string, orders []agent.BypassOrder) (chandler.Key, error) {
	if !agent.IsDirectory(b.data) {
		return chandler.Key{}, fmt.Errorf("%s is not the directory of an agent; give --data", b.data)
	}
	known := agent.KnownPlugins(b.data)
	for _, o := range orders {
		known = append(known, o.Key)
	}
	var st agent.Status
	if b.look(b.data, b.admin, &st) == nil {
		for _, p := range st.Plugins {
			known = append(known, chandler.Key{Kind: p.Kind, Namespace: p.Namespace, Name: p.Name})
		}
	}
	known = slices.DeleteFunc(known, func(k chandler.Key) bool {
		return k.Name != name || b.kind != "" && k.Kind != b.kind || b.namespace != "" && k.Namespace != b.namespace
	})
	slices.SortFunc(known, chandler.Key.Compare)
	known = slices.Compact(known)
	switch {
	case len(known) == 1:
		return known[0], nil
	case len(known) > 1:
		var names []string
		for _, k := range known {
			names = append(names, chandler.Printable(k.String(), 512))
		}
		return chandler.Key{}, fmt.Errorf("there are several: %s; give --namespace and --kind", strings.Join(names, ", "))
	case b.namespace == "":
		return chandler.Key{}, fmt.Errorf("no plugin %s is known on this machine; give --namespace to take it out should it come", chandler.Quote(name))
	}
	key := chandler.Key{Kind: cmp.Or(b.kind, chandler.KindWasmPlugin), Namespace: b.namespace, Name: name}
	if back, ok := chandler.ParseKey(key.String()); !ok || back != key {
		return chandler.Key{}, fmt.Errorf("%s is not the name of a plugin", chandler.Quote(key.String()))
	}
	return key, nil
}

// await waits until the running agent has done what was ordered.
func (b *bypass) await(key chandler.Key) (int, error) {
	done, verb := fmt.Sprintf("%s is taken out", key), "takes it out"
	if b.undo {
		done, verb = fmt.Sprintf("%s is no longer taken out", key), "puts it in force again"
	}
	began := time.Now()
	for {
		var st agent.Status
		if err := b.look(b.data, b.admin, &st); err != nil {
			fmt.Fprintf(b.stderr, "no agent answers (%s): one that runs on %s %s within a second, else the next one that starts there does\n",
				chandler.Printable(err.Error(), 256), b.data, verb)
			return 0, nil
		}
		if b.obeyed(&st, key) {
			fmt.Fprintf(b.stdout, "%s after %s\n", done, time.Since(began).Round(time.Millisecond))
			return 0, nil
		}
		if time.Since(began) > b.wait {
			return exitTimedOut, fmt.Errorf("the agent at %s has not obeyed after %s; does it run on %s? See chandler-agent status", b.admin, b.wait, b.data)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// obeyed tells whether the agent knows of the order, and no slot has the plugin if it is
// to be out. What becomes of one that is in again is a matter of its status.
func (b *bypass) obeyed(st *agent.Status, key chandler.Key) bool {
	known := slices.ContainsFunc(st.Bypassed, func(o agent.BypassStatus) bool {
		return chandler.Key(o.PluginRef) == key
	})
	if b.undo {
		return !known
	}
	for _, l := range st.Listeners {
		for _, s := range l.Slots {
			for _, m := range s.Members {
				if m.StandIn != chandler.StandInPass && chandler.Key(m.PluginRef) == key {
					return false
				}
			}
		}
	}
	return known
}

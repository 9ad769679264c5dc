package main

import (
	"cmp"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/agent"
)

const statusUsage = `chandler-agent status asks the running agent what is in force, and what stands in
each slot. It ends with 3 when something that should be in force is not or a plugin
is taken out by hand, and with 1 when no agent answers.

Usage:
  chandler-agent status

Flags:
`

// runStatus is chandler-agent status.
func runStatus(c console, args []string) int {
	var admin, output string
	flags := c.flags("chandler-agent status", nil, &admin)
	flags.StringVar(&output, "o", "table", "output: table or json")
	rest, code, ok := c.parse(flags, args, statusUsage)
	if !ok {
		return code
	}
	if len(rest) > 0 || output != "table" && output != "json" {
		fmt.Fprint(c.stderr, "chandler-agent: status takes no arguments, and -o table or json\n")
		return exitUsage
	}
	var st agent.Status
	if err := c.ask("GET", admin, "/status", &st); err != nil {
		fmt.Fprintf(c.stderr, "chandler-agent: the agent cannot be asked: %v\n", err)
		return exitFailed
	}
	var err error
	if output == "json" {
		_, err = c.json(st)
	} else {
		err = c.status(&st)
	}
	switch {
	case err != nil:
		fmt.Fprintf(c.stderr, "chandler-agent: %v\n", err)
		return exitFailed
	case !st.OK():
		return exitFound
	}
	return 0
}

// status prints the table. What came over the network is made harmless.
func (c console) status(st *agent.Status) error {
	text := func(s string) string { return chandler.Printable(s, 512) }
	w := tabwriter.NewWriter(c.stdout, 0, 8, 2, ' ', 0)
	fmt.Fprintf(w, "Agent\t%s, %s\n", text(st.Node), text(st.Version))
	for i, why := range st.Unready {
		fmt.Fprintf(w, "%s\t%s\n", [2]string{"Not ready", ""}[min(i, 1)], text(why))
	}
	switch e := st.Envoy; {
	case !e.Running():
		fmt.Fprintf(w, "Envoy\t%s is not running: %s%s\n", text(e.Version), text(cmp.Or(e.Down, "it is not started yet")), next(e.NextTry))
	case e.Separate:
		fmt.Fprintf(w, "Envoy\t%s, started by somebody else, since %s\n", text(e.Version), e.Since.Format(time.RFC3339))
	case e.Adopted:
		fmt.Fprintf(w, "Envoy\t%s, pid %d, taken over from the agent before at %s\n", text(e.Version), e.PID, e.Since.Format(time.RFC3339))
	default:
		fmt.Fprintf(w, "Envoy\t%s, pid %d, since %s\n", text(e.Version), e.PID, e.Since.Format(time.RFC3339))
	}
	switch k := st.Control; {
	case k.Connected:
		fmt.Fprintf(w, "Control\tconnected to %s since %s\n", text(k.Address), k.Since.Format(time.RFC3339))
	case k.Address == "":
		fmt.Fprintf(w, "Control\tnot connected\n")
	default:
		fmt.Fprintf(w, "Control\tnot connected; %s: %s\n", text(k.Address), text(k.Error))
	}
	for _, u := range st.Upstreams {
		if u.Connected {
			fmt.Fprintf(w, "Envoy's own\tconnected to %s since %s\n", text(u.Name), u.Since.Format(time.RFC3339))
		} else {
			fmt.Fprintf(w, "Envoy's own\tnot connected to %s since %s; %s\n", text(u.Name), u.Since.Format(time.RFC3339), text(cmp.Or(u.Error, "Envoy has not asked for anything yet")))
		}
		for _, why := range []string{u.Kept, u.Held} {
			if why != "" {
				fmt.Fprintf(w, "\t%s\n", text(why))
			}
		}
	}
	fmt.Fprintf(w, "Store\t%s, %s of %s\n", modules(st.Store.Modules), size(st.Store.Bytes), size(st.Store.Max))
	for i, b := range st.Bypassed {
		fmt.Fprintf(w, "%s\t%s/%s (%s) is taken out on this machine since %s: %s\n", [2]string{"BYPASSED", ""}[min(i, 1)],
			text(b.Namespace), text(b.Name), text(b.Kind), b.At.Format(time.RFC3339), text(b.Reason))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if err := c.slots(st, text); err != nil || len(st.Plugins) == 0 {
		return err
	}
	fmt.Fprintln(w, "\nNAMESPACE\tNAME\tKIND\tGENERATION\tSTATE\tINSTEAD\tREASON")
	for _, p := range st.Plugins {
		fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%s\t%s\t%s\n", text(p.Namespace), text(p.Name), text(p.Kind), p.Generation, text(string(p.State)), instead(p), reason(p, text))
	}
	return w.Flush()
}

// slots prints what stands in the listeners.
func (c console) slots(st *agent.Status, text func(string) string) error {
	if len(st.Listeners) == 0 {
		return nil
	}
	w := tabwriter.NewWriter(c.stdout, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "\nLISTENER\tADDRESS\tMODE\tSLOT\tPLUGINS, IN ORDER")
	for _, l := range st.Listeners {
		where := fmt.Sprintf("%s\t%s\t%s", text(l.Name), text(cmp.Or(l.Address, "-")), text(string(l.Mode)))
		empty := true
		for _, s := range l.Slots {
			if len(s.Members) == 0 {
				continue
			}
			var members []string
			for _, m := range s.Members {
				members = append(members, text(m.Namespace+"/"+m.Name)+" "+stands(m))
			}
			slot := string(cmp.Or(s.Phase, "UNSPECIFIED"))
			if s.Type == chandler.Network {
				slot += " (network)"
			}
			fmt.Fprintf(w, "%s\t%s\t%s\n", where, text(slot), strings.Join(members, ", "))
			empty = false
		}
		if empty {
			fmt.Fprintf(w, "%s\t-\t-\n", where)
		}
		for _, why := range l.Warnings {
			fmt.Fprintf(w, "\t\t\t\t%s\n", text(why))
		}
	}
	return w.Flush()
}

// stands tells what stands for a plugin in its slot.
func stands(m agent.MemberStatus) string {
	switch m.StandIn {
	case chandler.StandInDeny:
		return "(denied)"
	case chandler.StandInPass:
		return "(left out)"
	}
	return chandler.Printable(m.Release.Short(), 64)
}

// instead tells what decides requests when it is not what should.
func instead(p agent.PluginStatus) string {
	switch {
	case p.State == chandler.StateInForce:
		return "-"
	case p.InForce != "":
		return "the version before"
	case p.StandIn == chandler.StandInDeny:
		return "denied"
	case p.StandIn == chandler.StandInPass:
		return "left out"
	}
	return "-"
}

func reason(p agent.PluginStatus, text func(string) string) string {
	if p.Reason == "" && p.Message == "" {
		return "-"
	}
	s := text(string(p.Reason))
	if p.Message != "" && s != "" {
		s += ": "
	}
	s += text(p.Message)
	if p.Attempt > 0 {
		s += fmt.Sprintf(" (attempt %d%s)", p.Attempt, next(p.NextTry))
	}
	return s
}

// next tells when something is tried again.
func next(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return fmt.Sprintf(", next try in %s", max(0, time.Until(t)).Round(100*time.Millisecond))
}

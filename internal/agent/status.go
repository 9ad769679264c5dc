package agent

import (
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/remotewasm"
)

// Status is what a running agent says of itself on GET /status.
type Status struct {
	Node    string        `json:"node"` // namespace/name
	Version string        `json:"version"`
	Data    string        `json:"data,omitempty"` // its directory
	Ready   bool          `json:"ready"`
	Unready []string      `json:"unready,omitempty"`
	Envoy   EnvoyStatus   `json:"envoy"`
	Control ControlStatus `json:"control"`
	// Upstreams are the control planes of Envoy's own configuration, which it reaches
	// through the agent.
	Upstreams []UpstreamStatus `json:"upstreams,omitempty"`
	// Modules are those that such a control plane names and the agent brings.
	Modules []remotewasm.Status `json:"modules,omitempty"`
	Store   StoreStatus         `json:"store"`
	Plugins []PluginStatus      `json:"plugins"`
	// Slots: HTTP plugins come and go in slots; false: in the listeners.
	Slots     bool             `json:"slots"`
	Listeners []ListenerStatus `json:"listeners"`
	// Bypassed are the plugins that somebody took out on this machine.
	Bypassed []BypassStatus `json:"bypassed,omitempty"`
}

// OK tells whether everything that concerns this proxy is in force, nothing is taken
// out by hand, and it may get traffic. That the control plane is away harms nothing.
func (s *Status) OK() bool {
	if len(s.Bypassed) > 0 {
		return false
	}
	for _, p := range s.Plugins {
		if p.State != chandler.StateInForce && p.State != chandler.StateUnmatched {
			return false
		}
	}
	return s.Ready
}

// EnvoyStatus tells of the Envoy that the agent runs.
type EnvoyStatus struct {
	Version string `json:"version"`
	// PID is 0 while there is none; then Down says why and NextTry when it is
	// started.
	// Separate: somebody else starts Envoy, and PID stays 0.
	PID      int       `json:"pid,omitzero"`
	Separate bool      `json:"separate,omitempty"`
	Since    time.Time `json:"since,omitzero"`
	Adopted  bool      `json:"adopted,omitempty"` // the agent before had started it
	Down     string    `json:"down,omitempty"`
	NextTry  time.Time `json:"nextTry,omitzero"`
}

// Running tells whether there is an Envoy.
func (e *EnvoyStatus) Running() bool { return e.PID != 0 || !e.Since.IsZero() }

// ControlStatus tells of the connection to the control plane.
type ControlStatus struct {
	Connected bool      `json:"connected"`
	Address   string    `json:"address,omitempty"`
	Since     time.Time `json:"since,omitzero"`
	Error     string    `json:"error,omitempty"`
}

// UpstreamStatus tells of the link to a control plane of Envoy's own configuration.
type UpstreamStatus struct {
	Name string `json:"name"`
	// Connected: all streams are there that Envoy wants; else Error has why one is not.
	Connected bool      `json:"connected"`
	Since     time.Time `json:"since,omitzero"`
	Lost      uint64    `json:"lost"` // streams, since the agent began
	Error     string    `json:"error,omitempty"`
	// Kept is why something that Envoy took would be missing after a restart.
	Kept string `json:"kept,omitempty"`
	// Held names listeners of it that are shut though Envoy may say that it is ready.
	Held string `json:"held,omitempty"`
}

// StoreStatus tells of the modules on disk; sizes are in bytes.
type StoreStatus struct {
	Modules int   `json:"modules"`
	Bytes   int64 `json:"bytes"`
	Max     int64 `json:"max"`
}

// PluginRef names a plugin.
type PluginRef struct {
	Kind      string `json:"kind"`
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
}

// PluginStatus tells of one plugin.
type PluginStatus struct {
	PluginRef
	Generation int64              `json:"generation"`
	State      chandler.State     `json:"state"`
	Release    chandler.ReleaseID `json:"release"`
	InForce    chandler.ReleaseID `json:"inForce,omitempty"`
	StandIn    chandler.StandIn   `json:"standIn,omitempty"`
	Reason     chandler.Code      `json:"reason,omitempty"`
	Message    string             `json:"message,omitempty"`
	Attempt    uint32             `json:"attempt,omitzero"`
	NextTry    time.Time          `json:"nextTry,omitzero"`
	Since      time.Time          `json:"since,omitzero"`
}

// ListenerStatus tells of one listener.
type ListenerStatus struct {
	Name    string        `json:"name"`
	Address string        `json:"address,omitempty"`
	Port    uint32        `json:"port,omitzero"`
	Mode    chandler.Mode `json:"mode"`
	Slots   []SlotStatus  `json:"slots"`
	// Warnings tell what in a listener of Envoy's own control plane runs without plugins,
	// and why; of one without slots, of all of it.
	Warnings []string `json:"warnings,omitempty"`
}

// SlotStatus tells of one slot; its members are in the order in which requests meet
// them, as Envoy acknowledged them.
type SlotStatus struct {
	Name    string              `json:"name"`
	Type    chandler.FilterType `json:"type"`
	Phase   chandler.Phase      `json:"phase"`
	Members []MemberStatus      `json:"members"`
}

// MemberStatus tells what stands for a plugin in a slot: a release or a stand-in.
type MemberStatus struct {
	PluginRef
	Release chandler.ReleaseID `json:"release,omitempty"`
	StandIn chandler.StandIn   `json:"standIn,omitempty"`
}

// BypassStatus tells of one plugin that is taken out on this machine.
type BypassStatus struct {
	PluginRef
	Reason string    `json:"reason"`
	At     time.Time `json:"at"`
}

// listenersOf is facts as they are shown.
func listenersOf(f *chandler.Facts) []ListenerStatus {
	list := make([]ListenerStatus, 0, len(f.Listeners))
	for _, l := range f.Listeners {
		ls := ListenerStatus{Name: l.Name, Address: l.Address, Port: l.Port, Mode: l.Mode, Slots: []SlotStatus{}}
		for _, s := range l.Slots {
			ss := SlotStatus{Name: s.Name, Type: s.Type, Phase: s.Phase, Members: []MemberStatus{}}
			for _, m := range s.Members {
				ss.Members = append(ss.Members, MemberStatus{PluginRef(m.Key), m.Release, m.StandIn})
			}
			ls.Slots = append(ls.Slots, ss)
		}
		list = append(list, ls)
	}
	return list
}

// status is safe to call from any goroutine.
func (a *Agent) status() *Status {
	st := &Status{Node: a.cfg.Node.Namespace + "/" + a.cfg.Node.Name, Version: a.cfg.Node.AgentVersion, Data: a.cfg.Data, Unready: a.unready(), Plugins: []PluginStatus{}, Listeners: []ListenerStatus{}}
	st.Ready = len(st.Unready) == 0
	st.Store.Modules, st.Store.Bytes = a.store.Stats()
	st.Store.Max = a.store.MaxBytes
	if c := a.control.Load(); c != nil {
		st.Control = *c
	}
	st.Upstreams = a.upstreamStatus()
	if a.remote != nil {
		st.Modules = a.remote.status()
	}
	for _, u := range a.upstreams {
		st.Modules = append(st.Modules, u.wasm.Status()...)
	}
	v := a.view.Load()
	if v == nil {
		return st
	}
	st.Envoy, st.Slots, st.Listeners = v.envoy, v.facts.Slots, listenersOf(v.facts)
	if a.relayed != nil {
		warnings := a.relayed.warnings()
		for i := range st.Listeners {
			st.Listeners[i].Warnings = warnings[st.Listeners[i].Name]
		}
	}
	if why := a.absent.Load(); st.Envoy.Separate && !st.Envoy.Running() && why != nil {
		st.Envoy.Down = *why
	}
	for _, b := range v.facts.Bypassed {
		st.Bypassed = append(st.Bypassed, BypassStatus{PluginRef(b.Key), b.Reason, b.At})
	}
	for _, p := range v.report {
		st.Plugins = append(st.Plugins, PluginStatus{
			PluginRef: PluginRef(p.Key), Generation: p.Generation, State: p.State, Release: p.Release, InForce: p.InForce,
			StandIn: p.StandIn, Reason: p.Reason, Message: p.Message, Attempt: p.Attempt, NextTry: p.NextTry, Since: p.Since,
		})
	}
	return st
}

// upstreamStatus is safe to call from any goroutine.
func (a *Agent) upstreamStatus() (list []UpstreamStatus) {
	for _, u := range a.upstreams {
		st := u.link.status(u.name)
		st.Held = u.held.String()
		if p := u.store.Problem(); p != nil {
			st.Kept = p.Error()
		}
		list = append(list, st)
	}
	return list
}

// envoyStatus is for the goroutine that owns the state.
func (a *Agent) envoyStatus() EnvoyStatus {
	st := EnvoyStatus{Version: a.binary.Version, Adopted: a.adopted && !a.cfg.NoChild, Separate: a.cfg.NoChild}
	if down := a.state.down; !a.running() {
		st.Down, st.NextTry = down.Message, down.Next
	} else {
		st.Since = a.begun
	}
	if a.process != nil {
		st.PID = a.process.proc.Pid
	}
	return st
}

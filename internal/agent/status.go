package agent

import (
	"time"

	"chandler.dev/chandler"
)

// Status is what a running agent says of itself on GET /status.
type Status struct {
	Node    string         `json:"node"` // namespace/name
	Version string         `json:"version"`
	Ready   bool           `json:"ready"`
	Unready []string       `json:"unready,omitempty"`
	Envoy   EnvoyStatus    `json:"envoy"`
	Control ControlStatus  `json:"control"`
	Store   StoreStatus    `json:"store"`
	Plugins []PluginStatus `json:"plugins"`
}

// OK tells whether everything that concerns this proxy is in force and it may get
// traffic. That the control plane is away harms nothing.
func (s *Status) OK() bool {
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
	PID     int       `json:"pid,omitzero"`
	Since   time.Time `json:"since,omitzero"`
	Adopted bool      `json:"adopted,omitempty"` // the agent before had started it
	Down    string    `json:"down,omitempty"`
	NextTry time.Time `json:"nextTry,omitzero"`
}

// ControlStatus tells of the connection to the control plane.
type ControlStatus struct {
	Connected bool      `json:"connected"`
	Address   string    `json:"address,omitempty"`
	Since     time.Time `json:"since,omitzero"`
	Error     string    `json:"error,omitempty"`
}

// StoreStatus tells of the modules on disk; sizes are in bytes.
type StoreStatus struct {
	Modules int   `json:"modules"`
	Bytes   int64 `json:"bytes"`
	Max     int64 `json:"max"`
}

// PluginStatus tells of one plugin.
type PluginStatus struct {
	Kind       string             `json:"kind"`
	Namespace  string             `json:"namespace"`
	Name       string             `json:"name"`
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

// status is safe to call from any goroutine.
func (a *Agent) status() *Status {
	st := &Status{Node: a.cfg.Node.Namespace + "/" + a.cfg.Node.Name, Version: a.cfg.Node.AgentVersion, Unready: a.unready(), Plugins: []PluginStatus{}}
	st.Ready = len(st.Unready) == 0
	st.Store.Modules, st.Store.Bytes = a.store.Stats()
	st.Store.Max = a.store.MaxBytes
	if c := a.control.Load(); c != nil {
		st.Control = *c
	}
	v := a.view.Load()
	if v == nil {
		return st
	}
	st.Envoy = v.envoy
	for _, p := range v.report {
		st.Plugins = append(st.Plugins, PluginStatus{
			Kind: p.Kind, Namespace: p.Namespace, Name: p.Name, Generation: p.Generation, State: p.State, Release: p.Release, InForce: p.InForce,
			StandIn: p.StandIn, Reason: p.Reason, Message: p.Message, Attempt: p.Attempt, NextTry: p.NextTry, Since: p.Since,
		})
	}
	return st
}

// envoyStatus is for the goroutine that owns the state.
func (a *Agent) envoyStatus() EnvoyStatus {
	st := EnvoyStatus{Version: a.binary.Version, Adopted: a.adopted}
	if down := a.state.down; a.process == nil {
		st.Down, st.NextTry = down.Message, down.Next
	} else {
		st.PID, st.Since = a.process.proc.Pid, a.begun
	}
	return st
}

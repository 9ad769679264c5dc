package main

import "time"

// Inputs are what the model is told of the world: nothing of it follows from code.
type Inputs struct {
	// Handshake is what the control plane's processor does for an agent that connects,
	// with TLS; Message for one message, sent or taken in; Chunk for a piece of a module.
	Handshake, Message, Chunk time.Duration
	// Cores are those of one replica.
	Cores int

	// Latency is one way within a cluster, and up to as much again by chance; Far from a
	// cluster to the registry and to other clusters.
	Latency, Far time.Duration
	// Bandwidth is that of a replica's and of a node's link, RegistryBandwidth that of the
	// registry's, in bytes a second. Framing is what gRPC, HTTP/2 and TLS add to a message.
	Bandwidth, RegistryBandwidth int64
	Framing                      int64

	// Watch is until a replica hears of what was applied or recorded, and Record what a
	// record takes to be written.
	Watch, Record time.Duration
	// Away is how long no control plane serves that is restarted.
	Away time.Duration

	// Module is the size of the new module, and Sent that of what a control plane sends of it
	// to an agent; Load what an Envoy takes to compile it, and
	// Configure to take another configuration of a module that it has.
	Module, Sent    int64
	Load, Configure time.Duration
	// Lookups are requests to the registry for which bytes a reference means, and Pulls
	// those of a fetch with that known. Reads and Piece are how many modules a control plane
	// sends at a time, and in what pieces.
	Lookups, Pulls int64
	Reads          int
	Piece          int64
	// Said is how many reports an agent made on its stream before, which decides of the next
	// ones which is answered; 0: one to four, by chance.
	Said uint64
	// PerNode is how many proxies share a machine, and its OCI mirror if it has one.
	PerNode int
}

// Measured are the inputs of the published figures. A figure of another machine is another
// simulation: docs/scaling.md says how to run it.
func Measured() Inputs {
	return Inputs{
		// make bench-fleet, 1,000 agents with TLS: "all connected, CPU" 1.7 s, which has the
		// first five messages of each in it, and "a change, CPU with all reports and status"
		// 0.12 s, which is three to four messages an agent, and the status.
		Handshake: 1600 * time.Microsecond,
		Message:   30 * time.Microsecond,
		// Estimated, not measured: 77 KB encrypted and written at 1 GB a second.
		Chunk: 77 * time.Microsecond,
		Cores: 2,

		// Chosen: a cluster's network, and a registry in the same region. 10 Gbit/s each.
		Latency: 250 * time.Microsecond, Far: 10 * time.Millisecond,
		Bandwidth: 1_250_000_000, RegistryBandwidth: 1_250_000_000,
		// Five bytes of gRPC, nine of HTTP/2, 22 of TLS 1.3.
		Framing: 36,

		// Chosen: an API server that is not busy, and a pod that is there again.
		Watch: 20 * time.Millisecond, Record: 10 * time.Millisecond, Away: 5 * time.Second,

		// DESIGN's targets: the Go module of 2.6 MB, which Envoy compiles in 1.3 to 2 s, and
		// 12 to 19 ms for a configuration. Of the sample 727,133 bytes are sent of 2,447,079.
		Module: 2_600_000, Sent: 772_000, Load: 1700 * time.Millisecond, Configure: 16 * time.Millisecond,
		// As a registry counts them; a test holds them against a real one.
		Lookups: 1, Pulls: 2,
		// internal/control: maxReads, and blockSize as the sample is compressed.
		Reads: 256, Piece: 77_200,
		PerNode: 20, // chosen
	}
}

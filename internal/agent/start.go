package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/attach"
	"chandler.dev/chandler/internal/durable"
)

// derive makes the bootstrap that Envoy will run: the user's, with its listeners
// moved to a file and slots put into them.
func (a *Agent) derive(sockets string) error {
	a.socket = filepath.Join(sockets, "ads.sock")
	var file []byte
	if a.envoyArgs.configPath != "" {
		var err error
		if file, err = os.ReadFile(a.envoyArgs.configPath); err != nil {
			return fmt.Errorf("envoy configuration: %w", err)
		}
	}
	config, err := attach.MergeConfig(a.envoyArgs.configPath, file, a.envoyArgs.configYAML)
	if err != nil {
		return fmt.Errorf("envoy configuration: %w", err)
	}
	a.derived, err = attach.Derive(config, a.deriveConfig(sockets))
	if err != nil {
		return fmt.Errorf("envoy configuration: %w", err)
	}
	for _, warning := range a.derived.Warnings {
		a.log.Warn("envoy configuration", "warning", warning)
	}
	at, err := a.adminAddress()
	if err != nil {
		return err
	}
	a.envoyAdmin = newAdminClient(at)
	return a.openUpstreams()
}

// adminAddress tells where Envoy's admin interface is. When Envoy chooses its port it
// writes it into a file: where the user wants that, else into one of the agent's.
func (a *Agent) adminAddress() (adminAddress, error) {
	if a.cfg.EnvoyAdmin != "" {
		return parseAdminAddress(a.cfg.EnvoyAdmin)
	}
	at := adminAddress{network: a.derived.Admin.Network, address: a.derived.Admin.Address}
	if _, port, err := net.SplitHostPort(at.address); at.network != "tcp" || err != nil || port != "0" {
		return at, nil
	}
	if a.envoyArgs.adminAddressPath == "" {
		if a.cfg.NoChild {
			return at, errors.New("envoy configuration: nobody knows which port Envoy will choose for its admin interface; give it a port, or --admin-address-path a file that both see, in the arguments of both, or the agent --envoy-admin")
		}
		a.envoyArgs.adminAddressPath = filepath.Join(a.envoyDir(), "admin-address")
	}
	at.file = a.envoyArgs.adminAddressPath
	return at, nil
}

// deriveConfig leaves the node's id and cluster out where the command line
// gives them.
func (a *Agent) deriveConfig(sockets string) attach.DeriveConfig {
	dc := attach.DeriveConfig{
		ADSSocket:      a.socket,
		UpstreamSocket: filepath.Join(sockets, "xds.sock"),
		AdminSocket:    filepath.Join(sockets, "admin.sock"),
		ListenersFile:  filepath.Join(a.envoyDir(), listenersName),
		NoSharedSlots:  !a.binary.Slots,
		Waypoint:       a.cfg.Node.Take(nil).Waypoint(),
	}
	if a.cfg.NoChild {
		dc.AdminSocket = filepath.Join(a.adminDir(), "admin.sock")
		if a.group != noGroup {
			dc.AdminMode = 0o660
		}
	}
	if a.envoyArgs.serviceNode == "" {
		dc.NodeID = a.cfg.Node.ID()
	}
	if a.envoyArgs.serviceCluster == "" {
		dc.Cluster = a.cfg.Node.Namespace
	}
	return dc
}

// bootstrapName is that of the file that Envoy is started with, without what its
// syntax adds.
const bootstrapName = "bootstrap"

// listenersName is that of the file that it reads its listeners from.
const listenersName = "listeners"

func (a *Agent) bootstrapPath() string {
	return filepath.Join(a.envoyDir(), bootstrapName+a.derived.Extension)
}

// openEnvoyLog follows Envoy's log from where it ends now.
func (a *Agent) openEnvoyLog() *envoyLog {
	if st, err := os.Stat(a.envoyArgs.logPath); err == nil && !st.Mode().IsRegular() {
		a.log.Warn("the agent must be able to read Envoy's log again, and copies it to its own output", "instead_of", a.envoyArgs.logPath)
		a.envoyArgs.logPath = ""
	}
	l := &envoyLog{path: a.envoyArgs.logPath, out: a.cfg.EnvoyLog}
	if l.path == "" && !a.cfg.NoChild {
		l.path, l.own = filepath.Join(a.envoyDir(), "envoy.log"), true
	}
	if st, err := os.Stat(l.path); err == nil {
		l.offset = st.Size()
	}
	return l
}

// configDigest is the same for agents that would run the same Envoy in the same
// way: of what they were given and derived, and of the user's arguments.
func (a *Agent) configDigest() string {
	parts := [][]byte{a.derived.Bootstrap, a.derived.Listeners}
	for _, arg := range append([]string{a.envoyArgs.logPath, a.envoyArgs.serviceNode, a.envoyArgs.serviceCluster}, a.envoyArgs.rest...) {
		parts = append(parts, []byte(arg))
	}
	if path := a.envoyArgs.adminAddressPath; path != "" {
		parts = append(parts, []byte(path))
	}
	return string(chandler.Digest[string](bytes.Join(parts, []byte{0})))
}

// leftOver takes the Envoy that the agent before left behind, if it is of the same
// program and configuration and there is a last good set to go on with, and gives
// the slots of one plugin in its listeners. Every other one has ended when it
// returns.
func (a *Agent) leftOver(config string) (listed []attach.Slot) {
	record, process := leftBehind(a.envoyDir())
	for _, stray := range strays(a.envoyDir(), process) {
		// It would go on to share the ports, with the plugins of its time for ever.
		a.log.Warn("an Envoy that the agent before did not write down is stopped first", "pid", stray.proc.Pid)
		drain := a.cfg.Drain
		if process != nil {
			drain = 0 // the admin socket is that of the other one
		}
		stray.stop(a.envoyAdmin, drain)
	}
	if process == nil {
		return nil
	}
	listed, err := a.listedSlots()
	// One that is adopted is no child, which the kernel would kill with its parent.
	if err == nil && !a.cfg.DieTogether && a.restored && record.Binary == a.binary.Digest && record.Config == config {
		a.process, a.adopted = process, true
		a.log.Info("envoy adopted", "version", a.binary.Version, "pid", record.PID)
		return listed
	}
	a.log.Info("an Envoy that cannot be adopted is stopped first", "pid", record.PID)
	process.stop(record.admin(), a.cfg.Drain)
	return nil
}

// takeEnvoy gets an Envoy, a new one if none was left to go on with, whose
// listeners are those that the last good set needs. The slots are served from when
// no other Envoy runs: what that one asked for would be taken for this one's.
func (a *Agent) takeEnvoy(ctx context.Context, g *errgroup.Group) error {
	config := a.configDigest()
	listed := a.leftOver(config)
	if err := a.serveSlots(ctx, g, !a.adopted); err != nil {
		return err
	}
	a.newState(ctx, listed, a.adopted)
	if a.adopted {
		a.step(ctx, message{event: a.lastGood})
		return nil
	}
	return a.newEnvoy(ctx, config)
}

// newState begins with an Envoy that runs, with these slots of one plugin in its
// listeners, or with none.
func (a *Agent) newState(ctx context.Context, listed []attach.Slot, running bool) {
	if a.relayed != nil {
		a.relayed.relist(listed, false) // the first that pass have them, too
	}
	a.state = NewState(Settings{
		Slots: a.derived.Slots, Sites: a.derived.Sites, Listed: listed, Running: running,
		Shut: !running && len(a.derived.Slots) == 0 && !a.derived.UpstreamListeners, Upstream: a.derived.UpstreamListeners,
		OwnModules: a.derived.UpstreamListeners || bytes.Contains(a.derived.Listeners, []byte(".wasm.")) || bytes.Contains(a.derived.Bootstrap, []byte(".wasm.")),
		HostEnv:    a.cfg.HostEnv, Features: a.cfg.Node.Features, Jitter: rand.Float64,
	})
	a.bypasses = bypassDir{dir: a.cfg.Data, log: a.log}
	if orders, changed := a.bypasses.look(); changed {
		a.step(ctx, message{event: Bypassed{Plugins: orders}})
	}
}

// validate asks Envoy about a configuration.
func (a *Agent) validate(ctx context.Context, args []string) error {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	out, err := envoyCommand(ctx, a.binary.path, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("envoy refuses the configuration (%w):\n%s", err, chandler.Printable(string(out[max(0, len(out)-reasonLimit):]), reasonLimit))
	}
	return nil
}

// newEnvoy makes what the first Envoy begins with, and starts it.
func (a *Agent) newEnvoy(ctx context.Context, config string) error {
	if len(a.derived.Slots) == 0 && !a.derived.UpstreamListeners { // it begins without listeners, and would not tell what is wrong with them
		if err := a.validate(ctx, a.envoyArgs.validateLine()); err != nil {
			return err
		}
	}
	a.listeners = a.firstListeners()
	if a.restored {
		a.step(ctx, message{event: a.lastGood})
	}
	return a.launch(config)
}

// launch writes what an Envoy begins with, and starts it.
func (a *Agent) launch(config string) error {
	if err := a.writeListeners(a.listeners); err != nil {
		return err
	}
	if err := durable.Write(a.shared(), a.bootstrapPath(), a.derived.Bootstrap); err != nil {
		return err
	}
	if file := a.envoyAdmin.file; file != "" {
		_ = os.Remove(file) // the address in it was that of another Envoy
	}
	started, err := startEnvoy(a.binary, a.envoyArgs.commandLine(a.bootstrapPath(), a.drainSeconds(), len(a.derived.ControlPlanes) == 0), a.envoyLog.path, a.cfg.DieTogether)
	if err != nil {
		return err
	}
	a.process = started
	pid := started.proc.Pid
	a.log.Info("envoy started", "version", a.binary.Version, "pid", pid)
	begun, ok := processStart(pid)
	if !ok {
		return nil // it has ended, or this system cannot tell: nothing to adopt later
	}
	if err := saveProcess(a.envoyDir(), processRecord{
		PID: pid, Started: begun, Binary: a.binary.Digest, Config: config,
		AdminNetwork: a.derived.Admin.Network, AdminAddress: a.derived.Admin.Address, AdminFile: a.envoyAdmin.file,
	}); err != nil {
		a.log.Warn("the next agent cannot adopt this Envoy", "error", err)
	}
	return nil
}

func (a *Agent) drainSeconds() string {
	if a.cfg.Drain < time.Millisecond {
		return ""
	}
	return strconv.Itoa(max(1, int(a.cfg.Drain/time.Second)))
}

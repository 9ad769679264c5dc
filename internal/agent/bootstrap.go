package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/attach"
	"chandler.dev/chandler/internal/durable"
)

// writtenBootstrap tells the agent for which Envoy a bootstrap was written, and what.
type writtenBootstrap struct {
	Version   string `json:"version"`
	Slots     bool   `json:"slots"`
	Bootstrap string `json:"bootstrap"` // its digest
}

func (a *Agent) writtenPath() string { return filepath.Join(a.envoyDir(), "separate.json") }

// WriteBootstrap writes the bootstrap with which somebody else starts an Envoy beside
// an agent of these settings: to out, and what it leads to into cfg.Data. version is that
// of the Envoy; empty: the binary cfg.Envoy is asked, which then also judges what was
// written. It may be done again while the agent runs.
func WriteBootstrap(ctx context.Context, cfg Config, version, out string) error {
	cfg.NoChild = true
	a, err := New(cfg)
	if err != nil {
		return err
	}
	if err := a.shareDirectory(); err != nil {
		return err
	}
	if a.binary, err = a.expectedEnvoy(ctx, version); err != nil {
		return err
	}
	sockets, err := a.sockets()
	if err != nil {
		return err
	}
	if err := a.derive(sockets); err != nil {
		return err
	}
	defer a.closeUpstreams()
	if ext := filepath.Ext(out); ext != a.derived.Extension {
		return fmt.Errorf("the bootstrap is written as %s, and Envoy goes by the name of the file: %s cannot end with %s", a.derived.Extension, chandler.Quote(out), chandler.Quote(ext))
	}
	if err := a.prepareListeners(); err != nil {
		return err
	}
	if a.binary.path != "" {
		if err := a.judge(ctx); err != nil {
			return err
		}
	}
	note, err := json.Marshal(writtenBootstrap{a.binary.Version, a.binary.Slots, a.bootstrapDigest()})
	if err != nil {
		return err
	}
	return errors.Join(
		durable.Write(a.shared(), out, a.derived.Bootstrap),
		durable.Write(durable.OS(), a.writtenPath(), note))
}

func (a *Agent) bootstrapDigest() string {
	return string(chandler.Digest[string](a.derived.Bootstrap))
}

// expectedEnvoy is what is known beforehand of the Envoy that will be started.
func (a *Agent) expectedEnvoy(ctx context.Context, version string) (envoyBinary, error) {
	if version == "" {
		bin, err := probeEnvoy(ctx, a.cfg.Envoy, filepath.Join(a.envoyDir(), "probe.json"))
		if err != nil {
			err = fmt.Errorf("%w; or tell with --envoy-version which Envoy it is for", err)
		}
		return bin, err
	}
	if !fullVersion.MatchString(version) {
		return envoyBinary{}, fmt.Errorf("%s is no version of Envoy, such as 1.40.0", chandler.Quote(version))
	}
	return envoyBinary{Version: version, Slots: hasSlots(version)}, nil
}

// writtenFor gives the Envoy for which a bootstrap was written into this directory.
func (a *Agent) writtenFor() (w writtenBootstrap, err error) {
	b, err := durable.Read(durable.OS(), a.writtenPath(), 1<<16)
	if err == nil {
		err = json.Unmarshal(b, &w)
	}
	if err == nil && !fullVersion.MatchString(w.Version) {
		err = fmt.Errorf("%s names no version of Envoy", a.writtenPath())
	}
	if err != nil {
		err = fmt.Errorf("no bootstrap was written for this agent's Envoy (%w); run chandler-agent bootstrap first, with the same --data and Envoy arguments", err)
	}
	return w, err
}

// sockets is the folder that both sides know, so there is no shorter one in its place.
func (a *Agent) sockets() (string, error) {
	dir, err := filepath.Abs(a.envoyDir())
	if err == nil && len(dir) > longestSocketDir {
		err = fmt.Errorf("the sockets cannot have a path as long as that of %s; use a --data whose path is shorter", chandler.Quote(dir))
	}
	return dir, err
}

// prepareListeners writes the listeners that an Envoy begins with, unless an agent runs,
// which sees to them itself.
func (a *Agent) prepareListeners() error {
	lock, err := durable.Lock(a.cfg.Data)
	if p := (*chandler.Problem)(nil); errors.As(err, &p) && p.Code == chandler.CodeCacheLocked {
		return nil
	}
	if err != nil {
		return err
	}
	defer lock.Unlock()
	file := a.firstListeners()
	now, err := a.readListeners()
	if err == nil {
		var own []attach.Slot
		if own, err = attach.OwnSlots(now); err == nil && len(own) > 0 {
			file.text, file.version, file.err = a.derived.ListenersWith(own)
		}
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		a.log.Warn("the listeners from before cannot be read, and are written anew", "error", err)
	}
	if file.err == nil && bytes.Equal(file.text, now) {
		return nil
	}
	return a.writeListeners(file)
}

// judge asks Envoy about the user's configuration and about what was made of it.
func (a *Agent) judge(ctx context.Context) error {
	if err := a.validate(ctx, a.envoyArgs.validateLine()); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "chandler-bootstrap-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, bootstrapName+a.derived.Extension)
	if err := os.WriteFile(file, a.derived.Bootstrap, 0o600); err != nil {
		return err
	}
	of := a.envoyArgs
	of.configPath, of.configYAML, of.logPath = file, "", ""
	return a.validate(ctx, of.validateLine())
}

// describeSeparate tells which Envoy somebody else starts, and with what.
func (a *Agent) describeSeparate(ctx context.Context) error {
	written, err := a.writtenFor()
	if err != nil {
		return err
	}
	a.binary = envoyBinary{Version: written.Version, Slots: written.Slots}
	sockets, err := a.sockets()
	if err != nil {
		return err
	}
	if err := a.derive(sockets); err != nil {
		return err
	}
	if a.bootstrapDigest() != written.Bootstrap {
		a.log.Warn("the configuration is not the one that the bootstrap was written for: of it only the listeners count until chandler-agent bootstrap was run again, and Envoy started anew")
	}
	if s, err := a.sight(ctx); err == nil {
		a.binary.Version = s.version
	}
	if hasSlots(a.binary.Version) != a.binary.Slots {
		a.log.Error("this Envoy is not of the kind that the bootstrap was written for; run chandler-agent bootstrap again, and start the agent and Envoy anew", "version", a.binary.Version, "written_for", written.Version)
	}
	return nil
}

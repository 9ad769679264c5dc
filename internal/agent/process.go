package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"chandler.dev/chandler/internal/durable"
)

// envoyProcess is a running Envoy, started by this agent or by the one before.
type envoyProcess struct {
	proc *os.Process
	done chan struct{} // closed when it has ended
	err  error         // valid then
}

// startEnvoy runs Envoy in a process group of its own, so that a terminal's
// interrupt reaches the agent alone, which then drains.
func startEnvoy(bin envoyBinary, args []string, logPath string, dieTogether bool) (*envoyProcess, error) {
	stderr, err := os.OpenFile(logPath, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer stderr.Close()
	cmd := envoyCommand(context.Background(), bin.path, args...)
	cmd.Stdout = os.Stdout
	cmd.Stderr = stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if dieTogether {
		killWithThread(cmd.SysProcAttr)
	}
	p := &envoyProcess{done: make(chan struct{})}
	started := make(chan error)
	go func() {
		// For the kernel Envoy's parent is the thread that started it: that one is this
		// goroutine's own, and lives until Envoy has ended.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		p.proc = cmd.Process
		started <- err
		if err == nil {
			p.err = cmd.Wait()
			close(p.done)
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start Envoy: %w", err)
	}
	return p, nil
}

// exitCode is Envoy's own, or 128 and the signal as shells count.
func (p *envoyProcess) exitCode() int {
	var exit *exec.ExitError
	if errors.As(p.err, &exit) {
		if ws, ok := exit.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
			return 128 + int(ws.Signal())
		}
		return exit.ExitCode()
	}
	if p.err != nil {
		return 1
	}
	return 0
}

// stop lets Envoy finish what it is serving, for at most drain, and ends it, which
// takes killPatience more at most. For half of the time it still takes new
// connections and tells those that are there to go elsewhere; then its listeners
// close, so that no request comes in as it ends.
func (p *envoyProcess) stop(admin *adminClient, drain time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), drain)
	defer cancel()
	if _, err := admin.post(ctx, "/drain_listeners?graceful&skip_exit"); err == nil {
		half, cancelHalf := context.WithTimeout(ctx, drain/2)
		p.awaitIdle(half, admin)
		cancelHalf()
		if _, err := admin.post(ctx, "/drain_listeners"); err == nil {
			p.awaitIdle(ctx, admin)
		}
	}
	_ = p.proc.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(killPatience):
		_ = p.proc.Kill()
		<-p.done
	}
}

// killPatience is how long Envoy may take to end when it is told to.
const killPatience = 5 * time.Second

// awaitIdle waits until no connection is open on the listeners.
func (p *envoyProcess) awaitIdle(ctx context.Context, admin *adminClient) {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		active, err := admin.activeConnections(ctx)
		if err == nil && active == 0 {
			return
		}
		select {
		case <-p.done:
			return
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// processRecord tells the next agent which Envoy this one left behind. A process
// is the same if number, start time and boot are.
type processRecord struct {
	PID     int    `json:"pid"`
	Started string `json:"started"`
	// Binary is the digest of the program, and Config that of the bootstrap and
	// the listeners it runs.
	Binary       string `json:"binary"`
	Config       string `json:"config"`
	AdminNetwork string `json:"adminNetwork"`
	AdminAddress string `json:"adminAddress"`
	// AdminFile has the address in it when it is not known beforehand.
	AdminFile string `json:"adminFile,omitempty"`
}

// admin speaks to that Envoy.
func (r *processRecord) admin() *adminClient {
	return newAdminClient(adminAddress{network: r.AdminNetwork, address: r.AdminAddress, file: r.AdminFile})
}

func recordPath(dir string) string { return filepath.Join(dir, "process.json") }

func saveProcess(dir string, r processRecord) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return durable.Write(durable.OS(), recordPath(dir), b)
}

// leftBehind gives the Envoy that the agent before left running; nil when there
// is none. What a reboot or a reused number left is none.
func leftBehind(dir string) (*processRecord, *envoyProcess) {
	b, err := os.ReadFile(recordPath(dir))
	if err != nil {
		return nil, nil
	}
	var r processRecord
	if err := json.Unmarshal(b, &r); err != nil || r.PID <= 0 {
		return nil, nil
	}
	if started, ok := processStart(r.PID); !ok || started != r.Started {
		return nil, nil
	}
	proc, err := os.FindProcess(r.PID)
	if err != nil {
		return nil, nil
	}
	p := &envoyProcess{proc: proc, done: make(chan struct{}), err: errNotOurChild}
	go p.watch(r)
	return &r, p
}

// strays gives the Envoys that an agent of this directory started and did not live
// to write down; known is the one that is. They are told by their command line,
// which begins with our bootstrap (see commandLine).
func strays(dir string, known *envoyProcess) []*envoyProcess {
	own, err := filepath.Abs(filepath.Join(dir, bootstrapName))
	if err != nil {
		return nil
	}
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline") // none where there is no such thing
	if err != nil {
		return nil
	}
	var found []*envoyProcess
	for _, line := range lines {
		b, err := os.ReadFile(line)
		args := strings.Split(string(b), "\x00")
		if err != nil || len(args) < 3 || args[1] != "-c" || !strings.HasPrefix(filepath.Base(args[2]), bootstrapName) {
			continue
		}
		path := args[2]
		if !filepath.IsAbs(path) {
			cwd, err := os.Readlink(filepath.Join(filepath.Dir(line), "cwd"))
			if err != nil {
				continue
			}
			path = filepath.Join(cwd, path)
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(line)))
		if err != nil || strings.TrimSuffix(path, filepath.Ext(path)) != own || known != nil && known.proc.Pid == pid || !isHere(pid, dir) {
			continue
		}
		started, ok := processStart(pid)
		proc, err := os.FindProcess(pid)
		if !ok || err != nil {
			continue // it has ended
		}
		p := &envoyProcess{proc: proc, done: make(chan struct{}), err: errNotOurChild}
		go p.watch(processRecord{PID: pid, Started: started})
		found = append(found, p)
	}
	return found
}

// isHere tells whether a process means the same directory by a path as we do. In a
// container whose processes we see it may have one of its own there. Where the kernel does
// not let us look, as with a program that has capabilities by its file, it is taken for ours.
func isHere(pid int, dir string) bool {
	dir, err := filepath.Abs(dir)
	if err == nil {
		dir, err = filepath.EvalSymlinks(dir)
	}
	if err != nil {
		return false
	}
	ours, err := os.Stat(dir)
	if err != nil {
		return false
	}
	theirs, err := os.Stat(filepath.Join(fmt.Sprintf("/proc/%d/root", pid), dir))
	return errors.Is(err, fs.ErrPermission) || err == nil && os.SameFile(ours, theirs)
}

// errNotOurChild stands for the exit code of a process whose parent is gone.
var errNotOurChild = errors.New("it was started by another agent, so its exit code is not known")

// watch closes done when a process that is no child of ours has ended. It ends
// with that process, or with this one.
func (p *envoyProcess) watch(r processRecord) {
	defer close(p.done)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for range tick.C {
		if started, ok := processStart(r.PID); !ok || started != r.Started {
			return
		}
	}
}

// processStart gives boot and start time of a process that runs; false where
// that cannot be told, or when it does not.
func processStart(pid int) (string, bool) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", false
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", false
	}
	// The name, in parentheses, may hold anything; state is the first field behind
	// it and the start time the twentieth.
	_, rest, ok := strings.Cut(string(stat), ") ")
	fields := strings.Fields(rest)
	if !ok || len(fields) < 20 || fields[0] == "Z" || fields[0] == "X" {
		return "", false
	}
	return strings.TrimSpace(string(boot)) + "/" + fields[19], true
}

// longestSocketDir leaves room for the sockets' names.
const longestSocketDir = 80

// socketDir gives the directory for Unix sockets whose path is short enough for
// the kernel (108 bytes): dir itself, or a private one under the temporary
// directory. It is the same at every start, so that an Envoy left behind finds
// its agent again.
func socketDir(dir string) (string, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	if len(abs) <= longestSocketDir {
		return abs, nil
	}
	short := filepath.Join(os.TempDir(), "chandler-"+digest(abs))
	if err := os.Mkdir(short, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return "", err
	}
	st, err := os.Lstat(short)
	if err != nil {
		return "", err
	}
	if owner, ok := st.Sys().(*syscall.Stat_t); !ok || !st.IsDir() || st.Mode().Perm() != 0o700 || int(owner.Uid) != os.Getuid() {
		return "", fmt.Errorf("the directory %s for sockets belongs to somebody else; use a --data whose path is shorter", short)
	}
	return short, nil
}

//go:build pages

package pages_test

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"chandler.dev/chandler/internal/testenv/pages"
)

var (
	ownMachine = flag.String("own-machine", "", "a folder for what is written; for the test itself")
	asRoot     = flag.Bool("as-root", true, "whoever runs the test is root; for the test itself")
)

// alone runs a test on a machine that is as good as its own: with a network of its own,
// which has 127.0.0.1 and 10.0.0.1, and with folders that nobody else sees change. So the
// ports and paths of the pages are theirs. For that the test binary starts itself again.
func alone(t *testing.T, test func(t *testing.T)) {
	t.Helper()
	if *ownMachine != "" {
		test(t)
		return
	}
	t.Parallel()
	runtime.LockOSThread() // with the thread the child would be killed
	defer runtime.UnlockOSThread()
	args := []string{"-own-machine", t.TempDir(), "-test.v", "-test.run", "^" + t.Name() + "$"}
	if deadline, ok := t.Deadline(); ok {
		args = append(args, "-test.timeout", (time.Until(deadline) - 15*time.Second).String())
	}
	again := exec.CommandContext(t.Context(), os.Args[0], args...)
	again.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	if os.Getuid() != 0 {
		again.Args = append(again.Args, "-as-root=false")
		again.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		again.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		again.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	out, err := again.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Logf("%s", out)
}

// TestMain makes the machine before anything else, as folders that are open already would
// stay what they are.
func TestMain(m *testing.M) {
	flag.Parse()
	if *ownMachine != "" {
		if err := makeMachine(*ownMachine); err != nil {
			fmt.Fprintf(os.Stderr, "a machine of its own: %v\n", err)
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

// makeMachine lays folders over those of this machine, with what is written kept in
// memory, and gives the loopback interface its addresses.
func makeMachine(scratch string) error {
	root, err := pages.Root()
	if err != nil {
		return err
	}
	kept, err := goFolders()
	if err != nil {
		return err
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", scratch, "tmpfs", 0, ""); err != nil {
		return err
	}
	for i, dir := range []string{"/etc", "/opt", "/usr/local", "/var/lib", root} {
		if err := lay(dir, filepath.Join(scratch, fmt.Sprint(i))); err != nil {
			return fmt.Errorf("%s: %w", dir, err)
		}
	}
	if err := unix.Mount("tmpfs", "/run", "tmpfs", 0, ""); err != nil {
		return err
	}
	home := filepath.Join(scratch, "home")
	if err := os.Mkdir(home, 0o755); err != nil {
		return err
	}
	for _, pair := range append(kept, "HOME="+home, "XDG_STATE_HOME=", "XDG_CACHE_HOME=", "CHANDLER_SERVER=", "CI=") {
		name, value, _ := strings.Cut(pair, "=")
		if err := os.Setenv(name, value); err != nil {
			return err
		}
	}
	here, err := os.Getwd()
	if err == nil {
		err = os.Chdir(here) // into what lies over it now
	}
	if err != nil {
		return err
	}
	return loopback()
}

// lay has what is written to a folder go elsewhere.
func lay(dir, scratch string) error {
	for _, sub := range []string{"upper", "work"} {
		if err := os.MkdirAll(filepath.Join(scratch, sub), 0o755); err != nil {
			return err
		}
	}
	options := fmt.Sprintf("lowerdir=%s,upperdir=%[2]s/upper,workdir=%[2]s/work", dir, scratch)
	if !*asRoot {
		options += ",userxattr"
	}
	return unix.Mount("overlay", dir, "overlay", 0, options)
}

// goFolders are where the go command has what it fetched and built, for when the home is
// another.
func goFolders() ([]string, error) {
	names := []string{"GOPATH", "GOCACHE", "GOMODCACHE"}
	out, err := exec.Command("go", append([]string{"env"}, names...)...).Output()
	if err != nil {
		return nil, err
	}
	values := strings.Split(strings.TrimSpace(string(out)), "\n")
	for i := range names {
		names[i] += "=" + values[i]
	}
	return names, nil
}

// loopback does what "ip link set lo up; ip address add 10.0.0.1/8 dev lo" does.
func loopback() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	lo.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo); err != nil {
		return err
	}
	second, err := unix.NewIfreq("lo:1")
	if err != nil {
		return err
	}
	if err := second.SetInet4Addr([]byte{10, 0, 0, 1}); err != nil {
		return err
	}
	return unix.IoctlIfreq(fd, unix.SIOCSIFADDR, second)
}

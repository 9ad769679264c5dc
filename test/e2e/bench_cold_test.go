package e2e

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/fetch"
	"chandler.dev/chandler/internal/store"
	"chandler.dev/chandler/internal/testenv/module"
)

// BenchmarkModuleChange times a change to a module that nobody has yet, until the next
// request is decided by it: in turn by an Envoy that is handed the file, which is what
// loading it takes Envoy itself, for a resource that is applied to a control plane, and
// for one applied to a control plane that has it tried in an Envoy first. fetch-ms is
// the pull of that artifact by a client of its own, into a store, and validate-ms what
// "envoy --mode validate" takes for the last module. The medians are reported.
func BenchmarkModuleChange(b *testing.B) {
	b.Run("go", func(b *testing.B) {
		mod := sample(b)
		moduleChange(b, func(i int) (string, []byte) { return realmConfig(i), numbered(mod, i) }, showsRealm)
	})
	b.Run("small", func(b *testing.B) { // of the size that C compiles to
		moduleChange(b, func(i int) (string, []byte) { return "{}", module.Deny(400 + i) }, func(a answer, i int) bool { return a.code == 400+i })
	})
}

// numbered is a module of the same code with another digest.
func numbered(mod []byte, i int) []byte {
	return append(slices.Clip(mod), module.RawSection(0, module.Name("build"), fmt.Append(nil, i))...)
}

func moduleChange(b *testing.B, versions version, shows func(answer, int) bool) {
	last, config, mod := -1, "", []byte(nil)
	once := func(i int) (string, []byte) { // one slice for all who ask
		if i != last {
			config, mod = versions(i)
			last = i
		}
		return config, mod
	}
	subjects := []*subject{envoyAlone(b, once), underChandler(b, once), underChandler(b, once, "--envoy", envoyBinary(b))}
	var fetched []time.Duration
	turn := func(i int) {
		for _, s := range subjects {
			s.shows = shows
			s.change(b, i)
		}
		fetched = append(fetched, pull(b, subjects[1].world, fmt.Sprintf("basic:v%d", i)))
	}
	turn(0) // the first pays for the start of Envoy's engine
	for i := 1; b.Loop(); i++ {
		turn(i)
	}
	for i, name := range []string{"envoy-ms", "chandler-ms", "vetted-ms"} {
		b.ReportMetric(subjects[i].median(), name)
	}
	b.ReportMetric(median(fetched), "fetch-ms")
	begin := time.Now()
	if loads, log, err := module.Validate(b, envoyBinary(b), mod, config, time.Minute); !loads {
		b.Fatal(err, log)
	}
	b.ReportMetric(inMilliseconds(time.Since(begin)), "validate-ms")
	b.ReportMetric(float64(len(mod)), "module-bytes")
}

// pull fetches an artifact with a client and into a store that are new.
func pull(b *testing.B, w *world, name string) time.Duration {
	b.Helper()
	modules, err := store.Open(store.Config{Dir: b.TempDir()})
	if err != nil {
		b.Fatal(err)
	}
	defer modules.Close()
	client := fetch.New(fetch.Config{Dir: b.TempDir()})
	defer client.Close()
	ref, problem := chandler.ParseReference(w.registry.Addr + "/plugins/" + name)
	if problem != nil {
		b.Fatal(problem)
	}
	begin := time.Now()
	if _, err := client.Pull(b.Context(), fetch.Request{Reference: ref}, modules); err != nil {
		b.Fatal(err)
	}
	return time.Since(begin)
}

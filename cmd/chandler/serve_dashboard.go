package main

import (
	"os"
	"sync"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/proxywasm"
	"chandler.dev/chandler/internal/store"
)

// maxInspected bounds the modules whose imports are kept.
const maxInspected = 256

// importsOf tells what modules of a store want of their host, for the dashboard. Each
// is read once.
func importsOf(modules *store.Store) func(chandler.ModuleDigest) ([]string, bool) {
	var mu sync.Mutex
	known := map[chandler.ModuleDigest][]string{}
	return func(d chandler.ModuleDigest) ([]string, bool) {
		mu.Lock()
		defer mu.Unlock()
		if names, ok := known[d]; ok {
			return names, true
		}
		names, err := inspectImports(modules, d)
		if err != nil { // a store is a cache: it may be elsewhere
			return nil, false
		}
		if len(known) >= maxInspected {
			clear(known)
		}
		known[d] = names
		return names, true
	}
}

func inspectImports(modules *store.Store, d chandler.ModuleDigest) ([]string, error) {
	lease, err := modules.Acquire(d)
	if err != nil {
		return nil, err
	}
	defer lease.Release()
	f, err := os.Open(lease.Path())
	if err != nil {
		return nil, err
	}
	defer f.Close()
	m, err := proxywasm.Inspect(f, lease.Size())
	if err != nil {
		return nil, err
	}
	names := make([]string, 0, len(m.Imports))
	for _, i := range m.Imports {
		names = append(names, chandler.Printable(i.Module+"."+i.Name, 256))
	}
	return names, nil
}

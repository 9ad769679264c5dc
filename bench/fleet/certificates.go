package main

import (
	"fmt"
	"os"
	"path/filepath"

	"chandler.dev/chandler/internal/testenv/authority"
)

// certificates makes those of both sides, and gives the control plane's flags.
func (b *bench) certificates(m *muster) (flags []string, err error) {
	failed := &failures{dir: b.dir}
	defer func() {
		if r := recover(); r != nil {
			if r != failed {
				panic(r)
			}
			err = failed.err
		}
	}()
	ca := authority.New(failed)
	own, theirs := ca.Issue(authority.Leaf{IP: "127.0.0.1"}), ca.Issue(authority.Leaf{DNS: []string{"*.default.node.cluster.local"}})
	m.CA, m.Cert, m.Key = ca.File, theirs.Cert, theirs.Key
	return []string{"--tls-cert", own.Cert, "--tls-key", own.Key, "--client-ca", ca.File}, nil
}

// failures stands in for a test where an authority wants one.
type failures struct {
	dir  string
	dirs int
	err  error
}

func (f *failures) Helper() {}

func (f *failures) TempDir() string {
	f.dirs++
	dir := filepath.Join(f.dir, fmt.Sprint("certificates-", f.dirs))
	if err := os.Mkdir(dir, 0o700); err != nil {
		f.Fatal(err)
	}
	return dir
}

func (f *failures) Fatal(args ...any) {
	f.err = fmt.Errorf("certificates: %s", fmt.Sprint(args...))
	panic(f)
}

var _ authority.T = (*failures)(nil)

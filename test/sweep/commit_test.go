//go:build faults && linux

package sweep

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/durable"
	"chandler.dev/chandler/internal/record"
	"chandler.dev/chandler/internal/source"
	"chandler.dev/chandler/internal/store"
)

// commitTo makes the test binary the process that is killed: it brings the files
// in a directory from what they were to what they are to be, and ends.
var commitTo = flag.String("commit", "", "only commit everything to this `directory`; for the tests themselves")

func TestMain(m *testing.M) {
	flag.Parse()
	if *commitTo != "" {
		os.Exit(commitAll(*commitTo))
	}
	os.Exit(m.Run())
}

// commitAll tries a few times, as the product does: a call that fails once does
// no harm.
func commitAll(dir string) int {
	runtime.LockOSThread() // strace counts the calls of every thread
	var err error
	for range 3 {
		if err = commit(dir, newest); err == nil {
			return 0
		}
	}
	fmt.Fprintln(os.Stderr, err)
	return 1
}

// version is what the files say, all together.
type version struct {
	modules  [][]byte
	release  chandler.Release
	manifest string
	// gone is deleted when there is some.
	gone []chandler.Key
}

const uid = "6b1f3c1e-0000-4000-8000-000000000001"

func versionOf(n int) version {
	r := chandler.Release{Key: key("p"), UID: uid, Generation: int64(n), Asked: fmt.Sprintf("oci://r.example/p:v%d", n)}
	return version{
		// More than one write each.
		modules:  [][]byte{bytes.Repeat([]byte{'m'}, 300<<10), bytes.Repeat([]byte{byte('0' + n)}, 300<<10)},
		release:  r.WithID(),
		manifest: manifest("p", n),
	}
}

func key(name string) chandler.Key {
	return chandler.Key{Kind: "WasmPlugin", Namespace: "edge", Name: name}
}

func manifest(name string, n int) string {
	return fmt.Sprintf("apiVersion: extensions.istio.io/v1alpha1\nkind: WasmPlugin\nmetadata: {name: %s, namespace: edge}\nspec: {url: \"oci://r.example/%s:v%d\"}\n", name, name, n)
}

// oldest is what stands before, with an object more; newest is what is to be.
var oldest, newest = func() (version, version) {
	before, after := versionOf(1), versionOf(2)
	before.manifest += "---\n" + manifest("gone", 1)
	after.gone = []chandler.Key{key("gone")}
	return before, after
}()

// commit brings the files in dir to a version, from any state.
func commit(dir string, v version) error {
	if err := commitModules(filepath.Join(dir, "modules"), v.modules); err != nil {
		return err
	}
	if err := commitRecords(filepath.Join(dir, "records"), v.release); err != nil {
		return err
	}
	return commitObjects(dir, v)
}

func commitModules(dir string, modules [][]byte) error {
	s, err := store.Open(store.Config{Dir: dir})
	if err != nil {
		return err
	}
	for _, m := range modules {
		if _, _, err := s.Ingest(bytes.NewReader(m), chandler.Digest[chandler.ModuleDigest](m)); err != nil {
			return errors.Join(err, s.Close())
		}
	}
	return s.Close()
}

func commitRecords(dir string, r chandler.Release) error {
	ctx := context.Background()
	d, err := record.OpenDirectory(durable.OS(), dir, nil)
	if err != nil {
		return err
	}
	if err := d.PutRelease(ctx, r); err != nil {
		return err
	}
	rollouts, err := d.Rollouts(ctx)
	if err != nil {
		return err
	}
	next := record.Rollout{UID: uid, Key: r.Key, Release: r.ID, Generation: r.Generation}
	switch {
	case len(rollouts) == 0:
		_, err = d.SwapRollout(ctx, nil, next)
	case rollouts[0].Release != r.ID:
		next.Previous = rollouts[0].Release
		_, err = d.SwapRollout(ctx, &rollouts[0], next)
	}
	if err != nil {
		return err
	}
	releases, err := d.Releases(ctx)
	if err != nil {
		return err
	}
	for _, other := range releases {
		if other.ID != r.ID {
			if err := d.DeleteRelease(ctx, other.ID); err != nil {
				return err
			}
		}
	}
	return nil
}

func commitObjects(dir string, v version) error {
	d, err := source.OpenDirectory(source.DirectoryConfig{Data: dir})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	done := make(chan error, 1)
	go func() {
		defer cancel()
		done <- edit(ctx, d, v)
	}()
	// Here, because whoever runs it writes.
	return errors.Join(d.Run(ctx, func(source.Snapshot) {}), <-done)
}

func edit(ctx context.Context, d *source.Directory, v version) error {
	results, err := d.Apply(ctx, source.ApplyRequest{Manifest: []byte(v.manifest)})
	if err != nil {
		return err
	}
	gone, err := d.Delete(ctx, v.gone)
	if err != nil {
		return err
	}
	for _, r := range append(results, gone...) {
		if r.Action == source.Refused {
			return fmt.Errorf("%s is refused: %v", r.Name, r.Problems)
		}
	}
	return nil
}

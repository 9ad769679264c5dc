package main

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/airgap"
	"chandler.dev/chandler/internal/durable"
	"chandler.dev/chandler/internal/fetch"
	"chandler.dev/chandler/internal/store"
)

func saveCommand(e *env) *cobra.Command {
	var registry registryFlags
	var output string
	size := store.Size(airgap.DefaultMaxBytes)
	cmd := &cobra.Command{
		Use:   "save REF... -o FILE.tar",
		Short: "Save artifacts, with their signatures, in one file",
		Long: `Save artifacts of registries in one file, for places without network: manifests and
blobs byte for byte, with schema, signatures and whatever else refers to them. The
file is a tar of the OCI image layout, which skopeo and oras read, too.
The same artifacts give the same file.`,
		Example: `  chandler save registry.example/team/hello:v1 registry.example/team/auth:v2 -o plugins.tar`,
		Args:    withArgs(1, -1, "references"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if output == "" {
				return usagef("save needs -o FILE.tar")
			}
			return e.save(cmd.Context(), args, output, int64(size), &registry)
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "", "file to write")
	cmd.Flags().Var(&size, "max-size", "how large the file may become")
	registry.add(cmd)
	return cmd
}

func (e *env) save(ctx context.Context, names []string, output string, size int64, registry *registryFlags) error {
	var refs []chandler.Reference
	for _, name := range names {
		ref, err := image(name)
		if err != nil {
			return err
		}
		refs = append(refs, ref)
	}
	client, err := registry.client(e)
	if err != nil {
		return err
	}
	defer client.Close()
	file, err := durable.Create(durable.OS(), output)
	if err != nil {
		return err
	}
	defer file.Abort()
	archive := airgap.NewWriter(file, size)
	var saved []chandler.Reference
	for _, ref := range refs {
		digest, err := client.Export(ctx, fetch.Request{Reference: ref}, archive.Repository(ref))
		registry.meter.clear()
		if err != nil {
			return fmt.Errorf("%s: %w", ref, e.registryError(err))
		}
		if ref.Digest == "" {
			ref.Tag = cmp.Or(ref.Tag, "latest")
		}
		ref.Digest = digest
		saved = append(saved, ref)
	}
	if err := archive.Close(); err != nil {
		return err
	}
	if err := file.Commit(); err != nil {
		return err
	}
	for _, ref := range saved {
		fmt.Fprintln(e.stdout, ref)
	}
	return nil
}

func loadCommand(e *env) *cobra.Command {
	var registry registryFlags
	cmd := &cobra.Command{
		Use:   "load FILE.tar REGISTRY[/PREFIX]|REF|DIR",
		Short: "Push what was saved in a file to a registry, or put it into a folder",
		Long: `Push what was saved in a file to a registry, byte for byte: digests and signatures
stay what they are. Each artifact goes to REGISTRY/PREFIX/ and its repository and tag
of before; REF, with a tag, is where the only artifact of a file goes.

DIR, which begins with / or ., is a folder for a machine that has no registry: artifacts
keep their whole names there, and a hosts.toml with server = "file:///DIR" says that it
is asked in their registries' place. It is an OCI image layout.

Before anything is pushed the whole file is read: a file that was changed, is not
whole or has names that lead outside is refused. What is put into a folder is there
when all of it is.`,
		Example: `  chandler load plugins.tar registry.internal
  chandler load plugins.tar registry.internal/mirror
  chandler load hello.tar registry.internal/team/hello:v1
  chandler load plugins.tar /var/lib/chandler/artifacts`,
		Args: withArgs(2, 2, "a file, and where to"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return e.load(cmd.Context(), args[0], args[1], &registry)
		},
	}
	registry.add(cmd)
	return cmd
}

func (e *env) load(ctx context.Context, name, to string, registry *registryFlags) error {
	file, err := os.Open(name)
	if err != nil {
		return err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return err
	}
	archive, err := airgap.Open(file, info.Size())
	if err != nil {
		return fmt.Errorf("%s: %w", name, e.registryError(err))
	}
	if isFolder(to) {
		return e.loadFolder(ctx, archive, to)
	}
	found := archive.Found()
	var targets []chandler.Reference
	for _, f := range found {
		target, err := destination(to, f, len(found))
		if err != nil {
			return err
		}
		targets = append(targets, target)
	}
	client, err := registry.client(e)
	if err != nil {
		return err
	}
	defer client.Close()
	defer registry.meter.clear()
	return e.carry(ctx, archive, targets, func(target chandler.Reference) (fetch.Receiver, error) {
		return client.Repository(ctx, target, nil)
	}, func(target chandler.Reference) {
		registry.meter.clear()
		fmt.Fprintln(e.stdout, target)
	})
}

// loadFolder puts all of an archive into a folder.
func (e *env) loadFolder(ctx context.Context, archive *airgap.Archive, dir string) error {
	var targets []chandler.Reference
	for _, f := range archive.Found() {
		if !f.Complete {
			return usagef("the archive does not say which repository %s is of; load it into a registry, by a reference with a tag", shownName(f))
		}
		targets = append(targets, f.Reference)
	}
	loading, err := airgap.Load(dir)
	if err != nil {
		return e.registryError(err)
	}
	defer loading.Close()
	var put []chandler.Reference
	err = e.carry(ctx, archive, targets, func(target chandler.Reference) (fetch.Receiver, error) {
		return loading.Repository(target), nil
	}, func(target chandler.Reference) { put = append(put, target) })
	if err != nil {
		return err
	}
	if err := loading.Commit(); err != nil {
		return e.registryError(err)
	}
	for _, target := range put {
		fmt.Fprintln(e.stdout, target)
	}
	return nil
}

// carry brings each artifact of an archive to its target, and tells of it.
func (e *env) carry(ctx context.Context, archive *airgap.Archive, targets []chandler.Reference, place func(chandler.Reference) (fetch.Receiver, error), tell func(chandler.Reference)) error {
	from := archive.Client(fetch.Config{})
	defer from.Close()
	for i, f := range archive.Found() {
		target := targets[i]
		to, err := place(target)
		if err == nil {
			f.Reference.Tag = target.Tag
			target.Digest, err = from.Export(ctx, fetch.Request{Reference: f.Reference}, to)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", target, e.registryError(err))
		}
		tell(target)
	}
	return nil
}

// destination is where an artifact goes: to what to says, if that has a tag, and else
// below it, under its own name.
func destination(to string, f airgap.Found, of int) (chandler.Reference, error) {
	prefix := strings.TrimPrefix(strings.TrimSuffix(to, "/"), "oci://")
	last := prefix[strings.LastIndex(prefix, "/")+1:]
	if strings.Contains(prefix, "@") {
		return chandler.Reference{}, usagef("%s: the archive decides the digest; write a registry, or a reference with a tag", chandler.Quote(to))
	}
	if strings.Contains(prefix, "/") && strings.Contains(last, ":") {
		if of > 1 {
			return chandler.Reference{}, usagef("the archive has %d artifacts, and %s is one place; write a registry", of, chandler.Quote(to))
		}
		return image(to)
	}
	if !f.Complete {
		return chandler.Reference{}, usagef("the archive does not say which repository %s is of; write a reference with a tag", shownName(f))
	}
	below := prefix + "/" + f.Reference.Repository
	if f.Reference.Tag != "" {
		below += ":" + f.Reference.Tag
	} else {
		below += "@" + string(f.Reference.Digest)
	}
	if !strings.Contains(prefix, "/") && !strings.ContainsAny(prefix, ".:") && prefix != "localhost" {
		return chandler.Reference{}, usagef("%s is no registry: write its host, with a dot or a port", chandler.Quote(to))
	}
	return image(below)
}

// shownName is what an artifact of an archive is called towards people.
func shownName(f airgap.Found) string {
	return chandler.Quote(cmp.Or(f.Name, string(f.Reference.Digest)))
}

// isFolder tells the name of a folder from that of a registry.
func isFolder(name string) bool {
	return strings.HasPrefix(name, "/") || strings.HasPrefix(name, ".")
}

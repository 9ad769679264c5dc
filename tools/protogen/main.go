// Protogen generates the Go code of the repository's protobuf files, with no
// protoc and no network: it compiles the files itself and runs the pinned
// plugins of this module. It is not a general compiler driver; what is
// generated from what is the table below.
//
// Usage, from this module's directory: go run ./protogen ../api
package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/bufbuild/protocompile"
	"github.com/bufbuild/protocompile/linker"
	"github.com/bufbuild/protocompile/protoutil"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/pluginpb"
)

// admin is the one file whose service is spoken over Connect. Its stubs are a
// package of their own, so that the agent links neither them nor Connect.
const admin = "chandler/v1/admin.proto"

// plugins is what runs, and on which files.
var plugins = []struct {
	tool      string
	parameter string
	wants     func(file string) bool
}{
	{"protoc-gen-go", "paths=source_relative", func(string) bool { return true }},
	{"protoc-gen-go-grpc", "paths=source_relative", func(f string) bool { return f != admin }},
	{"protoc-gen-connect-go", "paths=source_relative", func(f string) bool { return f == admin }},
}

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: protogen DIR")
		os.Exit(2)
	}
	if err := generate(context.Background(), os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "protogen:", err)
		os.Exit(1)
	}
}

// generate writes the code of every .proto below root next to its source, and
// removes generated files that no source stands behind any more.
func generate(ctx context.Context, root string) error {
	names, err := list(root, ".proto")
	if err != nil {
		return err
	}
	if len(names) == 0 {
		return fmt.Errorf("no .proto files below %s", root)
	}
	compiler := protocompile.Compiler{
		Resolver:       protocompile.WithStandardImports(&protocompile.SourceResolver{ImportPaths: []string{root}}),
		SourceInfoMode: protocompile.SourceInfoStandard,
	}
	files, err := compiler.Compile(ctx, names...)
	if err != nil {
		return err
	}
	descriptors := inOrder(files)
	var written []string
	for _, p := range plugins {
		var wanted []string
		for _, name := range names {
			if p.wants(name) {
				wanted = append(wanted, name)
			}
		}
		response, err := run(ctx, p.tool, &pluginpb.CodeGeneratorRequest{
			FileToGenerate: wanted,
			Parameter:      proto.String(p.parameter),
			ProtoFile:      descriptors,
		})
		if err != nil {
			return fmt.Errorf("%s: %w", p.tool, err)
		}
		for _, f := range response.File {
			if err := write(filepath.Join(root, filepath.FromSlash(f.GetName())), f.GetContent()); err != nil {
				return err
			}
			written = append(written, f.GetName())
		}
	}
	return removeStale(root, written)
}

// list names the files below root with one of the suffixes, sorted, with
// slashes, relative to root.
func list(root string, suffixes ...string) ([]string, error) {
	var names []string
	err := fs.WalkDir(os.DirFS(root), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		if slices.ContainsFunc(suffixes, func(s string) bool { return strings.HasSuffix(name, s) }) {
			names = append(names, name)
		}
		return nil
	})
	return names, err
}

// inOrder gives the descriptors with each file after those it imports, as
// plugins expect.
func inOrder(files linker.Files) []*descriptorpb.FileDescriptorProto {
	var ordered []*descriptorpb.FileDescriptorProto
	seen := map[string]bool{}
	var visit func(protoreflect.FileDescriptor)
	visit = func(f protoreflect.FileDescriptor) {
		if seen[f.Path()] {
			return
		}
		seen[f.Path()] = true
		for i := range f.Imports().Len() {
			visit(f.Imports().Get(i).FileDescriptor)
		}
		ordered = append(ordered, protoutil.ProtoFromFileDescriptor(f))
	}
	for _, f := range files {
		visit(f)
	}
	return ordered
}

// run speaks protoc's plugin protocol with one tool of this module.
func run(ctx context.Context, tool string, request *pluginpb.CodeGeneratorRequest) (*pluginpb.CodeGeneratorResponse, error) {
	in, err := proto.Marshal(request)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, "go", "tool", tool)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(in), &out, os.Stderr
	if err := cmd.Run(); err != nil {
		return nil, err
	}
	response := &pluginpb.CodeGeneratorResponse{}
	if err := proto.Unmarshal(out.Bytes(), response); err != nil {
		return nil, err
	}
	if response.Error != nil {
		return nil, errors.New(response.GetError())
	}
	return response, nil
}

// write leaves a file alone that already has the content, so that generating
// twice builds nothing anew.
func write(name, content string) error {
	if old, err := os.ReadFile(name); err == nil && string(old) == content {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	return os.WriteFile(name, []byte(content), 0o644)
}

// removeStale removes what an earlier run generated and this one did not.
func removeStale(root string, written []string) error {
	names, err := list(root, ".pb.go", ".connect.go")
	if err != nil {
		return err
	}
	for _, name := range names {
		if slices.Contains(written, path.Clean(name)) {
			continue
		}
		if err := os.Remove(filepath.Join(root, filepath.FromSlash(name))); err != nil {
			return err
		}
	}
	return nil
}

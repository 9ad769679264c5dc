// Protogen generates the Go code of the repository's protobuf files, with no
// protoc and no network: it compiles the files itself and runs the pinned
// plugins of this module. It is not a general compiler driver; what is
// generated from what is the table below.
//
// Usage, from this module's directory: go run ./protogen [-check] ../api
// With -check nothing is written, and it fails when something would be.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
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

// admin tells whether a file's service is spoken over Connect, on the admin port. Its
// stubs are a package of their own, so that the agent links neither them nor Connect.
func admin(file string) bool {
	return slices.Contains([]string{"chandler/v1/admin.proto", "chandler/v1/fleet.proto", "chandler/v1/rollout.proto"}, file)
}

// plugins is what runs, and on which files.
var plugins = []struct {
	tool      string
	parameter string
	wants     func(file string) bool
}{
	{"protoc-gen-go", "paths=source_relative", func(string) bool { return true }},
	{"protoc-gen-go-grpc", "paths=source_relative", func(f string) bool { return !admin(f) }},
	{"protoc-gen-connect-go", "paths=source_relative", admin},
}

func main() {
	check := flag.Bool("check", false, "only say whether the generated files are up to date")
	flag.Parse()
	if flag.NArg() != 1 {
		fmt.Fprintln(os.Stderr, "usage: protogen [-check] DIR")
		os.Exit(2)
	}
	if err := generate(context.Background(), flag.Arg(0), *check); err != nil {
		fmt.Fprintln(os.Stderr, "protogen:", err)
		os.Exit(1)
	}
}

// generate brings the code beside every .proto below root up to date, and
// removes generated files that no source stands behind any more. With check it
// only reports the first difference.
func generate(ctx context.Context, root string, check bool) error {
	want, err := render(ctx, root)
	if err != nil {
		return err
	}
	have, err := list(root, ".pb.go", ".connect.go")
	if err != nil {
		return err
	}
	for name, content := range want {
		file := filepath.Join(root, filepath.FromSlash(name))
		old, err := os.ReadFile(file)
		if err == nil && string(old) == content {
			continue
		}
		if check {
			return fmt.Errorf("%s is not up to date; run make generate", name)
		}
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
			return err
		}
	}
	for _, name := range have {
		if _, ok := want[name]; ok {
			continue
		}
		if check {
			return fmt.Errorf("%s has no source any more; run make generate", name)
		}
		if err := os.Remove(filepath.Join(root, filepath.FromSlash(name))); err != nil {
			return err
		}
	}
	return nil
}

// render gives the content of every generated file by its name below root.
func render(ctx context.Context, root string) (map[string]string, error) {
	names, err := list(root, ".proto")
	if err != nil {
		return nil, err
	}
	if len(names) == 0 {
		return nil, fmt.Errorf("no .proto files below %s", root)
	}
	compiler := protocompile.Compiler{
		Resolver:       protocompile.WithStandardImports(&protocompile.SourceResolver{ImportPaths: []string{root}}),
		SourceInfoMode: protocompile.SourceInfoStandard,
	}
	files, err := compiler.Compile(ctx, names...)
	if err != nil {
		return nil, err
	}
	descriptors := inOrder(files)
	generated := map[string]string{}
	for _, p := range plugins {
		response, err := run(ctx, p.tool, &pluginpb.CodeGeneratorRequest{
			FileToGenerate: slices.DeleteFunc(slices.Clone(names), func(f string) bool { return !p.wants(f) }),
			Parameter:      proto.String(p.parameter),
			ProtoFile:      descriptors,
		})
		if err != nil {
			return nil, fmt.Errorf("%s: %w", p.tool, err)
		}
		for _, f := range response.File {
			generated[f.GetName()] = f.GetContent()
		}
	}
	return generated, nil
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

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/durable"
	"chandler.dev/chandler/internal/fetch"
	"chandler.dev/chandler/internal/trust"
)

// passwordVariable is where cosign has the password of private keys.
const passwordVariable = "COSIGN_PASSWORD"

const maxKeyFile = 64 << 10

func signCommand(e *env) *cobra.Command {
	var registry registryFlags
	var key, form string
	cmd := &cobra.Command{
		Use:   "sign REF --key FILE",
		Short: "Sign an artifact with a key",
		Long: `Sign an artifact of a registry with a key, as cosign does: cosign verify, and
chandler, verify it. The key is cosign's (its password is COSIGN_PASSWORD, or is asked
for on a terminal) or a plain PKCS #8 file.

--form bundle is what cosign 3 writes: it refers to the artifact and holds in every
copy of it. tag is what cosign 2 writes: it is for one repository. What is signed is
the digest that the reference has now, which is printed.`,
		Example: `  chandler sign generate-key
  chandler sign registry.example/team/hello:v1 --key cosign.key`,
		Args: withArgs(1, 1, "a reference"),
		RunE: func(cmd *cobra.Command, args []string) error {
			forms := map[string][]trust.Form{"bundle": {trust.FormBundle}, "tag": {trust.FormTag}, "both": {trust.FormBundle, trust.FormTag}}[form]
			if forms == nil {
				return usagef("--form %s: one of bundle, tag, both", form)
			}
			if key == "" {
				return usagef(`sign needs --key FILE; "chandler sign generate-key" makes one`)
			}
			return e.sign(cmd.Context(), args[0], key, forms, &registry)
		},
	}
	cmd.Flags().StringVar(&key, "key", "", "file of the private key in PEM")
	cmd.Flags().StringVar(&form, "form", string(trust.FormBundle), "bundle, tag or both")
	registry.add(cmd)
	cmd.AddCommand(generateKeyCommand(e))
	return cmd
}

func (e *env) sign(ctx context.Context, text, key string, forms []trust.Form, registry *registryFlags) error {
	ref, err := image(text)
	if err != nil {
		return err
	}
	private, err := readKeyFile(key)
	if err != nil {
		return err
	}
	signer, err := e.signer(key, private)
	if err != nil {
		return err
	}
	client, err := registry.client(e)
	if err != nil {
		return err
	}
	defer client.Close()
	resolved, err := client.Resolve(ctx, fetch.Request{Reference: ref})
	if err != nil {
		return e.registryError(err)
	}
	for _, form := range forms {
		sig, err := signer.Sign(form, ref, resolved.Digest)
		if err != nil {
			return err
		}
		if err := client.AddSignature(ctx, ref, resolved.Digest, sig, nil); err != nil {
			return e.registryError(err)
		}
	}
	registry.meter.clear()
	_, err = fmt.Fprintln(e.stdout, resolved.Reference)
	return err
}

// signer opens a private key. A key that was encrypted with no password needs none
// said.
func (e *env) signer(name string, private []byte) (*trust.Signer, error) {
	said := e.getenv(passwordVariable)
	signer, err := trust.ParseSigner(private, func() ([]byte, error) { return []byte(said), nil })
	if !errors.Is(err, trust.ErrPassword) {
		return signer, err
	}
	if said != "" {
		return nil, fmt.Errorf("%s: %s does not open it", name, passwordVariable)
	}
	return trust.ParseSigner(private, func() ([]byte, error) { return e.askPassword("Password of " + name + ": ") })
}

// askPassword asks on a terminal.
func (e *env) askPassword(prompt string) ([]byte, error) {
	f, ok := e.stdin.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) || e.tty == nil {
		return nil, usagef("a password is needed, and there is no terminal to ask on; set %s", passwordVariable)
	}
	fmt.Fprint(e.stderr, prompt)
	password, err := term.ReadPassword(int(f.Fd()))
	fmt.Fprintln(e.stderr)
	return password, err
}

func generateKeyCommand(e *env) *cobra.Command {
	var prefix string
	var bare bool
	cmd := &cobra.Command{
		Use:   "generate-key",
		Short: "Make a key pair, such as cosign reads",
		Long: `Make a key pair such as cosign reads: PREFIX.key, encrypted with COSIGN_PASSWORD or a
password that is asked for on a terminal, and PREFIX.pub. Files that are there are not
replaced.`,
		Args: noArgs,
		RunE: func(*cobra.Command, []string) error { return e.generateKey(prefix, bare) },
	}
	cmd.Flags().StringVar(&prefix, "output-prefix", "cosign", "what the names of the files begin with")
	cmd.Flags().BoolVar(&bare, "no-password", false, "encrypt it with an empty password: whoever has the file has the key")
	return cmd
}

func (e *env) generateKey(prefix string, bare bool) error {
	files := []string{prefix + ".key", prefix + ".pub"}
	for _, name := range files {
		if _, err := os.Lstat(name); err == nil {
			return fmt.Errorf("%s is there already; remove it, or write --output-prefix", name)
		}
	}
	password := []byte(e.getenv(passwordVariable))
	switch {
	case bare && len(password) > 0:
		return usagef("--no-password, and %s is set; say one of them", passwordVariable)
	case !bare && len(password) == 0:
		var err error
		if password, err = e.newPassword(); err != nil {
			return err
		}
	}
	private, public, err := trust.GenerateKey(password)
	if err != nil {
		return err
	}
	for i, content := range [][]byte{private, public} {
		if err := durable.Write(durable.OS(), files[i], content); err != nil {
			return err
		}
		fmt.Fprintln(e.stdout, files[i])
	}
	return nil
}

func (e *env) newPassword() ([]byte, error) {
	password, err := e.askPassword("Password for the private key: ")
	if err != nil {
		return nil, err
	}
	again, err := e.askPassword("The same again: ")
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(password, again) {
		return nil, errors.New("the passwords are not the same")
	}
	return password, nil
}

func readKeyFile(name string) ([]byte, error) {
	b, err := durable.Read(durable.OS(), name, maxKeyFile)
	if err != nil {
		return nil, fmt.Errorf("read the key: %w", err)
	}
	return b, nil
}

// readKeys reads public keys, which must be some.
func readKeys(name string) (string, error) {
	text, err := readKeyFile(name)
	if err != nil {
		return "", err
	}
	if _, wrong := chandler.ParsePublicKeys(string(text)); wrong != "" {
		return "", usagef("%s: it %s; give a public key, such as cosign.pub", name, wrong)
	}
	return string(text), nil
}

func verifyCommand(e *env) *cobra.Command {
	var registry registryFlags
	var key string
	var signedAs []string
	cmd := &cobra.Command{
		Use:   "verify REF --key FILE",
		Short: "Tell whether an artifact is signed with a key",
		Long: `Tell whether an artifact of a registry is signed with a key, by cosign or by
"chandler sign", in either place where cosign has signatures. The digest that is
signed is printed, with the key; if it is not signed as wanted the exit code is 3.
What the control plane asks for is in docs/signatures.md.`,
		Example: `  chandler verify registry.example/team/hello:v1 --key cosign.pub`,
		Args:    withArgs(1, 1, "a reference"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if key == "" {
				return usagef("verify needs --key FILE")
			}
			return e.verify(cmd.Context(), args[0], key, signedAs, &registry)
		},
	}
	cmd.Flags().StringVar(&key, "key", "", "file of public keys in PEM, one of which must have signed")
	cmd.Flags().StringArrayVar(&signedAs, "signed-as", nil, "registry/repository that a signature at a tag may be for, too, when the artifact was copied since; * and ** as in the operator's file")
	registry.add(cmd)
	return cmd
}

func (e *env) verify(ctx context.Context, text, key string, signedAs []string, registry *registryFlags) error {
	ref, err := image(text)
	if err != nil {
		return err
	}
	keys, err := readKeys(key)
	if err != nil {
		return err
	}
	rule := &trust.Rule{Name: key, Keys: []string{keys}, SignedAs: signedAs}
	if problems := rule.Load(nil); len(problems) > 0 {
		return usagef("%s", problems[0].Error())
	}
	client, err := registry.client(e)
	if err != nil {
		return err
	}
	defer client.Close()
	resolved, err := client.Resolve(ctx, fetch.Request{Reference: ref})
	if err != nil {
		return e.registryError(err)
	}
	said, err := trust.New(trust.Config{Registry: client}).Verify(ctx, trust.Request{Reference: ref, Artifact: resolved.Digest, Rules: []*trust.Rule{rule}})
	var problem *chandler.Problem
	switch {
	case errors.As(err, new(*fetch.Error)):
		return e.registryError(err)
	case errors.As(err, &problem):
		return &exitError{code: exitUnhealthy, text: fmt.Sprintf("%s: %s", problem.Code, problem.Error())}
	case err != nil:
		return err
	}
	_, err = fmt.Fprintf(e.stdout, "%s signed by %s\n", resolved.Reference, strings.Join(said.By, ", "))
	return err
}

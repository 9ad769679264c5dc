package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	chandlerv1 "chandler.dev/chandler/api/chandler/v1"
)

// finder gives the plugins of which a request speaks.
type finder func(context.Context, *chandlerv1.ListRequest) ([]*chandlerv1.ObjectRef, error)

// find gives the plugin that is called NAME or NAMESPACE/NAME. Without a namespace it is
// looked for in all, or where kubectl called in that of the context; and without a kind
// among both. A name that several have is refused with all of them, as a guess might take
// out the wrong one.
func (e *env) find(ctx context.Context, kind, name string, among finder) (*chandlerv1.ObjectRef, error) {
	if name == "" { // as an unset variable of a script is
		return nil, usagef("the NAME of the plugin is empty")
	}
	req := &chandlerv1.ListRequest{}
	var err error
	if kind != "" {
		if req.Kind, err = parseKind(kind); err != nil {
			return nil, err
		}
	}
	if req.Namespace, req.Name, err = splitName("plugin", name, e.namespace); err != nil {
		return nil, err
	}
	if req.Namespace == "" && e.clustered() {
		if req.Namespace, err = e.chosenNamespace(); err != nil {
			return nil, err
		}
	}
	refs, err := among(ctx, req)
	switch {
	case err != nil:
		return nil, err
	case len(refs) == 0:
		return nil, notFound(ctx, req, among)
	case len(refs) > 1:
		return nil, usagef("several plugins are called %s: %s; say which by NAMESPACE/NAME, or by --kind", req.Name, spelled(refs))
	}
	return refs[0], nil
}

// splitName takes the namespace off a name that has one before it.
func splitName(what, name, namespace string) (in, rest string, err error) {
	before, after, ok := strings.Cut(name, "/")
	switch {
	case !ok:
		return namespace, name, nil
	case before == "" || after == "":
		return "", "", usagef("%q is no NAME and no NAMESPACE/NAME", name)
	case namespace != "" && namespace != before:
		return "", "", usagef("%s %s is not in namespace %s", what, name, namespace)
	}
	return before, after, nil
}

// notFound says that a name is not there, and where it would be found.
func notFound(ctx context.Context, req *chandlerv1.ListRequest, among finder) error {
	what := strings.ToLower(req.Kind)
	if what == "" {
		what = "plugin"
	}
	if req.Namespace == "" {
		return fmt.Errorf("%s %q not found in any namespace", what, req.Name)
	}
	err := fmt.Errorf("%s %q not found in namespace %q", what, req.Name, req.Namespace)
	elsewhere, listErr := among(ctx, &chandlerv1.ListRequest{Kind: req.Kind, Name: req.Name})
	if listErr == nil && len(elsewhere) > 0 {
		err = fmt.Errorf("%w; there is %s", err, spelled(elsewhere))
	}
	return err
}

// maxSpelled is how many plugins a message names.
const maxSpelled = 10

// spelled names plugins, with their kinds where these are not the usual one.
func spelled(refs []*chandlerv1.ObjectRef) string {
	var all []string
	for _, ref := range refs[:min(len(refs), maxSpelled)] {
		all = append(all, spellPlugin(ref))
	}
	if more := len(refs) - maxSpelled; more > 0 {
		all = append(all, fmt.Sprintf("and %d more", more))
	}
	return strings.Join(all, ", ")
}

// written are the plugins of which there is a resource, where the flags say.
func (e *env) written(ctx context.Context, req *chandlerv1.ListRequest) ([]*chandlerv1.ObjectRef, error) {
	res, err := e.listed(ctx, req)
	return refsOf(res.GetObjects()), err
}

// distributed are the plugins of which the control plane has a resource, and those whose
// resource is gone and that are still being taken out.
func (e *env) distributed(ctx context.Context, req *chandlerv1.ListRequest) ([]*chandlerv1.ObjectRef, error) {
	res, err := call(ctx, e, e.admin().List, req)
	if err != nil {
		return nil, err
	}
	rolled, err := call(ctx, e, e.rollouts().ListRollouts, &chandlerv1.ListRolloutsRequest{Kind: req.Kind, Namespace: req.Namespace, Name: req.Name})
	if err != nil {
		return nil, err
	}
	return slices.CompactFunc(
		slices.SortedFunc(slices.Values(append(refsOf(res.Objects), refsOf(rolled.Rollouts)...)), compareRefs),
		func(a, b *chandlerv1.ObjectRef) bool { return compareRefs(a, b) == 0 },
	), nil
}

func refsOf[T interface{ GetRef() *chandlerv1.ObjectRef }](all []T) []*chandlerv1.ObjectRef {
	var refs []*chandlerv1.ObjectRef
	for _, one := range all {
		refs = append(refs, one.GetRef())
	}
	return refs
}

func compareRefs(a, b *chandlerv1.ObjectRef) int {
	return slices.Compare([]string{a.Namespace, a.Name, a.Kind}, []string{b.Namespace, b.Name, b.Kind})
}

// findFlags adds the flags that say more of a plugin than its name; kind is the one that
// is given.
func (e *env) findFlags(cmd *cobra.Command, kind *string) {
	cmd.Flags().StringVarP(&e.namespace, "namespace", "n", "", "namespace of the plugin (default "+e.usualNamespace("any")+")")
	kindFlag(cmd, kind)
}

func kindFlag(cmd *cobra.Command, kind *string) {
	cmd.Flags().StringVar(kind, "kind", "", "wasmplugin or trafficextension, where both have the name")
}

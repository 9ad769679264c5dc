package kube

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"chandler.dev/chandler"
	roles "chandler.dev/chandler/internal/access"
)

// AdminAudience is whom tokens shown to the admin port must be for. One for the API
// server itself is worth more and is not to be sent anywhere else.
const AdminAudience = "chandler-admin"

const (
	// accountAge is how long the API server's word on somebody's token is good, and
	// answerAge the same for what they may do. While the API server is away nothing
	// is believed as before: who looks after a cluster can wait.
	accountAge = time.Minute
	answerAge  = 10 * time.Second
)

// Admins reviews tokens of people and programs that use the admin port, and asks
// the API server what they may do with plugins.
type Admins struct {
	core     kubernetes.Interface
	now      func() time.Time
	accounts memo[[sha256.Size]byte, *roles.Account] // by token
	answers  memo[[sha256.Size]byte, bool]           // by account, verb and namespace
}

// Admins gives a reviewer with a client of its own. Its user may create
// tokenreviews and subjectaccessreviews.
func (c *Client) Admins() (*Admins, error) {
	config := rest.CopyConfig(c.rest)
	config.QPS, config.Burst = 50, 200
	core, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("kubernetes: %w", err)
	}
	return newAdmins(core), nil
}

func newAdmins(core kubernetes.Interface) *Admins {
	a := &Admins{core: core, now: time.Now}
	now := func() time.Time { return a.now() }
	a.accounts = memo[[sha256.Size]byte, *roles.Account]{age: accountAge, now: now}
	a.answers = memo[[sha256.Size]byte, bool]{age: answerAge, now: now}
	return a
}

// Review tells whose a token is. The error wraps roles.ErrRefused when it is
// nobody's.
func (a *Admins) Review(ctx context.Context, token string) (*roles.Account, error) {
	account, err := a.accounts.get(ctx, sha256.Sum256([]byte(token)), func(ctx context.Context) (*roles.Account, time.Time, error) {
		account, err := a.review(ctx, token)
		return account, expiry(token), err
	})
	var no *refusedError
	if errors.As(err, &no) {
		return nil, fmt.Errorf("%w: %s", roles.ErrRefused, no.why)
	}
	return account, err
}

func (a *Admins) review(ctx context.Context, token string) (*roles.Account, error) {
	review := &authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: token, Audiences: []string{AdminAudience}}}
	review, err := a.core.AuthenticationV1().TokenReviews().Create(ctx, review, metav1.CreateOptions{})
	if err != nil {
		return nil, fmt.Errorf("token review: %w", explained(err))
	}
	st := review.Status
	switch {
	case !st.Authenticated && st.Error != "":
		return nil, refuse("%s", st.Error)
	case !st.Authenticated || st.User.Username == "":
		return nil, refuse("it is nobody's")
	case !slices.Contains(st.Audiences, AdminAudience):
		return nil, refuse("it is not for the audience %q", AdminAudience)
	}
	account := &roles.Account{User: st.User.Username, UID: st.User.UID, Groups: st.User.Groups, Extra: map[string][]string{}}
	for name, values := range st.User.Extra {
		account.Extra[name] = values
	}
	return account, nil
}

// Allow asks whether an account may do with the WasmPlugins of a namespace what the
// verb needs: list them to see and read, update them to steer, delete them to edit.
// Who may make tokens for the service accounts of a namespace can be any node there
// and so may let nodes in.
func (a *Admins) Allow(ctx context.Context, account *roles.Account, v roles.Verb, namespace string) (bool, error) {
	text, err := json.Marshal(account)
	if err != nil {
		return false, err
	}
	key := sha256.Sum256(fmt.Appendf(text, "\n%s\n%s", v, namespace))
	return a.answers.get(ctx, key, func(ctx context.Context) (bool, time.Time, error) {
		ok, err := a.ask(ctx, account, v, namespace)
		return ok, time.Time{}, err
	})
}

func (a *Admins) ask(ctx context.Context, account *roles.Account, v roles.Verb, namespace string) (bool, error) {
	spec := authorizationv1.SubjectAccessReviewSpec{User: account.User, UID: account.UID, Groups: account.Groups, Extra: map[string]authorizationv1.ExtraValue{}}
	for name, values := range account.Extra {
		spec.Extra[name] = values
	}
	if namespace == roles.Everywhere {
		namespace = ""
	}
	plugins := resources[chandler.KindWasmPlugin]
	on := &authorizationv1.ResourceAttributes{Namespace: namespace, Group: plugins.Group, Resource: plugins.Resource}
	switch v {
	case roles.List, roles.Read:
		on.Verb = "list"
	case roles.Steer:
		on.Verb = "update"
	case roles.Edit:
		on.Verb = "delete"
	case roles.Enrol:
		on = &authorizationv1.ResourceAttributes{Namespace: namespace, Verb: "create", Resource: "serviceaccounts", Subresource: "token"}
	case roles.Debug:
		on, spec.NonResourceAttributes = nil, &authorizationv1.NonResourceAttributes{Path: "/debug/pprof/", Verb: "get"}
	default:
		return false, nil
	}
	spec.ResourceAttributes = on
	review, err := a.core.AuthorizationV1().SubjectAccessReviews().Create(ctx, &authorizationv1.SubjectAccessReview{Spec: spec}, metav1.CreateOptions{})
	if err != nil {
		return false, fmt.Errorf("subject access review: %w", explained(err))
	}
	return review.Status.Allowed && !review.Status.Denied, nil
}

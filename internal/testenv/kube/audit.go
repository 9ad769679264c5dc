package kube

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// auditPolicy has the API server note what service accounts ask for.
const auditPolicy = `apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- {level: Metadata, userGroups: [system:serviceaccounts]}
- {level: None}
`

// auditArgs writes the policy and gives the API server's arguments about it.
func (c *Cluster) auditArgs() ([]string, error) {
	policy := filepath.Join(c.dir, "audit-policy.yaml")
	return []string{"--audit-policy-file=" + policy, "--audit-log-path=" + c.auditLog(), "--audit-log-mode=blocking"},
		os.WriteFile(policy, []byte(auditPolicy), 0o600)
}

func (c *Cluster) auditLog() string { return filepath.Join(c.dir, "audit.log") }

// Request is one that a service account made of the API server.
type Request struct {
	User, Verb string
	// Resource is GROUP/RESOURCE[/SUBRESOURCE]; the group may be empty.
	Resource        string
	Namespace, Name string
	// Code is the HTTP status of the answer.
	Code int
}

// Requests gives what service accounts asked for since the cluster was started; a
// watch is there twice, when it begins and when it ends.
func (c *Cluster) Requests() ([]Request, error) {
	f, err := os.Open(c.auditLog())
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var requests []Request
	for events := json.NewDecoder(f); ; {
		var e struct {
			Verb      string                                                            `json:"verb"`
			User      struct{ Username string }                                         `json:"user"`
			ObjectRef struct{ APIGroup, Resource, Subresource, Namespace, Name string } `json:"objectRef"`
			Status    struct{ Code int }                                                `json:"responseStatus"`
		}
		switch err := events.Decode(&e); {
		case err == io.EOF, errors.Is(err, io.ErrUnexpectedEOF): // the last is being written
			return requests, nil
		case err != nil:
			return nil, fmt.Errorf("audit log: %w", err)
		}
		r := Request{
			User: e.User.Username, Verb: e.Verb, Resource: e.ObjectRef.APIGroup + "/" + e.ObjectRef.Resource,
			Namespace: e.ObjectRef.Namespace, Name: e.ObjectRef.Name, Code: e.Status.Code,
		}
		if e.ObjectRef.Subresource != "" {
			r.Resource += "/" + e.ObjectRef.Subresource
		}
		requests = append(requests, r)
	}
}

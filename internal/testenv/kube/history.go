package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
)

// Version is an object as it was stored once.
type Version struct {
	// Key begins with /registry/ and the resource's group or name.
	Key string
	// Value is JSON, and for the API server's own kinds protobuf.
	Value []byte
}

// History gives every version of every object that there was, oldest first, also
// of those that are gone, unless etcd was told to forget them.
func (c *Cluster) History(ctx context.Context) ([]Version, error) {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	var now struct {
		Header struct {
			Revision string `json:"revision"`
		} `json:"header"`
	}
	if err := c.post(ctx, "/v3/kv/range", `{"key":"AA=="}`, &now); err != nil {
		return nil, err
	}
	last, err := strconv.ParseInt(now.Header.Revision, 10, 64)
	if err != nil {
		return nil, fmt.Errorf("etcd's revision: %w", err)
	}
	const all = `{"create_request":{"key":"AA==","range_end":"AA==","start_revision":"1"}}`
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.store+"/v3/watch", strings.NewReader(all))
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	var out []Version
	for answers := json.NewDecoder(resp.Body); ; {
		var answer struct {
			Result struct {
				Canceled bool `json:"canceled"`
				Events   []struct {
					KV struct {
						Key      []byte `json:"key"`
						Value    []byte `json:"value"`
						Revision int64  `json:"mod_revision,string"`
					} `json:"kv"`
				} `json:"events"`
			} `json:"result"`
		}
		switch err := answers.Decode(&answer); {
		case err != nil:
			return nil, fmt.Errorf("etcd's history: %w", err)
		case answer.Result.Canceled:
			return nil, errors.New("etcd's history is not whole")
		}
		for _, e := range answer.Result.Events {
			out = append(out, Version{string(e.KV.Key), e.KV.Value})
			if e.KV.Revision >= last {
				return out, nil
			}
		}
	}
}

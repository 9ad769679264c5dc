package main

import (
	"context"

	"chandler.dev/chandler/internal/fetch"
)

// schemasBy gets the schemas that artifacts carry for their plugins' configuration.
func schemasBy(client *fetch.Client) func(context.Context, fetch.Request) ([]byte, error) {
	return func(ctx context.Context, req fetch.Request) ([]byte, error) {
		d, err := client.Documents(ctx, req)
		return d.Schema, err
	}
}

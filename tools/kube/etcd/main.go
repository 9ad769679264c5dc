// Etcd is etcd's own command, built from its module for the tests against a
// real Kubernetes API server. Nothing of it is in the product.
package main

import (
	"os"

	"go.etcd.io/etcd/server/v3/etcdmain"
)

func main() { etcdmain.Main(os.Args) }

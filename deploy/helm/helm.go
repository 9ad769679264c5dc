// Package helm holds the chart, so that "chandler install" prints the manifests
// that Helm would install. It renders nothing itself.
package helm

import "embed"

// Chart is the folder of the chart.
//
//go:embed all:chandler
var Chart embed.FS

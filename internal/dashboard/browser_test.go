//go:build browser

package dashboard

import (
	"flag"
)

var shots = flag.String("screenshots", "", "folder to keep screenshots in")

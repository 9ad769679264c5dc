// Command site makes of the repository's pages a site of static files: no scripts, no
// network, the pages themselves and whatever files they lead to. It fails, and says of
// every place what is wrong, when a link or its anchor leads nowhere, or when the contents
// do not lead to a page.
//
//	go -C tools run ./site -out DIR ROOT
package main

import (
	"flag"
	"fmt"
	"os"
)

func main() {
	out := flag.String("out", "dist/site", "folder for the site; it is made anew")
	flag.Parse()
	if flag.NArg() != 1 {
		fmt.Fprintln(os.Stderr, "usage: site -out DIR ROOT")
		os.Exit(2)
	}
	s, err := load(os.DirFS(flag.Arg(0)))
	if err == nil {
		err = s.write(*out)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "site: %v\n", err)
		os.Exit(1)
	}
	fmt.Printf("%s: %d pages, %d files\n", *out, len(s.pages), len(s.files))
}

package pages

import (
	"path"
	"slices"
)

// Claim says which test runs blocks of a page: those under one of the headings, or without
// headings all of it.
type Claim struct {
	Page     string // from the root; a pattern of path.Match
	Headings []string
	Dir      string // the test's folder
	Test     string
	Target   string // of make, which runs the test
}

// Claims are all of them. A test of this package sees to it that every block is claimed
// and that the test and the target are there; Open, that a test keeps what is said here.
var Claims = []Claim{
	{Page: "docs/authoring/*.md", Dir: "cmd/chandler", Test: "TestGuides", Target: "authors"},
	{Page: "docs/airgap.md", Dir: "test/airgap", Test: "TestPage", Target: "e2e-airgap"},
}

func (c *Claim) has(b Block) bool {
	ok, err := path.Match(c.Page, b.Page)
	return err == nil && ok && (len(c.Headings) == 0 || b.under(c.Headings))
}

// Unclaimed are the blocks of pages that no test runs.
func Unclaimed(blocks []Block) []Block {
	return slices.DeleteFunc(slices.Clone(blocks), func(b Block) bool {
		return slices.ContainsFunc(Claims, func(c Claim) bool { return c.has(b) })
	})
}

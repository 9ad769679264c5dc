package pages

import (
	"path"
	"slices"
)

// Claim says which test runs blocks of a page: those under one of the headings, or without
// headings all of it. Without a test the blocks give commands of make that .ci/run gives.
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
	{Page: "README.md", Headings: []string{"Two commands"}},
	{Page: "README.md", Headings: []string{"The walkthrough"}, Dir: "test/pages", Test: "TestWalkthrough", Target: "pages"},
	{Page: "README.md", Headings: []string{"Your own Envoy"}, Dir: "test/pages", Test: "TestYourOwnEnvoy", Target: "pages"},
	{Page: "README.md", Headings: []string{"Your own plugin"}, Dir: "cmd/chandler", Test: "TestGuides", Target: "authors"},
	{Page: "docs/agent.md", Headings: []string{"Before Envoy's arguments"}, Dir: "test/pages", Test: "TestAgentBefore", Target: "pages"},
	{Page: "docs/agent.md", Headings: []string{"In the place of Envoy"}, Dir: "test/pages", Test: "TestAgentInPlace", Target: "pages"},
	{Page: "docs/agent.md", Headings: []string{"With commands"}, Dir: "test/pages", Test: "TestAgentBeside", Target: "pages"},
	{Page: "docs/agent.md", Headings: []string{"systemd"}, Dir: "test/machines", Test: "TestBeside", Target: "e2e-machine"},
	{Page: "docs/authoring/*.md", Dir: "cmd/chandler", Test: "TestGuides", Target: "authors"},
	{Page: "docs/benchmarks.md", Dir: "test/pages", Test: "TestMeasuring", Target: "pages"},
	{Page: "docs/airgap.md", Dir: "test/airgap", Test: "TestPage", Target: "e2e-airgap"},
	{Page: "docs/cli.md", Headings: []string{"What is in force where", "Why", "Before a change"}, Dir: "test/pages", Test: "TestAsking", Target: "pages"},
	{Page: "docs/cli.md", Headings: []string{"On Kubernetes"}, Dir: "test/pages", Test: "TestKubernetes", Target: "e2e-kube"},
	{Page: "docs/any-control-plane.md", Headings: []string{"Envoy Gateway on a machine"}, Dir: "test/pages", Test: "TestEnvoyGateway", Target: "e2e-gateway"},
	{Page: "docs/any-control-plane.md", Headings: []string{"Any other control plane"}, Dir: "test/pages", Test: "TestAnyControlPlane", Target: "pages"},
	{Page: "docs/coming-from-istio.md", Dir: "test/pages", Test: "TestComingFromIstio", Target: "pages"},
	{Page: "docs/dashboard.md", Dir: "test/pages", Test: "TestDashboardToken", Target: "pages"},
	{Page: "docs/kubernetes.md", Dir: "test/pages", Test: "TestKubernetes", Target: "e2e-kube"},
	{Page: "docs/install.md", Headings: []string{"Verify", "Packages", "The archive", "Images"}, Dir: "test/dist", Test: "TestInstallPage", Target: "test-dist"},
	{Page: "docs/install.md", Headings: []string{"Kubernetes"}, Dir: "test/dist", Test: "TestInstallOnKubernetes", Target: "test-dist"},
	{Page: "docs/lock.md", Dir: "test/pages", Test: "TestLock", Target: "pages"},
	{Page: "docs/machines.md", Dir: "test/machines", Test: "TestMachines", Target: "e2e-machine"},
	{Page: "docs/upgrades.md", Dir: "test/e2e", Test: "TestUpgradePage", Target: "e2e-upgrade"},
	{Page: "docs/operating.md", Dir: "test/pages", Test: "TestOperating", Target: "pages"},
	{Page: "docs/scaling.md", Dir: "test/pages", Test: "TestMeasuring", Target: "pages"},
	{Page: "docs/tutorial.md", Dir: "test/pages", Test: "TestTutorial", Target: "pages"},
	{Page: "examples/bookinfo/README.md", Dir: "test/pages", Test: "TestBookinfoExample", Target: "pages"},
	{Page: "examples/envoy-gateway/README.md", Dir: "test/pages", Test: "TestEnvoyGatewayExample", Target: "e2e-gateway"},
	{Page: "plugins/README.md", Dir: "cmd/chandler", Test: "TestSamplePlugins", Target: "test-plugins"},
	{Page: "plugins/*/README.md", Dir: "cmd/chandler", Test: "TestSamplePlugins", Target: "test-plugins"},
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

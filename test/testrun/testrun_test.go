package testrun

import (
	"slices"
	"strings"
	"testing"
)

func TestRead(t *testing.T) {
	t.Parallel()
	run, err := Read(strings.NewReader(`
		{"Action":"run","Package":"p","Test":"TestRefuse_B1"}
		{"Action":"attr","Package":"p","Test":"TestRefuse_B1","Key":"refusal","Value":"SpecShape"}
		{"Action":"attr","Package":"p","Test":"TestRefuse_B1/sub","Key":"refusal","Value":"two words"}
		{"Action":"attr","Package":"p","Test":"TestOther","Key":"refusal","Value":"x"}
		{"Action":"pass","Package":"p","Test":"TestOther"}
		{"Action":"pass","Package":"p","Test":"TestRefuse_B1"}
		{"Action":"pass","Package":"p"}`), "TestRefuse_")
	if err != nil {
		t.Fatal(err)
	}
	if len(run.Tests) != 1 || !run.Tests["p.TestRefuse_B1"] || len(run.Broken) > 0 || len(run.Attributes) != 1 ||
		!slices.Equal(run.Attributes["p.TestRefuse_B1"], []Attribute{{"refusal", "SpecShape"}, {"refusal", "two words"}}) {
		t.Errorf("%+v", run)
	}
	if _, err := Read(strings.NewReader("FAIL\n"), "Test"); err == nil {
		t.Error("what is no JSON was read")
	}
}

func TestRows(t *testing.T) {
	t.Parallel()
	run := &Run{prefix: "TestFault_"}
	for name, want := range map[string][]int{
		"p.TestFault_F14":               {14},
		"p.TestFault_F2_F3_F20_Crash":   {2, 3, 20},
		"p.TestFault_F17_Flip_F18":      {17, 18},
		"p.TestFault_F3_F3_Four_F4x_Fx": {3},
		"p.TestFault_F03_B4":            {3},
		"p.TestFault_Words":             nil,
		"p.TestRefuse_F1":               nil,
	} {
		if got := run.Rows(name, 'F'); !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", name, got, want)
		}
	}
}

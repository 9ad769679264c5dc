package attach

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"chandler.dev/chandler"
)

// Each input is a chain, a type a line; the golden file shows it with the slots.
func TestPlacesGolden(t *testing.T) {
	t.Parallel()
	for _, path := range inputs(t, "places") {
		t.Run(filepath.Base(path), func(t *testing.T) {
			t.Parallel()
			var chain []Filter
			for line := range strings.Lines(string(read(t, path))) {
				chain = append(chain, Filter{TypeURL: strings.TrimSpace(line)})
			}
			golden(t, strings.TrimSuffix(path, ".txt")+".golden", strings.Join(withSlots(chain), "\n")+"\n")
		})
	}
}

func withSlots(chain []Filter) []string {
	places := Places(chain)
	var lines []string
	for i := range len(chain) + 1 {
		for p, phase := range chandler.Phases() {
			if places[p] == i {
				lines = append(lines, "["+phaseName(phase)+"]")
			}
		}
		if i < len(chain) {
			lines = append(lines, typeName(chain[i].TypeURL))
		}
	}
	return lines
}

// Whatever the chain: phases stand in their order, none behind the terminal
// filter; AUTHN before all that judges, AUTHZ behind all that authenticates.
func TestPlacesHold(t *testing.T) {
	t.Parallel()
	kinds := []string{"x.cors.v3.Cors", "x.jwt_authn.v3.Jwt", "x.rbac.v3.RBAC", "x.grpc_stats.v3.FilterConfig"}
	rapid.Check(t, func(t *rapid.T) {
		var chain []Filter
		for _, kind := range rapid.SliceOfN(rapid.SampledFrom(kinds), 1, 8).Draw(t, "chain") {
			chain = append(chain, Filter{TypeURL: kind})
		}
		terminal := len(chain) - 1
		places := Places(chain)
		if !slices.IsSorted(places[:]) || places[3] != terminal {
			t.Fatalf("%v: %v", chain, places)
		}
		for i := range terminal {
			switch f := familyOf(chain[i].TypeURL); {
			case f != 0 && i < places[0]:
				t.Fatalf("%v: AUTHN at %d stands behind filter %d", chain, places[0], i)
			case f == authnFilter && i >= places[1]:
				t.Fatalf("%v: AUTHZ at %d stands before filter %d", chain, places[1], i)
			case f != 0 && f != statsFilter && i >= places[2]:
				t.Fatalf("%v: STATS at %d stands before filter %d", chain, places[2], i)
			}
		}
	})
}

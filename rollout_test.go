package chandler_test

import (
	"fmt"
	"strings"
	"testing"

	"chandler.dev/chandler"
)

func TestDisablementIsBounded(t *testing.T) {
	t.Parallel()
	many := map[string]string{}
	for i := range 17 {
		many[fmt.Sprint("k", i)] = "v"
	}
	type labels = map[string]string
	for _, c := range []struct {
		order chandler.Disablement
		fits  bool
	}{
		{chandler.Disablement{}, true},
		{chandler.Disablement{Node: "edge/gw-1"}, true},
		{chandler.Disablement{Labels: labels{"canary": "", "zone": "a"}}, true},
		{chandler.Disablement{Node: "edge/gw-1", Labels: labels{"a": "b"}}, false},
		{chandler.Disablement{Node: "gw-1"}, false},
		{chandler.Disablement{Node: "/gw-1"}, false},
		{chandler.Disablement{Node: "edge/gw/1"}, false},
		{chandler.Disablement{Node: "edge/" + strings.Repeat("x", 512)}, false},
		{chandler.Disablement{Labels: many}, false},
		{chandler.Disablement{Labels: labels{"": "b"}}, false},
		{chandler.Disablement{Labels: labels{strings.Repeat("k", 318): "b"}}, false},
		{chandler.Disablement{Labels: labels{"a": strings.Repeat("v", 64)}}, false},
	} {
		if err := c.order.Check(); (err == nil) != c.fits {
			t.Errorf("%.40s: %v", c.order.Target(), err)
		}
	}
}

package relay

import (
	"maps"
	"strings"
	"testing"
)

// A resource that Envoy refuses only for what the transform made of it goes out once more
// as the owner amends it, and the upstream hears what Envoy says of that.
func TestAmended(t *testing.T) {
	both(t, func(t *testing.T, delta bool) {
		plain := map[string]bool{}
		k := newTalk(t, delta, map[string]Transform{listenerType: func(r Resource) ([]byte, bool) {
			if plain[contentOf(r.Body)] {
				return r.Body, true
			}
			return message(r.Name, contentOf(r.Body)+"+slots"), true
		}})
		var asked []string
		k.relay.hooks.Amend = map[string]func(string, bool, string) bool{listenerType: func(name string, own bool, words string) bool {
			if own || !strings.Contains(words, name+": slots") {
				t.Errorf("of %s is asked with %q, own %v", name, words, own)
			}
			asked = append(asked, name)
			plain[name+"1"], plain[name+"2"] = true, true
			return true
		}}
		k.want(listenerType)
		k.tells(listenerType)
		nonce := k.push(listenerType, "1", "l=l1", "m=m1")
		k.nack(k.gets(listenerType, "l=l1+slots", "m=m1+slots"), "Error adding/updating listener(s) l: slots")
		k.tellsNothing() // until Envoy has answered for the other form
		if delta {
			k.ack(k.gets(listenerType, "l=l1"))
		} else {
			k.ack(k.gets(listenerType, "l=l1", "m=m1+slots"))
		}
		k.answers(listenerType, nonce, "")
		k.getsNothing()
		if len(asked) != 1 {
			t.Errorf("asked of %q", asked)
		}
		for _, ev := range k.events {
			if len(ev.Refused) > 0 {
				t.Errorf("the owner is told %+v", ev)
			}
		}

		// What is bad in any form is the upstream's, with the words of the last try.
		clear(plain)
		nonce = k.push(listenerType, "2", "l=l2", "m=m1")
		sent := map[bool][]string{true: {"l=l2+slots"}, false: {"l=l2+slots", "m=m1+slots"}}
		if delta {
			sent[true] = append(sent[true], "m=m1+slots")
		}
		k.nack(k.gets(listenerType, sent[delta]...), "Error adding/updating listener(s) l: slots")
		k.tellsNothing()
		again := []string{"l=l2"}
		if !delta {
			again = append(again, "m=m1+slots")
		}
		k.nack(k.gets(listenerType, again...), "Error adding/updating listener(s) l: itself")
		k.answers(listenerType, nonce, "Error adding/updating listener(s) l: itself")
		k.tellsNothing()

		// Of what was replaced meanwhile nobody is asked, and nobody blamed.
		clear(plain)
		before := maps.Clone(plain)
		first := k.push(listenerType, "3", "l=l3", "m=m1")
		p := k.ToEnvoy(k.now)
		second := k.push(listenerType, "4", "l=l4", "m=m1")
		k.nack(p, "Error adding/updating listener(s) l: slots")
		k.answers(listenerType, first, "")
		k.ack(k.ToEnvoy(k.now))
		k.answers(listenerType, second, "")
		if !maps.Equal(plain, before) {
			t.Error("it is amended")
		}
	})
}

package access

// Sight is what one caller may do, asked when it is needed and once each. It is for one
// request: what may be done can change.
type Sight struct {
	ask   func(v Verb, namespace string) (bool, error)
	known map[question]bool
	err   error
}

type question struct {
	verb      Verb
	namespace string
}

// NewSight gives a sight. ask tells whether a verb is allowed in a namespace, or
// Everywhere; its error is for when that cannot be found out now.
func NewSight(ask func(v Verb, namespace string) (bool, error)) *Sight {
	return &Sight{ask: ask, known: map[question]bool{}}
}

// May tells whether a verb is allowed in a namespace, as it is where it is allowed
// everywhere.
func (s *Sight) May(v Verb, namespace string) bool {
	return s.Everywhere(v) || s.asked(v, namespace)
}

// Everywhere tells whether a verb is allowed in all namespaces.
func (s *Sight) Everywhere(v Verb) bool { return s.asked(v, Everywhere) }

// Err is why something could not be found out; from then on nothing is allowed, and an
// answer that was made meanwhile is not to be given.
func (s *Sight) Err() error { return s.err }

func (s *Sight) asked(v Verb, namespace string) bool {
	q := question{v, namespace}
	ok, known := s.known[q]
	if s.err == nil && !known {
		ok, s.err = s.ask(v, namespace)
		s.known[q] = ok
	}
	return ok && s.err == nil
}

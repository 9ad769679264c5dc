package credential

// Proofs is how many certificates are known to be good.
func (s *Server) Proofs() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.proofs)
}

// Terms is what a connection is made by that is made now.
func (s *Server) Terms() (any, error) { return s.current() }

package credential

// Proofs is how many certificates are known to be good.
func (s *Server) Proofs() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.proofs)
}

package credential

import (
	"crypto/tls"
	"errors"
)

// HTTP says how an HTTP server speaks TLS. Clients may show a certificate; who does
// is to be looked at again with each request (Verify).
func (s *Server) HTTP() *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS13, GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
		config, err := s.config()
		if err != nil {
			return nil, err
		}
		config.NextProtos = []string{"h2", "http/1.1"}
		return config, nil
	}}
}

// HTTP says how an HTTP client speaks TLS, by the files as they are now.
func (c *Client) HTTP() (*tls.Config, error) {
	config, err := c.config()
	if err != nil {
		return nil, err
	}
	config.ServerName = c.ServerName
	return config, nil
}

// Bearer gives the token in its file. Whoever sends it sees to it that nobody reads
// it on the way.
func (c *Client) Bearer() (string, error) {
	if c.token == nil {
		return "", errors.New("there is no file of a token")
	}
	return c.token.get()
}

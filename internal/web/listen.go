package web

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	stdlog "log"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"chandler.dev/chandler"
)

// Limits of the server. A request may take as long as a profile does.
const (
	maxConnections = 256 // of each listener; more of them wait
	maxHeader      = 64 << 10
	headerTimeout  = 10 * time.Second
	requestTimeout = time.Minute
	answerTimeout  = 2 * time.Minute
	idleTimeout    = 2 * time.Minute
	stopTimeout    = time.Second
	// longestPath is what every kernel takes for a socket's path.
	longestPath = 100
)

// Serve serves on all listeners until ctx ends, and closes them. Each has its own
// limit of connections.
func Serve(ctx context.Context, h http.Handler, log *slog.Logger, listeners ...net.Listener) error {
	g, ctx := errgroup.WithContext(ctx)
	srv := &http.Server{
		Handler: h, MaxHeaderBytes: maxHeader, ErrorLog: stdlog.New(complaints{log}, "", 0),
		ReadHeaderTimeout: headerTimeout, ReadTimeout: requestTimeout, WriteTimeout: answerTimeout, IdleTimeout: idleTimeout,
		BaseContext: func(net.Listener) context.Context {
			return context.WithValue(context.Background(), servingKey{}, ctx)
		},
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			if p, ok := c.(*peerConn); ok {
				return context.WithValue(ctx, peerKey{}, p.peer)
			}
			return ctx
		},
	}
	for _, lis := range listeners {
		g.Go(func() error {
			if err := srv.Serve(lis); !errors.Is(err, http.ErrServerClosed) {
				return err
			}
			return nil
		})
	}
	g.Go(func() error {
		<-ctx.Done()
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
		defer cancel()
		if srv.Shutdown(grace) != nil {
			return srv.Close()
		}
		return nil
	})
	return g.Wait()
}

// complaints are the HTTP server's. Anybody can cause those about TLS.
type complaints struct{ log *slog.Logger }

func (c complaints) Write(b []byte) (int, error) {
	level := slog.LevelWarn
	if bytes.Contains(b, []byte("TLS handshake error")) {
		level = slog.LevelDebug
	}
	c.log.Log(context.Background(), level, "the admin port complains", "of", chandler.Printable(string(b), 4096))
	return len(b), nil
}

// ListenTCP listens on an address, with TLS unless config is nil.
func ListenTCP(addr string, config *tls.Config) (net.Listener, error) {
	lis, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, err
	}
	lis = newCapped(lis)
	if config != nil {
		lis = tls.NewListener(lis, config)
	}
	return lis, nil
}

// ListenSocket makes a Unix socket for this user alone. One that nobody answers at
// is replaced. Closing it removes it.
func ListenSocket(path string) (net.Listener, error) {
	if err := VacateSocket(path); err != nil {
		return nil, err
	}
	var lis *net.UnixListener
	err := shortly(path, func(path string) (err error) {
		lis, err = net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
		return err
	})
	if err != nil {
		return nil, err
	}
	lis.SetUnlinkOnClose(false) // it may know the socket by a name that is gone
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(err, lis.Close(), os.Remove(path))
	}
	return newCapped(&socket{UnixListener: lis, path: path}), nil
}

// VacateSocket removes a socket that nobody listens at any more. The error is that
// somebody does, or that there is something else.
func VacateSocket(path string) error {
	switch st, err := os.Lstat(path); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return err
	case st.Mode().Type() != fs.ModeSocket:
		return fmt.Errorf("%s is there and is no socket", path)
	default:
		if conn, err := DialSocket(context.Background(), path); err == nil {
			conn.Close()
			return fmt.Errorf("somebody answers at %s already", path)
		}
		if err := os.Remove(path); err != nil {
			return err
		}
	}
	return nil
}

// DialSocket connects to a Unix socket, however long its path is.
func DialSocket(ctx context.Context, path string) (net.Conn, error) {
	var conn net.Conn
	err := shortly(path, func(path string) (err error) {
		conn, err = new(net.Dialer).DialContext(ctx, "unix", path)
		return err
	})
	return conn, err
}

// shortly gives use a path that a socket's address has room for.
func shortly(path string, use func(string) error) error {
	if len(path) <= longestPath {
		return use(path)
	}
	dir, err := os.MkdirTemp("", "chandler-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	link := filepath.Join(dir, "d")
	if err := os.Symlink(filepath.Dir(path), link); err != nil {
		return err
	}
	return use(filepath.Join(link, filepath.Base(path)))
}

// socket tells of each connection who is at its other end.
type socket struct {
	*net.UnixListener
	path string
}

func (s *socket) Accept() (net.Conn, error) {
	conn, err := s.AcceptUnix()
	if err != nil {
		return nil, err
	}
	uid, err := peerUID(conn)
	return &peerConn{conn, peer{uid, err}}, nil
}

func (s *socket) Close() error {
	err := s.UnixListener.Close()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return errors.Join(err, os.Remove(s.path))
}

// peer is who is at the other end of a socket, or why that cannot be told.
type peer struct {
	uid int
	err error
}

type peerKey struct{}

type peerConn struct {
	net.Conn
	peer peer
}

// peerUID asks the kernel for the user of a connection's other end.
func peerUID(conn syscall.Conn) (uid int, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	if ctl := raw.Control(func(fd uintptr) { uid, err = credentials(int(fd)) }); ctl != nil {
		return 0, ctl
	}
	return uid, err
}

// capped gives out so many connections at a time; more of them wait for one to end.
type capped struct {
	net.Listener
	free   chan struct{}
	closed chan struct{}
	once   sync.Once
}

func newCapped(lis net.Listener) *capped {
	return &capped{Listener: lis, free: make(chan struct{}, maxConnections), closed: make(chan struct{})}
}

func (c *capped) Accept() (net.Conn, error) {
	select {
	case c.free <- struct{}{}:
	case <-c.closed:
		return nil, net.ErrClosed
	}
	conn, err := c.Listener.Accept()
	if err != nil {
		<-c.free
		return nil, err
	}
	counted := &countedConn{Conn: conn, end: func() { <-c.free }}
	if p, ok := conn.(*peerConn); ok {
		return &peerConn{counted, p.peer}, nil
	}
	return counted, nil
}

func (c *capped) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Listener.Close()
}

type countedConn struct {
	net.Conn
	once sync.Once
	end  func()
}

func (c *countedConn) Close() error {
	defer c.once.Do(c.end)
	return c.Conn.Close()
}

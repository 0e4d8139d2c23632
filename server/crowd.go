package main

import (
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"
)

// connectionsOfOne is how many connections one address may have open (IPv6: one /64), of the 8192 that are served. Requests are
// limited when they are read, and a connection that sends half of one holds its place for half a minute.
const connectionsOfOne = 2048

// crowd is a listener on which nobody takes all the places: connections beyond the limit of their source are closed unread. Proxies, which
// come for many, are not counted. Whoever ends TLS stands above it.
type crowd struct {
	net.Listener
	most    int
	proxies []netip.Prefix
	logger  *slog.Logger

	mu     sync.Mutex
	open   map[netip.Prefix]int
	closed int       // since they were told of
	told   time.Time // when
}

// newCrowd puts the limit on a listener; proxies are networks in CIDR notation.
func newCrowd(l net.Listener, most int, proxies []string, logger *slog.Logger) (*crowd, error) {
	c := &crowd{Listener: l, most: most, logger: logger, open: map[netip.Prefix]int{}}
	for _, text := range proxies {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, fmt.Errorf("parsing proxy network: %w", err)
		}
		c.proxies = append(c.proxies, p.Masked())
	}
	return c, nil
}

// Accept implements net.Listener.
func (c *crowd) Accept() (net.Conn, error) {
	for {
		conn, err := c.Listener.Accept()
		if err != nil {
			return nil, err
		}
		from, counted := c.source(conn)
		if !counted {
			return conn, nil
		}
		if c.enter(from) {
			return &guest{Conn: conn, leave: sync.OnceFunc(func() { c.leave(from) })}, nil
		}
		_ = conn.Close()
	}
}

// source is what connections are counted by.
func (c *crowd) source(conn net.Conn) (from netip.Prefix, counted bool) {
	at, ok := conn.RemoteAddr().(*net.TCPAddr)
	if !ok {
		return from, false
	}
	a := at.AddrPort().Addr().Unmap().WithZone("")
	for _, p := range c.proxies {
		if p.Contains(a) {
			return from, false
		}
	}
	bits := 64
	if a.Is4() {
		bits = 32
	}
	from, err := a.Prefix(bits)
	return from, err == nil
}

func (c *crowd) enter(from netip.Prefix) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.open[from] < c.most {
		c.open[from]++
		return true
	}
	if c.closed++; time.Since(c.told) >= time.Minute {
		c.logger.Warn("connections were closed unread: their source has too many", "closed", c.closed, "limit", c.most)
		c.closed, c.told = 0, time.Now()
	}
	return false
}

func (c *crowd) leave(from netip.Prefix) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.open[from]--; c.open[from] == 0 {
		delete(c.open, from)
	}
}

// guest is a connection that counts.
type guest struct {
	net.Conn
	leave func()
}

// Close implements net.Conn.
func (g *guest) Close() error {
	defer g.leave()
	return g.Conn.Close()
}

package main

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"net/url"
	"sync"
	"testing"
	"time"
)

// weather is what a network does to the connections of one role.
type weather int

const (
	fair    weather = iota
	refused         // connections are closed, new ones at once
	swallow         // connections stay and nothing comes through, in either direction
)

// network stands between the program and PostgreSQL and can fail for the connections of one role only: the trail's writer is cut
// off while records are still served.
type network struct {
	url  string // the database through this network
	role string // "" = every connection

	listener net.Listener
	target   string
	mu       sync.Mutex
	turned   sync.Cond
	weather  weather
	open     map[net.Conn]bool // both ends of the role's connections
	closed   bool
	running  sync.WaitGroup
}

// between starts a network before the database of a URL.
func between(t testing.TB, dsn, role string) *network {
	t.Helper()
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	n := &network{role: role, listener: l, target: u.Host, open: map[net.Conn]bool{}}
	n.turned.L = &n.mu
	u.Host = l.Addr().String()
	n.url = u.String()
	n.running.Go(n.accept)
	t.Cleanup(func() {
		n.turn(refused)
		n.mu.Lock()
		n.closed = true
		n.turned.Broadcast()
		n.mu.Unlock()
		l.Close()
		n.running.Wait()
	})
	return n
}

// turn changes the weather, also for connections that are open.
func (n *network) turn(w weather) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.weather = w
	if w == refused {
		for c := range n.open {
			c.Close()
		}
	}
	n.turned.Broadcast()
}

func (n *network) accept() {
	for {
		client, err := n.listener.Accept()
		if err != nil {
			return
		}
		n.running.Go(func() { n.carry(client) })
	}
}

// carry is one connection.
func (n *network) carry(client net.Conn) {
	defer client.Close()
	hello, err := startup(client)
	if err != nil {
		return
	}
	ours := n.role == "" || bytes.Contains(hello, []byte("role\x00"+n.role+"\x00"))
	server, err := net.Dial("tcp", n.target)
	if err != nil {
		return
	}
	defer server.Close()
	if ours {
		n.mu.Lock()
		if n.weather == refused {
			n.mu.Unlock()
			return
		}
		n.open[client], n.open[server] = true, true
		n.mu.Unlock()
		defer func() {
			n.mu.Lock()
			delete(n.open, client)
			delete(n.open, server)
			n.mu.Unlock()
		}()
	}
	var both sync.WaitGroup
	pump := func(to, from net.Conn, first []byte) {
		defer to.Close()
		buf := make([]byte, 1<<16)
		for {
			if ours && !n.passes() {
				return
			}
			if _, err := to.Write(first); err != nil {
				return
			}
			k, err := from.Read(buf)
			if err != nil {
				return
			}
			first = buf[:k]
		}
	}
	both.Go(func() { pump(server, client, hello) })
	both.Go(func() { pump(client, server, nil) })
	both.Wait()
}

// passes waits while packets are swallowed; false ends the connection. What was held back arrives late, as it does after a
// partition that was short.
func (n *network) passes() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	for n.weather == swallow && !n.closed {
		n.turned.Wait()
	}
	return n.weather == fair
}

// startup reads PostgreSQL's first message, which has no type: length, protocol, parameters.
func startup(c net.Conn) ([]byte, error) {
	if err := c.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return nil, err
	}
	var length [4]byte
	if _, err := io.ReadFull(c, length[:]); err != nil {
		return nil, err
	}
	b := make([]byte, min(binary.BigEndian.Uint32(length[:]), 1<<16))
	copy(b, length[:])
	if _, err := io.ReadFull(c, b[4:]); err != nil {
		return nil, err
	}
	return b, c.SetReadDeadline(time.Time{})
}

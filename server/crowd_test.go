package main

import (
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"
)

// One address does not take all the places: what it opens beyond its own is closed, others come in, and a place that is left is free.
func TestCrowd(t *testing.T) {
	below, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer below.Close()
	var log strings.Builder
	l, err := newCrowd(below, 3, []string{"127.9.0.0/16"}, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan net.Conn, 64)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				close(served)
				return
			}
			_, _ = conn.Write([]byte("x"))
			served <- conn
		}
	}()
	in := func(from string) bool {
		t.Helper()
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
		conn, err := d.Dial("tcp", below.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		_ = conn.SetReadDeadline(time.Now().Add(5 * time.Second))
		_, err = io.ReadFull(conn, make([]byte, 1))
		return err == nil
	}
	var first net.Conn
	for n := range 5 {
		if got, want := in("127.0.0.5"), n < 3; got != want {
			t.Errorf("connection %d of one address: served %v", n, got)
		}
		if n == 0 {
			first = <-served
		}
	}
	if !in("127.0.0.6") {
		t.Error("another address is shut out")
	}
	for range 6 {
		if !in("127.9.0.1") {
			t.Error("a proxy is counted")
		}
	}
	first.Close()
	first.Close() // a place is left once
	if got := []bool{in("127.0.0.5"), in("127.0.0.5")}; !got[0] || got[1] {
		t.Errorf("after one was closed: served %v", got)
	}
	below.Close()
	for conn := range served {
		conn.Close()
	}
	if len(l.open) != 0 {
		t.Errorf("%d sources are counted when nobody is there", len(l.open))
	}
	if n := strings.Count(log.String(), "closed unread"); n != 1 {
		t.Errorf("%d lines in the log", n)
	}
	if _, err := newCrowd(below, 3, []string{"nonsense"}, slog.New(slog.DiscardHandler)); err == nil {
		t.Error("a network that is none")
	}
}

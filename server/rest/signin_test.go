package rest

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chartkeep/chartkeep/auth"
)

// TestSessionsSignInOnce: many requests of a session make one event, and all wait for it.
func TestSessionsSignInOnce(t *testing.T) {
	s := newSessions()
	var made atomic.Int32
	var durable atomic.Bool
	var wg sync.WaitGroup
	for range 64 {
		wg.Go(func() {
			err := s.enter(session{"s", "u", "c"}, func() error {
				made.Add(1)
				time.Sleep(20 * time.Millisecond)
				durable.Store(true)
				return nil
			})
			if err != nil || !durable.Load() {
				t.Errorf("let through before the event was durable (%v)", err)
			}
		})
	}
	wg.Wait()
	if n := made.Load(); n != 1 {
		t.Errorf("%d events", n)
	}
	if allocs := testing.AllocsPerRun(100, func() { _ = s.enter(session{"s", "u", "c"}, func() error { return errors.New("again") }) }); allocs != 0 {
		t.Errorf("%v allocations for a known session", allocs)
	}
}

// TestSessionsFailClosed: a sign-in that is not recorded lets nobody through, and is tried again.
func TestSessionsFailClosed(t *testing.T) {
	s := newSessions()
	away := errors.New("the journal is away")
	for range 3 {
		if err := s.enter(session{id: "s"}, func() error { return away }); !errors.Is(err, away) {
			t.Fatalf("got %v", err)
		}
	}
	if err := s.enter(session{id: "s"}, func() error { return nil }); err != nil {
		t.Fatal(err)
	}
}

// TestSessionsAreBounded: one that is used stays known while others come and go, and memory does not grow.
func TestSessionsAreBounded(t *testing.T) {
	s := newSessions()
	used := session{id: "used"}
	fine := func() error { return nil }
	if err := s.enter(used, fine); err != nil {
		t.Fatal(err)
	}
	again := 0
	for i := range 200_000 {
		_ = s.enter(session{id: fmt.Sprint(i)}, fine)
		_ = s.enter(used, func() error { again++; return nil })
	}
	if again != 0 {
		t.Errorf("a session in use signed in %d more times", again)
	}
	n := 0
	for i := range s.shards {
		n += len(s.shards[i].young) + len(s.shards[i].old)
	}
	if n > 2*sessionShards*sessionsPerHalf {
		t.Errorf("%d sessions are remembered", n)
	}
	what := auth.Revocation{Kind: auth.RevokeSession, ID: "used"}
	if ended := s.end(what); len(ended) != 1 || ended[0] != used || len(s.end(what)) != 0 {
		t.Errorf("ended %v", ended)
	}
}

// TestSessionsEndWithWhatIsRevoked: of whom a revocation is about, and of nobody else.
func TestSessionsEndWithWhatIsRevoked(t *testing.T) {
	all := []session{{"s-1", "a", "app"}, {"s-2", "a", "web"}, {"s-3", "b", "app"}}
	for _, c := range []struct {
		revoked auth.Revocation
		ended   int
	}{
		{auth.Revocation{Kind: auth.RevokeSession, ID: "s-1"}, 1}, {auth.Revocation{Kind: auth.RevokeToken, ID: "s-2"}, 1},
		{auth.Revocation{Kind: auth.RevokeSubject, ID: "a"}, 2}, {auth.Revocation{Kind: auth.RevokeClient, ID: "app"}, 2},
		{auth.Revocation{Kind: auth.RevokeAll}, 3}, {auth.Revocation{Kind: auth.RevokeKey, ID: "s-1"}, 0},
		{auth.Revocation{Kind: auth.RevokeSubject, ID: "s-1"}, 0}, {auth.Revocation{Kind: auth.Reinstate, ID: "a"}, 0},
	} {
		s := newSessions()
		for _, key := range all {
			_ = s.enter(key, func() error { return nil })
		}
		if ended := s.end(c.revoked); len(ended) != c.ended {
			t.Errorf("%+v ended %v", c.revoked, ended)
		}
	}
}

func BenchmarkKnownSession(b *testing.B) {
	s := newSessions()
	key := session{"s-1", "dr-rivera", "clinic-app"}
	_ = s.enter(key, func() error { return nil })
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			_ = s.enter(key, func() error { return nil })
		}
	})
}

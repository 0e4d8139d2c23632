package rest

import (
	"hash/maphash"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/auth"
)

// A session's first accepted token is an event of its own: this is where a resource server sees that somebody signed in. It is
// durable before anything else is done for the session, and carries no request id: it tells about the session, not about the
// request that happened to come first. An instance remembers the sessions that it has seen; one that was forgotten, or that
// another instance takes over, signs in again.

// session is what is remembered of a sign-in.
type session struct{ id, user, client string }

const (
	sessionShards   = 32
	sessionsPerHalf = 1024 // of a shard: 64 Ki sessions in all, in two halves
)

// sessions are those that have signed in here. Asking for a known one takes a read lock and allocates nothing.
type sessions struct {
	seed   maphash.Seed
	shards [sessionShards]sessionShard
}

// sessionShard forgets by halves: when the younger half is full it becomes the older one, and the older one goes.
type sessionShard struct {
	mu         sync.RWMutex
	young, old map[session]*signIn
}

// signIn is an event on its way, or one that is durable.
type signIn struct {
	durable atomic.Bool
	done    chan struct{} // closed when the event is durable, or never will be
	err     error         // set before done is closed
}

func newSessions() *sessions {
	s := &sessions{seed: maphash.MakeSeed()}
	for i := range s.shards {
		s.shards[i].young = make(map[session]*signIn)
	}
	return s
}

func (s *sessions) shard(id string) *sessionShard {
	return &s.shards[maphash.String(s.seed, id)%sessionShards]
}

// enter returns nil once the session's sign-in is durable; record makes it so, once for all who come at the same time.
func (s *sessions) enter(key session, record func() error) error {
	shard := s.shard(key.id)
	shard.mu.RLock()
	known := shard.young[key]
	shard.mu.RUnlock()
	if known != nil && known.durable.Load() {
		return nil
	}
	known, mine := shard.admit(key)
	if mine {
		if known.err = record(); known.err != nil {
			shard.forget(key) // the next request tries again
		}
		known.durable.Store(known.err == nil)
		close(known.done)
	}
	<-known.done
	return known.err
}

// admit returns the session's sign-in; mine says that the caller has to make it.
func (h *sessionShard) admit(key session) (known *signIn, mine bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if known = h.young[key]; known != nil {
		return known, false
	}
	if known = h.old[key]; known == nil {
		known, mine = &signIn{done: make(chan struct{})}, true
	}
	if len(h.young) >= sessionsPerHalf {
		h.old, h.young = h.young, make(map[session]*signIn)
	}
	h.young[key] = known
	delete(h.old, key)
	return known, mine
}

func (h *sessionShard) forget(key session) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.young, key)
	delete(h.old, key)
}

// end forgets the sessions that a revocation is about and returns them. A key is not remembered with a session.
func (s *sessions) end(r auth.Revocation) (ended []session) {
	shards := s.shards[:]
	meant := func(session) bool { return false }
	switch r.Kind {
	case auth.RevokeToken, auth.RevokeSession:
		at := maphash.String(s.seed, r.ID) % sessionShards
		shards, meant = shards[at:at+1], func(key session) bool { return key.id == r.ID }
	case auth.RevokeSubject:
		meant = func(key session) bool { return key.user == r.ID }
	case auth.RevokeClient:
		meant = func(key session) bool { return key.client == r.ID }
	case auth.RevokeAll:
		meant = func(session) bool { return true }
	}
	for i := range shards {
		shard := &shards[i]
		shard.mu.Lock()
		for _, half := range []map[session]*signIn{shard.young, shard.old} {
			for key := range half {
				if meant(key) {
					delete(half, key)
					ended = append(ended, key)
				}
			}
		}
		shard.mu.Unlock()
	}
	return ended
}

// authenticated is authenticate for a route: it lets nobody through whose sign-in is not durable.
func (c *call) authenticated() error {
	if err := c.authenticate(); err != nil {
		return err
	}
	return c.signedIn()
}

// signedIn returns nil once the caller's session has its sign-in event.
func (c *call) signedIn() error {
	p := c.principal
	return c.s.sessions.enter(session{p.Session, p.Subject, p.Client}, func() error {
		if c.s.cfg.Uses != nil {
			c.s.cfg.Uses.From(p, c.network)
		}
		detail, err := audit.SignIn{TokenID: p.TokenID, ACR: p.ACR, AMR: p.AMR, AuthTime: p.AuthTime, Expires: p.Expires}.Encode()
		if err != nil {
			return err
		}
		_, err = c.record(c.s.cfg.Level.Disclosure, &audit.Event{
			Type: audit.TypeAuthentication, Interaction: audit.InteractionLogin, Action: audit.ActionExecute, Agent: c.agent(), Detail: detail,
		})
		return err
	})
}

// revoked records the end of each session that was used here and of which something was revoked, on whichever instance: what a
// resource server sees of a sign-out. A session that was not used here is nothing to tell. It does not wait for the log: who revokes
// has an event of his own, and who follows revocations must go on following.
func (s *Server) revoked(list []auth.Revocation) {
	var events []*audit.Event
	for _, r := range list {
		for _, ended := range s.sessions.end(r) {
			events = append(events, &audit.Event{
				Type: audit.TypeAuthentication, Interaction: audit.InteractionLogout, Action: audit.ActionExecute,
				Agent: audit.Agent{User: ended.user, Client: ended.client, Session: ended.id},
			})
		}
	}
	if events == nil {
		return
	}
	s.telling.Go(func() {
		for some := range slices.Chunk(events, 64) {
			if _, err := s.cfg.Log.Record(s.ctx, s.cfg.Level.Disclosure, some...); err != nil {
				s.logger.Error("sign-outs were not recorded", "sessions", len(some), "error", err)
			}
		}
	})
}

package auth

import (
	"sync"
	"sync/atomic"
	"time"
)

// Revocation names what is revoked; Kind is "token", "session" or "subject". NotBefore matters for a subject: tokens
// issued before it are dead; zero means now.
type Revocation struct {
	Kind, ID  string
	NotBefore time.Time
}

// revocations are kept in plain maps: a cache that may drop entries would bring dead tokens back to life. Entries go
// when no token that they could concern can be alive any more.
type revocations struct {
	// epoch grows with every revocation. A cached token remembers the epoch that it was checked under, so one load tells
	// whether it must be checked again; the epoch is read before the maps are.
	epoch    atomic.Uint64
	keep     time.Duration // longest life of a token, with leeway
	mu       sync.RWMutex
	tokens   map[string]time.Time // until when the entry is needed
	sessions map[string]time.Time
	subjects map[string]cutoff
	swept    time.Time
}

type cutoff struct{ notBefore, until time.Time }

func newRevocations(keep time.Duration) *revocations {
	return &revocations{
		keep: keep, tokens: map[string]time.Time{}, sessions: map[string]time.Time{}, subjects: map[string]cutoff{},
	}
}

func (r *revocations) add(what Revocation, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sweep(now)
	switch what.Kind {
	case "token":
		r.tokens[what.ID] = now.Add(r.keep)
	case "session":
		r.sessions[what.ID] = now.Add(r.keep)
	case "subject":
		nb := what.NotBefore
		if nb.IsZero() {
			nb = now
		}
		old := r.subjects[what.ID]
		if nb.Before(old.notBefore) {
			nb = old.notBefore // revocations only ever add up
		}
		until := now
		if nb.After(now) {
			until = nb
		}
		r.subjects[what.ID] = cutoff{notBefore: nb, until: until.Add(r.keep)}
	}
	r.epoch.Add(1)
}

// dead reports whether the principal's token, session or subject was revoked.
func (r *revocations) dead(p *Principal) bool {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if _, ok := r.tokens[p.TokenID]; ok {
		return true
	}
	if _, ok := r.sessions[p.Session]; ok {
		return true
	}
	c, ok := r.subjects[p.Subject]
	return ok && p.Issued.Before(c.notBefore)
}

// sweep forgets what can concern no living token, at most once a minute.
func (r *revocations) sweep(now time.Time) {
	if now.Sub(r.swept) < time.Minute {
		return
	}
	r.swept = now
	for id, until := range r.tokens {
		if until.Before(now) {
			delete(r.tokens, id)
		}
	}
	for id, until := range r.sessions {
		if until.Before(now) {
			delete(r.sessions, id)
		}
	}
	for id, c := range r.subjects {
		if c.until.Before(now) {
			delete(r.subjects, id)
		}
	}
}

package auth

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
)

// ErrRevocations says that what was revoked is not known up to now. It becomes 503: neither yes nor no would be true.
var ErrRevocations = errors.New("auth: revocations were not confirmed lately")

// RevocationKind says what the id of a Revocation names, and with it which tokens are dead.
type RevocationKind string

const (
	RevokeToken   RevocationKind = "token"         // Principal.TokenID
	RevokeSession RevocationKind = "session"       // Principal.Session
	RevokeSubject RevocationKind = "subject"       // Principal.Subject: tokens issued before NotBefore
	RevokeClient  RevocationKind = "client"        // Principal.Client: the same
	RevokeKey     RevocationKind = "key"           // Principal.KeyID: whatever it signed
	RevokeAll     RevocationKind = "all"           // no id: tokens issued before NotBefore
	Reinstate     RevocationKind = "reinstatement" // of a subject who is revoked for good, see Never
)

// Never returns the NotBefore of a subject whose tokens are all dead, those that are still to be issued too: somebody whose employment
// has ended (45 CFR 164.308(a)(3)(ii)(C)). Only a Reinstate of the subject, later, takes it back, for tokens issued from its NotBefore on.
func Never() time.Time { return time.Date(9999, 12, 31, 0, 0, 0, 0, time.UTC) }

// Revocation makes tokens dead. Nothing but a Reinstate ever brings one back: times only move on.
type Revocation struct {
	Kind      RevocationKind
	ID        string
	NotBefore time.Time // of a subject, a client, all and a reinstatement; zero: when it is stored
	Reason    string    // a code or a ticket, never clinical text
	By        string    // who asked for it
	At        time.Time // when it was stored, by the storage's clock
	Expires   time.Time // no token that it concerns is alive afterwards; zero: never
}

const (
	// revocationLife is how long a revocation is kept that concerns tokens which exist already: longer than any of them may live.
	revocationLife = 8 * 24 * time.Hour
	// sessionRevocationLife is for sessions, which an authorization server that does not know of it renews for as long as its refresh
	// tokens live.
	sessionRevocationLife = 90 * 24 * time.Hour
)

// complete fills in what a revocation that is stored now means, and refuses what means nothing.
func (r Revocation) complete(now time.Time) (Revocation, error) {
	switch {
	case r.Kind == RevokeAll && r.ID != "", r.Kind != RevokeAll && !printable(r.ID, 2*maxName):
		return r, errors.New("id is not one")
	case !r.NotBefore.IsZero() && r.NotBefore.Year() < 1970, r.NotBefore.After(Never()), r.NotBefore.Equal(Never()) && r.Kind != RevokeSubject:
		return r, errors.New("time is out of range")
	case r.Reason == "" || len(r.Reason) > 500 || r.By == "" || len(r.By) > 2*maxName:
		return r, errors.New("reason or author is missing or too long")
	}
	now = now.Truncate(time.Microsecond) // as databases keep it
	r.At = now
	if r.NotBefore.IsZero() {
		r.NotBefore = now
	}
	switch r.Kind {
	case RevokeToken:
		r.Expires = now.Add(revocationLife)
	case RevokeSession:
		r.Expires = now.Add(sessionRevocationLife)
	case RevokeSubject, RevokeClient, RevokeAll:
		if r.Expires = now.Add(revocationLife); r.NotBefore.After(now) {
			r.Expires = r.NotBefore.Add(revocationLife)
		}
		if !r.NotBefore.Before(Never()) {
			r.NotBefore, r.Expires = Never(), time.Time{}
		}
	case RevokeKey, Reinstate:
		r.Expires = time.Time{}
	default:
		return r, errors.New("kind is unknown")
	}
	return r, nil
}

// RevocationStorage keeps revocations where every instance finds them. Calls may be made from many goroutines.
type RevocationStorage interface {
	// Revoke stores all of the revocations or none, under one new epoch, and tells the other instances.
	Revoke(ctx context.Context, list ...Revocation) error
	// Revocations returns the epoch of now, and what was stored under later ones than after and is not over, oldest first: both as of
	// one moment.
	Revocations(ctx context.Context, after int64) (epoch int64, list []Revocation, err error)
}

// RevocationConfig configures Revocations.
type RevocationConfig struct {
	Storage RevocationStorage // nil: they are this process's own, and forgotten with it
	Logger  *slog.Logger
	Now     func() time.Time // time.Now when nil
}

// Revocations are kept whole and in plain maps: a cache that may drop entries would bring dead tokens back to life. They follow the
// storage by epoch, and count as known for five seconds (lease) after it confirmed them. Safe for concurrent use.
type Revocations struct {
	storage RevocationStorage
	logger  *slog.Logger
	now     func() time.Time
	start   time.Time // confirmed is the time since, so that steps of the wall clock do not matter
	wake    chan struct{}
	ended   atomic.Pointer[func([]Revocation)]

	// epoch grows with everything that comes into force. A cached token remembers the epoch that it was judged under, so one load tells
	// whether it must be judged again; it is read before the maps are, and grows after they have changed.
	epoch     atomic.Uint64
	confirmed atomic.Int64
	stored    atomic.Int64 // epoch of the storage

	polling sync.Mutex
	mu      sync.RWMutex
	marked  map[revoked]time.Time // tokens, sessions and keys, and when they may be forgotten
	cutoffs map[revoked]cutoff    // subjects, clients and all
	swept   time.Time
}

// revoked is what a revocation names.
type revoked struct {
	kind RevocationKind
	id   string
}

type cutoff struct{ notBefore, expires time.Time }

// NewRevocations loads what is stored.
func NewRevocations(ctx context.Context, cfg RevocationConfig) (*Revocations, error) {
	r := &Revocations{storage: cfg.Storage, logger: cfg.Logger, now: cfg.Now, wake: make(chan struct{}, 1), marked: map[revoked]time.Time{}, cutoffs: map[revoked]cutoff{}}
	if r.logger == nil {
		r.logger = slog.New(slog.DiscardHandler)
	}
	if r.now == nil {
		r.now = time.Now
	}
	r.start = r.now()
	if err := r.poll(ctx); err != nil {
		return nil, err
	}
	return r, nil
}

// Run follows the storage (a poll every second, and at once after Wake) until ctx is done.
func (r *Revocations) Run(ctx context.Context) error {
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	failing := false
	for {
		err := r.poll(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if failed := err != nil; failed != failing {
			failing = failed
			r.logger.Warn("following revocations", "failing", failing, "error", err)
		}
		select {
		case <-tick.C:
		case <-r.wake:
		case <-ctx.Done():
			return nil
		}
	}
}

// Wake makes Run look for changes now (after a NOTIFY). What the notification says does not matter: a forged one makes it look once more.
func (r *Revocations) Wake() {
	select {
	case r.wake <- struct{}{}:
	default: // one is pending, and it has not read anything yet
	}
}

// poll takes over what is new. The lease is renewed to the moment before the read: it says nothing about later.
func (r *Revocations) poll(ctx context.Context) error {
	if r.storage == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, pollTimeout)
	defer cancel()
	r.polling.Lock()
	defer r.polling.Unlock()
	asked, held := r.now(), r.stored.Load()
	epoch, list, err := r.storage.Revocations(ctx, held)
	if err == nil && epoch < held { // the database was put back to an earlier time: what was revoked since stays so here
		r.logger.Error("revocations of the storage went back", "held", held, "stored", epoch)
		epoch, list, err = r.storage.Revocations(ctx, 0)
	}
	if err != nil {
		return fmt.Errorf("reading revocations: %w", err)
	}
	r.apply(list)
	r.stored.Store(epoch)
	r.confirmed.Store(int64(asked.Sub(r.start)))
	return nil
}

// Revoke stores revocations and puts them into force: here before it returns, on other instances within a second. After an error they
// may or may not be stored; if they are, they come into force with the next poll.
func (r *Revocations) Revoke(ctx context.Context, list ...Revocation) error {
	complete := make([]Revocation, len(list))
	for i := range list {
		var err error
		if complete[i], err = list[i].complete(r.now()); err != nil {
			return fmt.Errorf("revoking: %w", err)
		}
	}
	if r.storage != nil {
		if err := r.storage.Revoke(ctx, complete...); err != nil {
			return fmt.Errorf("revoking: %w", err)
		}
	}
	r.apply(complete)
	return nil
}

// apply puts revocations into force and tells whoever wants to know of those that are new here.
func (r *Revocations) apply(list []Revocation) {
	now := r.now()
	var fresh []Revocation
	r.mu.Lock()
	r.sweep(now)
	for _, x := range list {
		if r.take(x) {
			fresh = append(fresh, x)
		}
	}
	if len(fresh) > 0 {
		r.epoch.Add(1)
	}
	r.mu.Unlock()
	if f := r.ended.Load(); f != nil && len(fresh) > 0 {
		(*f)(fresh)
	}
}

// take puts one into force and reports whether it changes anything. Times only move on, whatever order revocations come in.
func (r *Revocations) take(x Revocation) bool {
	k := revoked{x.Kind, x.ID}
	switch x.Kind {
	case RevokeToken, RevokeSession, RevokeKey:
		until, known := r.marked[k]
		r.marked[k] = later(until, x.Expires, known)
		return !known
	case RevokeSubject, RevokeClient, RevokeAll:
		old, known := r.cutoffs[k]
		if known && !x.NotBefore.After(old.notBefore) {
			return false
		}
		r.cutoffs[k] = cutoff{x.NotBefore, later(old.expires, x.Expires, known)}
		return true
	case Reinstate:
		k.kind = RevokeSubject
		old, known := r.cutoffs[k]
		if !known || !old.notBefore.Equal(Never()) {
			return false
		}
		r.cutoffs[k] = cutoff{notBefore: x.NotBefore}
		return true
	}
	return false
}

// later is the later end of two, of which the zero one is none at all.
func later(a, b time.Time, both bool) time.Time {
	switch {
	case !both:
		return b
	case a.IsZero() || b.IsZero():
		return time.Time{}
	case a.After(b):
		return a
	}
	return b
}

// dead reports whether a token was revoked, by whatever it names.
func (r *Revocations) dead(p *Principal) bool {
	r.mu.RLock()
	defer r.mu.RUnlock()
	for _, k := range [...]revoked{{RevokeToken, p.TokenID}, {RevokeSession, p.Session}, {RevokeKey, p.KeyID}} {
		if _, ok := r.marked[k]; ok {
			return true
		}
	}
	for _, k := range [...]revoked{{RevokeSubject, p.Subject}, {RevokeClient, p.Client}, {RevokeAll, ""}} {
		if c, ok := r.cutoffs[k]; ok && (p.Issued.Before(c.notBefore) || c.notBefore.Equal(Never())) {
			return true
		}
	}
	return false
}

// sweep forgets what can concern no living token, at most once a minute.
func (r *Revocations) sweep(now time.Time) {
	if now.Sub(r.swept) < time.Minute {
		return
	}
	r.swept = now
	for k, expires := range r.marked {
		if !expires.IsZero() && expires.Before(now) {
			delete(r.marked, k)
		}
	}
	for k, c := range r.cutoffs {
		if !c.expires.IsZero() && c.expires.Before(now) {
			delete(r.cutoffs, k)
		}
	}
}

// known reports whether the storage confirmed the revocations within the lease. It is on the warm path.
func (r *Revocations) known(now time.Time) bool {
	return r.storage == nil || now.Sub(r.start)-time.Duration(r.confirmed.Load()) < lease
}

// OnRevoke has f called with revocations that come into force here from now on, whichever instance made them, by the goroutine that puts
// them into force. There is one such function; a new one takes the place of the old.
func (r *Revocations) OnRevoke(f func([]Revocation)) { r.ended.Store(&f) }

// Healthy returns nil when the revocations were confirmed within the lease (5 s).
func (r *Revocations) Healthy() error {
	if !r.known(r.now()) {
		return ErrRevocations
	}
	return nil
}

// RevocationStats is a snapshot.
type RevocationStats struct {
	Held  int           // revocations in force
	Epoch int64         // of the storage
	Age   time.Duration // since the storage confirmed them; 0 without one
}

// Stats returns the snapshot.
func (r *Revocations) Stats() RevocationStats {
	s := RevocationStats{Epoch: r.stored.Load()}
	if r.storage != nil {
		s.Age = r.now().Sub(r.start) - time.Duration(r.confirmed.Load())
	}
	r.mu.RLock()
	defer r.mu.RUnlock()
	s.Held = len(r.marked) + len(r.cutoffs)
	return s
}

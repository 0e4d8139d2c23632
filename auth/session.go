package auth

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"maps"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// ErrSessions says that it is not known when a session was used last. It becomes 503.
var ErrSessions = errors.New("auth: last use of the session is not known")

// SessionLimit ends a session until its person signs in again (automatic logoff, 45 CFR 164.312(a)(2)(iii)).
type SessionLimit struct {
	Idle    time.Duration // since its last request; 0: any
	Longest time.Duration // since its sign-in, or its first request here where the token does not tell; 0: any
}

// AnyRole is the key of the limits of roles that have none of their own.
const AnyRole = "*"

// SessionUse is what is known of a session: of one client and one subject, since issuers may give their sessions' ids to several.
type SessionUse struct {
	Session, Subject, Client string // as in Principal
	FHIRUser, ACR            string
	Network                  string    // from which it was used first
	AuthTime                 time.Time // zero when the token does not tell
	First, Last              time.Time
	Expires                  time.Time // of the newest token
	Instances                []string  // that have seen it
}

// SessionQuery says which sessions are asked for; the zero query is all that may still be used.
type SessionQuery struct {
	Session string    // only this one, whatever its clients
	Subject string    // only this subject's
	Over    bool      // those that are over too: revoked, or with tokens that have expired
	Before  time.Time // first used before this; zero: now
	Limit   int
}

// SessionStorage shares the uses of sessions among instances. Calls may be made from many goroutines.
type SessionStorage interface {
	// Saw adds uses that an instance has seen: the latest of Last and Expires counts, the earliest of First.
	Saw(ctx context.Context, instance string, uses []SessionUse) error
	// Use returns the use of a session; known is false when nobody has told of it.
	Use(ctx context.Context, session, subject, client string) (use SessionUse, known bool, err error)
}

// SessionConfig configures Sessions.
type SessionConfig struct {
	Storage  SessionStorage
	Limits   map[string]SessionLimit   // by role; the strictest of a caller's roles counts
	Roles    func(*Principal) []string // those that count beside the token's own (Access.Roles); nil: none
	Instance string                    // name of this process
	Logger   *slog.Logger
	Now      func() time.Time // time.Now when nil
}

const (
	sessionShards  = 32
	sessionsOfHalf = 1024             // of a shard: 64 Ki sessions in all, in two halves
	tellEvery      = 10 * time.Second // looks for sessions that were used
	tellOften      = time.Minute      // of one session, at most; less where a limit is short
	tellAtOnce     = 1000             // sessions in one call of the storage
	askEvery       = 10 * time.Second // about a session that seems to be idle, at most; more often where a limit is short
	storageTimeout = 2 * time.Second
)

// Sessions remember when each session was used last, here and, as far as the storage was told, elsewhere. An instance tells of a session
// within ten seconds at first and then once a minute (a quarter of the shortest idle limit, if that is less): by so much a session that
// is used on another instance may seem idle too early, never too late. What was not told yet is lost with the process. Safe for
// concurrent use; memory is bounded, and what is forgotten is looked up again.
type Sessions struct {
	storage  SessionStorage
	limits   map[string]SessionLimit
	roles    func(*Principal) []string
	often    time.Duration
	instance string
	logger   *slog.Logger
	now      func() time.Time
	seed     maphash.Seed
	shards   [sessionShards]sessionShard
	over     atomic.Uint64
}

type sessionKey struct{ session, subject, client string }

// sessionShard forgets by halves: when the younger half is full it becomes the older one, and the older one goes.
type sessionShard struct {
	mu         sync.RWMutex
	young, old map[sessionKey]*sessionState
}

// sessionState is a session in memory. What is not atomic belongs to mu.
type sessionState struct {
	last atomic.Int64 // use that is known of, unix nanoseconds

	mu    sync.Mutex
	use   SessionUse
	told  int64     // last, as the storage knows it; 0 when it does not know the session
	asked time.Time // when the storage was asked last
}

// NewSessions makes Sessions. Limits that make no sense are refused.
func NewSessions(cfg SessionConfig) (*Sessions, error) {
	s := &Sessions{
		storage: cfg.Storage, limits: cfg.Limits, roles: cfg.Roles, often: tellOften, instance: cfg.Instance, logger: cfg.Logger, now: cfg.Now, seed: maphash.MakeSeed(),
	}
	if s.storage == nil {
		return nil, errors.New("making sessions: no storage")
	}
	for role, l := range cfg.Limits {
		if l.Idle < 0 || l.Longest < 0 || role == "" {
			return nil, fmt.Errorf("making sessions: limits of role %q are negative, or nobody's", role)
		}
		if l.Idle > 0 {
			s.often = min(s.often, l.Idle/4)
		}
	}
	if s.logger == nil {
		s.logger = slog.New(slog.DiscardHandler)
	}
	if s.now == nil {
		s.now = time.Now
	}
	for i := range s.shards {
		s.shards[i].young = map[sessionKey]*sessionState{}
	}
	return s, nil
}

// limit is the strictest of the limits of the caller's roles.
func (s *Sessions) limit(p *Principal) SessionLimit {
	strictest := func(a, b time.Duration) time.Duration {
		if a == 0 || b != 0 && b < a {
			return b
		}
		return a
	}
	var all SessionLimit
	roles := p.Roles
	if s.roles != nil {
		roles = slices.Concat(roles, s.roles(p))
	}
	for _, role := range roles {
		l, ok := s.limits[role]
		if !ok {
			l = s.limits[AnyRole]
		}
		all = SessionLimit{strictest(all.Idle, l.Idle), strictest(all.Longest, l.Longest)}
	}
	if len(roles) == 0 {
		all = s.limits[AnyRole]
	}
	return all
}

func (s *Sessions) shard(k sessionKey) *sessionShard {
	return &s.shards[maphash.Comparable(s.seed, k)%sessionShards]
}

// find returns the state of a session, nil when it is not in memory.
func (h *sessionShard) find(k sessionKey) *sessionState {
	h.mu.RLock()
	defer h.mu.RUnlock()
	if found := h.young[k]; found != nil {
		return found
	}
	return h.old[k]
}

// keep puts a state into the younger half, unless another request has put one there.
func (h *sessionShard) keep(k sessionKey, state *sessionState) *sessionState {
	h.mu.Lock()
	defer h.mu.Unlock()
	if found := h.young[k]; found != nil {
		return found
	}
	if found := h.old[k]; found != nil {
		state = found
	}
	if len(h.young) >= sessionsOfHalf {
		h.old, h.young = h.young, make(map[sessionKey]*sessionState)
	}
	h.young[k] = state
	delete(h.old, k)
	return state
}

// all returns the states in memory.
func (h *sessionShard) all() []*sessionState {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return slices.AppendSeq(slices.Collect(maps.Values(h.young)), maps.Values(h.old))
}

// admit refuses a token whose session is over. Else it returns the session's state, how long it may be idle (unix nanoseconds,
// math.MaxInt64 for any), and until when it may go on (zero: any). It is asked when a token is verified, not on the warm path.
func (s *Sessions) admit(ctx context.Context, p *Principal, now time.Time) (state *sessionState, idle int64, until time.Time, err error) {
	limit := s.limit(p)
	k := sessionKey{p.Session, p.Subject, p.Client}
	shard := s.shard(k)
	if state = shard.find(k); state == nil {
		fresh := &sessionState{use: SessionUse{
			Session: p.Session, Subject: p.Subject, Client: p.Client, FHIRUser: p.FHIRUser, ACR: p.ACR, AuthTime: p.AuthTime, First: now, Expires: p.Expires,
		}}
		if limit != (SessionLimit{}) {
			if err := s.ask(ctx, fresh, now); err != nil {
				return nil, 0, until, err
			}
		}
		state = shard.keep(k, fresh)
	}
	begin, err := s.resume(ctx, state, p, limit, now)
	if err != nil {
		if errors.Is(err, ErrToken) {
			s.over.Add(1)
		}
		return nil, 0, until, err
	}
	if limit.Longest > 0 {
		until = begin.Add(limit.Longest)
	}
	if idle = math.MaxInt64; limit.Idle > 0 {
		idle = int64(limit.Idle)
	}
	return state, idle, until, nil
}

// resume holds a session against its limits and takes over what a new token says of it. It returns when the session began.
func (s *Sessions) resume(ctx context.Context, state *sessionState, p *Principal, limit SessionLimit, now time.Time) (begin time.Time, err error) {
	state.mu.Lock()
	defer state.mu.Unlock()
	if begin = p.AuthTime; begin.IsZero() {
		begin = state.use.First
	}
	if limit.Longest > 0 && !now.Before(begin.Add(limit.Longest)) {
		return begin, refuse("session is too old")
	}
	idle := func() bool {
		last := state.last.Load()
		return limit.Idle > 0 && last != 0 && now.UnixNano()-last >= int64(limit.Idle) && !p.AuthTime.After(time.Unix(0, last))
	}
	if idle() && now.Sub(state.asked) >= min(askEvery, s.often) { // it may have been used on another instance
		if err := s.ask(ctx, state, now); err != nil {
			return begin, err
		}
	}
	if idle() {
		return begin, refuse("session was idle for too long")
	}
	if p.AuthTime.After(state.use.AuthTime) {
		state.use.AuthTime, state.use.ACR = p.AuthTime, p.ACR
		state.advance(p.AuthTime.UnixNano()) // a sign-in is a use
	}
	if p.Expires.After(state.use.Expires) {
		state.use.Expires = p.Expires
	}
	return begin, nil
}

// ask takes over what the storage knows of a session.
func (s *Sessions) ask(ctx context.Context, state *sessionState, now time.Time) error {
	ctx, cancel := context.WithTimeout(ctx, storageTimeout)
	defer cancel()
	use, known, err := s.storage.Use(ctx, state.use.Session, state.use.Subject, state.use.Client)
	if err != nil {
		// The text of a storage error may quote its arguments, of which this is about a person.
		s.logger.DebugContext(ctx, "session could not be looked up", "error_type", fmt.Sprintf("%T", err))
		return ErrSessions
	}
	state.asked = now
	if !known {
		return nil
	}
	if use.First.Before(state.use.First) {
		state.use.First = use.First
	}
	state.use.Network = use.Network
	if use.AuthTime.After(state.use.AuthTime) {
		state.use.AuthTime = use.AuthTime
	}
	state.told = max(state.told, use.Last.UnixNano())
	state.advance(use.Last.UnixNano())
	return nil
}

// advance moves the last use on.
func (s *sessionState) advance(to int64) {
	for {
		last := s.last.Load()
		if to <= last || s.last.CompareAndSwap(last, to) {
			return
		}
	}
}

// touch says that the session is used now. A second more or less does not matter, and cores need not fight over the line.
func (s *sessionState) touch(now int64) {
	if s != nil && now-s.last.Load() >= int64(time.Second) {
		s.advance(now)
	}
}

// From says which network a session that was just let in is used from, for those who look at sessions.
func (s *Sessions) From(p *Principal, network string) {
	k := sessionKey{p.Session, p.Subject, p.Client}
	if state := s.shard(k).find(k); state != nil {
		state.mu.Lock()
		defer state.mu.Unlock()
		if state.use.Network == "" {
			state.use.Network = network
		}
	}
}

// Run tells the storage of uses until ctx is done, and then once more.
func (s *Sessions) Run(ctx context.Context) error {
	tick := time.NewTicker(min(tellEvery, s.often))
	defer tick.Stop()
	failing := false
	for {
		select {
		case <-tick.C:
			err := s.tell(ctx, s.often)
			if ctx.Err() != nil {
				continue
			}
			if failed := err != nil; failed != failing {
				failing = failed
				s.logger.Warn("telling of the use of sessions", "failing", failing, "error", err)
			}
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), storageTimeout)
			defer cancel()
			if err := s.tell(last, 0); err != nil {
				s.logger.Warn("the last use of sessions was not stored", "error", err)
			}
			return nil
		}
	}
}

// tell stores uses of sessions that the storage does not know, or of which it was not told for a while.
func (s *Sessions) tell(ctx context.Context, often time.Duration) error {
	var states []*sessionState
	var uses []SessionUse
	for i := range s.shards {
		// A state may be locked for as long as the storage is asked about it: its shard is not to wait for that.
		for _, state := range s.shards[i].all() {
			if use, ok := state.news(often); ok {
				states, uses = append(states, state), append(uses, use)
			}
		}
	}
	for len(uses) > 0 {
		n := min(tellAtOnce, len(uses))
		if err := s.storage.Saw(ctx, s.instance, uses[:n]); err != nil {
			return fmt.Errorf("storing uses of sessions: %w", err)
		}
		for i, state := range states[:n] {
			state.mu.Lock()
			state.told = max(state.told, uses[i].Last.UnixNano())
			state.mu.Unlock()
		}
		states, uses = states[n:], uses[n:]
	}
	return nil
}

// news is a session's use, when the storage is to be told of it.
func (s *sessionState) news(often time.Duration) (SessionUse, bool) {
	last := s.last.Load()
	s.mu.Lock()
	defer s.mu.Unlock()
	if last <= s.told || s.told != 0 && last-s.told < int64(often) {
		return SessionUse{}, false
	}
	use := s.use
	use.Last = time.Unix(0, last)
	return use, true
}

// SessionStats is a snapshot.
type SessionStats struct {
	Held int    // sessions in memory
	Over uint64 // tokens refused because their session was idle for too long or too old
}

// Stats returns the snapshot.
func (s *Sessions) Stats() SessionStats {
	stats := SessionStats{Over: s.over.Load()}
	for i := range s.shards {
		h := &s.shards[i]
		h.mu.RLock()
		stats.Held += len(h.young) + len(h.old)
		h.mu.RUnlock()
	}
	return stats
}

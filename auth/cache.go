package auth

import (
	"crypto/rand"
	"crypto/sha256"
	"hash"
	"sync"
	"sync/atomic"
	"time"
)

// digest identifies a token on a group of routes without being one: SHA-256 over a secret of this process, the profile and the token. Neither tokens nor
// anything that an attacker could compute are kept.
type digest [sha256.Size]byte

// hasher makes digests without allocating.
type hasher struct {
	secret [32]byte
	pool   sync.Pool
}

type hashState struct {
	hash hash.Hash
	sum  []byte
	buf  []byte
}

func newHasher() *hasher {
	h := &hasher{pool: sync.Pool{New: func() any { return &hashState{hash: sha256.New(), sum: make([]byte, 0, sha256.Size)} }}}
	_, _ = rand.Read(h.secret[:]) // documented never to fail
	return h
}

func (h *hasher) digest(on Profile, token []byte) digest {
	s := h.pool.Get().(*hashState)
	s.hash.Reset()
	s.hash.Write(h.secret[:])
	s.buf = append(append(s.buf[:0], on...), 0)
	s.hash.Write(s.buf)
	s.hash.Write(token)
	d := digest(s.hash.Sum(s.sum))
	h.pool.Put(s)
	return d
}

// verified is a token that passed. All but the atomics is immutable.
type verified struct {
	digest    digest
	principal *Principal
	key       *key          // nil when the issuer was asked
	from      int64         // unix nanoseconds; before it the clock was stepped back, and nothing is known
	until     int64         // unix nanoseconds: the end of the token or of the time to cache it
	renewFrom int64         // unix nanoseconds: see renew
	session   *sessionState // nil when nobody remembers sessions
	idle      int64         // nanoseconds for which the session may be idle
	epoch     atomic.Uint64 // revocation epoch under which the principal was last seen alive
	used      atomic.Bool   // since the clock hand came by
	renewing  atomic.Bool
}

// newVerified is an entry for a token that was verified now and may answer until the earlier of its expiry and the end of its time in
// the cache.
func newVerified(d digest, p *Principal, k *key, now, cached, expires time.Time) *verified {
	e := &verified{
		digest: d, principal: p, key: k,
		from:      now.Add(-time.Second).UnixNano(), // callers read their clocks a little before we read ours
		until:     min(cached.UnixNano(), expires.UnixNano()),
		renewFrom: renewFrom(now, cached, expires),
	}
	return e
}

// valid reports whether the entry may still answer. It must stay free of allocations: it is the warm path.
func (e *verified) valid(now int64, r *Revocations) bool {
	return now >= e.from && now < e.until && (e.session == nil || now-e.session.last.Load() < e.idle) && e.stands(r)
}

// stands reports whether neither the token nor its key was taken back since it was verified.
func (e *verified) stands(r *Revocations) bool {
	if e.key != nil && !e.key.alive.Load() {
		return false
	}
	if epoch := r.epoch.Load(); epoch != e.epoch.Load() {
		if r.dead(e.principal) {
			return false
		}
		e.epoch.Store(epoch)
	}
	return true
}

const (
	cacheShards   = 64
	cacheCapacity = 100_000
)

// tokenCache holds verified tokens. It is bounded; a full shard gives up an entry that was not used lately (CLOCK),
// which is always safe: the token is verified again.
type tokenCache struct {
	shards   [cacheShards]tokenShard
	perShard int
}

type tokenShard struct {
	mu    sync.RWMutex
	index map[digest]int // place in ring
	ring  []*verified
	hand  int
	_     [24]byte // keeps neighbours' locks on other cache lines
}

func newTokenCache(capacity int) *tokenCache {
	c := &tokenCache{perShard: max(1, capacity/cacheShards)}
	for i := range c.shards {
		c.shards[i].index = map[digest]int{}
	}
	return c
}

// get returns the entry of exactly this digest, nil when there is none. The caller asks it whether it is valid.
func (c *tokenCache) get(d digest) *verified {
	s := &c.shards[d[0]%cacheShards]
	s.mu.RLock()
	defer s.mu.RUnlock()
	at, ok := s.index[d]
	if !ok {
		return nil
	}
	e := s.ring[at]
	if !e.used.Load() { // a store for each hit would make the cores fight over the line
		e.used.Store(true)
	}
	return e
}

func (c *tokenCache) put(e *verified) {
	s := &c.shards[e.digest[0]%cacheShards]
	s.mu.Lock()
	defer s.mu.Unlock()
	if at, ok := s.index[e.digest]; ok {
		s.ring[at] = e
		return
	}
	if len(s.ring) < c.perShard {
		s.index[e.digest] = len(s.ring)
		s.ring = append(s.ring, e)
		return
	}
	for s.ring[s.hand].used.Swap(false) {
		s.hand = (s.hand + 1) % len(s.ring)
	}
	delete(s.index, s.ring[s.hand].digest)
	s.ring[s.hand], s.index[e.digest] = e, s.hand
	s.hand = (s.hand + 1) % len(s.ring)
}

// drop removes an entry, if it is there still.
func (c *tokenCache) drop(e *verified) {
	s := &c.shards[e.digest[0]%cacheShards]
	s.mu.Lock()
	defer s.mu.Unlock()
	at, ok := s.index[e.digest]
	if !ok || s.ring[at] != e {
		return
	}
	last := len(s.ring) - 1
	s.ring[at] = s.ring[last]
	s.index[s.ring[at].digest] = at
	delete(s.index, e.digest)
	s.ring[last], s.ring = nil, s.ring[:last]
	s.hand = 0
}

// flush drops everything.
func (c *tokenCache) flush() {
	for i := range c.shards {
		s := &c.shards[i]
		s.mu.Lock()
		clear(s.index)
		clear(s.ring)
		s.ring, s.hand = s.ring[:0], 0
		s.mu.Unlock()
	}
}

// sweep drops entries whose time is over, so that idle principals do not stay in memory.
func (c *tokenCache) sweep(now time.Time) {
	for i := range c.shards {
		s := &c.shards[i]
		s.mu.Lock()
		kept := s.ring[:0]
		for _, e := range s.ring {
			if now.UnixNano() >= e.until {
				delete(s.index, e.digest)
				continue
			}
			s.index[e.digest] = len(kept)
			kept = append(kept, e)
		}
		clear(s.ring[len(kept):])
		s.ring, s.hand = kept, 0
		s.mu.Unlock()
	}
}

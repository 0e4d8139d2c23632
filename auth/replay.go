package auth

import (
	"hash/maphash"
	"sync"
	"time"
)

// replays remembers which proofs were used, for as long as they could be used again, in memory that is fixed: 32 MiB when all of
// it is in use. What is kept of a proof is a keyed digest of 64 bits; that two proofs of a client have the same one, and the second
// is refused for it, happens once in about 10¹³ requests. A part that is full takes no more, and its clients are told to come
// back: forgetting early would let a proof be used twice. It is this process's own. Another instance would take a proof that was used
// here, which is why nonces bound for how long.
type replays struct {
	seed   maphash.Seed
	span   time.Duration // for which a used proof is remembered at least
	shards [replayShards]replayShard
}

const (
	replayShards = 16
	replaySlots  = 1 << 17             // of a half; 1 MiB
	replayMost   = replaySlots / 4 * 3 // used of them; fuller ones are slow to look in
)

// replayShard forgets by halves.
type replayShard struct {
	mu         sync.Mutex
	young, old []uint64 // open addressing; 0 is free; nil before the first proof
	used       int      // of young
	since      time.Time
}

func newReplays(span time.Duration) *replays {
	return &replays{seed: maphash.MakeSeed(), span: span}
}

// first reports whether this id comes for the first time under the key, and remembers it. Without room nothing is known. A
// shard is shared by the clients whose keys fall into it: one that is busy does not fill the others.
func (r *replays) first(thumbprint, id string, now time.Time) (first, room bool) {
	var h maphash.Hash
	h.SetSeed(r.seed)
	_, _ = h.WriteString(thumbprint)
	s := &r.shards[h.Sum64()%replayShards]
	_, _ = h.WriteString(id)
	print := max(h.Sum64(), 1)

	s.mu.Lock()
	defer s.mu.Unlock()
	if s.young == nil {
		s.young, s.old, s.since = make([]uint64, replaySlots), make([]uint64, replaySlots), now
	}
	// After a clock was stepped back a half lasts longer, never shorter.
	switch age := now.Sub(s.since); {
	case age >= 2*r.span:
		clear(s.old)
		clear(s.young)
		s.used, s.since = 0, now
	case age >= r.span:
		s.young, s.old = s.old, s.young
		clear(s.young)
		s.used, s.since = 0, now
	}
	if at := slot(s.old, print); s.old[at] == print {
		return false, true
	}
	at := slot(s.young, print)
	switch {
	case s.young[at] == print:
		return false, true
	case s.used >= replayMost:
		return false, false
	}
	s.young[at] = print
	s.used++
	return true, true
}

// slot is where a digest is, or where it would go.
func slot(table []uint64, print uint64) int {
	for i := int(print % replaySlots); ; i = (i + 1) % replaySlots {
		if table[i] == print || table[i] == 0 {
			return i
		}
	}
}

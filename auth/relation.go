package auth

import (
	"context"
	"fmt"
	"hash/maphash"
	"time"

	"github.com/dgraph-io/ristretto/v2"
)

// about is an actor and a patient, in an epoch. A change of any relationship or consent makes a new epoch, under which nothing old is
// found: nothing has to be purged.
type about struct {
	Actor
	patient string
	epoch   int64
}

type knownFact struct {
	about
	fact  Fact
	until time.Duration // on the clock of Access
}

const (
	factCapacity = 100_000
	factLife     = time.Minute
)

// factCache remembers facts. The cache may drop what it likes: all of it can be looked up again.
type factCache struct {
	seed  maphash.Seed
	cache *ristretto.Cache[uint64, *knownFact]
}

func newFactCache() (factCache, error) {
	cache, err := ristretto.NewCache(&ristretto.Config[uint64, *knownFact]{
		NumCounters: 10 * factCapacity, MaxCost: factCapacity, BufferItems: 64, IgnoreInternalCost: true,
	})
	if err != nil {
		return factCache{}, fmt.Errorf("making cache of facts: %w", err)
	}
	return factCache{seed: maphash.MakeSeed(), cache: cache}, nil
}

// recall returns what is remembered. The hash only finds the entry, the comparison is of the whole key: two whose hashes collide stay
// two.
func (c factCache) recall(k about, now time.Duration) (Fact, bool) {
	e, ok := c.cache.Get(maphash.Comparable(c.seed, k))
	if !ok || e.about != k || now >= e.until {
		return Fact{}, false
	}
	return e.fact, true
}

func (c factCache) remember(k about, f Fact, now, life time.Duration) {
	c.cache.SetWithTTL(maphash.Comparable(c.seed, k), &knownFact{about: k, fact: f, until: now + life}, 1, life)
}

// look returns what is known of the actor and the patients together: related to one of them, denied by any of them, opened by all. A
// missing relationship is always looked up, so that a new one works at once; fresh says that the relationship matters.
func (a *Access) look(ctx context.Context, who Actor, patients []string, fresh bool) (Fact, error) {
	// The epoch is read before the storage is asked: an answer that a change overtakes is kept under the old epoch, where
	// nobody finds it.
	epoch, now := a.epoch.Load(), a.clock()
	leased := a.leased(now)
	var all Fact
	if leased {
		known := true
		for i, patient := range patients {
			f, ok := a.known.recall(about{who, patient, epoch}, now)
			if !ok {
				known = false
				break
			}
			all = join(all, f, i == 0)
		}
		if known && (!fresh || all.Related != "") {
			a.hits.Add(1)
			return all, nil
		}
	}
	a.misses.Add(1)
	facts, err := a.storage.Facts(ctx, who, patients)
	if err != nil {
		return Fact{}, err
	}
	if len(facts) != len(patients) {
		return Fact{}, fmt.Errorf("storage told %d facts about %d patients", len(facts), len(patients))
	}
	wall := a.now()
	for i, f := range facts {
		all = join(all, f, i == 0)
		life := factLife
		if !f.Until.IsZero() {
			life = min(life, f.Until.Sub(wall))
		}
		if leased && life > 0 && (!fresh || f.Related != "") {
			a.known.remember(about{who, patients[i], epoch}, f, now, life)
		}
	}
	return all, nil
}

// join adds what is known of one more patient of a record.
func join(all, f Fact, first bool) Fact {
	if first {
		return f
	}
	if all.Related == "" {
		all.Related = f.Related
	}
	all.Denied = all.Denied || f.Denied
	all.Opened &= f.Opened
	return all
}

package auth

import (
	"context"
	"fmt"
	"hash/maphash"
	"sync/atomic"
	"time"

	"github.com/dgraph-io/ristretto/v2"
)

// about is an actor and a patient.
type about struct {
	Actor
	patient string
}

// knownFact is a fact with the epochs that it was looked up in: a change about the practitioner or the patient makes another epoch, and
// nothing has to be purged.
type knownFact struct {
	about
	fact                  Fact
	relationship, consent int64
	until                 time.Duration // on the clock of Access
}

const (
	factCapacity = 100_000
	factLife     = time.Minute
	recentFacts  = 1 << 13
)

// factCache remembers facts. The cache may drop what it likes: all of it can be looked up again. In front of it stand the facts that were
// asked for last, each in the one place that its hash has: a look at them is a third of a look at the cache, which counts what it is asked.
type factCache struct {
	seed   maphash.Seed
	recent *[recentFacts]atomic.Pointer[knownFact]
	cache  *ristretto.Cache[uint64, *knownFact]
}

func newFactCache() (factCache, error) {
	cache, err := ristretto.NewCache(&ristretto.Config[uint64, *knownFact]{
		NumCounters: 10 * factCapacity, MaxCost: factCapacity, BufferItems: 64, IgnoreInternalCost: true,
	})
	if err != nil {
		return factCache{}, fmt.Errorf("making cache of facts: %w", err)
	}
	return factCache{seed: maphash.MakeSeed(), recent: new([recentFacts]atomic.Pointer[knownFact]), cache: cache}, nil
}

// hash is of what tells most pairs apart: a subject is one practitioner.
func (c factCache) hash(k *about) uint64 {
	return 3*maphash.String(c.seed, k.Subject) + maphash.String(c.seed, k.patient)
}

// recall returns what is remembered, nil when nothing that still stands is. The hash only finds the entry, the comparison is of the
// whole key: two whose hashes collide stay two.
func (c factCache) recall(k about, epochs *Epochs, now time.Duration) *Fact {
	hash := c.hash(&k)
	place := &c.recent[hash%recentFacts]
	e := place.Load()
	if e == nil || e.about != k {
		var ok bool
		if e, ok = c.cache.Get(hash); !ok || e.about != k {
			return nil
		}
		place.Store(e)
	}
	if now >= e.until ||
		e.relationship != epochs.Relationship[e.fact.RelationshipShard] || e.consent != epochs.Consent[e.fact.ConsentShard] {
		return nil
	}
	return &e.fact
}

func (c factCache) remember(k about, f Fact, epochs *Epochs, now, life time.Duration) {
	hash, e := c.hash(&k), &knownFact{
		about: k, fact: f, until: now + life,
		relationship: epochs.Relationship[f.RelationshipShard], consent: epochs.Consent[f.ConsentShard],
	}
	c.recent[hash%recentFacts].Store(e)
	c.cache.SetWithTTL(hash, e, 1, life)
}

// Consents returns what the consents of a patient say about the caller or about everybody, as the storage has it now.
func (a *Access) Consents(ctx context.Context, p *Principal, patient string) ([]ConsentRule, error) {
	facts, err := a.storage.Facts(ctx, actor(p), []string{patient})
	if err != nil {
		return nil, fmt.Errorf("looking up consents: %w", err)
	}
	if len(facts) != 1 {
		return nil, fmt.Errorf("storage told %d facts about one patient", len(facts))
	}
	return facts[0].Consents, nil
}

// judged is what is known of a caller and the patients of a record together.
type judged struct {
	related string // to one of them
	denied  bool   // by a consent of any of them
	opened  bool   // the record's segment, by consents of all of them
}

// add takes in one more patient.
func (j *judged) add(f *Fact, r *Request, purpose string, now time.Time, first bool) {
	if j.related == "" {
		j.related = f.Related
	}
	denied, opened := false, false
	if len(f.Consents) > 0 {
		denied, opened = JudgeConsents(f.Consents, r.Type, r.Segment, purpose, now)
	}
	j.denied = j.denied || denied
	j.opened = opened && (first || j.opened)
}

// look returns what is known of the caller and the record's patients, for a purpose. A missing relationship is always looked up, so that a
// new one works at once; fresh says that the relationship matters. wall is the time of the decision.
func (a *Access) look(ctx context.Context, p *Principal, r Request, purpose string, fresh bool, wall time.Time) (judged, error) {
	// The epochs are read before the storage is asked: an answer that a change overtakes is kept under the old epochs, where
	// nobody finds it.
	epochs, now := a.epochs.Load(), a.clockAt(wall)
	who := actor(p)
	leased := a.leased(now)
	var all judged
	if leased {
		known := true
		for i, patient := range r.Patients {
			f := a.known.recall(about{who, patient}, epochs, now)
			if f == nil {
				known = false
				break
			}
			all.add(f, &r, purpose, wall, i == 0)
		}
		if known && (!fresh || all.related != "") {
			a.hits.Add(1)
			return all, nil
		}
	}
	a.misses.Add(1)
	facts, err := a.storage.Facts(ctx, who, r.Patients)
	if err != nil {
		return judged{}, err
	}
	if len(facts) != len(r.Patients) {
		return judged{}, fmt.Errorf("storage told %d facts about %d patients", len(facts), len(r.Patients))
	}
	all, wall = judged{}, a.now()
	for i := range facts {
		f := &facts[i]
		all.add(f, &r, purpose, wall, i == 0)
		life := factLife
		if !f.Until.IsZero() {
			life = min(life, f.Until.Sub(wall))
		}
		if leased && life > 0 && (!fresh || f.Related != "") {
			a.known.remember(about{who, r.Patients[i]}, *f, epochs, now, life)
		}
	}
	return all, nil
}

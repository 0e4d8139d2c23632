package auth

import (
	"fmt"
	"hash/maphash"
	"time"

	"github.com/dgraph-io/ristretto/v2"
)

// relation is a treatment relationship that was seen to hold in an epoch. A change of any relationship makes a new
// epoch, under which nothing old is found: nothing has to be purged.
type relation struct {
	practitioner, patient string
	epoch                 int64
}

type relationEntry struct {
	relation
	until time.Duration // on the clock of Access
}

const (
	relationCapacity = 100_000
	relationLife     = time.Minute
)

// relationCache remembers relationships that hold; ones that do not are always looked up, so that a new one works at
// once. The cache may drop what it likes: all of it can be recomputed.
type relationCache struct {
	seed  maphash.Seed
	cache *ristretto.Cache[uint64, *relationEntry]
}

func newRelationCache() (relationCache, error) {
	cache, err := ristretto.NewCache(&ristretto.Config[uint64, *relationEntry]{
		NumCounters: 10 * relationCapacity, MaxCost: relationCapacity, BufferItems: 64, IgnoreInternalCost: true,
	})
	if err != nil {
		return relationCache{}, fmt.Errorf("making relationship cache: %w", err)
	}
	return relationCache{seed: maphash.MakeSeed(), cache: cache}, nil
}

// holds reports whether the relation is remembered. The hash only finds the entry, the comparison is of the whole key:
// two relations whose hashes collide stay two.
func (c relationCache) holds(r relation, now time.Duration) bool {
	e, ok := c.cache.Get(maphash.Comparable(c.seed, r))
	return ok && e.relation == r && now < e.until
}

func (c relationCache) remember(r relation, now time.Duration) {
	c.cache.SetWithTTL(maphash.Comparable(c.seed, r), &relationEntry{relation: r, until: now + relationLife}, 1, relationLife)
}

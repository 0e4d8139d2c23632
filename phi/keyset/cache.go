package keyset

import (
	"crypto/sha256"
	"encoding/binary"
	"sync/atomic"
	"time"

	"github.com/dgraph-io/ristretto/v2"
)

// The bounds of the cache: about 13 MB of expanded keys, and a minute in which a key that was withdrawn elsewhere still
// opens what was fetched before.
const (
	cacheEntries = 10_000
	cacheFor     = 60 * time.Second
)

// cache holds ciphers of data keys by a digest of their wrapped bytes as they were just read: a key that was rotated or
// erased is never asked for again, so it cannot hit. Entries may be dropped at any time; what is here can be recomputed.
// Dropped ciphers are left to the collector, since another goroutine may be using them.
type cache struct {
	entries      *ristretto.Cache[uint64, *cached]
	hits, misses atomic.Uint64
}

// keyID is a truncated digest of a wrapped key.
type keyID [16]byte

func identify(wrapped []byte) keyID {
	sum := sha256.Sum256(wrapped)
	return keyID(sum[:16])
}

// cached is the cipher of a data key. It carries what the key was unwrapped for (its name has the binding): the wrapped bytes
// alone do not authorise another binding.
type cached struct {
	counted
	id  keyID
	kek string
}

func newCache() (*cache, error) {
	entries, err := ristretto.NewCache(&ristretto.Config[uint64, *cached]{
		NumCounters:        10 * cacheEntries,
		MaxCost:            cacheEntries,
		BufferItems:        64,
		IgnoreInternalCost: true,
	})
	return &cache{entries: entries}, err
}

func (c *cache) get(id keyID, kek string, b Binding) *cached {
	e, ok := c.entries.Get(binary.BigEndian.Uint64(id[:]))
	if !ok || e.id != id || e.kek != kek || e.name.binding != b {
		c.misses.Add(1)
		return nil
	}
	c.hits.Add(1)
	return e
}

func (c *cache) set(e *cached) {
	c.entries.SetWithTTL(binary.BigEndian.Uint64(e.id[:]), e, 1, cacheFor)
}

// clear forgets every cipher. It must not run beside itself or close.
func (c *cache) clear() { c.entries.Clear() }

func (c *cache) close() { c.entries.Close() }

package keyset

import (
	"crypto/cipher"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
)

// How often a key may encrypt. With random 96-bit nonces two of 2^32 messages share one with probability 2^-33, and NIST SP
// 800-38D (8.3) ends there; the counts are late by a minute and lose what a killed process had not stored, so they end
// earlier.
const (
	Worn    = 1 << 28 // an alarm
	WornOut = 1 << 31 // no more
)

// ErrWornOut means that a key has encrypted as often as one may.
var ErrWornOut = errors.New("keyset: the key has encrypted as often as one may")

// Uses says how often a key has encrypted: a key-encryption key, or when KEK is "" a data key.
type Uses struct {
	KEK     string
	Binding Binding
	N       int64
}

// name is which key Uses is about.
type name struct {
	kek     string
	binding Binding
}

// uses counts what is encrypted under each key between two calls of Storage.AddUses. Safe for concurrent use.
type uses struct {
	worn atomic.Pointer[map[name]int64] // as the storage said last

	mu      sync.Mutex
	pending []*counted     // those with a count
	carried map[name]int64 // what the storage did not take
}

// counted is a cipher whose Seals are counted.
type counted struct {
	cipher.AEAD
	uses *uses
	name name
	n    atomic.Int64 // since the last take; who makes it 1 says so to uses
}

// Seal implements cipher.AEAD.
func (c *counted) Seal(dst, nonce, plaintext, associatedData []byte) []byte {
	if c.n.Add(1) == 1 {
		c.uses.mu.Lock()
		c.uses.pending = append(c.uses.pending, c)
		c.uses.mu.Unlock()
	}
	return c.AEAD.Seal(dst, nonce, plaintext, associatedData)
}

// take returns the counts since the last take.
func (u *uses) take() []Uses {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, c := range u.pending {
		u.carried[c.name] += c.n.Swap(0)
	}
	u.pending = nil
	all := make([]Uses, 0, len(u.carried))
	for n, count := range u.carried {
		all = append(all, Uses{n.kek, n.binding, count})
	}
	clear(u.carried)
	return all
}

// giveBack keeps counts that were not stored for the next take.
func (u *uses) giveBack(all []Uses) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, s := range all {
		u.carried[name{s.KEK, s.Binding}] += s.N
	}
}

// learn takes what the storage says of worn keys and returns those that it had not said before.
func (u *uses) learn(worn []Uses) (fresh []Uses) {
	known, next := u.worn.Load(), make(map[name]int64, len(worn))
	for _, s := range worn {
		n := name{s.KEK, s.Binding}
		next[n] = s.N
		if known == nil || (*known)[n] == 0 {
			fresh = append(fresh, s)
		}
	}
	u.worn.Store(&next)
	return fresh
}

// left returns nil while a key may encrypt.
func (u *uses) left(n name) error {
	worn := u.worn.Load()
	if worn == nil || (*worn)[n] < WornOut {
		return nil
	}
	if n.kek != "" {
		return fmt.Errorf("key-encryption key %s: %w; run chartkeep keys rewrap", n.kek, ErrWornOut)
	}
	return fmt.Errorf("data key %d of segment %d: %w; run chartkeep keys rotate", n.binding.KeyID, n.binding.Segment, ErrWornOut)
}

func (u *uses) worst() (worn int, most int64) {
	known := u.worn.Load()
	if known == nil {
		return 0, 0
	}
	for _, n := range *known {
		most = max(most, n)
	}
	return len(*known), most
}

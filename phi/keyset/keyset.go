// Package keyset is the key hierarchy: a root (a KMS key, or a local file for development) wraps key-encryption keys,
// those wrap a random data key per patient and the organisation's secrets.
//
// It promises that data keys exist in the clear only inside this process, that a wrapped key opens only for the subject,
// segment and generation it was made for (associated data), and that what is cached can be recomputed: unwrapped ciphers
// sit in a bounded cache keyed by a digest of the wrapped bytes, so that a rotated or erased key can never hit.
package keyset

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
)

// Root wraps key-encryption keys. Implementations: a development file here, KMS providers.
type Root interface {
	// Name identifies the root, without secrets: "file" or a KMS key URI.
	Name() string
	Wrap(ctx context.Context, key, associatedData []byte) ([]byte, error)
	Unwrap(ctx context.Context, wrapped, associatedData []byte) ([]byte, error)
	// Development reports whether this root must be refused in production.
	Development() bool
}

// Errors of this package. ErrWrapped says no more than its name, so that it is no oracle; it is permanent, whereas other
// errors of Storage and Root may pass.
var (
	ErrWrapped    = errors.New("keyset: wrapped key does not open")
	ErrUnknownKEK = errors.New("keyset: no such key-encryption key")
)

// Storage keeps wrapped key-encryption keys.
type Storage interface {
	// KEK returns the active wrapped key-encryption key, storing candidate first when there is none: whoever comes first
	// wins, all get the same. id "" asks for the active one, otherwise for that one (ErrUnknownKEK).
	KEK(ctx context.Context, id string, candidate *WrappedKEK) (WrappedKEK, error)
}

// WrappedKEK is a key-encryption key under a root.
type WrappedKEK struct {
	ID      string // e.g. "kek-1"
	Root    string // Root.Name
	Wrapped []byte
}

// Binding is what a wrapped data key is bound to.
type Binding struct {
	Subject [16]byte
	Segment uint16
	KeyID   uint32
}

const (
	keySize     = 32
	wrappedSize = 12 + keySize + 16 // nonce, ciphertext, tag
)

// Kinds of associated data; 0x01 and 0x02 are cells and row seals, in phi.
const (
	aadDataKey          = 0x03
	aadKeyEncryptionKey = 0x04
)

func (b Binding) associatedData() []byte {
	aad := make([]byte, 0, 1+16+2+4)
	aad = append(append(aad, aadDataKey), b.Subject[:]...)
	aad = binary.BigEndian.AppendUint16(aad, b.Segment)
	return binary.BigEndian.AppendUint32(aad, b.KeyID)
}

// kekAssociatedData binds a key-encryption key to its purpose and id, so that a root that serves others too does not
// open theirs for us.
func kekAssociatedData(id string) []byte {
	return append([]byte{aadKeyEncryptionKey}, "chartkeep key-encryption key "+id...)
}

// Keys opens and makes data keys. Safe for concurrent use.
type Keys struct {
	root    Root
	storage Storage
	active  string // id of the key-encryption key that wraps new keys
	cache   *cache

	loading sync.Mutex // one call to root at a time
	mu      sync.RWMutex
	keks    map[string]cipher.AEAD
}

// Open opens the hierarchy, making the first key-encryption key on an empty storage. Close the Keys after use.
func Open(ctx context.Context, root Root, storage Storage) (*Keys, error) {
	candidate := WrappedKEK{ID: "kek-1", Root: root.Name()}
	key := make([]byte, keySize)
	defer clear(key)
	rand.Read(key) // never fails since Go 1.24
	var err error
	if candidate.Wrapped, err = root.Wrap(ctx, key, kekAssociatedData(candidate.ID)); err != nil {
		return nil, fmt.Errorf("wrapping a new key-encryption key: %w", err)
	}
	active, err := storage.KEK(ctx, "", &candidate)
	if err != nil {
		return nil, fmt.Errorf("reading the active key-encryption key: %w", err)
	}
	k := &Keys{root: root, storage: storage, active: active.ID, keks: map[string]cipher.AEAD{}}
	if err := k.load(ctx, active); err != nil {
		return nil, err
	}
	if k.cache, err = newCache(); err != nil {
		return nil, fmt.Errorf("making key cache: %w", err)
	}
	return k, nil
}

// Close forgets all keys; everything fails afterwards.
func (k *Keys) Close() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.keks = nil
	k.cache.close()
}

// AEAD returns the cipher of a wrapped data key (AES-256-GCM with random nonces: Seal and Open take a nil nonce,
// cipher.NewGCMWithRandomNonce). A key that is not this binding's, or was tampered with, is ErrWrapped.
func (k *Keys) AEAD(ctx context.Context, kek string, wrapped []byte, b Binding) (cipher.AEAD, error) {
	id := identify(wrapped)
	if aead := k.cache.get(id, kek, b); aead != nil {
		return aead, nil
	}
	key, err := k.Secret(ctx, kek, wrapped, b)
	if err != nil {
		return nil, err
	}
	defer clear(key)
	aead, err := newAEAD(key)
	if err != nil {
		return nil, err
	}
	k.cache.set(id, kek, b, aead)
	return aead, nil
}

// NewKey makes a data key and returns it wrapped under the active key-encryption key.
func (k *Keys) NewKey(ctx context.Context, b Binding) (kek string, wrapped []byte, err error) {
	wrapping, err := k.kek(ctx, k.active)
	if err != nil {
		return "", nil, err
	}
	key := make([]byte, keySize)
	defer clear(key)
	rand.Read(key)
	return k.active, wrapping.Seal(nil, nil, key, b.associatedData()), nil
}

// Secret unwraps 32 secret bytes (an index key) that NewKey made. The caller clears them. Nothing is cached. Errors are
// as in AEAD. A data key and a secret differ by nothing but their bindings: give secrets subjects or segments of their own.
func (k *Keys) Secret(ctx context.Context, kek string, wrapped []byte, b Binding) ([]byte, error) {
	if len(wrapped) != wrappedSize {
		return nil, ErrWrapped
	}
	wrapping, err := k.kek(ctx, kek)
	if err != nil {
		return nil, err
	}
	key, err := wrapping.Open(make([]byte, 0, keySize), nil, wrapped, b.associatedData())
	if err != nil {
		return nil, ErrWrapped
	}
	return key, nil
}

// Healthy returns nil when the active key-encryption key is at hand.
func (k *Keys) Healthy() error {
	k.mu.RLock()
	defer k.mu.RUnlock()
	if k.keks[k.active] == nil {
		return fmt.Errorf("key-encryption key %s is not at hand", k.active)
	}
	return nil
}

// Stats is a snapshot of the cache of ciphers.
type Stats struct{ Hits, Misses uint64 }

// Stats returns the snapshot.
func (k *Keys) Stats() Stats { return Stats{Hits: k.cache.hits.Load(), Misses: k.cache.misses.Load()} }

// kek returns a key-encryption key, asking storage and root only for one that is not at hand. It is a plain map, not a
// cache that may drop: a call to root takes milliseconds, and a root that is away must not stop reads.
func (k *Keys) kek(ctx context.Context, id string) (cipher.AEAD, error) {
	k.mu.RLock()
	aead := k.keks[id]
	k.mu.RUnlock()
	if aead != nil {
		return aead, nil
	}
	if id == "" {
		return nil, ErrUnknownKEK
	}
	k.loading.Lock()
	defer k.loading.Unlock()
	k.mu.RLock()
	aead = k.keks[id]
	k.mu.RUnlock()
	if aead != nil {
		return aead, nil
	}
	wrapped, err := k.storage.KEK(ctx, id, nil)
	if err != nil {
		return nil, fmt.Errorf("reading key-encryption key: %w", err)
	}
	if wrapped.ID != id {
		return nil, ErrUnknownKEK
	}
	if err := k.load(ctx, wrapped); err != nil {
		return nil, err
	}
	k.mu.RLock()
	defer k.mu.RUnlock()
	return k.keks[id], nil
}

// load unwraps a key-encryption key into the map.
func (k *Keys) load(ctx context.Context, wrapped WrappedKEK) error {
	if wrapped.Root != k.root.Name() {
		return fmt.Errorf("key-encryption key %s is wrapped by root %q, not by %q", wrapped.ID, wrapped.Root, k.root.Name())
	}
	key, err := k.root.Unwrap(ctx, wrapped.Wrapped, kekAssociatedData(wrapped.ID))
	if err != nil {
		return fmt.Errorf("unwrapping key-encryption key %s: %w", wrapped.ID, err)
	}
	defer clear(key)
	aead, err := newAEAD(key)
	if err != nil {
		return fmt.Errorf("key-encryption key %s: %w", wrapped.ID, err)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.keks == nil {
		return errors.New("keys are closed")
	}
	k.keks[wrapped.ID] = aead
	return nil
}

// newAEAD is AES-256-GCM with nonces from the DRBG: the only GCM constructor that FIPS 140-3 mode allows, and none that
// a caller could repeat. The key may be cleared afterwards; the expanded round keys inside cannot be, in Go.
func newAEAD(key []byte) (cipher.AEAD, error) {
	if len(key) != keySize {
		return nil, fmt.Errorf("key has %d bytes instead of %d", len(key), keySize)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("expanding key: %w", err)
	}
	return cipher.NewGCMWithRandomNonce(block)
}

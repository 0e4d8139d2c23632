// Package keyset is the key hierarchy: a root (a KMS key, or a local file for development) wraps key-encryption keys,
// those wrap a random data key per patient and the organisation's secrets.
//
// It promises that data keys exist in the clear only inside this process, that a wrapped key opens only for the subject,
// segment and generation it was made for (associated data), and that what is cached can be recomputed: unwrapped ciphers
// sit in a bounded cache keyed by a digest of the wrapped bytes, so that a rotated or erased key can never hit.
package keyset

import (
	"context"
	"crypto/cipher"
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

// Keys opens and makes data keys. Safe for concurrent use.
type Keys struct{ unwritten int }

// Open opens the hierarchy, making the first key-encryption key on an empty storage.
func Open(ctx context.Context, root Root, storage Storage) (*Keys, error) { panic("unwritten") }

// AEAD returns the cipher of a wrapped data key (AES-256-GCM with random nonces: Seal and Open take a nil nonce,
// cipher.NewGCMWithRandomNonce).
func (k *Keys) AEAD(ctx context.Context, kek string, wrapped []byte, b Binding) (cipher.AEAD, error) {
	panic("unwritten")
}

// NewKey makes a data key and returns it wrapped under the active key-encryption key.
func (k *Keys) NewKey(ctx context.Context, b Binding) (kek string, wrapped []byte, err error) {
	panic("unwritten")
}

// Secret unwraps 32 secret bytes (an index key) that NewKey made. The caller clears them.
func (k *Keys) Secret(ctx context.Context, kek string, wrapped []byte, b Binding) ([]byte, error) {
	panic("unwritten")
}

// Healthy returns nil when the active key-encryption key is at hand.
func (k *Keys) Healthy() error { panic("unwritten") }

// Stats is a snapshot.
type Stats struct{ Hits, Misses uint64 }

// Stats returns the snapshot.
func (k *Keys) Stats() Stats { panic("unwritten") }

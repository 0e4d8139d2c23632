// Package keyset is the key hierarchy: a root (a KMS key, or a local file for development) wraps key-encryption keys,
// those wrap a random data key per patient and the organisation's secrets.
//
// It promises that data keys exist in the clear only inside this process, that a wrapped key opens only for the subject,
// segment and generation it was made for (associated data), and that what is cached can be recomputed: unwrapped ciphers
// sit in a bounded cache keyed by a digest of the wrapped bytes, so that a rotated or erased key can never hit.
//
// A key-encryption key is asked of its root again every few minutes (Config.Refresh). While the root is away it is used on,
// unnoticed, until it was last unwrapped Config.Hold ago; then every key below it is refused with a *RefusedError, whatever
// is cached, until the root answers again. So a withdrawn grant takes effect within Hold, and no restart is needed either
// way. Secrets that a caller has unwrapped (index keys) are the caller's: they make tokens, they open no record.
package keyset

import (
	"cmp"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Root wraps key-encryption keys. Implementations: a development file here, KMS providers in package kms.
type Root interface {
	// Name identifies the root, without secrets: "file" or a KMS key URI.
	Name() string
	// Wrap and Unwrap bind a key to associatedData. They return within seconds, whatever the KMS does.
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
	ErrClosed     = errors.New("keyset: closed")
)

// Storage keeps wrapped key-encryption keys, and counts. Safe for concurrent use.
type Storage interface {
	// KEK returns the active wrapped key-encryption key, storing candidate first when there is none: whoever comes first
	// wins, all get the same. id "" asks for the active one, otherwise for that one (ErrUnknownKEK).
	KEK(ctx context.Context, id string, candidate *WrappedKEK) (WrappedKEK, error)
	// KEKs returns all of them, in any order; none on an empty storage.
	KEKs(ctx context.Context) ([]WrappedKEK, error)
	// AddUses adds to the stored counts, all or nothing, leaving out keys that are there no more, and returns the counts of
	// keys that encrypt and have done so Worn times or more.
	AddUses(ctx context.Context, uses []Uses) (worn []Uses, err error)
}

// WrappedKEK is a key-encryption key under a root.
type WrappedKEK struct {
	ID      string // e.g. "kek-1"
	Root    string // Root.Name
	Wrapped []byte
	Active  bool // wraps new keys; one does
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
	roots        []Root // the first wraps new key-encryption keys
	storage      Storage
	refreshAfter time.Duration
	holdFor      time.Duration
	logger       *slog.Logger
	cache        *cache
	uses         *uses
	hierarchy    atomic.Pointer[hierarchy] // nil when closed
	trouble      atomic.Pointer[trouble]   // of the last refresh; nil when it went well
	failures     atomic.Uint64
	wake         chan struct{}
	life         context.Context // of loads; done after Close
	end          context.CancelFunc
	refreshing   sync.Mutex // one refresh at a time
	mu           sync.Mutex // of changes to hierarchy, and of:
	loads        map[string]*load
	loading      sync.WaitGroup
}

// hierarchy is the key-encryption keys that are at hand. It is replaced, never changed.
type hierarchy struct {
	active string // id of the one that wraps new keys
	keks   map[string]*kek
}

// kek is a key-encryption key that its root has unwrapped.
type kek struct {
	WrappedKEK
	aead   cipher.AEAD
	opened time.Time
}

// Config configures Keys.
type Config struct {
	// Roots are the roots that may be asked. The first wraps new key-encryption keys, the others open what they have wrapped: a
	// stored key that names any other root is refused, so that who writes to the database cannot point us at a KMS of his. Keys.Close
	// closes those that are io.Closers.
	Roots   []Root
	Storage Storage
	Refresh time.Duration // after which a root is asked again; 5 minutes when 0
	Hold    time.Duration // after which a key that its root did not open again is refused; 10 minutes when 0
	Logger  *slog.Logger
}

// The limits when Config says nothing: an outage of five minutes at least goes unnoticed.
const (
	DefaultRefresh = 5 * time.Minute
	DefaultHold    = 10 * time.Minute
)

// Open opens the hierarchy under one root, see Config.Open.
func Open(ctx context.Context, root Root, storage Storage) (*Keys, error) {
	return Config{Roots: []Root{root}, Storage: storage}.Open(ctx)
}

// Open opens the hierarchy, making the first key-encryption key on an empty storage. Run keeps it open for longer than Hold;
// Close the Keys after use.
func (c Config) Open(ctx context.Context) (*Keys, error) {
	if len(c.Roots) == 0 {
		return nil, errors.New("opening keys: there is no root")
	}
	k := &Keys{
		roots: c.Roots, storage: c.Storage, refreshAfter: cmp.Or(c.Refresh, DefaultRefresh), holdFor: cmp.Or(c.Hold, DefaultHold), logger: c.Logger,
		uses: &uses{carried: map[name]int64{}}, wake: make(chan struct{}, 1), loads: map[string]*load{},
	}
	if k.logger == nil {
		k.logger = slog.New(slog.DiscardHandler)
	}
	active, err := k.first(ctx)
	if err != nil {
		return nil, err
	}
	open, err := k.unwrap(ctx, active)
	if err != nil {
		return nil, err
	}
	if k.cache, err = newCache(); err != nil {
		return nil, fmt.Errorf("making key cache: %w", err)
	}
	if active.Root != k.Root() {
		k.logger.WarnContext(ctx, "new keys are wrapped under an older root: run chartkeep keys rewrap", "kek", active.ID, "its_root", active.Root, "root", k.Root())
	}
	k.hierarchy.Store(&hierarchy{active: active.ID, keks: map[string]*kek{active.ID: open}})
	k.life, k.end = context.WithCancel(context.WithoutCancel(ctx))
	return k, nil
}

// first returns the active key-encryption key, made when the storage is empty.
func (k *Keys) first(ctx context.Context) (WrappedKEK, error) {
	all, err := k.storage.KEKs(ctx)
	if err != nil {
		return WrappedKEK{}, fmt.Errorf("reading key-encryption keys: %w", err)
	}
	var candidate *WrappedKEK
	if len(all) == 0 {
		made, err := k.NewKEK(ctx, "kek-1")
		if err != nil {
			return WrappedKEK{}, err
		}
		candidate = &made
	}
	active, err := k.storage.KEK(ctx, "", candidate)
	if err != nil {
		return WrappedKEK{}, fmt.Errorf("reading the active key-encryption key: %w", err)
	}
	return active, nil
}

// Close forgets all keys; everything fails afterwards with ErrClosed. Run must have returned.
func (k *Keys) Close() {
	k.mu.Lock()
	k.hierarchy.Store(nil)
	k.mu.Unlock()
	k.end()
	k.loading.Wait()
	k.cache.close()
	for _, r := range k.roots {
		if c, ok := r.(io.Closer); ok {
			_ = c.Close() // of connections: nothing is lost
		}
	}
}

// AEAD returns the cipher of a wrapped data key (AES-256-GCM with random nonces: Seal and Open take a nil nonce,
// cipher.NewGCMWithRandomNonce). A key that is not this binding's, or was tampered with, is ErrWrapped. What the cipher
// seals is counted; who means to seal asks Sealer.
func (k *Keys) AEAD(ctx context.Context, kek string, wrapped []byte, b Binding) (cipher.AEAD, error) {
	wrapping, err := k.kek(ctx, kek) // first: it may be refused by now
	if err != nil {
		return nil, err
	}
	id := identify(wrapped)
	if e := k.cache.get(id, kek, b); e != nil {
		return e, nil
	}
	key, err := open(wrapping, wrapped, b)
	if err != nil {
		return nil, err
	}
	defer clear(key)
	aead, err := newAEAD(key)
	if err != nil {
		return nil, err
	}
	e := &cached{counted{AEAD: aead, uses: k.uses, name: name{binding: b}}, id, kek}
	k.cache.set(e)
	return e, nil
}

// Sealer is AEAD for new content: ErrWornOut when the key has encrypted as often as one may.
func (k *Keys) Sealer(ctx context.Context, kek string, wrapped []byte, b Binding) (cipher.AEAD, error) {
	if err := k.uses.left(name{binding: b}); err != nil {
		return nil, err
	}
	return k.AEAD(ctx, kek, wrapped, b)
}

// NewKey makes a data key and returns it wrapped under the active key-encryption key.
func (k *Keys) NewKey(ctx context.Context, b Binding) (kek string, wrapped []byte, err error) {
	kek = k.Active()
	wrapping, err := k.wrapping(ctx, kek)
	if err != nil {
		return "", nil, err
	}
	key := make([]byte, keySize)
	defer clear(key)
	rand.Read(key) // never fails since Go 1.24
	return kek, wrapping.Seal(nil, nil, key, b.associatedData()), nil
}

// Secret unwraps 32 secret bytes (an index key) that NewKey made. The caller clears them. Nothing is cached. Errors are
// as in AEAD. A data key and a secret differ by nothing but their bindings: give secrets subjects or segments of their own. Who seals
// with one asks Derived.
func (k *Keys) Secret(ctx context.Context, kek string, wrapped []byte, b Binding) ([]byte, error) {
	wrapping, err := k.kek(ctx, kek)
	if err != nil {
		return nil, err
	}
	return open(wrapping, wrapped, b)
}

// Rewrap returns a wrapped data key or secret under another key-encryption key. Errors are as in AEAD.
func (k *Keys) Rewrap(ctx context.Context, from string, wrapped []byte, b Binding, to string) ([]byte, error) {
	wrapping, err := k.wrapping(ctx, to)
	if err != nil {
		return nil, err
	}
	key, err := k.Secret(ctx, from, wrapped, b)
	if err != nil {
		return nil, err
	}
	defer clear(key)
	return wrapping.Seal(nil, nil, key, b.associatedData()), nil
}

// NewKEK makes a key-encryption key under the first root, for the caller to store as the active one; Refresh takes it up.
func (k *Keys) NewKEK(ctx context.Context, id string) (WrappedKEK, error) {
	key := make([]byte, keySize)
	defer clear(key)
	rand.Read(key)
	wrapped, err := k.roots[0].Wrap(ctx, key, kekAssociatedData(id))
	if err != nil {
		return WrappedKEK{}, fmt.Errorf("wrapping a new key-encryption key: %w", err)
	}
	return WrappedKEK{ID: id, Root: k.roots[0].Name(), Wrapped: wrapped, Active: true}, nil
}

// Root names the root that wraps new key-encryption keys.
func (k *Keys) Root() string { return k.roots[0].Name() }

// Active is the id of the key-encryption key that wraps new keys, "" after Close.
func (k *Keys) Active() string {
	if h := k.hierarchy.Load(); h != nil {
		return h.active
	}
	return ""
}

// Stats is a snapshot of Keys.
type Stats struct {
	Hits, Misses    uint64        // of the cache of ciphers
	KEKs            int           // key-encryption keys at hand
	Age             time.Duration // since the one that waited longest was unwrapped
	RefreshFailures uint64
	Worn            int   // keys that have encrypted Worn times or more
	MostUses        int64 // of one key, 0 below Worn
}

// Stats returns the snapshot.
func (k *Keys) Stats() Stats {
	s := Stats{Hits: k.cache.hits.Load(), Misses: k.cache.misses.Load(), RefreshFailures: k.failures.Load()}
	if h := k.hierarchy.Load(); h != nil {
		s.KEKs = len(h.keks)
		for _, e := range h.keks {
			s.Age = max(s.Age, time.Since(e.opened))
		}
	}
	s.Worn, s.MostUses = k.uses.worst()
	return s
}

// open unwraps a data key.
func open(wrapping cipher.AEAD, wrapped []byte, b Binding) ([]byte, error) {
	if len(wrapped) != wrappedSize {
		return nil, ErrWrapped
	}
	key, err := wrapping.Open(make([]byte, 0, keySize), nil, wrapped, b.associatedData())
	if err != nil {
		return nil, ErrWrapped
	}
	return key, nil
}

// kek returns a key-encryption key, asking storage and root only for one that is not at hand. It is a plain map, not a
// cache that may drop: a call to root takes milliseconds, and a root that is away must not stop reads.
func (k *Keys) kek(ctx context.Context, id string) (cipher.AEAD, error) {
	h := k.hierarchy.Load()
	if h == nil {
		return nil, ErrClosed
	}
	e := h.keks[id]
	if e == nil {
		var err error
		if e, err = k.load(ctx, id); err != nil {
			return nil, err
		}
	}
	if time.Since(e.opened) >= k.holdFor {
		return nil, k.refused(e)
	}
	return e.aead, nil
}

// wrapping is kek for wrapping: ErrWornOut when it has done so as often as one may.
func (k *Keys) wrapping(ctx context.Context, id string) (cipher.AEAD, error) {
	if err := k.uses.left(name{kek: id}); err != nil {
		return nil, err
	}
	return k.kek(ctx, id)
}

// unwrap asks a key-encryption key's root, if it is one of ours.
func (k *Keys) unwrap(ctx context.Context, w WrappedKEK) (*kek, error) {
	i := slices.IndexFunc(k.roots, func(r Root) bool { return r.Name() == w.Root })
	if i < 0 {
		return nil, fmt.Errorf("key-encryption key %s is wrapped by root %q, which is none of those that may be asked; if it is ours, name it with --kms too", w.ID, w.Root)
	}
	since := time.Now()
	key, err := k.roots[i].Unwrap(ctx, w.Wrapped, kekAssociatedData(w.ID))
	if err != nil {
		return nil, fmt.Errorf("unwrapping key-encryption key %s: %w", w.ID, err)
	}
	defer clear(key)
	aead, err := newAEAD(key)
	if err != nil {
		return nil, fmt.Errorf("key-encryption key %s: %w", w.ID, err)
	}
	return &kek{w, &counted{AEAD: aead, uses: k.uses, name: name{kek: w.ID}}, since}, nil
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

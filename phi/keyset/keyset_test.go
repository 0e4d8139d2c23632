package keyset_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/chartkeep/chartkeep/phi/keyset"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// memory is a keyset.Storage that can be away.
type memory struct {
	mu    sync.Mutex
	keks  []keyset.WrappedKEK
	uses  map[keyset.Uses]int64 // by Uses without N
	calls map[string]int
	err   error
}

// called counts a call; the caller unlocks.
func (m *memory) called(method string) error {
	m.mu.Lock()
	if m.calls == nil {
		m.calls, m.uses = map[string]int{}, map[keyset.Uses]int64{}
	}
	m.calls[method]++
	return m.err
}

func (m *memory) fail(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.err = err
}

func (m *memory) KEK(_ context.Context, id string, candidate *keyset.WrappedKEK) (keyset.WrappedKEK, error) {
	err := m.called("KEK")
	defer m.mu.Unlock()
	if err != nil {
		return keyset.WrappedKEK{}, err
	}
	if id == "" && len(m.keks) == 0 && candidate != nil {
		m.keks = append(m.keks, *candidate)
	}
	for _, k := range m.keks {
		if id == "" && k.Active || k.ID == id {
			return k, nil
		}
	}
	return keyset.WrappedKEK{}, keyset.ErrUnknownKEK
}

func (m *memory) KEKs(context.Context) ([]keyset.WrappedKEK, error) {
	err := m.called("KEKs")
	defer m.mu.Unlock()
	if err != nil {
		return nil, err
	}
	return slices.Clone(m.keks), nil
}

// replace makes a key-encryption key the active one, as keys rewrap does.
func (m *memory) replace(next keyset.WrappedKEK) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := range m.keks {
		m.keks[i].Active = false
	}
	m.keks = append(m.keks, next)
}

func (m *memory) AddUses(_ context.Context, uses []keyset.Uses) ([]keyset.Uses, error) {
	err := m.called("AddUses")
	defer m.mu.Unlock()
	if err != nil {
		return nil, err
	}
	for _, u := range uses {
		n := u.N
		u.N = 0
		m.uses[u] += n
	}
	var worn []keyset.Uses
	for u, n := range m.uses {
		if n >= keyset.Worn {
			u.N = n
			worn = append(worn, u)
		}
	}
	return worn, nil
}

func newRoot(t testing.TB) *keyset.FileRoot {
	t.Helper()
	root, err := keyset.NewFileRoot(filepath.Join(t.TempDir(), "root.key"), true)
	if err != nil {
		t.Fatal(err)
	}
	return root
}

func open(t testing.TB, root keyset.Root, storage keyset.Storage) *keyset.Keys {
	t.Helper()
	keys, err := keyset.Open(t.Context(), root, storage)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(keys.Close)
	return keys
}

var someone = keyset.Binding{Subject: [16]byte{1, 2, 3}, Segment: 4, KeyID: 5}

func newKey(t testing.TB, keys *keyset.Keys, b keyset.Binding) (kek string, wrapped []byte) {
	t.Helper()
	kek, wrapped, err := keys.NewKey(t.Context(), b)
	if err != nil {
		t.Fatal(err)
	}
	return kek, wrapped
}

func TestKeysAcrossInstances(t *testing.T) {
	root, storage := newRoot(t), &memory{}
	first, second := open(t, root, storage), open(t, root, storage)
	if len(storage.keks) != 1 {
		t.Fatalf("%d key-encryption keys after opening twice, want 1", len(storage.keks))
	}
	kek, wrapped := newKey(t, first, someone)
	if len(wrapped) != 60 {
		t.Errorf("wrapped key has %d bytes, want 60", len(wrapped))
	}
	sealing, err := first.AEAD(t.Context(), kek, wrapped, someone)
	if err != nil {
		t.Fatal(err)
	}
	opening, err := second.AEAD(t.Context(), kek, wrapped, someone)
	if err != nil {
		t.Fatal(err)
	}
	opened, err := opening.Open(nil, nil, sealing.Seal(nil, nil, []byte("chart"), nil), nil)
	if err != nil || string(opened) != "chart" {
		t.Errorf("second instance opened %q, %v", opened, err)
	}
	secret, err := first.Secret(t.Context(), kek, wrapped, someone)
	if err != nil || len(secret) != 32 {
		t.Fatalf("Secret gave %d bytes, %v", len(secret), err)
	}
	again, err := second.Secret(t.Context(), kek, wrapped, someone)
	if err != nil || !bytes.Equal(secret, again) {
		t.Errorf("instances disagree about a secret (%v)", err)
	}
}

// TestWrappedKeyBound moves a wrapped key to other bindings, with a cold and with a warm cache.
func TestWrappedKeyBound(t *testing.T) {
	keys := open(t, newRoot(t), &memory{})
	kek, wrapped := newKey(t, keys, someone)
	others := []keyset.Binding{
		{Subject: [16]byte{9}, Segment: someone.Segment, KeyID: someone.KeyID},
		{Subject: someone.Subject, Segment: 9, KeyID: someone.KeyID},
		{Subject: someone.Subject, Segment: someone.Segment, KeyID: 9},
	}
	refused := func(state string) {
		for _, b := range others {
			if _, err := keys.AEAD(t.Context(), kek, wrapped, b); !errors.Is(err, keyset.ErrWrapped) {
				t.Errorf("%s: AEAD for %+v: %v, want ErrWrapped", state, b, err)
			}
		}
		if _, err := keys.AEAD(t.Context(), "kek-2", wrapped, someone); !errors.Is(err, keyset.ErrUnknownKEK) {
			t.Errorf("%s: AEAD under another key-encryption key: %v, want ErrUnknownKEK", state, err)
		}
	}
	refused("cold")
	warm(t, keys, kek, wrapped)
	refused("warm")
}

// warm asks until the cache, which takes entries in the background, hits.
func warm(t testing.TB, keys *keyset.Keys, kek string, wrapped []byte) {
	t.Helper()
	for before := keys.Stats().Hits; keys.Stats().Hits == before; {
		if _, err := keys.AEAD(t.Context(), kek, wrapped, someone); err != nil {
			t.Fatal(err)
		}
	}
}

func TestWrappedKeyTampered(t *testing.T) {
	keys := open(t, newRoot(t), &memory{})
	kek, wrapped := newKey(t, keys, someone)
	warm(t, keys, kek, wrapped)
	refused := func(what string, w []byte) {
		if _, err := keys.AEAD(t.Context(), kek, w, someone); !errors.Is(err, keyset.ErrWrapped) {
			t.Errorf("%s: %v, want ErrWrapped", what, err)
		}
	}
	for bit := range len(wrapped) * 8 {
		w := bytes.Clone(wrapped)
		w[bit/8] ^= 1 << (bit % 8)
		refused(fmt.Sprintf("bit %d flipped", bit), w)
	}
	for n := range wrapped {
		refused(fmt.Sprintf("cut to %d bytes", n), wrapped[:n])
	}
	refused("a byte more", append(bytes.Clone(wrapped), 0))
}

func TestOpenRefusesOtherRoot(t *testing.T) {
	storage := &memory{}
	open(t, newRoot(t), storage)
	if _, err := keyset.Open(t.Context(), newRoot(t), storage); !errors.Is(err, keyset.ErrWrapped) {
		t.Errorf("opening with another root key: %v, want ErrWrapped", err)
	}
	storage.keks[0].Root = "kms://elsewhere"
	if _, err := keyset.Open(t.Context(), newRoot(t), storage); err == nil {
		t.Error("opening with another root's name succeeded")
	}
}

// TestKEKBoundToID renames a stored key-encryption key.
func TestKEKBoundToID(t *testing.T) {
	root, storage := newRoot(t), &memory{}
	open(t, root, storage)
	storage.keks[0].ID = "kek-2"
	if _, err := keyset.Open(t.Context(), root, storage); !errors.Is(err, keyset.ErrWrapped) {
		t.Errorf("opening a renamed key: %v, want ErrWrapped", err)
	}
}

// TestStorageAway shows that a storage that is away stops neither known keys nor is mistaken for a broken one.
func TestStorageAway(t *testing.T) {
	away := errors.New("away")
	if _, err := keyset.Open(t.Context(), newRoot(t), &memory{err: away}); !errors.Is(err, away) {
		t.Errorf("Open: %v, want the storage's error", err)
	}
	storage := &memory{}
	keys := open(t, newRoot(t), storage)
	kek, wrapped := newKey(t, keys, someone)
	storage.err = away
	if _, err := keys.AEAD(t.Context(), kek, wrapped, someone); err != nil {
		t.Errorf("AEAD under a key that is at hand: %v", err)
	}
	if _, err := keys.AEAD(t.Context(), "kek-0", wrapped, someone); !errors.Is(err, away) {
		t.Errorf("AEAD under a key that is not at hand: %v, want the storage's error", err)
	}
}

func TestHealthyUntilClosed(t *testing.T) {
	keys, err := keyset.Open(t.Context(), newRoot(t), &memory{})
	if err != nil {
		t.Fatal(err)
	}
	if err := keys.Healthy(); err != nil {
		t.Errorf("Healthy: %v", err)
	}
	kek, wrapped := newKey(t, keys, someone)
	warm(t, keys, kek, wrapped)
	keys.Close()
	if keys.Healthy() == nil {
		t.Error("healthy after Close")
	}
	if _, err := keys.AEAD(t.Context(), kek, wrapped, someone); err == nil {
		t.Error("AEAD after Close succeeded")
	}
}

func TestConcurrentUse(t *testing.T) {
	keys := open(t, newRoot(t), &memory{})
	var all sync.WaitGroup
	for g := range 8 {
		all.Go(func() {
			b := keyset.Binding{KeyID: uint32(g)}
			kek, wrapped, err := keys.NewKey(t.Context(), b)
			if err != nil {
				t.Error(err)
				return
			}
			for range 200 {
				if _, err := keys.AEAD(t.Context(), kek, wrapped, b); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	if s := keys.Stats(); s.Hits+s.Misses != 8*200 {
		t.Errorf("%d hits and %d misses do not make 1600", s.Hits, s.Misses)
	}
}

func TestHitDoesNotAllocate(t *testing.T) {
	keys := open(t, newRoot(t), &memory{})
	kek, wrapped := newKey(t, keys, someone)
	warm(t, keys, kek, wrapped)
	ctx := t.Context()
	if n := testing.AllocsPerRun(1000, func() { _, _ = keys.AEAD(ctx, kek, wrapped, someone) }); n != 0 {
		t.Errorf("a hit allocates %v times", n)
	}
}

func BenchmarkAEAD(b *testing.B) {
	keys := open(b, newRoot(b), &memory{})
	kek, wrapped := newKey(b, keys, someone)
	b.Run("hit", func(b *testing.B) {
		warm(b, keys, kek, wrapped)
		b.ReportAllocs()
		for b.Loop() {
			_, _ = keys.AEAD(b.Context(), kek, wrapped, someone)
		}
	})
	b.Run("miss", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			_, w, _ := keys.NewKey(b.Context(), someone)
			_, _ = keys.AEAD(b.Context(), kek, w, someone)
		}
	})
}

func TestFileRoot(t *testing.T) {
	write := func(content []byte, mode os.FileMode) func(string) error {
		return func(path string) error {
			if err := os.WriteFile(path, content, 0o600); err != nil {
				return err
			}
			return os.Chmod(path, mode) // past the umask
		}
	}
	for _, tt := range []struct {
		name   string
		make   func(path string) error
		create bool
		ok     bool
	}{
		{"missing", nil, false, false},
		{"missing, to be made", nil, true, true},
		{"good", write(make([]byte, 32), 0o600), false, true},
		{"good, read only", write(make([]byte, 32), 0o400), false, true},
		{"short", write(make([]byte, 31), 0o600), true, false},
		{"long", write(make([]byte, 33), 0o600), true, false},
		{"empty", write(nil, 0o600), true, false},
		{"readable by the group", write(make([]byte, 32), 0o640), true, false},
		{"writable by others", write(make([]byte, 32), 0o602), true, false},
		{"directory", func(path string) error { return os.Mkdir(path, 0o700) }, true, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "root.key")
			if tt.make != nil {
				if err := tt.make(path); err != nil {
					t.Fatal(err)
				}
			}
			root, err := keyset.NewFileRoot(path, tt.create)
			if (err == nil) != tt.ok {
				t.Fatalf("NewFileRoot: %v", err)
			}
			if !tt.ok {
				return
			}
			info, err := os.Stat(path)
			if err != nil || info.Mode().Perm()&0o077 != 0 || info.Size() != 32 {
				t.Errorf("key file is %v (%v)", info, err)
			}
			if !root.Development() {
				t.Error("a file root must count as development")
			}
			files, _ := os.ReadDir(filepath.Dir(path))
			if len(files) != 1 {
				t.Errorf("%d files beside the key", len(files)-1)
			}
		})
	}
}

// TestFileRootRace makes a key file from many sides at once: all must hold the same key.
func TestFileRootRace(t *testing.T) {
	path := filepath.Join(t.TempDir(), "root.key")
	roots := make([]*keyset.FileRoot, 8)
	var all sync.WaitGroup
	for i := range roots {
		all.Go(func() {
			var err error
			if roots[i], err = keyset.NewFileRoot(path, true); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if t.Failed() {
		return
	}
	wrapped, err := roots[0].Wrap(t.Context(), []byte("key"), []byte("for this"))
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range roots {
		if key, err := r.Unwrap(t.Context(), wrapped, []byte("for this")); err != nil || string(key) != "key" {
			t.Errorf("Unwrap: %q, %v", key, err)
		}
		if _, err := r.Unwrap(t.Context(), wrapped, []byte("for that")); !errors.Is(err, keyset.ErrWrapped) {
			t.Errorf("Unwrap with other associated data: %v, want ErrWrapped", err)
		}
	}
}

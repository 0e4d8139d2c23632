package keyset_test

import (
	"bytes"
	"context"
	"crypto/fips140"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/chartkeep/chartkeep/phi/keyset"
)

// service is a root like a KMS: it can be away, slow, or deny one key.
type service struct {
	*keyset.FileRoot
	name    string
	mu      sync.Mutex
	err     error
	slow    time.Duration
	calls   atomic.Int64
	at      atomic.Int64 // calls under way
	atMost  atomic.Int64
	unwraps atomic.Int64
}

func newService(t testing.TB, name string) *service {
	return &service{FileRoot: newRoot(t), name: name}
}

func (s *service) Name() string { return s.name }

func (s *service) set(err error, slow time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err, s.slow = err, slow
}

func (s *service) answer(ctx context.Context) error {
	s.calls.Add(1)
	s.atMost.Store(max(s.atMost.Load(), s.at.Add(1)))
	defer s.at.Add(-1)
	s.mu.Lock()
	err, slow := s.err, s.slow
	s.mu.Unlock()
	select {
	case <-time.After(slow):
	case <-ctx.Done():
		return ctx.Err()
	}
	return err
}

func (s *service) Wrap(ctx context.Context, key, aad []byte) ([]byte, error) {
	if err := s.answer(ctx); err != nil {
		return nil, err
	}
	return s.FileRoot.Wrap(ctx, key, aad)
}

func (s *service) Unwrap(ctx context.Context, wrapped, aad []byte) ([]byte, error) {
	s.unwraps.Add(1)
	if err := s.answer(ctx); err != nil {
		return nil, err
	}
	return s.FileRoot.Unwrap(ctx, wrapped, aad)
}

// lines is a log that can be read while it is written.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// bubble runs f with a clock that stands still while anything works.
func bubble(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	if fips140.Enabled() {
		t.Skip("the entropy source of the FIPS module measures time, which does not pass here")
	}
	synctest.Test(t, f)
}

// running opens keys with the default limits under one or more roots and runs them until the test ends.
func running(t *testing.T, storage keyset.Storage, log *lines, roots ...keyset.Root) *keyset.Keys {
	t.Helper()
	cfg := keyset.Config{Roots: roots, Storage: storage}
	if log != nil {
		cfg.Logger = slog.New(slog.NewTextHandler(log, nil))
	}
	keys, err := cfg.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- keys.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
		keys.Close()
	})
	return keys
}

var errAway = errors.New("the KMS is away")

// TestOutage is experiment 23: five minutes without the KMS go unnoticed, whenever they begin; an hour fails closed, says
// so and since when, asks the KMS in one goroutine only, and heals without a restart.
func TestOutage(t *testing.T) {
	for _, begin := range []time.Duration{0, time.Minute, 4 * time.Minute, 4*time.Minute + 59*time.Second, 7 * time.Minute} {
		t.Run(fmt.Sprintf("begins after %v", begin), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				kms, log := newService(t, "kms://one"), &lines{}
				keys := running(t, &memory{}, log, kms)
				kek, wrapped := newKey(t, keys, someone)
				ask := func() error {
					_, err := keys.AEAD(t.Context(), kek, wrapped, someone)
					return err
				}
				time.Sleep(begin)
				kms.set(errAway, 0)
				gone := time.Now()
				for away := time.Duration(0); away <= 5*time.Minute; away += 5 * time.Second {
					if err := errors.Join(ask(), keys.Healthy()); err != nil {
						t.Fatalf("away for %v: %v", away, err)
					}
					time.Sleep(5 * time.Second)
				}
				for ask() == nil && time.Since(gone) < 20*time.Minute { // of the cache, most of the time: it is no excuse
					time.Sleep(time.Second)
				}
				if lasted := time.Since(gone); lasted > 10*time.Minute+time.Second {
					t.Errorf("refused after %v only", lasted)
				}
				time.Sleep(time.Until(gone.Add(70 * time.Minute)))
				for range 100 {
					err := ask()
					refused, ok := errors.AsType[*keyset.RefusedError](err)
					if !ok || errors.Is(err, keyset.ErrWrapped) || !strings.Contains(err.Error(), errAway.Error()) {
						t.Fatalf("away for 70 minutes: %v, want a RefusedError that names the reason", err)
					}
					if since := time.Since(refused.Since); since < 60*time.Minute || since > 65*time.Minute {
						t.Errorf("refused since %v", since)
					}
				}
				if err := keys.Healthy(); err == nil {
					t.Error("healthy after 70 minutes")
				}
				if _, _, err := keys.NewKey(t.Context(), someone); err == nil {
					t.Error("a new key was made under a refused one")
				}
				if n := kms.atMost.Load(); n != 1 {
					t.Errorf("%d calls to the KMS at once, want 1", n)
				}
				if s := keys.Stats(); s.Age < 70*time.Minute || s.RefreshFailures == 0 {
					t.Errorf("stats say nothing of it: %+v", s)
				}
				kms.set(nil, 0)
				time.Sleep(20 * time.Second)
				if err := errors.Join(ask(), keys.Healthy()); err != nil {
					t.Errorf("the KMS has been back for 20 s: %v", err)
				}
				if !strings.Contains(log.String(), "refreshed again") {
					t.Errorf("the log does not tell of the end:\n%s", log)
				}
			})
		})
	}
}

// TestSlowService is experiment 23's slow KMS: refreshes go on beside requests, which never wait for them.
func TestSlowService(t *testing.T) {
	bubble(t, func(t *testing.T) {
		kms := newService(t, "kms://one")
		keys := running(t, &memory{}, nil, kms)
		kek, wrapped := newKey(t, keys, someone)
		kms.set(nil, 5*time.Second)
		for range 4 * 60 {
			before := time.Now()
			if _, err := keys.AEAD(t.Context(), kek, wrapped, someone); err != nil {
				t.Fatal(err)
			}
			if took := time.Since(before); took > 0 {
				t.Fatalf("a request waited %v", took)
			}
			time.Sleep(5 * time.Second)
		}
		if n := kms.atMost.Load(); n > 1 {
			t.Errorf("%d calls to the KMS at once", n)
		}
	})
}

// TestUnknownKEK asks for a key-encryption key that is not at hand from a thousand sides while the KMS is slow, denies, and
// works.
func TestUnknownKEK(t *testing.T) {
	bubble(t, func(t *testing.T) {
		kms, storage := newService(t, "kms://one"), &memory{}
		keys := running(t, storage, nil, kms)
		next, err := keys.NewKEK(t.Context(), "kek-2")
		if err != nil {
			t.Fatal(err)
		}
		next.Active = false
		storage.keks = append(storage.keks, next)
		before := kms.calls.Load()
		crowd := func(wanted string) {
			t.Helper()
			var all sync.WaitGroup
			for range 1000 {
				all.Go(func() {
					began := time.Now()
					_, err := keys.Secret(t.Context(), "kek-2", make([]byte, 60), someone)
					if took := time.Since(began); err == nil || !strings.Contains(err.Error(), wanted) || took > time.Second {
						t.Errorf("after %v: %v, want %q", took, err, wanted)
					}
				})
			}
			all.Wait()
			if n := kms.calls.Load() - before; n != 1 {
				t.Errorf("%d calls to the KMS, want 1", n)
			}
			before = kms.calls.Load()
		}
		kms.set(errAway, 5*time.Second)
		crowd("still being asked")
		time.Sleep(10 * time.Second)
		kms.set(errAway, 0)
		crowd(errAway.Error())
		time.Sleep(10 * time.Second)
		kms.set(nil, 0)
		crowd(keyset.ErrWrapped.Error()) // the key is there, and did not wrap sixty zeros
	})
}

// TestAllowlist points a stored key-encryption key at another root, as who writes to the database could: whatever is named,
// only --kms is asked.
func TestAllowlist(t *testing.T) {
	bubble(t, func(t *testing.T) {
		ours, old, theirs := newService(t, "kms://ours"), newService(t, "kms://old"), newService(t, "kms://theirs")
		storage := &memory{}
		before := open(t, old, storage)
		kek, wrapped := newKey(t, before, someone)
		log := &lines{}
		keys := running(t, storage, log, ours, old)
		if _, err := keys.AEAD(t.Context(), kek, wrapped, someone); err != nil {
			t.Fatalf("what the old root wrapped: %v", err)
		}
		if !strings.Contains(log.String(), "keys rewrap") {
			t.Errorf("the log does not say that new keys are wrapped under the old root:\n%s", log)
		}
		next, err := keys.NewKEK(t.Context(), "kek-2")
		if err != nil || next.Root != "kms://ours" || keys.Root() != "kms://ours" {
			t.Fatalf("a new key-encryption key is under %q (%v), want the first root", next.Root, err)
		}
		// The administrator brings his own.
		his := open(t, theirs, &memory{})
		planted, err := his.NewKEK(t.Context(), "kek-3")
		if err != nil {
			t.Fatal(err)
		}
		unwraps := theirs.unwraps.Load()
		storage.replace(planted)
		keys.Wake()
		synctest.Wait()
		if _, _, err := keys.NewKey(t.Context(), someone); err != nil || keys.Active() != kek {
			t.Errorf("new keys are wrapped by %s (%v), want %s", keys.Active(), err, kek)
		}
		if _, err := keys.Secret(t.Context(), "kek-3", wrapped, someone); err == nil || errors.Is(err, keyset.ErrWrapped) {
			t.Errorf("a key of another root: %v", err)
		}
		if theirs.unwraps.Load() != unwraps {
			t.Error("the administrator's root was asked")
		}
		if !strings.Contains(log.String(), "--kms") {
			t.Errorf("the log does not say what to do:\n%s", log)
		}
		// The same under the key's own name.
		storage.mu.Lock()
		storage.keks = []keyset.WrappedKEK{{ID: kek, Root: "kms://theirs", Wrapped: planted.Wrapped, Active: true}}
		storage.mu.Unlock()
		time.Sleep(11 * time.Minute)
		if _, err := keys.AEAD(t.Context(), kek, wrapped, someone); err == nil {
			t.Error("a replaced key-encryption key is used on after the hard limit")
		}
		if theirs.unwraps.Load() != unwraps {
			t.Error("the administrator's root was asked")
		}
	})
}

// TestReplacedKEK is a rewrap as another instance sees it: woken, it wraps new keys under the new key-encryption key; what
// the old one wrapped opens until that is gone, and not a moment longer.
func TestReplacedKEK(t *testing.T) {
	bubble(t, func(t *testing.T) {
		first, second, storage := newService(t, "kms://2026-10"), newService(t, "kms://2026-11"), &memory{}
		open(t, first, storage)
		rotator := running(t, storage, nil, second, first)
		other := running(t, storage, nil, second, first)
		from, wrapped := newKey(t, other, someone)
		next, err := rotator.NewKEK(t.Context(), "kek-2")
		if err != nil {
			t.Fatal(err)
		}
		storage.replace(next)
		rotator.Wake()
		other.Wake()
		calls := first.calls.Load()
		synctest.Wait()
		if first.calls.Load() != calls {
			t.Error("the old root was asked for a key that did not change")
		}
		if rotator.Active() != "kek-2" || other.Active() != "kek-2" {
			t.Fatalf("active are %s and %s, want kek-2", rotator.Active(), other.Active())
		}
		again, err := rotator.Rewrap(t.Context(), from, wrapped, someone, "kek-2")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := rotator.Rewrap(t.Context(), from, wrapped, keyset.Binding{KeyID: 1}, "kek-2"); !errors.Is(err, keyset.ErrWrapped) {
			t.Errorf("rewrapping for another binding: %v, want ErrWrapped", err)
		}
		old, err := other.Secret(t.Context(), from, wrapped, someone)
		if err != nil {
			t.Fatal(err)
		}
		now, err := other.Secret(t.Context(), "kek-2", again, someone)
		if err != nil || !bytes.Equal(old, now) {
			t.Errorf("rewrapped, the key is another (%v)", err)
		}
		storage.mu.Lock()
		storage.keks = storage.keks[1:]
		storage.mu.Unlock()
		other.Wake()
		synctest.Wait()
		if _, err := other.AEAD(t.Context(), from, wrapped, someone); !errors.Is(err, keyset.ErrUnknownKEK) {
			t.Errorf("under a removed key-encryption key: %v, want ErrUnknownKEK", err)
		}
		if _, err := other.AEAD(t.Context(), "kek-2", again, someone); err != nil {
			t.Error(err)
		}
	})
}

// TestStorageAwayForLong shows that the database's outage is not the KMS's: what is at hand is asked for all the same.
func TestStorageAwayForLong(t *testing.T) {
	bubble(t, func(t *testing.T) {
		storage := &memory{}
		keys := running(t, storage, nil, newService(t, "kms://one"))
		kek, wrapped := newKey(t, keys, someone)
		storage.fail(errAway)
		time.Sleep(time.Hour)
		if _, err := keys.AEAD(t.Context(), kek, wrapped, someone); err != nil {
			t.Error(err)
		}
	})
}

// TestNonceBudget is experiment 29: a key that has encrypted 2^28 times is an alarm, at 2^31 it is refused with the name of
// the remedy, and opens on.
func TestNonceBudget(t *testing.T) {
	bubble(t, func(t *testing.T) {
		storage, log := &memory{}, &lines{}
		keys := running(t, storage, log, newService(t, "kms://one"))
		kek, wrapped := newKey(t, keys, someone)
		seal := func() error {
			aead, err := keys.Sealer(t.Context(), kek, wrapped, someone)
			if err == nil {
				aead.Seal(nil, nil, nil, nil)
			}
			return err
		}
		spent := func(u keyset.Uses) int64 {
			storage.mu.Lock()
			defer storage.mu.Unlock()
			return storage.uses[u]
		}
		set := func(u keyset.Uses, n int64) {
			storage.mu.Lock()
			defer storage.mu.Unlock()
			storage.uses[u] = n
		}
		this, its := keyset.Uses{Binding: someone}, keyset.Uses{KEK: kek}
		for range 1000 {
			if err := seal(); err != nil {
				t.Fatal(err)
			}
		}
		storage.fail(errAway) // counts are not lost meanwhile
		time.Sleep(90 * time.Second)
		storage.fail(nil)
		time.Sleep(time.Minute)
		if n := spent(this); n != 1000 {
			t.Errorf("%d encryptions are stored, want 1000", n)
		}
		if n := spent(its); n != 1 {
			t.Errorf("%d wraps are stored, want 1", n)
		}
		if s := keys.Stats(); s.Worn != 0 || strings.Contains(log.String(), "encrypted often") {
			t.Errorf("an alarm too early: %+v\n%s", s, log)
		}
		set(this, keyset.Worn-1)
		if err := seal(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Minute)
		if s := keys.Stats(); s.Worn != 1 || s.MostUses != keyset.Worn || strings.Count(log.String(), "keys rotate") != 1 {
			t.Errorf("at 2^28 the alarm is %+v\n%s", s, log)
		}
		set(this, keyset.WornOut-1)
		if err := seal(); err != nil {
			t.Errorf("at 2^31-1: %v", err)
		}
		time.Sleep(time.Minute)
		if err := seal(); !errors.Is(err, keyset.ErrWornOut) || !strings.Contains(err.Error(), "keys rotate") {
			t.Errorf("at 2^31: %v, want ErrWornOut that names keys rotate", err)
		}
		if _, err := keys.AEAD(t.Context(), kek, wrapped, someone); err != nil {
			t.Errorf("opening at 2^31: %v", err)
		}
		set(its, keyset.WornOut)
		time.Sleep(time.Minute)
		if _, _, err := keys.NewKey(t.Context(), someone); !errors.Is(err, keyset.ErrWornOut) || !strings.Contains(err.Error(), "keys rewrap") {
			t.Errorf("wrapping at 2^31: %v, want ErrWornOut that names keys rewrap", err)
		}
	})
}

// TestCountsAtClose shows that a process that ends stores what it has counted since the last minute.
func TestCountsAtClose(t *testing.T) {
	storage := &memory{}
	t.Run("", func(t *testing.T) {
		keys := running(t, storage, nil, newRoot(t))
		kek, wrapped := newKey(t, keys, someone)
		var all sync.WaitGroup
		for range 8 {
			all.Go(func() {
				for range 1000 {
					aead, err := keys.Sealer(t.Context(), kek, wrapped, someone)
					if err != nil {
						t.Error(err)
						return
					}
					aead.Seal(nil, nil, nil, nil)
				}
			})
		}
		all.Wait()
	})
	if n := storage.uses[keyset.Uses{Binding: someone}]; n != 8000 {
		t.Errorf("%d encryptions are stored, want 8000", n)
	}
}

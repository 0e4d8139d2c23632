package phi_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chartkeep/chartkeep/phi"
	"github.com/chartkeep/chartkeep/phi/keyset"
)

func (b *bench) rewrap(s phi.RewrapStorage) (phi.Epoch, error) {
	return b.Records.Rotation(phi.RotationConfig{By: "ines", Grace: time.Millisecond}).Rewrap(context.Background(), s)
}

// wrappedBy is how many keys a key-encryption key wraps.
func (b *bench) wrappedBy(kek string) int {
	b.t.Helper()
	keys, err := b.Storage.WrappedBy(context.Background(), kek, keyset.Binding{}, 1<<20)
	if err != nil {
		b.t.Fatal(err)
	}
	return len(keys)
}

// TestRewrap begins epoch after epoch: every key and secret is wrapped under the new key-encryption key, the old one is gone, and no
// record was touched.
func TestRewrap(t *testing.T) {
	b := newBench(t)
	c := b.fill(2)
	rows := fmt.Sprint(b.Storage.Rows())
	keys := b.wrappedBy("kek-1")
	for n := 2; n < 5; n++ {
		var epoch phi.Epoch
		var err error
		events := b.during(func() { epoch, err = b.rewrap(b.Storage) })
		if err != nil {
			t.Fatal(err)
		}
		active := fmt.Sprintf("kek-%d", n)
		if epoch.Active.ID != active || len(epoch.Removed) != 1 || epoch.Removed[0].ID != fmt.Sprintf("kek-%d", n-1) {
			t.Errorf("epoch %+v", epoch)
		}
		if got := b.wrappedBy(active); got != keys {
			t.Errorf("%s wraps %d keys, want %d", active, got, keys)
		}
		if keks, err := b.Storage.KEKs(context.Background()); err != nil || len(keks) != 1 {
			t.Errorf("key-encryption keys %+v, %v", keks, err)
		}
		c.readable(t, b.Records, "after a rewrap")
		if len(events) < 4 || events[0].Interaction != "key-rewrap" {
			t.Errorf("%d events, %+v", len(events), events)
		}
	}
	// Secrets open in a room that is opened now.
	records, err := phi.Open(context.Background(), phi.Config{Storage: b.Storage, Keys: b.Keys, Access: b.Access, Audit: b.Log})
	if err != nil {
		t.Fatal(err)
	}
	page, err := records.Search(context.Background(), backend(), "Patient", params("birthdate", "1970-02-03"), false)
	if err != nil || len(page.Resources) != 2 {
		t.Errorf("a search finds %v, %v", page, err)
	}
	if now := fmt.Sprint(b.Storage.Rows()); len(now) != len(rows) {
		t.Error("rows changed")
	}
}

// mortalEpoch is mortal for a rewrap.
type mortalEpoch struct {
	phi.RewrapStorage
	mortal
}

func (m mortalEpoch) KEKs(ctx context.Context) ([]keyset.WrappedKEK, error) {
	return killed(m.mortal, func() ([]keyset.WrappedKEK, error) { return m.RewrapStorage.KEKs(ctx) })
}

func (m mortalEpoch) BeginEpoch(ctx context.Context, after string, next keyset.WrappedKEK) (keyset.WrappedKEK, error) {
	return killed(m.mortal, func() (keyset.WrappedKEK, error) { return m.RewrapStorage.BeginEpoch(ctx, after, next) })
}

func (m mortalEpoch) WrappedBy(ctx context.Context, kek string, after keyset.Binding, limit int) ([]phi.WrappedKey, error) {
	return killed(m.mortal, func() ([]phi.WrappedKey, error) { return m.RewrapStorage.WrappedBy(ctx, kek, after, min(limit, 5)) })
}

func (m mortalEpoch) StoreRewrapped(ctx context.Context, keys []phi.Rewrapped) (int, error) {
	return killed(m.mortal, func() (int, error) { return m.RewrapStorage.StoreRewrapped(ctx, keys) })
}

func (m mortalEpoch) RemoveKEK(ctx context.Context, id string) (bool, error) {
	return killed(m.mortal, func() (bool, error) { return m.RewrapStorage.RemoveKEK(ctx, id) })
}

// TestRewrapKilledAnywhere kills a rewrap at every call of the storage: the next one finishes the epoch that was begun, and begins no other.
func TestRewrapKilledAnywhere(t *testing.T) {
	for _, done := range []bool{false, true} {
		b := newBench(t)
		c := b.fill(1)
		for n := int64(1); ; n++ {
			before := b.Keys.Active()
			calls := &atomic.Int64{}
			calls.Store(n)
			_, err := b.rewrap(mortalEpoch{b.Storage, mortal{calls: calls, done: done}})
			if err == nil {
				if n < 10 {
					t.Errorf("a rewrap took %d calls", n)
				}
				break
			}
			if !errors.Is(err, errKilled) {
				t.Fatal(err)
			}
			c.readable(t, b.Records, fmt.Sprintf("killed at call %d", n))
			keks, err := b.Storage.KEKs(context.Background())
			if err != nil {
				t.Fatal(err)
			}
			ended := len(keks) == 1 && keks[0].ID != before // its answer was lost
			if !ended {
				if _, err := b.rewrap(b.Storage); err != nil {
					t.Fatal(err)
				}
			}
			var was, is int
			if _, err := fmt.Sscanf(before+" "+b.Keys.Active(), "kek-%d kek-%d", &was, &is); err != nil || is != was+1 {
				t.Fatalf("killed at call %d: %s after %s", n, b.Keys.Active(), before)
			}
			if b.wrappedBy(before) != 0 {
				t.Fatalf("killed at call %d: keys are left under %s", n, before)
			}
			c.readable(t, b.Records, fmt.Sprintf("finished after call %d", n))
		}
	}
}

// TestRewrapLeavesWhatDoesNotOpen: a wrapped key that was tampered with stays, is an alert, and keeps its key-encryption key.
func TestRewrapLeavesWhatDoesNotOpen(t *testing.T) {
	b := newBench(t)
	row := b.row(b.create("Patient", adam).Ref)
	tampered := row.Key
	tampered.Wrapped = append([]byte{row.Key.Wrapped[0] ^ 1}, row.Key.Wrapped[1:]...)
	if n, err := b.Storage.StoreRewrapped(context.Background(), []phi.Rewrapped{{WrappedKey: tampered, Was: row.Key.Wrapped}}); err != nil || n != 1 {
		t.Fatal(n, err)
	}
	var err error
	events := b.during(func() { _, err = b.rewrap(b.Storage) })
	if err == nil || !strings.Contains(err.Error(), "do not open") || b.wrappedBy("kek-1") != 1 {
		t.Fatalf("%v, %d left", err, b.wrappedBy("kek-1"))
	}
	alerts := 0
	for _, e := range events {
		if e.Interaction == "phi.integrity_failure" {
			alerts++
		}
	}
	if alerts == 0 {
		t.Error("no alert")
	}
}

// slowEpoch takes its time to store, and notes when it stored last, and when the old key went.
type slowEpoch struct {
	phi.RewrapStorage
	takes           time.Duration
	stored, removed time.Time
}

func (s *slowEpoch) StoreRewrapped(ctx context.Context, keys []phi.Rewrapped) (int, error) {
	time.Sleep(s.takes)
	defer func() { s.stored = time.Now() }()
	return s.RewrapStorage.StoreRewrapped(ctx, keys)
}

func (s *slowEpoch) RemoveKEK(ctx context.Context, id string) (bool, error) {
	s.removed = time.Now()
	return s.RewrapStorage.RemoveKEK(ctx, id)
}

// TestRewrapGrace: who fetched a row with its key as it was wrapped before has time to open it, however long the rewrap took.
func TestRewrapGrace(t *testing.T) {
	const grace = 50 * time.Millisecond
	b := newBench(t)
	b.fill(1)
	s := &slowEpoch{RewrapStorage: b.Storage, takes: 2 * grace}
	if _, err := b.Records.Rotation(phi.RotationConfig{By: "ines", Grace: grace}).Rewrap(context.Background(), s); err != nil {
		t.Fatal(err)
	}
	if after := s.removed.Sub(s.stored); after < grace {
		t.Errorf("the old key-encryption key went %s after the last key was wrapped anew", after)
	}
}

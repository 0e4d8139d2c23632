package phi

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/phi/keyset"
)

// RewrapStorage is what a new epoch needs of the storage, in transactions of its own that are over when a method returns.
type RewrapStorage interface {
	// KEKs returns the key-encryption keys.
	KEKs(ctx context.Context) ([]keyset.WrappedKEK, error)
	// BeginEpoch stores next as the active key-encryption key when the active one is called after, tells every instance, and
	// returns the one that is active then: whoever comes first wins.
	BeginEpoch(ctx context.Context, after string, next keyset.WrappedKEK) (keyset.WrappedKEK, error)
	// WrappedBy returns data keys and secrets that a key-encryption key wraps, in their order (subject, segment, key id), after
	// a place in it, at most limit.
	WrappedBy(ctx context.Context, kek string, after keyset.Binding, limit int) ([]WrappedKey, error)
	// CountWrapped returns how many keys key-encryption keys wrap that are not active.
	CountWrapped(ctx context.Context) (int64, error)
	// StoreRewrapped replaces the wrapping of those keys that still are wrapped as they were, and returns how many that were.
	StoreRewrapped(ctx context.Context, keys []Rewrapped) (int, error)
	// RemoveKEK removes a key-encryption key that is not active, unless it wraps a key; then it returns false.
	RemoveKEK(ctx context.Context, id string) (bool, error)
}

// Rewrapped is a key under another key-encryption key; Was is how it was wrapped.
type Rewrapped struct {
	WrappedKey
	Was []byte
}

// Epoch is what a rewrap did.
type Epoch struct {
	Active  keyset.WrappedKEK
	Removed []keyset.WrappedKEK
}

const (
	rewrapBatch = 1000
	keyGrace    = 10 * time.Second // see RotationConfig
)

// errNotRewrapped ends a rewrap that had to leave keys behind.
var errNotRewrapped = errors.New("phi: keys that do not open stay under their key-encryption key")

// Rewrap begins a new epoch, or finishes one: a new key-encryption key under the first root, every data key and secret wrapped
// under it, and the old key-encryption keys removed when they wrap nothing any more. No record is touched. What an old epoch's
// key-encryption key wrapped is in old backups only from then on; when the KMS key that wrapped it is destroyed, nothing of
// those opens without the present keys.
func (t *Rotation) Rewrap(ctx context.Context, storage RewrapStorage) (epoch Epoch, err error) {
	err = t.recorded(ctx, audit.Event{Interaction: "key-rewrap", Action: audit.ActionUpdate}, func() error {
		keks, err := storage.KEKs(ctx)
		if err != nil {
			return err
		}
		if epoch.Active, err = t.beginEpoch(ctx, storage, keks); err != nil {
			return err
		}
		n, err := storage.CountWrapped(ctx)
		if err != nil {
			return err
		}
		t.totalKeys.Store(n)
		if err := t.keys.Refresh(ctx); err != nil {
			return fmt.Errorf("taking up the new key-encryption key: %w", err)
		}
		for _, old := range keks {
			if old.ID == epoch.Active.ID {
				continue
			}
			if err := t.rewrapAll(ctx, storage, old.ID, epoch.Active.ID); err != nil {
				return err
			}
			// Rows that were fetched with a key as it was wrapped before are being opened still.
			if err := pause(ctx, t.grace); err != nil {
				return err
			}
			if err := t.endEpoch(ctx, storage, old.ID, epoch.Active.ID); err != nil {
				return err
			}
			epoch.Removed = append(epoch.Removed, old)
		}
		return nil
	})
	return epoch, err
}

// beginEpoch returns the key-encryption key of the epoch that is to be: of one that was begun, and has not ended the one before, the
// active one, otherwise a new one.
func (t *Rotation) beginEpoch(ctx context.Context, storage RewrapStorage, keks []keyset.WrappedKEK) (keyset.WrappedKEK, error) {
	i := slices.IndexFunc(keks, func(k keyset.WrappedKEK) bool { return k.Active })
	if i < 0 {
		return keyset.WrappedKEK{}, keyset.ErrUnknownKEK
	}
	if len(keks) > 1 {
		return keks[i], nil
	}
	n, _ := strconv.Atoi(strings.TrimPrefix(keks[i].ID, "kek-"))
	next, err := t.keys.NewKEK(ctx, fmt.Sprintf("kek-%d", n+1))
	if err != nil {
		return next, err
	}
	return storage.BeginEpoch(ctx, keks[i].ID, next)
}

// rewrapAll goes over the keys that a key-encryption key wraps.
func (t *Rotation) rewrapAll(ctx context.Context, storage RewrapStorage, from, to string) error {
	var after keyset.Binding
	for {
		keys, err := storage.WrappedBy(ctx, from, after, rewrapBatch)
		if err != nil {
			return err
		}
		if len(keys) == 0 {
			return nil
		}
		after = keys[len(keys)-1].binding()
		anew := make([]Rewrapped, 0, len(keys))
		for _, k := range keys {
			wrapped, err := t.keys.Rewrap(ctx, k.KEK, k.Wrapped, k.binding(), to)
			switch {
			case errors.Is(err, keyset.ErrWrapped):
				t.unopened.Add(1)
				if err := t.withholdKey(ctx, k); err != nil {
					return err
				}
				continue
			case err != nil:
				return fmt.Errorf("wrapping a key anew: %w", err)
			}
			was := k.Wrapped
			k.KEK, k.Wrapped = to, wrapped
			anew = append(anew, Rewrapped{k, was})
		}
		if err := t.tell(ctx, audit.Power, "key-rewrap", audit.ActionUpdate, nil, &counts{Keys: int64(len(anew))}); err != nil {
			return err
		}
		n, err := storage.StoreRewrapped(ctx, anew)
		if err != nil {
			return err
		}
		t.doneKeys.Add(int64(n))
	}
}

// endEpoch removes a key-encryption key. An instance that has not heard of the new one may have wrapped keys meanwhile.
func (t *Rotation) endEpoch(ctx context.Context, storage RewrapStorage, old, active string) error {
	e := t.event(audit.Event{Interaction: "key-destroy", Action: audit.ActionDelete, Entities: []audit.Entity{{Type: "KeyEncryptionKey", ID: old}}})
	if _, err := t.log.Record(ctx, audit.Database, e); err != nil {
		return fmt.Errorf("recording key-destroy: %w", err)
	}
	for {
		removed, err := storage.RemoveKEK(ctx, old)
		if err != nil || removed {
			return err
		}
		if n := t.unopened.Load(); n > 0 {
			return fmt.Errorf("%w: %d keys, %s", errNotRewrapped, n, old)
		}
		if err := t.rewrapAll(ctx, storage, old, active); err != nil {
			return err
		}
	}
}

// withholdKey raises the alarm for a wrapped key that does not open.
func (t *Rotation) withholdKey(ctx context.Context, k WrappedKey) error {
	e := t.event(audit.Event{
		Type: audit.TypeSecurityAlert, Interaction: "phi.integrity_failure", Action: audit.ActionExecute, Outcome: audit.SeriousFailure,
		OutcomeDesc: "a stored key does not open",
		Entities:    []audit.Entity{{Type: "DataKey", ID: k.Subject.String(), Version: int64(k.KeyID)}, {Type: "key", ID: k.KEK}},
	})
	if _, err := t.log.Record(ctx, t.level.Disclosure, e); err != nil {
		return fmt.Errorf("recording a key that does not open: %w", err)
	}
	return nil
}

// pause waits for d.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

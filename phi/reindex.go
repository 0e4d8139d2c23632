package phi

import (
	"cmp"
	"context"
	"crypto/cipher"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/phi/fhir"
	"github.com/chartkeep/chartkeep/phi/keyset"
)

// ReindexStorage is what a rotation of the index needs of the storage, in transactions of its own that are over when a method
// returns.
type ReindexStorage interface {
	// BeginGeneration stores a generation as reading, unless there is another one than the active.
	BeginGeneration(ctx context.Context, next IndexGeneration) error
	// ActivateGeneration makes the reading generation of that id active and the active one retiring; when there is none it does
	// nothing.
	ActivateGeneration(ctx context.Context, id uint32) error
	// CountGeneration returns how many records a generation has.
	CountGeneration(ctx context.Context, id uint32) (int64, error)
	// RowsOfGeneration names current records whose tokens were minted under a generation, tombstones too, at most limit.
	RowsOfGeneration(ctx context.Context, id uint32, limit int) ([]RowName, error)
	// FetchRows is RotationStorage's.
	FetchRows(ctx context.Context, rows []RowName) ([]*Sealed, error)
	// StoreReindexed replaces cells, seal, tokens and generation of the records that still are as they were fetched, whose data key
	// is there and that nobody writes now, and returns how many that were.
	StoreReindexed(ctx context.Context, rows []Reindexed) (int, error)
	// RemoveGeneration removes a retiring generation and the secrets of those names, under a lock that no commit passes, unless
	// a record names it; then it returns false.
	RemoveGeneration(ctx context.Context, id uint32, secrets []string) (bool, error)
}

// Reindexed is a current row with tokens of another generation. Was is the seal that it had.
type Reindexed struct {
	*Sealed
	Was     []byte
	Tokens  []Token
	IndexID uint32
}

// Index makes every token anew under new index keys and the rules of this program, or finishes such a rotation. names says how
// names are indexed from then on; "" leaves that as it is. Searches are complete at any moment: lookups ask for the tokens of
// both generations as long as there are two.
//
//	reading   the next generation is there; after two leases every instance asks for its tokens
//	active    tokens are minted under it; the one before is retiring, and records are swept from it
//	(gone)    two leases later, when no record names the old one, it is removed with its keys
func (t *Rotation) Index(ctx context.Context, storage ReindexStorage, names NameSearch) error {
	return t.recorded(ctx, audit.Event{Interaction: "index-rotate", Action: audit.ActionUpdate}, func() error {
		target, err := t.beginGeneration(ctx, storage, names)
		if err != nil {
			return err
		}
		if target.State == IndexReading {
			if err := pause(ctx, 2*t.lease); err != nil {
				return err
			}
			// Killed before this, nothing was minted under the new generation; after it, the old one is swept by the next run.
			if err := storage.ActivateGeneration(ctx, target.ID); err != nil {
				return err
			}
		}
		began := time.Now()
		t.KeysChanged()
		g, err := t.generations(ctx)
		if err != nil {
			return err
		}
		if g.active.ID != target.ID {
			return fmt.Errorf("rotating the index: generation %d is active, not %d; run it again", g.active.ID, target.ID)
		}
		for _, old := range g.all {
			if old.State != IndexRetiring {
				continue
			}
			if err := t.retireGeneration(ctx, storage, old, g.active, began); err != nil {
				return err
			}
		}
		return nil
	})
}

// beginGeneration returns the generation that is to be the only one: of a rotation that is under way, or a new one.
func (t *Rotation) beginGeneration(ctx context.Context, storage ReindexStorage, names NameSearch) (IndexGeneration, error) {
	find := func(list []IndexGeneration, state IndexState) (IndexGeneration, bool) {
		i := slices.IndexFunc(list, func(g IndexGeneration) bool { return g.State == state })
		if i < 0 {
			return IndexGeneration{}, false
		}
		return list[i], true
	}
	list, err := t.storage.IndexGenerations(ctx)
	if err != nil {
		return IndexGeneration{}, err
	}
	active, ok := find(list, IndexActive)
	if !ok {
		return active, errors.New("rotating the index: no generation is active")
	}
	if len(list) == 1 {
		next := IndexGeneration{ID: active.ID + 1, State: IndexReading, Rules: IndexRules, Names: cmp.Or(names, active.Names)}
		if err := storage.BeginGeneration(ctx, next); err != nil {
			return next, err
		}
		if list, err = t.storage.IndexGenerations(ctx); err != nil {
			return next, err
		}
	}
	target, ok := find(list, IndexReading)
	if !ok {
		target, _ = find(list, IndexActive)
	}
	if names != "" && target.Names != names {
		return target, fmt.Errorf("rotating the index: a rotation to names by %s is under way; finish it first", target.Names)
	}
	return target, nil
}

// retireGeneration mints anew what was minted under a generation, and removes it.
func (t *Rotation) retireGeneration(ctx context.Context, storage ReindexStorage, old, active *index, began time.Time) error {
	s := reindexing{rowSweep: rowSweep{Rotation: t, broken: map[RowName]bool{}}, storage: storage, active: active}
	n, err := storage.CountGeneration(ctx, old.ID)
	if err != nil {
		return err
	}
	t.totalRows.Store(n)
	for {
		if err := s.run(ctx, func() ([]RowName, error) { return storage.RowsOfGeneration(ctx, old.ID, rowPage) }, s.remint); err != nil {
			return err
		}
		if len(s.broken) > 0 {
			return fmt.Errorf("%w: %d rows, index generation %d", ErrUnopened, len(s.broken), old.ID)
		}
		// Who minted under the old generation because it was active has committed by then.
		if err := pause(ctx, time.Until(began.Add(2*t.lease))); err != nil {
			return err
		}
		e := t.event(audit.Event{Interaction: "key-destroy", Action: audit.ActionDelete, Entities: []audit.Entity{{Type: "IndexGeneration", ID: fmt.Sprint(old.ID)}}})
		if _, err := t.log.Record(ctx, audit.Database, e); err != nil {
			return fmt.Errorf("recording key-destroy: %w", err)
		}
		removed, err := storage.RemoveGeneration(ctx, old.ID, slices.Collect(maps.Values(old.secrets())))
		if err != nil || removed {
			t.KeysChanged()
			return err
		}
	}
}

// reindexing mints the tokens of a generation's records anew.
type reindexing struct {
	rowSweep
	storage ReindexStorage
	active  *index
}

// remint mints the tokens of rows anew and stores them, in one transaction.
func (s *reindexing) remint(ctx context.Context, names []RowName) error {
	rows, err := s.storage.FetchRows(ctx, names)
	if err != nil {
		return err
	}
	anew := make([]Reindexed, 0, len(rows))
	var sealed, broken []*Sealed
	for _, row := range rows {
		if row.Erased { // it has no tokens, and never opens again
			sealed = append(sealed, row)
			anew = append(anew, Reindexed{Sealed: row, Was: row.Seal, IndexID: s.active.ID})
			continue
		}
		aead, err := s.rowAEAD(ctx, row)
		var resealed *Sealed
		var tokens []Token
		if err == nil {
			resealed, tokens, err = s.active.remint(aead, row)
		}
		switch {
		case errors.Is(err, errIntegrity), errors.Is(err, keyset.ErrWrapped):
			broken = append(broken, row)
		case err != nil:
			return err
		default:
			sealed = append(sealed, resealed)
			anew = append(anew, Reindexed{Sealed: resealed, Was: row.Seal, Tokens: tokens, IndexID: s.active.ID})
		}
	}
	return s.batch(ctx, "key-reindex", names, broken, sealed, func() (int, error) { return s.storage.StoreReindexed(ctx, anew) })
}

// remint seals a row, fetched whole, with tokens of this generation. As with reseal, what was opened is cleared and goes nowhere
// else.
func (x *index) remint(aead cipher.AEAD, row *Sealed) (*Sealed, []Token, error) {
	if row.Fetched != AllClasses {
		return nil, nil, errors.New("minting tokens anew: the row was not fetched whole")
	}
	var plain [NumClasses][]byte
	var mem []byte
	defer func() { clear(mem[:cap(mem)]) }()
	if err := unseal(aead, row, AllClasses, &plain, &mem); err != nil {
		return nil, nil, err
	}
	var tokens []Token
	if !row.Deleted() {
		var few [24]fhir.Element
		elements, err := join(&plain, few[:0])
		if err != nil {
			return nil, nil, err
		}
		tokens = x.tokens(row.Type, elements)
	}
	anew := *row
	if err := sealRow(aead, &anew, &plain, tokensDigest(tokens)); err != nil {
		return nil, nil, err
	}
	return &anew, tokens, nil
}

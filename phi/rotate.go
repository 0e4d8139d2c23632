package phi

import (
	"cmp"
	"context"
	"crypto/cipher"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/phi/keyset"
)

// KeyState is where a data key is in its life:
//
//	known         stored; nothing uses it yet
//	active        seals what is new; a write that was sealed under the one before is sealed anew
//	decrypt_only  retired: opens what it sealed, until the sweep has sealed all of that under the active key
//
// and then it is removed. The states are in the storage, so a rotation that was killed anywhere loses nothing, and the next
// one goes on. Keys are fetched with their rows: no instance has to hear of a new one before it is used.
type KeyState string

// The states, as they are stored.
const (
	KeyKnown   KeyState = "known"
	KeyActive  KeyState = "active"
	KeyRetired KeyState = "decrypt_only"
)

// keyYears is the age at which a data key is due for rotation: keys list says so, keys rotate does it. So is one that has
// encrypted keyset.Worn times.
const keyYears = 5

// StoredKey is a data key with what the storage knows of it.
type StoredKey struct {
	WrappedKey
	State   KeyState
	Renewal int64 // the renewal of all keys that made it; 0 when none did
}

// KeyQuery chooses data keys in the order of subject, segment, key id.
type KeyQuery struct {
	State    KeyState
	Subjects []UUID         // nil: of every subject
	Due      time.Time      // only those made before, or used keyset.Worn times; zero: all
	Renewal  int64          // only those that an earlier renewal made, or none; 0: all
	After    keyset.Binding // to continue after; the zero Binding starts
	Limit    int
}

// RowName names one version of a record.
type RowName struct {
	Ref
	Version    int64
	Superseded bool // it is among the versions before
	Size       int  // bytes of its cells
}

// Resealed is a row sealed anew; Was is the seal that it had, by which is told that nobody has written it since.
type Resealed struct {
	*Sealed
	Was        []byte
	Superseded bool
}

// Renewal is the rotation of every data key, which may take several runs.
type Renewal struct {
	ID       int64
	By       string
	Begun    time.Time
	Finished time.Time // zero while it is under way
}

// RotationStorage is what the rotation of data keys needs of the storage, in transactions of its own that are over when a
// method returns. Two may work on the same keys at once: nothing is stored twice or lost, one of them has less to do.
type RotationStorage interface {
	// BeginRenewal returns the renewal that is under way, or begins one.
	BeginRenewal(ctx context.Context, by string) (Renewal, error)
	FinishRenewal(ctx context.Context, id int64) error

	// DataKeys returns the keys that a query chooses.
	DataKeys(ctx context.Context, q KeyQuery) ([]StoredKey, error)
	// CountKeys returns how many keys a query chooses, whatever its Limit, and about how many rows they and the retired keys
	// of the same subjects have sealed.
	CountKeys(ctx context.Context, q KeyQuery) (keys, rows int64, err error)
	// Claim reserves the keys' subjects and segments for this rotator, until release, and returns those that no other
	// rotator works on. A claim is a courtesy, and ends with the process at the latest.
	Claim(ctx context.Context, keys []keyset.Binding) (mine []keyset.Binding, release func(), err error)
	// AddKeys stores keys as known. Where the subject's segment has a key of that id, that one stays.
	AddKeys(ctx context.Context, keys []StoredKey) error
	// Activate retires active keys for the known ones after them, all or none of a pair; pairs of which the key is not active
	// any more, or has a retired one beside it, stay as they are. It returns the keys that it retired.
	Activate(ctx context.Context, keys []keyset.Binding) ([]keyset.Binding, error)
	// RowsUnder names rows that the keys sealed, current ones first, at most limit. Of a key that is gone it names none.
	RowsUnder(ctx context.Context, keys []keyset.Binding, limit int) ([]RowName, error)
	// FetchRows fetches those that are still there, whole, with their keys.
	FetchRows(ctx context.Context, rows []RowName) ([]*Sealed, error)
	// StoreResealed replaces cells, seal and key id of the rows that still are as they were fetched and that nobody writes
	// now, and returns how many that were.
	StoreResealed(ctx context.Context, rows []Resealed) (int, error)
	// RemoveKeys removes the retired ones among the keys that no row names, under a lock that no commit passes.
	RemoveKeys(ctx context.Context, keys []keyset.Binding) ([]keyset.Binding, error)
}

// RotationConfig configures a Rotation.
type RotationConfig struct {
	By   string // who asked for it, in events
	Jobs int    // batches of rows at a time; 1 when 0
	Rate int    // rows a second at most; 0: as many as go

	// Grace is how long what a rotation of the index or of key-encryption keys takes out of use is kept at least, so that every
	// instance has heard of it; 0: ten seconds.
	Grace time.Duration
}

// Rotation replaces keys while everything else goes on. Its methods are for one goroutine, but for Progress.
type Rotation struct {
	*Records
	by    string
	slots chan struct{} // one for each batch that may be under way
	pace  pace
	grace time.Duration
	mu    sync.Mutex // of what batches share

	totalKeys, totalRows, doneKeys, doneRows, waiting atomic.Int64
	unopened                                          atomic.Int64 // rows that did not open
}

// RotationProgress is how far a rotation is.
type RotationProgress struct {
	Keys, KeysDone int64
	Rows, RowsDone int64 // Rows is an estimate
	Waiting        int64 // keys that another rotator is working on
	Unopened       int64 // rows that failed their integrity check and stay as they are
}

// Rotation returns a rotation of this room's keys.
func (r *Records) Rotation(cfg RotationConfig) *Rotation {
	return &Rotation{Records: r, by: cfg.By, slots: make(chan struct{}, max(1, cfg.Jobs)), pace: pace{rate: cfg.Rate}, grace: cmp.Or(cfg.Grace, keyGrace)}
}

// Progress returns how far it is. Safe for concurrent use.
func (t *Rotation) Progress() RotationProgress {
	return RotationProgress{
		Keys: t.totalKeys.Load(), KeysDone: t.doneKeys.Load(), Rows: t.totalRows.Load(), RowsDone: t.doneRows.Load(),
		Waiting: t.waiting.Load(), Unopened: t.unopened.Load(),
	}
}

// ErrUnopened ends a rotation that had to leave rows behind, and with them the keys that sealed them.
var ErrUnopened = errors.New("phi: rows that do not open stay under their old keys")

// Sizes of the steps of a rotation. A batch is one transaction; a few megabytes at most, whatever its rows hold.
const (
	keyGroup   = 128
	rowPage    = 10_000
	rowBatch   = 500
	batchBytes = 4 << 20
	sampled    = 100 // one row in so many is read back before its old key goes
)

// Scope says which data keys a rotation replaces; the zero Scope, those that are due.
type Scope struct {
	Patient      string // a patient's, of all segments: the logical id
	Organisation bool   // those of what is nobody's
	All          bool
}

// subjects are those that a scope names; nil: none in particular.
func (t *Rotation) subjects(ctx context.Context, scope Scope) ([]UUID, error) {
	switch {
	case scope.Organisation:
		return []UUID{{}}, nil
	case scope.Patient == "":
		return nil, nil
	}
	row, err := t.storage.Fetch(ctx, Ref{"Patient", scope.Patient}, 0)
	if err != nil {
		return nil, fmt.Errorf("looking up the patient: %w", err)
	}
	return []UUID{row.Subject}, nil
}

// KeysDueBefore is the day before which made keys are due for rotation.
func KeysDueBefore(now time.Time) time.Time { return now.UTC().AddDate(-keyYears, 0, 0) }

// DataKeys replaces the data keys of a scope: the next key is stored, then becomes active, then what the old one sealed is
// sealed anew, current and superseded rows, and then the old key goes. It also takes up what an earlier rotation of the
// scope did not finish; a subject's segment whose rotation was under way gets no second one. When it returns nil, no row
// names a key that it replaced.
func (t *Rotation) DataKeys(ctx context.Context, storage RotationStorage, scope Scope) error {
	subjects, err := t.subjects(ctx, scope)
	if err != nil {
		return err
	}
	q := KeyQuery{State: KeyActive, Subjects: subjects, Limit: keyGroup}
	e := audit.Event{Interaction: "key-rotate", Action: audit.ActionUpdate, Patient: scope.Patient}
	return t.recorded(ctx, e, func() error {
		r := dataRotation{Rotation: t, storage: storage, stuck: map[keyName]bool{}}
		var renewal Renewal
		var err error
		switch {
		case subjects != nil:
			if r.only, err = r.unfinishedFirst(ctx, q); err != nil {
				return err
			}
		case scope.All:
			if renewal, err = storage.BeginRenewal(ctx, t.by); err != nil {
				return err
			}
			q.Renewal = renewal.ID
		default:
			q.Due = KeysDueBefore(t.now())
		}
		r.renewal = renewal.ID
		keys, rows, err := storage.CountKeys(ctx, q)
		if err != nil {
			return err
		}
		t.totalKeys.Store(keys)
		t.totalRows.Store(rows)
		if err := r.run(ctx, q); err != nil {
			return err
		}
		if scope.All {
			return storage.FinishRenewal(ctx, renewal.ID)
		}
		return nil
	})
}

// dataRotation is one run of DataKeys.
type dataRotation struct {
	*Rotation
	storage RotationStorage
	renewal int64
	only    map[keyset.Binding]bool // the keys to replace, where they are named
	stuck   map[keyName]bool        // whose retired keys cannot go: rows of theirs do not open
}

// unfinishedFirst returns the active keys of the subjects whose rotation is not under way already.
func (r *dataRotation) unfinishedFirst(ctx context.Context, q KeyQuery) (map[keyset.Binding]bool, error) {
	only := map[keyset.Binding]bool{}
	q.Limit = 1 << 20
	active, err := r.storage.DataKeys(ctx, q)
	if err != nil {
		return nil, err
	}
	q.State = KeyRetired
	retired, err := r.storage.DataKeys(ctx, q)
	if err != nil {
		return nil, err
	}
	for _, k := range active {
		same := func(old StoredKey) bool { return old.Subject == k.Subject && old.Segment == k.Segment }
		if !slices.ContainsFunc(retired, same) {
			only[k.binding()] = true
		}
	}
	return only, nil
}

// othersRetry is how long a rotator waits before it looks again whether others have finished what they claimed.
const othersRetry = 200 * time.Millisecond

// run goes over retired and active keys until there is nothing left. Retired ones come first: while a segment has one, its
// active key cannot be replaced.
func (r *dataRotation) run(ctx context.Context, q KeyQuery) error {
	retired := KeyQuery{State: KeyRetired, Subjects: q.Subjects, Limit: q.Limit}
	for {
		before := r.doneKeys.Load()
		left := int64(0)
		for _, pass := range []KeyQuery{retired, q, retired} {
			n, err := r.pass(ctx, pass)
			if err != nil {
				return err
			}
			left += n
		}
		r.waiting.Store(left)
		if left == 0 {
			if len(r.stuck) > 0 {
				return fmt.Errorf("%w: %d rows, %d keys", ErrUnopened, r.unopened.Load(), len(r.stuck))
			}
			return nil
		}
		if r.doneKeys.Load() == before {
			if err := pause(ctx, othersRetry); err != nil {
				return err
			}
		}
	}
}

// pass goes once over the keys of a query, group by group, as many groups at a time as batches, and returns how many keys it
// had to leave to others.
func (r *dataRotation) pass(ctx context.Context, q KeyQuery) (left int64, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	var others atomic.Int64
	groups := make(chan struct{}, cap(r.slots))
	for {
		keys, err := r.storage.DataKeys(ctx, q)
		if err != nil {
			cancel(err)
			break
		}
		if len(keys) == 0 {
			break
		}
		q.After = keys[len(keys)-1].binding()
		keys = slices.DeleteFunc(keys, func(k StoredKey) bool {
			return r.isStuck(k.WrappedKey) || k.State == KeyActive && r.only != nil && !r.only[k.binding()]
		})
		groups <- struct{}{}
		wg.Go(func() {
			defer func() { <-groups }()
			n, err := r.group(ctx, keys)
			others.Add(n)
			if err != nil {
				cancel(err)
			}
		})
	}
	wg.Wait()
	return others.Load(), context.Cause(ctx)
}

func (r *dataRotation) isStuck(k WrappedKey) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.stuck[keyName{k.Subject, k.Segment}]
}

// group takes keys of one state as far as they go, and returns how many others had claimed or changed meanwhile.
func (r *dataRotation) group(ctx context.Context, keys []StoredKey) (others int64, err error) {
	if len(keys) == 0 {
		return 0, nil
	}
	mine, release, err := r.storage.Claim(ctx, bindings(keys))
	if err != nil {
		return 0, err
	}
	defer release()
	others = int64(len(keys) - len(mine))
	keys = slices.DeleteFunc(keys, func(k StoredKey) bool { return !slices.Contains(mine, k.binding()) })
	if len(keys) == 0 {
		return others, nil
	}
	retired := mine
	if keys[0].State == KeyActive {
		if retired, err = r.replace(ctx, keys); err != nil {
			return others, err
		}
		others += int64(len(mine) - len(retired))
	}
	if len(retired) == 0 {
		return others, nil
	}
	removed, err := r.retire(ctx, retired)
	r.doneKeys.Add(removed)
	return others, err
}

func bindings(keys []StoredKey) []keyset.Binding {
	names := make([]keyset.Binding, len(keys))
	for i, k := range keys {
		names[i] = k.binding()
	}
	return names
}

// replace makes the next keys and makes them active. The events are in the database before either.
func (r *dataRotation) replace(ctx context.Context, keys []StoredKey) (retired []keyset.Binding, err error) {
	if err := r.tell(ctx, audit.Database, "key-activate", audit.ActionCreate, bindings(keys), nil); err != nil {
		return nil, err
	}
	next := make([]StoredKey, len(keys))
	for i, k := range keys {
		n := &next[i]
		n.Subject, n.Segment, n.KeyID, n.Renewal = k.Subject, k.Segment, k.KeyID+1, r.renewal
		if n.KEK, n.Wrapped, err = r.keys.NewKey(ctx, n.binding()); err != nil {
			return nil, fmt.Errorf("making data key: %w", err)
		}
	}
	// Killed after this, the known keys wait for the next run, which takes them.
	if err := r.storage.AddKeys(ctx, next); err != nil {
		return nil, err
	}
	// Killed after this, the retired keys are there to be swept.
	return r.storage.Activate(ctx, bindings(keys))
}

// retire seals anew what retired keys sealed, reads a sample back, and removes the keys.
func (r *dataRotation) retire(ctx context.Context, keys []keyset.Binding) (removed int64, err error) {
	active, err := r.successors(ctx, keys)
	if err != nil {
		return 0, err
	}
	s := sweep{rowSweep: rowSweep{Rotation: r.Rotation, broken: map[RowName]bool{}}, storage: r.storage, keys: keys, active: active}
	if err := s.run(ctx, func() ([]RowName, error) { return r.storage.RowsUnder(ctx, keys, rowPage) }, s.reseal); err != nil {
		return 0, err
	}
	if err := s.readBack(ctx); err != nil {
		return 0, err
	}
	if err := r.tell(ctx, audit.Database, "key-destroy", audit.ActionDelete, keys, &counts{Rows: s.rows.Load(), Unopened: int64(len(s.broken))}); err != nil {
		return 0, err
	}
	gone, err := r.storage.RemoveKeys(ctx, keys)
	if err != nil {
		return 0, err
	}
	if len(s.broken) > 0 {
		r.mu.Lock()
		defer r.mu.Unlock()
		for _, k := range keys {
			if !slices.Contains(gone, k) {
				r.stuck[keyName{k.Subject, k.Segment}] = true
			}
		}
	}
	return int64(len(gone)), nil
}

// successors returns the active keys beside retired ones. They stay active while those are there.
func (r *dataRotation) successors(ctx context.Context, keys []keyset.Binding) (map[keyName]dataKey, error) {
	var subjects []UUID
	for _, k := range keys {
		subjects = append(subjects, k.Subject)
	}
	found, err := r.storage.DataKeys(ctx, KeyQuery{State: KeyActive, Subjects: subjects, Limit: 1 << 20})
	if err != nil {
		return nil, err
	}
	active := make(map[keyName]dataKey, len(found))
	for _, k := range found {
		aead, err := r.keys.Sealer(ctx, k.KEK, k.Wrapped, k.binding())
		if err != nil {
			return nil, fmt.Errorf("opening data key: %w", err)
		}
		active[keyName{k.Subject, k.Segment}] = dataKey{k.WrappedKey, aead}
	}
	return active, nil
}

// rowSweep goes over rows that are to be sealed anew.
type rowSweep struct {
	*Rotation
	rows   atomic.Int64     // sealed anew
	broken map[RowName]bool // rows that do not open; guarded by the Rotation's mu
}

// run works on what next names, until no row that opens is left. Rows that somebody writes at the same time are seen again.
func (s *rowSweep) run(ctx context.Context, next func() ([]RowName, error), work func(context.Context, []RowName) error) error {
	for {
		rows, err := next()
		if err != nil {
			return err
		}
		rows = slices.DeleteFunc(rows, func(n RowName) bool { return s.broken[n] })
		if len(rows) == 0 {
			return nil
		}
		done, known := s.rows.Load(), len(s.broken)
		if err := s.batches(ctx, rows, work); err != nil {
			return err
		}
		if s.rows.Load() == done && len(s.broken) == known {
			if err := pause(ctx, 10*time.Millisecond); err != nil { // a writer holds them
				return err
			}
		}
	}
}

// batch raises the alarm for what of the rows so named does not open, tells that a batch is sealed anew, and stores it.
func (s *rowSweep) batch(ctx context.Context, interaction string, names []RowName, broken, anew []*Sealed, store func() (int, error)) error {
	if err := s.withhold(ctx, broken); err != nil {
		return err
	}
	if len(anew) > 0 {
		c := &counts{Rows: int64(len(anew)), First: anew[0].Ref.String(), Last: anew[len(anew)-1].Ref.String()}
		if err := s.tell(ctx, audit.Process, interaction, audit.ActionUpdate, nil, c); err != nil {
			return err
		}
	}
	stored, err := store()
	if err != nil {
		return err
	}
	s.rows.Add(int64(stored))
	s.doneRows.Add(int64(stored))
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, n := range names {
		if slices.ContainsFunc(broken, func(row *Sealed) bool { return row.Ref == n.Ref && row.Version == n.Version }) {
			s.broken[n] = true
		}
	}
	return nil
}

// sweep seals anew what a group of retired keys sealed.
type sweep struct {
	rowSweep
	storage RotationStorage
	keys    []keyset.Binding
	active  map[keyName]dataKey
	sample  []RowName
}

// batches works on rows in batches, as many at a time as there are slots.
func (t *Rotation) batches(ctx context.Context, rows []RowName, work func(context.Context, []RowName) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	for len(rows) > 0 && ctx.Err() == nil {
		n, size := 0, 0
		for n < len(rows) && n < rowBatch && (n == 0 || size+rows[n].Size <= batchBytes) {
			size += rows[n].Size
			n++
		}
		batch := rows[:n]
		rows = rows[n:]
		t.slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-t.slots }()
			err := t.pace.wait(ctx, len(batch))
			if err == nil {
				err = work(ctx, batch)
			}
			if err != nil {
				cancel(err)
			}
		})
	}
	wg.Wait()
	return context.Cause(ctx)
}

// reseal seals rows anew and stores them, in one transaction.
func (s *sweep) reseal(ctx context.Context, names []RowName) error {
	superseded := make(map[RowName]bool, len(names))
	for _, n := range names {
		superseded[RowName{Ref: n.Ref, Version: n.Version}] = n.Superseded
	}
	rows, err := s.storage.FetchRows(ctx, names)
	if err != nil {
		return err
	}
	anew := make([]Resealed, 0, len(rows))
	var sealed, broken []*Sealed
	for _, row := range rows {
		to, ok := s.active[keyName{row.Subject, row.Segment}]
		if !ok || row.KeyID == to.KeyID || row.Key.Wrapped == nil {
			continue // written, moved or erased since it was named
		}
		from, err := s.rowAEAD(ctx, row)
		var resealed *Sealed
		if err == nil {
			resealed, err = reseal(from, to.aead, row, to.WrappedKey, nil)
		}
		switch {
		case errors.Is(err, errIntegrity), errors.Is(err, keyset.ErrWrapped):
			broken = append(broken, row)
		case err != nil:
			return err
		default:
			sealed = append(sealed, resealed)
			anew = append(anew, Resealed{Sealed: resealed, Was: row.Seal, Superseded: superseded[RowName{Ref: row.Ref, Version: row.Version}]})
		}
	}
	if err := s.batch(ctx, "key-reseal", names, broken, sealed, func() (int, error) { return s.storage.StoreResealed(ctx, anew) }); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := 0; i < len(anew); i += sampled {
		s.sample = append(s.sample, RowName{Ref: anew[i].Ref, Version: anew[i].Version, Superseded: anew[i].Superseded})
	}
	return nil
}

func (r *Records) rowAEAD(ctx context.Context, row *Sealed) (cipher.AEAD, error) {
	return r.keys.AEAD(ctx, row.Key.KEK, row.Key.Wrapped, keyset.Binding{Subject: row.Subject, Segment: row.Segment, KeyID: row.KeyID})
}

// readBack opens a sample of what was sealed anew, as it is stored: the old key is still there if that fails.
func (s *sweep) readBack(ctx context.Context) error {
	for sample := range slices.Chunk(s.sample, rowBatch) {
		rows, err := s.storage.FetchRows(ctx, sample)
		if err != nil {
			return err
		}
		for _, row := range rows {
			if row.Erased {
				continue
			}
			aead, err := s.rowAEAD(ctx, row)
			if err == nil {
				var plain [NumClasses][]byte
				var mem []byte
				err = unseal(aead, row, AllClasses, &plain, &mem)
				clear(mem[:cap(mem)])
			}
			if err != nil {
				return fmt.Errorf("reading back %s, version %d, sealed anew: %w: the old key stays", row.Type, row.Version, err)
			}
		}
	}
	return nil
}

// withhold raises the alarm for rows that do not open. They stay as they are, and so does the key that they name.
func (t *Rotation) withhold(ctx context.Context, rows []*Sealed) error {
	for _, row := range rows {
		t.unopened.Add(1)
		e := t.event(audit.Event{
			Type: audit.TypeSecurityAlert, Interaction: "phi.integrity_failure", Action: audit.ActionExecute, Outcome: audit.SeriousFailure,
			OutcomeDesc: "a stored row does not open",
			Entities:    []audit.Entity{{Type: row.Type, ID: row.ID, Version: row.Version}, {Type: "key", ID: row.Key.KEK, Version: int64(row.KeyID)}},
		})
		if len(row.Patients) > 0 {
			e.Patient = row.Patients[0]
		}
		if _, err := t.log.Record(ctx, t.level.Disclosure, e); err != nil {
			return fmt.Errorf("recording a row that does not open: %w", err)
		}
	}
	return nil
}

// counts is the Detail of events of rotations, as JSON.
type counts struct {
	Keys     int64  `json:"keys,omitempty"`
	Rows     int64  `json:"rows,omitempty"`
	Unopened int64  `json:"unopened,omitempty"`
	First    string `json:"first,omitempty"` // of a batch, by reference
	Last     string `json:"last,omitempty"`
}

func (t *Rotation) event(e audit.Event) *audit.Event {
	if e.Type == "" {
		e.Type = audit.TypePolicy
	}
	e.Agent = audit.Agent{User: t.by, Client: "chartkeep"}
	e.Decision.Allowed = true
	return &e
}

// tell records a step before it is done.
func (t *Rotation) tell(ctx context.Context, level audit.Level, interaction string, action audit.Action, keys []keyset.Binding, c *counts) error {
	e := t.event(audit.Event{Interaction: interaction, Action: action})
	for _, k := range keys {
		e.Entities = append(e.Entities, audit.Entity{Type: "DataKey", ID: UUID(k.Subject).String(), Version: int64(k.KeyID)})
	}
	if c != nil {
		e.Detail, _ = json.Marshal(c) // numbers and references always encode
	}
	if _, err := t.log.Record(ctx, level, e); err != nil {
		return fmt.Errorf("recording %s: %w", interaction, err)
	}
	return nil
}

// recorded carries a rotation out between an event of the intent and one of the outcome, both in the database before it goes
// on; the outcome carries the counts.
func (t *Rotation) recorded(ctx context.Context, e audit.Event, work func() error) error {
	intent := t.event(e)
	intent.Outcome = audit.Intent
	receipt, err := t.log.Record(ctx, audit.Database, intent)
	if err != nil {
		return fmt.Errorf("recording what is about to be done: %w", err)
	}
	failed := work()
	outcome := t.event(e)
	outcome.Correlation, outcome.Outcome = receipt.Events()[0].ID, audit.Success
	if failed != nil {
		outcome.Outcome, outcome.OutcomeDesc = audit.SeriousFailure, "not finished"
		t.logger.LogAttrs(ctx, slog.LevelWarn, "rotation not finished", slog.String("interaction", e.Interaction), slog.Any("err", failed))
	}
	outcome.Detail, _ = json.Marshal(counts{Keys: t.doneKeys.Load(), Rows: t.doneRows.Load(), Unopened: t.unopened.Load()})
	if _, err := t.log.Record(context.WithoutCancel(ctx), audit.Database, outcome); err != nil {
		return errors.Join(failed, fmt.Errorf("recording what was done: %w", err))
	}
	return failed
}

// pace spreads rows over time.
type pace struct {
	rate int // rows a second; 0: as many as go
	mu   sync.Mutex
	next time.Time
}

// wait returns when the next n rows may go.
func (p *pace) wait(ctx context.Context, n int) error {
	if p.rate <= 0 {
		return ctx.Err()
	}
	p.mu.Lock()
	at := p.next
	if now := time.Now(); at.Before(now) {
		at = now
	}
	p.next = at.Add(time.Duration(n) * time.Second / time.Duration(p.rate))
	p.mu.Unlock()
	return pause(ctx, time.Until(at))
}

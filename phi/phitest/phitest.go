// Package phitest keeps sealed records in memory, for tests that need a storage which fails or lies on command.
//
// One Storage serves phi, phi/keyset and auth. It follows the contracts of those interfaces to the letter (conditions,
// order, who wins a race), so that what passes here passes on PostgreSQL; what it adds is Fail, Edit and Count.
package phitest

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"

	"github.com/chartkeep/chartkeep/auth"
	"github.com/chartkeep/chartkeep/phi"
	"github.com/chartkeep/chartkeep/phi/keyset"
)

// Storage is phi.Storage, keyset.Storage and auth.Storage in memory. Safe for concurrent use.
type Storage struct {
	mu       sync.RWMutex
	fail     error
	calls    map[string]int
	records  map[phi.Ref][]*phi.Write // all versions, oldest first
	keys     map[keyName][]phi.WrappedKey
	secrets  map[string]phi.WrappedKey
	imported map[[16]byte]bool
	keks     []keyset.WrappedKEK
	requests []*phi.Erasure
	erased   map[phi.UUID]phi.ErasedSubject
	told     map[phi.UUID]bool
	holds    []Hold
	indexes  []phi.IndexGeneration
	uses     map[useName]int64
	turning  map[keyset.Binding]phi.KeyState // data keys that are not active
	renewals []phi.Renewal
	renewed  map[keyset.Binding]int64 // the renewal that made a key
	claims   map[keyName]bool

	policy auth.Policy
	grants map[phi.Treatment]bool
	epoch  int64

	register  []*auth.EmergencyAccess // oldest first
	emergency int64                   // its epoch
	now       func() time.Time
}

type keyName struct {
	subject phi.UUID
	segment uint16
}

var (
	_ phi.Storage    = (*Storage)(nil)
	_ keyset.Storage = (*Storage)(nil)
	_ auth.Storage   = (*Storage)(nil)
)

// NewStorage returns an empty storage with the seeded policy.
func NewStorage() *Storage {
	return &Storage{
		calls:    map[string]int{},
		records:  map[phi.Ref][]*phi.Write{},
		keys:     map[keyName][]phi.WrappedKey{},
		secrets:  map[string]phi.WrappedKey{},
		imported: map[[16]byte]bool{},
		erased:   map[phi.UUID]phi.ErasedSubject{},
		told:     map[phi.UUID]bool{},
		uses:     map[useName]int64{},
		turning:  map[keyset.Binding]phi.KeyState{},
		renewed:  map[keyset.Binding]int64{},
		claims:   map[keyName]bool{},
		indexes:  []phi.IndexGeneration{{ID: 1, State: phi.IndexActive, Rules: phi.IndexRules, Names: phi.NamesPrefix}},
		policy:   Policy(),
		grants:   map[phi.Treatment]bool{},
		epoch:    1,
		now:      time.Now,
	}
}

// Fail makes every call return err, as a storage that is away does; nil heals it.
func (s *Storage) Fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fail = err
}

// Count returns how often a method was called.
func (s *Storage) Count(method string) int {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.calls[method]
}

// Len returns how many versions of records there are.
func (s *Storage) Len() int {
	s.mu.RLock()
	defer s.mu.RUnlock()
	n := 0
	for _, versions := range s.records {
		n += len(versions)
	}
	return n
}

// Edit changes the stored current version behind everybody's back, as a database administrator could.
func (s *Storage) Edit(ref phi.Ref, edit func(*phi.Sealed)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	versions := s.records[ref]
	w := *versions[len(versions)-1]
	w.Sealed = *copyRow(&w.Sealed, phi.AllClasses)
	edit(&w.Sealed)
	versions[len(versions)-1] = &w
}

// Forge gives a record the index tokens of another beside its own, behind everybody's back.
func (s *Storage) Forge(to, from phi.Ref) {
	s.mu.Lock()
	defer s.mu.Unlock()
	versions := s.records[to]
	w := *versions[len(versions)-1]
	w.Tokens = slices.Concat(w.Tokens, s.current(from).Tokens)
	versions[len(versions)-1] = &w
}

// Rows returns the stored current versions, to be looked at only.
func (s *Storage) Rows() []*phi.Write {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var rows []*phi.Write
	for _, versions := range s.records {
		rows = append(rows, versions[len(versions)-1])
	}
	return rows
}

func (s *Storage) read(method string) (func(), error) {
	s.mu.Lock()
	s.calls[method]++
	err := s.fail
	return s.mu.Unlock, err
}

func (s *Storage) current(ref phi.Ref) *phi.Write {
	if v := s.records[ref]; len(v) > 0 {
		return v[len(v)-1]
	}
	return nil
}

// copyRow returns a row of which only the cells of classes are fetched; the caller may change it.
func copyRow(row *phi.Sealed, classes phi.ClassSet) *phi.Sealed {
	c := *row
	c.Fetched = classes
	c.Patients = slices.Clone(row.Patients)
	c.Seal = slices.Clone(row.Seal)
	for class := range phi.Class(phi.NumClasses) {
		c.Cells[class] = nil
		if classes.Has(class) {
			c.Cells[class] = slices.Clone(row.Cells[class])
		}
	}
	return &c
}

// fetched joins the row's data key to it, as the storages do in one round trip.
func (s *Storage) fetched(row *phi.Sealed, classes phi.ClassSet) *phi.Sealed {
	c := copyRow(row, classes)
	_, c.Erased = s.erased[row.Subject]
	for _, k := range s.keys[keyName{row.Subject, row.Segment}] {
		if k.KeyID == row.KeyID {
			c.Key = k
		}
	}
	return c
}

func (s *Storage) Fetch(_ context.Context, ref phi.Ref, classes phi.ClassSet) (*phi.Sealed, error) {
	unlock, err := s.read("Fetch")
	defer unlock()
	if err != nil {
		return nil, err
	}
	if w := s.current(ref); w != nil {
		return s.fetched(&w.Sealed, classes), nil
	}
	return nil, phi.ErrNotFound
}

func (s *Storage) FetchVersion(_ context.Context, ref phi.Ref, version int64, classes phi.ClassSet) (*phi.Sealed, error) {
	unlock, err := s.read("FetchVersion")
	defer unlock()
	if err != nil {
		return nil, err
	}
	for _, w := range s.records[ref] {
		if w.Version == version {
			return s.fetched(&w.Sealed, classes), nil
		}
	}
	return nil, phi.ErrNotFound
}

func (s *Storage) FetchHistory(_ context.Context, ref phi.Ref, classes phi.ClassSet, before int64, limit int) ([]*phi.Sealed, error) {
	unlock, err := s.read("FetchHistory")
	defer unlock()
	if err != nil {
		return nil, err
	}
	var rows []*phi.Sealed
	for _, w := range slices.Backward(s.records[ref]) {
		if (before == 0 || w.Version < before) && len(rows) < limit {
			rows = append(rows, s.fetched(&w.Sealed, classes))
		}
	}
	return rows, nil
}

func (s *Storage) Search(_ context.Context, sel phi.Selection, classes phi.ClassSet) ([]*phi.Sealed, error) {
	unlock, err := s.read("Search")
	defer unlock()
	if err != nil {
		return nil, err
	}
	var rows []*phi.Sealed
	for ref := range s.records {
		w := s.current(ref)
		if !w.Deleted() && s.selected(w, sel) {
			rows = append(rows, &w.Sealed)
		}
	}
	slices.SortFunc(rows, func(a, b *phi.Sealed) int { return cmp.Compare(a.ID, b.ID) })
	if len(rows) > sel.Limit {
		rows = rows[:sel.Limit]
	}
	for i, row := range rows {
		rows[i] = s.fetched(row, classes)
	}
	return rows, nil
}

func (s *Storage) selected(w *phi.Write, sel phi.Selection) bool {
	in := func(patient string) bool { return slices.Contains(w.Patients, patient) }
	switch {
	case w.Type != sel.Type,
		sel.IDs != nil && !slices.Contains(sel.IDs, w.ID),
		sel.Patients != nil && !slices.ContainsFunc(sel.Patients, in),
		!sel.UpdatedFrom.IsZero() && w.Updated.Before(sel.UpdatedFrom),
		!sel.UpdatedTo.IsZero() && !w.Updated.Before(sel.UpdatedTo),
		sel.After != "" && w.ID <= sel.After,
		sel.Patient != "" && (sel.Named || len(w.Patients) > 0) && !in(sel.Patient):
		return false
	}
	if sel.Practitioner != "" && (sel.Named || len(w.Patients) > 0) {
		if source, _ := s.related(sel.Practitioner, w.Patients); source == "" {
			return false
		}
	}
	if sel.Gates != nil && !s.passes(w, sel.Gates) {
		return false
	}
	for _, alternatives := range sel.Tokens {
		if !carries(w, alternatives) {
			return false
		}
	}
	return true
}

func (s *Storage) FetchMany(_ context.Context, refs []phi.Ref, classes phi.ClassSet) ([]*phi.Sealed, error) {
	unlock, err := s.read("FetchMany")
	defer unlock()
	if err != nil {
		return nil, err
	}
	var rows []*phi.Sealed
	for _, ref := range refs {
		if w := s.current(ref); w != nil {
			rows = append(rows, s.fetched(&w.Sealed, classes))
		}
	}
	return rows, nil
}

func (s *Storage) Key(_ context.Context, subject phi.UUID, segment uint16) (phi.WrappedKey, error) {
	unlock, err := s.read("Key")
	defer unlock()
	if err != nil {
		return phi.WrappedKey{}, err
	}
	return s.activeKey(keyName{subject, segment})
}

func (s *Storage) Commit(_ context.Context, writes []phi.Write, guards []phi.Guard) error {
	unlock, err := s.read("Commit")
	defer unlock()
	if err != nil {
		return err
	}
	for i, g := range guards {
		if against := s.guarded(&g); against != nil {
			return &phi.ConflictError{Ref: against.Ref, Err: phi.ErrGuard, Guard: i}
		}
	}
	for i := range writes {
		there := func(g phi.IndexGeneration) bool { return g.ID == writes[i].IndexID }
		if !slices.ContainsFunc(s.indexes, there) {
			return &phi.ConflictError{Ref: writes[i].Ref, Err: phi.ErrKey}
		}
	}
	fresh := map[keyName][]phi.WrappedKey{}
	for _, w := range writes {
		for _, k := range w.NewKeys {
			name := keyName{k.Subject, k.Segment}
			fresh[name] = append(fresh[name], k)
		}
	}
	for i := range writes {
		w, name := &writes[i], keyName{writes[i].Subject, writes[i].Segment}
		mine := func(k phi.WrappedKey) bool { return k.KeyID == w.KeyID && s.turning[bindingOf(k)] == "" }
		if !slices.ContainsFunc(s.keys[name], mine) && !slices.ContainsFunc(fresh[name], mine) {
			return &phi.ConflictError{Ref: w.Ref, Err: phi.ErrKey}
		}
	}
	for i := range writes {
		version := int64(0)
		if w := s.current(writes[i].Ref); w != nil {
			version = w.Version
		}
		if version != writes[i].Expect {
			return &phi.ConflictError{Ref: writes[i].Ref, Err: phi.ErrVersion}
		}
	}
	for name, keys := range fresh {
		s.keys[name] = append(s.keys[name], keys...)
	}
	for i := range writes {
		w := writes[i]
		w.Sealed = *copyRow(&w.Sealed, phi.AllClasses)
		if old := s.current(w.Ref); len(w.Treats)+len(w.Rules) > 0 || old != nil && len(old.Treats)+len(old.Rules) > 0 {
			s.epoch++
		}
		s.records[w.Ref] = append(s.records[w.Ref], &w)
	}
	return nil
}

// guarded returns a record that stands against a guard.
func (s *Storage) guarded(g *phi.Guard) *phi.Write {
	for ref := range s.records {
		w := s.current(ref)
		if version, ok := g.Except[ref.ID]; ref.Type != g.Type || w.Deleted() || ok && (version == 0 || version == w.Version) {
			continue
		}
		if !slices.ContainsFunc(g.Tokens, func(alternatives []phi.Token) bool { return !carries(w, alternatives) }) {
			return w
		}
	}
	return nil
}

func carries(w *phi.Write, alternatives []phi.Token) bool {
	return slices.ContainsFunc(alternatives, func(t phi.Token) bool { return slices.Contains(w.Tokens, t) })
}

func (s *Storage) EnsureKey(_ context.Context, candidate phi.WrappedKey) (phi.WrappedKey, error) {
	unlock, err := s.read("EnsureKey")
	defer unlock()
	if err != nil {
		return phi.WrappedKey{}, err
	}
	name := keyName{candidate.Subject, candidate.Segment}
	if len(s.keys[name]) == 0 {
		if name.segment != 0 && name.subject != (phi.UUID{}) && len(s.keys[keyName{name.subject, 0}]) == 0 {
			return phi.WrappedKey{}, phi.ErrNotFound
		}
		s.keys[name] = []phi.WrappedKey{candidate}
	}
	return s.activeKey(name)
}

func (s *Storage) Secret(_ context.Context, name string, candidate phi.WrappedKey) (phi.WrappedKey, error) {
	unlock, err := s.read("Secret")
	defer unlock()
	if err != nil {
		return phi.WrappedKey{}, err
	}
	if _, ok := s.secrets[name]; !ok {
		generation := phi.SecretGeneration(name)
		for ref := range s.records {
			if generation != 0 && s.current(ref).IndexID == generation {
				return phi.WrappedKey{}, phi.ErrSecretLost
			}
		}
		s.secrets[name] = candidate
	}
	return s.secrets[name], nil
}

func (s *Storage) IndexGenerations(context.Context) ([]phi.IndexGeneration, error) {
	unlock, err := s.read("IndexGenerations")
	defer unlock()
	if err != nil {
		return nil, err
	}
	return slices.Clone(s.indexes), nil
}

// Generation is the index generation under which a record's tokens were minted.
func (s *Storage) Generation(ref phi.Ref) uint32 {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.current(ref).IndexID
}

func (s *Storage) ChooseNames(_ context.Context, names phi.NameSearch) error {
	unlock, err := s.read("ChooseNames")
	defer unlock()
	chosen := func(g phi.IndexGeneration) bool { return g.Names == names }
	if err == nil && len(s.records) == 0 && !slices.ContainsFunc(s.indexes, chosen) {
		newest := s.indexes[len(s.indexes)-1].ID
		s.indexes = []phi.IndexGeneration{{ID: newest + 1, State: phi.IndexActive, Rules: phi.IndexRules, Names: names}}
	}
	return err
}

// SetIndexGenerations puts other generations in place, as a rotation does.
func (s *Storage) SetIndexGenerations(generations ...phi.IndexGeneration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.indexes = generations
}

func (s *Storage) Imported(_ context.Context, digest [16]byte) (bool, error) {
	unlock, err := s.read("Imported")
	defer unlock()
	return s.imported[digest], err
}

func (s *Storage) MarkImported(_ context.Context, digest [16]byte) error {
	unlock, err := s.read("MarkImported")
	defer unlock()
	if err == nil {
		s.imported[digest] = true
	}
	return err
}

func (s *Storage) KEK(_ context.Context, id string, candidate *keyset.WrappedKEK) (keyset.WrappedKEK, error) {
	unlock, err := s.read("KEK")
	defer unlock()
	if err != nil {
		return keyset.WrappedKEK{}, err
	}
	if id == "" && len(s.keks) == 0 && candidate != nil {
		s.keks = append(s.keks, *candidate)
	}
	for _, k := range s.keks {
		if id == "" && k.Active || k.ID == id {
			return k, nil
		}
	}
	return keyset.WrappedKEK{}, keyset.ErrUnknownKEK
}

func (s *Storage) KEKs(context.Context) ([]keyset.WrappedKEK, error) {
	unlock, err := s.read("KEKs")
	defer unlock()
	return slices.Clone(s.keks), err
}

// useName is which key has uses: a key-encryption key, or a data key.
type useName struct {
	kek     string
	binding keyset.Binding
}

func (s *Storage) AddUses(_ context.Context, uses []keyset.Uses) ([]keyset.Uses, error) {
	unlock, err := s.read("AddUses")
	defer unlock()
	if err != nil {
		return nil, err
	}
	for _, u := range uses {
		s.uses[useName{u.KEK, u.Binding}] += u.N
	}
	var worn []keyset.Uses
	for name, n := range s.uses {
		if n >= keyset.Worn {
			worn = append(worn, keyset.Uses{KEK: name.kek, Binding: name.binding, N: n})
		}
	}
	return worn, nil
}

// Uses returns how often a data key has encrypted, as far as that was stored.
func (s *Storage) Uses(b keyset.Binding) int64 {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.uses[useName{binding: b}]
}

func (s *Storage) Policy(context.Context) (auth.Policy, error) {
	unlock, err := s.read("Policy")
	defer unlock()
	return s.policy, err
}

// ChangePolicy makes a new version of the policy. What it is based on is left as it was.
func (s *Storage) ChangePolicy(change func(*auth.Policy)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.policy
	p.Permissions, p.Capabilities = slices.Clone(p.Permissions), slices.Clone(p.Capabilities)
	change(&p)
	p.Version++
	s.policy = p
}

func (s *Storage) Epochs(context.Context) (auth.Epochs, error) {
	unlock, err := s.read("Epochs")
	defer unlock()
	return auth.Epochs{Policy: s.policy.Version, Relationship: auth.Shards{s.epoch}, Consent: auth.Shards{s.epoch}, Emergency: s.emergency}, err
}

func (s *Storage) Facts(_ context.Context, a auth.Actor, patients []string) ([]auth.Fact, error) {
	unlock, err := s.read("Facts")
	defer unlock()
	if err != nil {
		return nil, err
	}
	facts := make([]auth.Fact, len(patients))
	for i := range patients {
		facts[i].Related, facts[i].Until = s.related(a.Practitioner, patients[i:i+1])
		facts[i].Consents = s.rules(a, patients[i])
	}
	return facts, nil
}

package phitest

import (
	"bytes"
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/chartkeep/chartkeep/phi"
	"github.com/chartkeep/chartkeep/phi/keyset"
)

var (
	_ phi.RotationStorage = (*Storage)(nil)
	_ phi.RewrapStorage   = (*Storage)(nil)
	_ phi.ReindexStorage  = (*Storage)(nil)
)

func bindingOf(k phi.WrappedKey) keyset.Binding {
	return keyset.Binding{Subject: k.Subject, Segment: k.Segment, KeyID: k.KeyID}
}

func compareBindings(a, b keyset.Binding) int {
	return cmp.Or(bytes.Compare(a.Subject[:], b.Subject[:]), cmp.Compare(a.Segment, b.Segment), cmp.Compare(a.KeyID, b.KeyID))
}

// activeKey returns the key that seals what is new in a subject's segment.
func (s *Storage) activeKey(name keyName) (phi.WrappedKey, error) {
	for _, k := range s.keys[name] {
		if s.turning[bindingOf(k)] == "" {
			return k, nil
		}
	}
	return phi.WrappedKey{}, phi.ErrNotFound
}

// state returns a key's, "" when it is not there.
func (s *Storage) state(b keyset.Binding) phi.KeyState {
	there := func(k phi.WrappedKey) bool { return k.KeyID == b.KeyID }
	if !slices.ContainsFunc(s.keys[keyName{b.Subject, b.Segment}], there) {
		return ""
	}
	return cmp.Or(s.turning[b], phi.KeyActive)
}

func (s *Storage) BeginRenewal(_ context.Context, by string) (phi.Renewal, error) {
	unlock, err := s.read("BeginRenewal")
	defer unlock()
	if err != nil {
		return phi.Renewal{}, err
	}
	for _, r := range s.renewals {
		if r.Finished.IsZero() {
			return r, nil
		}
	}
	s.renewals = append(s.renewals, phi.Renewal{ID: int64(len(s.renewals) + 1), By: by, Begun: time.Now()})
	return s.renewals[len(s.renewals)-1], nil
}

func (s *Storage) FinishRenewal(_ context.Context, id int64) error {
	unlock, err := s.read("FinishRenewal")
	defer unlock()
	if err == nil {
		s.renewals[id-1].Finished = time.Now()
	}
	return err
}

// DataKeys knows no age of keys: Due chooses none.
func (s *Storage) DataKeys(_ context.Context, q phi.KeyQuery) ([]phi.StoredKey, error) {
	unlock, err := s.read("DataKeys")
	defer unlock()
	if err != nil {
		return nil, err
	}
	keys := s.chosen(q)
	return keys[:min(len(keys), q.Limit)], nil
}

func (s *Storage) chosen(q phi.KeyQuery) (chosen []phi.StoredKey) {
	for name, keys := range s.keys {
		for _, k := range keys {
			b := bindingOf(k)
			switch {
			case s.state(b) != q.State,
				q.Subjects != nil && !slices.Contains(q.Subjects, name.subject),
				!q.Due.IsZero() && s.uses[useName{binding: b}] < keyset.Worn,
				q.Renewal != 0 && s.renewed[b] >= q.Renewal,
				compareBindings(b, q.After) <= 0:
				continue
			}
			chosen = append(chosen, phi.StoredKey{WrappedKey: k, State: q.State, Renewal: s.renewed[b]})
		}
	}
	slices.SortFunc(chosen, func(a, b phi.StoredKey) int { return compareBindings(bindingOf(a.WrappedKey), bindingOf(b.WrappedKey)) })
	return chosen
}

func (s *Storage) CountKeys(_ context.Context, q phi.KeyQuery) (keys, rows int64, err error) {
	unlock, err := s.read("CountKeys")
	defer unlock()
	if err != nil {
		return 0, 0, err
	}
	chosen := s.chosen(q)
	for _, versions := range s.records {
		for _, w := range versions {
			if slices.ContainsFunc(chosen, func(k phi.StoredKey) bool { return k.Subject == w.Subject && k.Segment == w.Segment }) {
				rows++
			}
		}
	}
	return int64(len(chosen)), rows, nil
}

func (s *Storage) Claim(_ context.Context, keys []keyset.Binding) (mine []keyset.Binding, release func(), err error) {
	unlock, err := s.read("Claim")
	defer unlock()
	if err != nil {
		return nil, nil, err
	}
	for _, k := range keys {
		if name := (keyName{k.Subject, k.Segment}); !s.claims[name] {
			s.claims[name] = true
			mine = append(mine, k)
		}
	}
	claimed := slices.Clone(mine)
	return mine, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, k := range claimed {
			delete(s.claims, keyName{k.Subject, k.Segment})
		}
	}, nil
}

func (s *Storage) AddKeys(_ context.Context, keys []phi.StoredKey) error {
	unlock, err := s.read("AddKeys")
	defer unlock()
	if err != nil {
		return err
	}
	for _, k := range keys {
		name, b := keyName{k.Subject, k.Segment}, bindingOf(k.WrappedKey)
		if _, err := s.activeKey(name); err != nil || s.state(b) != "" {
			continue
		}
		s.keys[name] = append(s.keys[name], k.WrappedKey)
		s.turning[b], s.renewed[b] = phi.KeyKnown, k.Renewal
	}
	return nil
}

func (s *Storage) Activate(_ context.Context, keys []keyset.Binding) (retired []keyset.Binding, err error) {
	unlock, err := s.read("Activate")
	defer unlock()
	if err != nil {
		return nil, err
	}
	for _, b := range keys {
		next := b
		next.KeyID++
		old := func(k phi.WrappedKey) bool { return s.turning[bindingOf(k)] == phi.KeyRetired }
		if s.state(b) != phi.KeyActive || s.state(next) != phi.KeyKnown || slices.ContainsFunc(s.keys[keyName{b.Subject, b.Segment}], old) {
			continue
		}
		s.turning[b] = phi.KeyRetired
		delete(s.turning, next)
		retired = append(retired, b)
	}
	return retired, nil
}

func (s *Storage) RowsUnder(_ context.Context, keys []keyset.Binding, limit int) (rows []phi.RowName, err error) {
	unlock, err := s.read("RowsUnder")
	defer unlock()
	if err != nil {
		return nil, err
	}
	for ref, versions := range s.records {
		for i, w := range versions {
			b := keyset.Binding{Subject: w.Subject, Segment: w.Segment, KeyID: w.KeyID}
			if len(rows) < limit && slices.Contains(keys, b) && s.state(b) != "" {
				rows = append(rows, phi.RowName{Ref: ref, Version: w.Version, Superseded: i < len(versions)-1})
			}
		}
	}
	return rows, nil
}

// stored returns a version, current or not as the name says.
func (s *Storage) stored(n phi.RowName) (versions []*phi.Write, i int) {
	versions = s.records[n.Ref]
	i = slices.IndexFunc(versions, func(w *phi.Write) bool { return w.Version == n.Version })
	if i >= 0 && n.Superseded != (i < len(versions)-1) {
		return versions, -1
	}
	return versions, i
}

func (s *Storage) FetchRows(_ context.Context, rows []phi.RowName) (fetched []*phi.Sealed, err error) {
	unlock, err := s.read("FetchRows")
	defer unlock()
	if err != nil {
		return nil, err
	}
	for _, n := range rows {
		if versions, i := s.stored(n); i >= 0 {
			fetched = append(fetched, s.fetched(&versions[i].Sealed, phi.AllClasses))
		}
	}
	return fetched, nil
}

func (s *Storage) StoreResealed(_ context.Context, rows []phi.Resealed) (n int, err error) {
	unlock, err := s.read("StoreResealed")
	defer unlock()
	if err != nil {
		return 0, err
	}
	for _, r := range rows {
		versions, i := s.stored(phi.RowName{Ref: r.Ref, Version: r.Version, Superseded: r.Superseded})
		if i < 0 || !bytes.Equal(versions[i].Seal, r.Was) {
			continue
		}
		w := *versions[i]
		w.Cells, w.Seal, w.KeyID = r.Cells, r.Seal, r.KeyID
		versions[i] = &w
		n++
	}
	return n, nil
}

func (s *Storage) RemoveKeys(_ context.Context, keys []keyset.Binding) (removed []keyset.Binding, err error) {
	unlock, err := s.read("RemoveKeys")
	defer unlock()
	if err != nil {
		return nil, err
	}
	named := map[keyset.Binding]bool{}
	for _, versions := range s.records {
		for _, w := range versions {
			named[keyset.Binding{Subject: w.Subject, Segment: w.Segment, KeyID: w.KeyID}] = true
		}
	}
	for _, b := range keys {
		if s.state(b) == phi.KeyRetired && !named[b] {
			name := keyName{b.Subject, b.Segment}
			s.keys[name] = slices.DeleteFunc(slices.Clone(s.keys[name]), func(k phi.WrappedKey) bool { return k.KeyID == b.KeyID })
			delete(s.turning, b)
			removed = append(removed, b)
		}
	}
	return removed, nil
}

func (s *Storage) BeginEpoch(_ context.Context, after string, next keyset.WrappedKEK) (active keyset.WrappedKEK, err error) {
	unlock, err := s.read("BeginEpoch")
	defer unlock()
	if err != nil {
		return active, err
	}
	if i := slices.IndexFunc(s.keks, func(k keyset.WrappedKEK) bool { return k.ID == after && k.Active }); i >= 0 {
		s.keks = slices.Clone(s.keks)
		s.keks[i].Active = false
		next.Active = true
		s.keks = append(s.keks, next)
	}
	return s.keks[slices.IndexFunc(s.keks, func(k keyset.WrappedKEK) bool { return k.Active })], nil
}

func (s *Storage) WrappedBy(_ context.Context, kek string, after keyset.Binding, limit int) (keys []phi.WrappedKey, err error) {
	unlock, err := s.read("WrappedBy")
	defer unlock()
	if err != nil {
		return nil, err
	}
	add := func(k phi.WrappedKey) {
		if k.KEK == kek && compareBindings(bindingOf(k), after) > 0 {
			keys = append(keys, k)
		}
	}
	for _, list := range s.keys {
		for _, k := range list {
			add(k)
		}
	}
	for _, k := range s.secrets {
		add(k)
	}
	slices.SortFunc(keys, func(a, b phi.WrappedKey) int { return compareBindings(bindingOf(a), bindingOf(b)) })
	return keys[:min(len(keys), limit)], nil
}

func (s *Storage) StoreRewrapped(_ context.Context, keys []phi.Rewrapped) (n int, err error) {
	unlock, err := s.read("StoreRewrapped")
	defer unlock()
	if err != nil {
		return 0, err
	}
	for _, k := range keys {
		name := keyName{k.Subject, k.Segment}
		for i, old := range s.keys[name] {
			if old.KeyID == k.KeyID && bytes.Equal(old.Wrapped, k.Was) {
				s.keys[name] = slices.Clone(s.keys[name])
				s.keys[name][i] = k.WrappedKey
				n++
			}
		}
		for secret, old := range s.secrets {
			if bindingOf(old) == bindingOf(k.WrappedKey) && bytes.Equal(old.Wrapped, k.Was) {
				s.secrets[secret] = k.WrappedKey
				n++
			}
		}
	}
	return n, nil
}

func (s *Storage) RemoveKEK(_ context.Context, id string) (bool, error) {
	unlock, err := s.read("RemoveKEK")
	defer unlock()
	if err != nil {
		return false, err
	}
	for _, list := range s.keys {
		if slices.ContainsFunc(list, func(k phi.WrappedKey) bool { return k.KEK == id }) {
			return false, nil
		}
	}
	for _, k := range s.secrets {
		if k.KEK == id {
			return false, nil
		}
	}
	s.keks = slices.DeleteFunc(slices.Clone(s.keks), func(k keyset.WrappedKEK) bool { return k.ID == id && !k.Active })
	return true, nil
}

func (s *Storage) generation(state phi.IndexState) int {
	return slices.IndexFunc(s.indexes, func(g phi.IndexGeneration) bool { return g.State == state })
}

func (s *Storage) BeginGeneration(_ context.Context, next phi.IndexGeneration) error {
	unlock, err := s.read("BeginGeneration")
	defer unlock()
	if err == nil && len(s.indexes) == 1 {
		s.indexes = append(slices.Clone(s.indexes), next)
	}
	return err
}

func (s *Storage) ActivateGeneration(_ context.Context, id uint32) error {
	unlock, err := s.read("ActivateGeneration")
	defer unlock()
	if err != nil {
		return err
	}
	if i := s.generation(phi.IndexReading); i >= 0 && s.indexes[i].ID == id {
		s.indexes = slices.Clone(s.indexes)
		s.indexes[s.generation(phi.IndexActive)].State = phi.IndexRetiring
		s.indexes[i].State = phi.IndexActive
	}
	return nil
}

func (s *Storage) RowsOfGeneration(_ context.Context, id uint32, limit int) (rows []phi.RowName, err error) {
	unlock, err := s.read("RowsOfGeneration")
	defer unlock()
	if err != nil {
		return nil, err
	}
	for ref := range s.records {
		if w := s.current(ref); w.IndexID == id && len(rows) < limit {
			rows = append(rows, phi.RowName{Ref: ref, Version: w.Version})
		}
	}
	return rows, nil
}

func (s *Storage) StoreReindexed(_ context.Context, rows []phi.Reindexed) (n int, err error) {
	unlock, err := s.read("StoreReindexed")
	defer unlock()
	if err != nil {
		return 0, err
	}
	for _, r := range rows {
		versions, i := s.stored(phi.RowName{Ref: r.Ref, Version: r.Version})
		if i < 0 || !bytes.Equal(versions[i].Seal, r.Was) {
			continue
		}
		w := *versions[i]
		w.Cells, w.Seal, w.Tokens, w.IndexID = r.Cells, r.Seal, r.Tokens, r.IndexID
		versions[i] = &w
		n++
	}
	return n, nil
}

func (s *Storage) RemoveGeneration(_ context.Context, id uint32, secrets []string) (bool, error) {
	unlock, err := s.read("RemoveGeneration")
	defer unlock()
	if err != nil {
		return false, err
	}
	for ref := range s.records {
		if s.current(ref).IndexID == id {
			return false, nil
		}
	}
	s.indexes = slices.DeleteFunc(slices.Clone(s.indexes), func(g phi.IndexGeneration) bool { return g.ID == id && g.State == phi.IndexRetiring })
	for _, name := range secrets {
		delete(s.secrets, name)
	}
	return true, nil
}

func (s *Storage) CountWrapped(context.Context) (n int64, err error) {
	unlock, err := s.read("CountWrapped")
	defer unlock()
	if err != nil {
		return 0, err
	}
	ended := func(id string) int64 {
		if slices.ContainsFunc(s.keks, func(k keyset.WrappedKEK) bool { return k.ID == id && k.Active }) {
			return 0
		}
		return 1
	}
	for _, list := range s.keys {
		for _, k := range list {
			n += ended(k.KEK)
		}
	}
	for _, k := range s.secrets {
		n += ended(k.KEK)
	}
	return n, nil
}

func (s *Storage) CountGeneration(_ context.Context, id uint32) (n int64, err error) {
	unlock, err := s.read("CountGeneration")
	defer unlock()
	for ref := range s.records {
		if s.current(ref).IndexID == id {
			n++
		}
	}
	return n, err
}

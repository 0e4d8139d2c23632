package phitest

import (
	"bytes"
	"cmp"
	"context"
	"maps"
	"slices"
	"sync"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/phi"
)

// Sweep is what a sweep of a Storage needs, with what it remembers. The zero value of everything but Of is ready to use.
type Sweep struct {
	Of *Storage

	mu      sync.Mutex
	claimed bool
	state   []byte
	heads   map[phi.Ref]phi.Head
}

var _ phi.SweepStorage = (*Sweep)(nil)

// Claim implements phi.SweepStorage.
func (s *Sweep) Claim(context.Context) (func(), error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.claimed {
		return nil, nil
	}
	s.claimed = true
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.claimed = false
	}, nil
}

// State implements phi.SweepStorage.
func (s *Sweep) State(context.Context) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.state), nil
}

// Advance implements phi.SweepStorage.
func (s *Sweep) Advance(_ context.Context, was, state []byte, heads []phi.Head) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !bytes.Equal(was, s.state) {
		return phi.ErrVersion
	}
	s.state = slices.Clone(state)
	if s.heads == nil {
		s.heads = map[phi.Ref]phi.Head{}
	}
	for _, h := range heads {
		s.heads[h.Ref] = h
	}
	return nil
}

// Forget implements phi.SweepStorage.
func (s *Sweep) Forget(context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.state, s.heads = nil, nil
	return nil
}

// Heads implements phi.SweepStorage.
func (s *Sweep) Heads(_ context.Context, refs []phi.Ref) (heads []phi.Head, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, ref := range refs {
		if h, ok := s.heads[ref]; ok {
			heads = append(heads, h)
		}
	}
	return heads, nil
}

// Page implements phi.SweepStorage. Its pages are small, so that a few records make several.
func (s *Sweep) Page(_ context.Context, after phi.Ref, _ int) (*phi.SweepPage, error) {
	const small = 7
	s.mu.Lock()
	defer s.mu.Unlock()
	s.Of.mu.RLock()
	defer s.Of.mu.RUnlock()
	p := &phi.SweepPage{Tokens: map[phi.Ref][]phi.Token{}, Patients: map[phi.Ref][]string{}, Versions: map[phi.Ref]phi.VersionRange{}}
	known := map[phi.Ref]bool{}
	for ref := range s.Of.records {
		known[ref] = true
	}
	for ref := range s.heads {
		known[ref] = true
	}
	var refs []phi.Ref
	for ref := range known {
		if ref.Compare(after) > 0 {
			refs = append(refs, ref)
		}
	}
	slices.SortFunc(refs, phi.Ref.Compare)
	if p.Done = len(refs) <= small; !p.Done {
		refs = refs[:small]
		p.Last = refs[small-1]
	}
	for _, ref := range refs {
		if h, ok := s.heads[ref]; ok {
			p.Heads = append(p.Heads, h)
		}
		versions := s.Of.records[ref]
		if len(versions) == 0 {
			continue
		}
		w := versions[len(versions)-1]
		p.Rows = append(p.Rows, s.Of.fetched(&w.Sealed, phi.AllClasses))
		if len(versions) > 1 {
			p.Versions[ref] = phi.VersionRange{Count: int64(len(versions) - 1), First: versions[0].Version, Last: versions[len(versions)-2].Version}
		}
		if !w.Deleted() {
			p.Tokens[ref] = w.Tokens
			patients := slices.Sorted(slices.Values(w.Patients))
			if len(patients) == 0 {
				patients = []string{""}
			}
			p.Patients[ref] = slices.Compact(patients)
		}
	}
	return p, nil
}

// Superseded implements phi.SweepStorage.
func (s *Sweep) Superseded(_ context.Context, after phi.Ref, version int64, _ int) ([]*phi.Sealed, error) {
	s.Of.mu.RLock()
	defer s.Of.mu.RUnlock()
	var rows []*phi.Sealed
	for _, versions := range s.Of.records {
		for _, w := range versions[:max(0, len(versions)-1)] {
			if cmp.Or(w.Ref.Compare(after), cmp.Compare(w.Version, version)) > 0 {
				rows = append(rows, s.Of.fetched(&w.Sealed, phi.AllClasses))
			}
		}
	}
	slices.SortFunc(rows, func(a, b *phi.Sealed) int {
		return cmp.Or(a.Ref.Compare(b.Ref), cmp.Compare(a.Version, b.Version))
	})
	return rows[:min(len(rows), 5)], nil
}

// ErasedSubjects implements phi.SweepStorage.
func (s *Sweep) ErasedSubjects(context.Context) ([]phi.ErasedSubject, error) {
	s.Of.mu.RLock()
	defer s.Of.mu.RUnlock()
	return slices.Collect(maps.Values(s.Of.erased)), nil
}

// Rollback puts back how a record was at a version, consistently: as a database administrator could.
func (s *Storage) Rollback(ref phi.Ref, version int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.records[ref] = s.records[ref][:version]
}

// Trail is an audit.Storage that keeps batches, and their order as the log's tree would.
type Trail struct {
	mu      sync.Mutex
	batches []audit.Batch
	spans   []audit.Span
	size    int64
}

var (
	_ audit.Storage  = (*Trail)(nil)
	_ phi.SweepTrail = (*Trail)(nil)
)

// Head implements audit.Storage.
func (l *Trail) Head(_ context.Context, stream audit.StreamID) (next uint64, chain audit.Hash, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, b := range l.batches {
		if b.Stream == stream {
			next, chain = b.First+uint64(len(b.Rows)), b.Chain
		}
	}
	return next, chain, nil
}

// Ingest implements audit.Storage.
func (l *Trail) Ingest(_ context.Context, b audit.Batch) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	b.Rows = slices.Clone(b.Rows)
	for i := range b.Rows {
		b.Rows[i].Body = slices.Clone(b.Rows[i].Body)
	}
	l.batches = append(l.batches, b)
	l.spans = append(l.spans, audit.Span{Index: l.size, Stream: b.Stream, First: b.First, Count: len(b.Rows), Prev: b.Prev, Chain: b.Chain})
	l.size += int64(len(b.Rows))
	return nil
}

// Size is how many events it holds.
func (l *Trail) Size() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.size
}

// Edit changes an event's bytes behind everybody's back.
func (l *Trail) Edit(index int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, span := range l.spans {
		if index >= span.Index && index < span.Index+int64(span.Count) {
			l.batches[i].Rows[index-span.Index].Body[0] ^= 1
		}
	}
}

// Spans implements phi.SweepTrail: two at a time.
func (l *Trail) Spans(_ context.Context, from int64, _ int) ([]audit.Span, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	i, _ := slices.BinarySearchFunc(l.spans, from, func(s audit.Span, at int64) int { return cmp.Compare(s.Index, at) })
	return slices.Clone(l.spans[i:min(i+2, len(l.spans))]), nil
}

// Rows implements phi.SweepTrail.
func (l *Trail) Rows(_ context.Context, s audit.Span) ([]audit.Row, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, span := range l.spans {
		if span.Index == s.Index {
			return slices.Clone(l.batches[i].Rows), nil
		}
	}
	return nil, nil
}

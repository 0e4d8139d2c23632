// Package audittest has a Storage for tests that need an audit log but no database.
package audittest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/chartkeep/chartkeep/audit"
)

// Storage keeps rows in memory under the same rules as the database: contiguous, chained, each row once. It implements
// audit.Storage and audit.Reader. The zero value is ready. All methods are safe for concurrent use.
type Storage struct {
	// Fail, when set before use, is asked before each call ("head", "ingest") and after an ingest that was stored
	// ("answer"): a non-nil error is what the caller gets. Failing "answer" is a COMMIT whose answer is lost.
	Fail func(step string) error

	mu      sync.Mutex
	streams map[audit.StreamID]*stream
	rows    []audit.Stored
	batches []audit.Span
}

type stream struct {
	next  uint64
	chain audit.Hash
}

// ErrDown is an error for Fail to return.
var ErrDown = errors.New("audittest: storage is down")

func (s *Storage) fail(step string) error {
	if s.Fail == nil {
		return nil
	}
	return s.Fail(step)
}

// Head implements audit.Storage.
func (s *Storage) Head(ctx context.Context, id audit.StreamID) (uint64, audit.Hash, error) {
	if err := errors.Join(ctx.Err(), s.fail("head")); err != nil {
		return 0, audit.Hash{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if st := s.streams[id]; st != nil {
		return st.next, st.chain, nil
	}
	return 0, audit.Hash{}, nil
}

// Ingest implements audit.Storage. Beyond what a database does it also checks every row with audit.Check.
func (s *Storage) Ingest(ctx context.Context, b audit.Batch) error {
	if err := errors.Join(ctx.Err(), s.fail("ingest")); err != nil {
		return err
	}
	if err := s.store(b); err != nil {
		return err
	}
	return s.fail("answer")
}

func (s *Storage) store(b audit.Batch) error {
	if err := audit.Check(b); err != nil {
		return fmt.Errorf("checking batch: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.streams[b.Stream]
	if st == nil {
		st = &stream{}
	}
	switch {
	case b.First < st.next:
		return audit.ErrIngested
	case b.First > st.next, b.Prev != st.chain:
		return audit.ErrChain
	}
	if s.streams == nil {
		s.streams = map[audit.StreamID]*stream{}
	}
	s.streams[b.Stream] = st
	st.next, st.chain = b.First+uint64(len(b.Rows)), b.Chain
	s.batches = append(s.batches, audit.Span{Stream: b.Stream, First: b.First, Count: len(b.Rows), Prev: b.Prev, Chain: b.Chain})
	now := time.Now()
	for _, r := range b.Rows {
		s.rows = append(s.rows, audit.Stored{Row: r, Stream: b.Stream, Ingested: now})
	}
	return nil
}

// Rows returns everything stored, in the order of ingestion.
func (s *Storage) Rows() []audit.Stored {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.rows)
}

// Plant stores a row as it is, under no rules.
func (s *Storage) Plant(r audit.Stored) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rows = append(s.rows, r)
}

// Find implements audit.Reader.
func (s *Storage) Find(ctx context.Context, q audit.Query) (audit.Found, error) {
	if err := errors.Join(ctx.Err(), q.Validate()); err != nil {
		return audit.Found{}, err
	}
	rows := slices.DeleteFunc(s.Rows(), func(r audit.Stored) bool { return !q.Matches(&r) })
	slices.SortFunc(rows, func(a, b audit.Stored) int { return direction(q) * a.Position().Compare(b.Position()) })
	if q.After != (audit.Position{}) {
		rows = slices.DeleteFunc(rows, func(r audit.Stored) bool { return direction(q)*r.Position().Compare(q.After) <= 0 })
	}
	found := audit.Found{Events: rows[:min(len(rows), q.Page())]}
	if len(rows) > len(found.Events) {
		found.Next = found.Events[len(found.Events)-1].Position()
	}
	return found, nil
}

func direction(q audit.Query) int {
	if q.Forward {
		return 1
	}
	return -1
}

// Facets implements audit.Reader.
func (s *Storage) Facets(ctx context.Context, q audit.Query, fields []audit.Field, top int) ([]audit.Facet, error) {
	if err := errors.Join(ctx.Err(), q.Validate(), audit.ValidateFacets(fields)); err != nil {
		return nil, err
	}
	var facets []audit.Facet
	for _, f := range fields {
		counts := map[string]int64{}
		for _, r := range s.Rows() {
			if q.Matches(&r) {
				values := slices.Clone(r.Values(f))
				slices.Sort(values)
				for _, v := range slices.Compact(values) {
					counts[v]++
				}
			}
		}
		facets = append(facets, audit.NewFacet(f, counts, top, true))
	}
	return facets, nil
}

// Histogram implements audit.Reader.
func (s *Storage) Histogram(ctx context.Context, q audit.Query, step time.Duration) (audit.Histogram, error) {
	if err := errors.Join(ctx.Err(), q.Validate()); err != nil {
		return audit.Histogram{}, err
	}
	h, err := audit.NewHistogram(&q, step)
	if err != nil {
		return h, err
	}
	for _, r := range s.Rows() {
		if !q.Matches(&r) {
			continue
		}
		bin := h.Bin(r.Time(), step)
		bin.Events++
		if r.Event.Denied() {
			bin.Denied++
		}
		if r.Event.Failed() {
			bin.Failed++
		}
	}
	return h, nil
}

// Latency implements audit.Reader.
func (s *Storage) Latency(ctx context.Context, q audit.LatencyQuery) (audit.Latency, error) {
	q, unit, err := q.Widen(time.Now())
	if err := errors.Join(ctx.Err(), err); err != nil {
		return audit.Latency{}, err
	}
	series, columns := map[[2]string]*audit.LatencyHistograms{}, map[time.Time]*audit.LatencyHistogram{}
	for _, r := range s.Rows() {
		if r.Event.Type != audit.TypeApplication || r.Event.Interaction != audit.InteractionTimings {
			continue
		}
		list, err := audit.DecodeTimings(r.Event.Detail)
		if err != nil {
			return audit.Latency{}, fmt.Errorf("reading timings: %w", err)
		}
		at := r.Time().Truncate(unit)
		if at.Before(q.From) || !at.Before(q.To) {
			continue
		}
		for i := range list {
			if q.Route != "" && q.Route != list[i].Route || q.Role != "" && q.Role != list[i].Role {
				continue
			}
			var key [2]string
			if q.ByRoute {
				key[0] = list[i].Route
			}
			if q.ByRole {
				key[1] = list[i].Role
			}
			if series[key] == nil {
				series[key] = new(audit.LatencyHistograms)
			}
			series[key].Count(&list[i].Timing)
			if q.Step == 0 {
				continue
			}
			start := audit.BinStart(at, q.Step)
			if columns[start] == nil {
				columns[start] = new(audit.LatencyHistogram)
			}
			if us := list[i].Timing.Part(q.Part); us > 0 || q.Part == audit.PartTotal {
				columns[start][audit.LatencyBucket(us)]++
			}
		}
	}
	l := audit.Latency{From: q.From, To: q.To}
	for _, key := range slices.SortedFunc(maps.Keys(series), func(a, b [2]string) int { return slices.Compare(a[:], b[:]) }) {
		for i, p := range audit.Parts() {
			l.Series = append(l.Series, audit.NewLatencySeries(key[0], key[1], p, &series[key][i]))
		}
	}
	for _, start := range slices.SortedFunc(maps.Keys(columns), time.Time.Compare) {
		if c := audit.NewLatencyColumn(start, columns[start]); len(c.Cells) > 0 {
			l.Columns = append(l.Columns, c)
		}
	}
	return l, nil
}

// Package audittest has a Storage for tests that need an audit log but no database.
package audittest

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
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

// Find implements audit.Reader.
func (s *Storage) Find(ctx context.Context, q audit.Query) ([]audit.Stored, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	rows := slices.DeleteFunc(s.Rows(), func(r audit.Stored) bool { return !matches(q, &r) })
	slices.SortFunc(rows, func(a, b audit.Stored) int {
		return -compare(a.PartTime, a.Event.ID, b.PartTime, b.Event.ID)
	})
	return rows[:min(len(rows), max(1, min(q.Limit, 200)))], nil
}

func compare(at time.Time, a audit.ID, bt time.Time, b audit.ID) int {
	return cmp.Or(at.Compare(bt), bytes.Compare(a[:], b[:]))
}

func matches(q audit.Query, r *audit.Stored) bool {
	e := &r.Event
	is := func(want, got string) bool { return want == "" || want == got }
	if q.After != (audit.Position{}) && compare(r.PartTime, e.ID, q.After.PartTime, q.After.ID) >= 0 {
		return false
	}
	if q.EntityType != "" || q.EntityID != "" {
		if !slices.ContainsFunc(e.Entities, func(n audit.Entity) bool { return is(q.EntityType, n.Type) && is(q.EntityID, n.ID) }) {
			return false
		}
	}
	if q.Text != "" {
		text := strings.Join([]string{e.Interaction, e.OutcomeDesc, e.Agent.User, e.Agent.Name, e.Agent.Client, e.Decision.Rule, e.Decision.Reason, e.RequestID}, " ")
		if !strings.Contains(strings.ToLower(text), strings.ToLower(q.Text)) {
			return false
		}
	}
	return (q.ID == audit.ID{} || q.ID == e.ID) &&
		is(q.RequestID, e.RequestID) && is(q.Patient, e.Patient) && is(q.User, e.Agent.User) && is(q.Client, e.Agent.Client) &&
		is(q.Interaction, e.Interaction) && is(string(q.Type), string(e.Type)) &&
		(q.Action == 0 || q.Action == e.Action) && (q.Outcome == nil || *q.Outcome == e.Outcome) &&
		(q.From.IsZero() || !e.Recorded.Before(q.From)) && (q.To.IsZero() || e.Recorded.Before(q.To))
}

package phi_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/phi"
	"github.com/chartkeep/chartkeep/phi/phitest"
)

// swept is a room with records whose trail has a tree.
type swept struct {
	*phitest.Room
	trail *phitest.Trail
}

func newSwept(t *testing.T) *swept {
	trail := &phitest.Trail{}
	s := &swept{phitest.Open(t, phitest.Options{Trail: trail}), trail}
	for n := range 12 {
		id := fmt.Sprintf("p%d", n)
		for version := range n%3 + 1 {
			s.put(t, phi.Ref{Type: "Patient", ID: id}, fmt.Sprintf(`{"resourceType":"Patient","id":%q,"name":[{"family":"Quillfeather%d"}]}`, id, version))
		}
		s.put(t, phi.Ref{Type: "Observation", ID: "o" + id}, fmt.Sprintf(`{"resourceType":"Observation","id":"o%s","status":"final","code":{"text":"x"},"subject":{"reference":"Patient/%s"}}`, id, id))
	}
	if _, err := s.Records.Delete(t.Context(), backend(), phi.Ref{Type: "Observation", ID: "op3"}, 0); err != nil {
		t.Fatal(err)
	}
	s.ship(t)
	return s
}

func (s *swept) put(t *testing.T, ref phi.Ref, body string) {
	t.Helper()
	if _, err := s.Records.Update(t.Context(), backend(), ref, []byte(body), 0); err != nil {
		t.Fatal(err)
	}
}

// ship waits until all events are in the tree.
func (s *swept) ship(t *testing.T) {
	t.Helper()
	if err := s.Log.Drain(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func (s *swept) sweep(storage phi.SweepStorage) (*phi.SweepReport, error) {
	return s.Records.Sweep(phi.SweepConfig{Storage: storage, Trail: s.trail, Level: audit.Process, Save: time.Nanosecond}).Run(context.Background())
}

// errDied is how a process looks that died: whatever it was doing, it did not go on.
var errDied = errors.New("killed")

// dying is a storage whose process dies at one of its calls, before it or just after it.
type dying struct {
	phi.SweepStorage
	calls, at atomic.Int64
	after     bool
}

func (d *dying) dies() bool { return d.calls.Add(1) == d.at.Load() }

func (d *dying) Advance(ctx context.Context, was, state []byte, heads []phi.Head) error {
	dies := d.dies()
	if dies && !d.after {
		return errDied
	}
	err := d.SweepStorage.Advance(ctx, was, state, heads)
	if dies {
		return errDied
	}
	return err
}

func (d *dying) Page(ctx context.Context, after phi.Ref, limit int) (*phi.SweepPage, error) {
	if d.dies() {
		return nil, errDied
	}
	return d.SweepStorage.Page(ctx, after, limit)
}

func (d *dying) Superseded(ctx context.Context, after phi.Ref, version int64, limit int) ([]*phi.Sealed, error) {
	if d.dies() {
		return nil, errDied
	}
	return d.SweepStorage.Superseded(ctx, after, version, limit)
}

func (d *dying) ErasedSubjects(ctx context.Context) ([]phi.ErasedSubject, error) {
	if d.dies() {
		return nil, errDied
	}
	return d.SweepStorage.ErasedSubjects(ctx)
}

// A sweep that is killed at any call, before it or after it, goes on where it was: it looks at every row once, and finds the same.
func TestSweepKilled(t *testing.T) {
	s := newSwept(t)
	if report, err := s.sweep(&phitest.Sweep{Of: s.Storage}); err != nil || report.Total != 0 || report.Rows != int64(s.Storage.Len()) || report.Trail == 0 {
		t.Fatalf("untouched: %+v, %v", report, err)
	}
	s.Storage.Rollback(phi.Ref{Type: "Patient", ID: "p5"}, 2)
	killed := 0
	for _, after := range []bool{false, true} {
		for at := int64(1); ; at++ {
			d := &dying{SweepStorage: &phitest.Sweep{Of: s.Storage}, after: after}
			d.at.Store(at)
			_, err := s.sweep(d)
			if err == nil {
				break // there was no such call
			}
			if !errors.Is(err, errDied) {
				t.Fatal(err)
			}
			killed++
			if at%8 == 0 { // others write meanwhile: the head of a record that was passed changes
				s.put(t, phi.Ref{Type: "Observation", ID: "op0"}, fmt.Sprintf(`{"resourceType":"Observation","id":"op0","status":"final","code":{"text":"after %d"},"subject":{"reference":"Patient/p0"}}`, at))
				s.ship(t)
			}
			report, err := s.sweep(d)
			if err != nil || report.Total != 1 {
				t.Fatalf("killed at call %d (after it: %v), then on: %+v, %v", at, after, report, err)
			}
			// The version that was written meanwhile was looked at, unless its record was passed.
			if rows := int64(s.Storage.Len()); report.Rows < rows-1 || report.Rows > rows {
				t.Fatalf("killed at call %d (after it: %v): %d rows of %d", at, after, report.Rows, rows)
			}
		}
	}
	if killed < 30 {
		t.Errorf("killed only %d times", killed)
	}
}

// Two do not sweep at once, and what was found says no more than it should.
func TestSweepFindings(t *testing.T) {
	s := newSwept(t)
	storage := &phitest.Sweep{Of: s.Storage}
	release, err := storage.Claim(t.Context())
	if err != nil || release == nil {
		t.Fatal(err)
	}
	if _, err := s.sweep(storage); !errors.Is(err, phi.ErrSweeping) {
		t.Errorf("a second sweep: %v", err)
	}
	release()
	s.Storage.Edit(phi.Ref{Type: "Patient", ID: "p1"}, func(row *phi.Sealed) { row.Cells[phi.ClassName][40] ^= 1 })
	s.trail.Edit(3)
	report, err := s.sweep(storage)
	if err != nil || report.Total != 2 || len(report.Findings) != 2 {
		t.Fatalf("%+v, %v", report, err)
	}
	if f := report.Findings[0]; f.Kind != phi.FindingTrail {
		t.Errorf("an edited event: %v", f)
	}
	if f := report.Findings[1]; f.Kind != phi.FindingUnopened || f.Ref.ID != "p1" || f.Version != 2 || f.Patient != "p1" || f.KeyID != 1 ||
		f.String() != "Patient/p1: a stored row does not open; version 2; key 1 under kek-1" {
		t.Errorf("an edited cell: %v", f)
	}
	last, err := s.Records.Sweep(phi.SweepConfig{Storage: storage}).LastSweep(t.Context())
	if err != nil || last.Total != 2 || last.Rows != report.Rows || last.Ended.IsZero() {
		t.Errorf("the last sweep: %+v, %v", last, err)
	}
}

// A transaction that loses to another one and tries again announces other versions: the outcome tells of the last try's only.
func TestRetriesTellOnce(t *testing.T) {
	s := newSwept(t)
	storage := &phitest.Sweep{Of: s.Storage}
	done := atomic.Int64{}
	for round := range 10 {
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for n := range 10 {
					// The first entry is there for the second try; the second goes in.
					body := fmt.Sprintf(`{"resourceType":"Bundle","type":"transaction","entry":[
						{"resource":{"resourceType":"Patient","identifier":[{"system":"urn:x","value":"%[1]d-%[2]d"}]},"request":{"method":"POST","url":"Patient","ifNoneExist":"identifier=urn:x|%[1]d-%[2]d"}},
						{"resource":{"resourceType":"Patient"},"request":{"method":"POST","url":"Patient"}}]}`, round, n)
					result, err := s.Records.Bundle(context.Background(), backend(), []byte(body))
					if e, ok := errors.AsType[*phi.Error](err); ok && e.Kind == phi.Unavailable {
						t.Error(err)
					}
					if err == nil && len(result.Entries) == 2 {
						done.Add(1)
					}
				}
			})
		}
		wg.Wait()
		s.ship(t)
		if report, err := s.sweep(storage); err != nil || report.Total != 0 {
			t.Fatalf("%+v, %v", report, err)
		}
	}
	if done.Load() < 100 {
		t.Errorf("only %d transactions went in", done.Load())
	}
}

// Tokens that lead to somebody who was erased are found.
func TestSweepTokensOfTheErased(t *testing.T) {
	s := newSwept(t)
	erasures := phi.NewErasures(phi.ErasureConfig{Records: s.Records, Storage: s.Storage, Level: audit.Process})
	e, _, err := erasures.Request(t.Context(), officer("Diaz"), "p1", "case 1")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := erasures.Approve(t.Context(), officer("Amari"), e.ID); err != nil {
		t.Fatal(err)
	}
	s.ship(t)
	storage := &phitest.Sweep{Of: s.Storage}
	if report, err := s.sweep(storage); err != nil || report.Total != 0 {
		t.Fatalf("after an erasure: %+v, %v", report, err)
	}
	erased := phi.Ref{Type: "Patient", ID: "p1"}
	s.Storage.Forge(erased, phi.Ref{Type: "Patient", ID: "p2"})
	report, err := s.sweep(storage)
	if err != nil || len(report.Findings) != 1 || report.Findings[0].Kind != phi.FindingTokens || report.Findings[0].Ref != erased {
		t.Errorf("%+v, %v", report, err)
	}
}

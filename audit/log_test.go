package audit_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/audit/audittest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func open(t testing.TB, cfg audit.Config) *audit.Log {
	t.Helper()
	l, err := audit.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// ship starts Run and stops it with the test.
func ship(t testing.TB, l *audit.Log) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
}

func read(id string) *audit.Event {
	return &audit.Event{
		Type: audit.TypeREST, Interaction: "read", Action: audit.ActionRead, Patient: id,
		Agent:    audit.Agent{User: "dr-rivera", Client: "app", Session: "s-1", Roles: []string{"clinician"}, Network: "127.0.0.1"},
		Entities: []audit.Entity{{Type: "Patient", ID: id, Version: 1}}, Classes: []string{"name", "clinical"}, Purpose: "TREAT",
		Decision: audit.Decision{Allowed: true, Rule: "clinician/treatment", Reason: "allowed", View: "full", Policy: 3}, RequestID: "r-" + id,
	}
}

func drain(t testing.TB, l *audit.Log) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := l.Drain(ctx); err != nil {
		t.Fatal(err)
	}
}

func TestEventReachesStorageOnce(t *testing.T) {
	var storage audittest.Storage
	l := open(t, audit.Config{Dir: t.TempDir(), Storage: &storage})
	ship(t, l)
	for _, level := range []audit.Level{audit.Process, audit.Power, audit.Database} {
		e := read(fmt.Sprint("p", level))
		receipt, err := l.Record(t.Context(), level, e)
		if err != nil {
			t.Fatal(err)
		}
		if !receipt.Covers("Patient", e.Patient, "") || !receipt.Covers("Observation", "o1", e.Patient) || receipt.Covers("Patient", "other", "other") {
			t.Errorf("receipt at level %d covers the wrong records", level)
		}
	}
	drain(t, l)
	rows := storage.Rows()
	if len(rows) != 4 || rows[0].Event.Interaction != "110120" || rows[3].Event.Patient != "pdatabase" {
		t.Fatalf("stored %d rows: %+v", len(rows), rows)
	}
	if s := l.Stats(); s.Recorded != 4 || s.Shipped != 4 || s.Pending != 0 || s.Rejected != 0 {
		t.Errorf("stats %+v", s)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if rows := storage.Rows(); len(rows) != 5 || rows[4].Event.Interaction != "110121" {
		t.Errorf("the stop event is not stored: %d rows", len(rows))
	}
	if _, err := l.Record(t.Context(), audit.Process, read("late")); !errors.Is(err, audit.ErrUnavailable) {
		t.Errorf("Record after Close: %v", err)
	}
	if l.Healthy() == nil {
		t.Error("a closed log is healthy")
	}
}

func TestRestartContinuesTheStream(t *testing.T) {
	dir := t.TempDir()
	var storage audittest.Storage
	var stream audit.StreamID
	for round := range 3 {
		l := open(t, audit.Config{Dir: dir, Storage: &storage})
		if round > 0 && l.Stream() != stream {
			t.Fatalf("round %d began another stream", round)
		}
		stream = l.Stream()
		if _, err := l.Record(t.Context(), audit.Power, read("p"), read("q")); err != nil {
			t.Fatal(err)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	next := uint64(0)
	for r, err := range audit.Records(audit.OS{}, filepath.Join(dir, stream.String()), stream) {
		if err != nil || r.Seq != next {
			t.Fatalf("record %d is %d, %v", next, r.Seq, err)
		}
		next++
	}
	if next != 12 {
		t.Fatalf("the journal has %d records", next)
	}
	l := open(t, audit.Config{Dir: dir, Storage: &storage})
	ship(t, l)
	drain(t, l)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	for i, r := range storage.Rows() {
		if r.Seq != uint64(i) || r.Stream != stream {
			t.Fatalf("row %d is %d of %s", i, r.Seq, r.Stream)
		}
	}
}

func TestSecondProcessHasItsOwnStream(t *testing.T) {
	dir := t.TempDir()
	var storage audittest.Storage
	a, b := open(t, audit.Config{Dir: dir}), open(t, audit.Config{Dir: dir, Storage: &storage})
	if a.Stream() == b.Stream() {
		t.Fatal("two logs write one stream")
	}
	if _, err := a.Record(t.Context(), audit.Power, read("orphan")); err != nil {
		t.Fatal(err)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	ship(t, b)
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		found, _ := storage.Find(t.Context(), audit.Query{Terms: []audit.Term{audit.Is(audit.FieldPatient, "orphan")}})
		if len(found.Events) == 1 && found.Events[0].Stream == a.Stream() {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the dead stream was not shipped")
		}
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestGroupCommit(t *testing.T) {
	l := open(t, audit.Config{Dir: t.TempDir(), SegmentBytes: 64 << 10})
	var writers sync.WaitGroup
	for w := range 64 {
		writers.Go(func() {
			for i := range 50 {
				if _, err := l.Record(t.Context(), audit.Power, read(fmt.Sprint(w, "-", i))); err != nil {
					t.Error(err)
				}
			}
		})
	}
	writers.Wait()
	s := l.Stats()
	if s.Recorded != 64*50+1 || s.Syncs >= s.Recorded/2 {
		t.Errorf("%d events took %d syncs", s.Recorded, s.Syncs)
	}
	t.Logf("%d events, %d groups, %d syncs", s.Recorded, s.GroupCommits, s.Syncs)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

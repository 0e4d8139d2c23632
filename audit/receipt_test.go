package audit_test

import (
	"context"
	"testing"

	"github.com/chartkeep/chartkeep/audit"
)

// A receipt is for all events of its group, in their order.
func TestReceiptOfSeveral(t *testing.T) {
	l := open(t, audit.Config{Dir: t.TempDir()})
	defer l.Close()
	events := []*audit.Event{read("first"), read("second"), read("third")}
	receipt, err := l.Record(t.Context(), audit.Process, events...)
	if err != nil {
		t.Fatal(err)
	}
	kept := receipt.Events()
	if len(kept) != len(events) {
		t.Fatalf("%d events of %d", len(kept), len(events))
	}
	for i, e := range events {
		if kept[i] != e {
			t.Errorf("event %d is another", i)
		}
		if !receipt.Covers("Patient", e.Patient, "") {
			t.Errorf("%s is not covered", e.Patient)
		}
	}
	if receipt.Covers("Patient", "fourth", "") {
		t.Error("a patient of no event is covered")
	}
	if n := len(audit.Receipt{}.Events()); n != 0 {
		t.Errorf("no receipt is for %d events", n)
	}
}

// Who records an event that it has pays for no other memory. A group has its place in the syncer's list, shared by all that come
// together; here each comes alone.
func TestRecordAllocates(t *testing.T) {
	if audit.RaceDetector {
		t.Skip("the race detector empties pools")
	}
	l := open(t, audit.Config{Dir: t.TempDir()})
	defer l.Close()
	e := read("p1")
	if n := testing.AllocsPerRun(300, func() {
		e.ID = audit.ID{}
		if _, err := l.Record(context.Background(), audit.Power, e); err != nil {
			t.Error(err)
		}
	}); n > 1 {
		t.Errorf("%v allocations an event", n)
	}
}

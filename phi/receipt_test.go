package phi

import (
	"bytes"
	"errors"
	"log/slog"
	"testing"

	"github.com/chartkeep/chartkeep/audit"
)

// TestReceiptOpens opens a row against receipts of real events: only those that are about it, or its patient, do.
func TestReceiptOpens(t *testing.T) {
	log, err := audit.Open(audit.Config{Dir: t.TempDir(), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	aead := randomCipher(t)
	row := identity()
	row.Ref = Ref{Type: "Observation", ID: "o-1"}
	nobodys := row
	nobodys.Patients = nil
	plain := contents()
	for _, s := range []*Sealed{&row, &nobodys} {
		if err := sealRow(aead, s, &plain, nil); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		name         string
		event        audit.Event
		row, nobodys bool
	}{
		{"the record", audit.Event{Interaction: "read", Entities: []audit.Entity{{Type: "Observation", ID: "o-1"}}}, true, true},
		{"its first patient", audit.Event{Interaction: "read", Patient: "a-1"}, true, false},
		{"its second patient", audit.Event{Interaction: "read", Patient: "b-2"}, true, false},
		{"a search of its type", audit.Event{Interaction: "search-type", Entities: []audit.Entity{{Type: "Observation"}}}, true, true},
		{"another record", audit.Event{Interaction: "read", Entities: []audit.Entity{{Type: "Observation", ID: "o-2"}}}, false, false},
		{"another type", audit.Event{Interaction: "read", Entities: []audit.Entity{{Type: "Condition", ID: "o-1"}}}, false, false},
		{"another patient", audit.Event{Interaction: "read", Patient: "c-3"}, false, false},
		{"a search of another type", audit.Event{Interaction: "search-type", Entities: []audit.Entity{{Type: "Condition"}}}, false, false},
		{"a refusal", audit.Event{Interaction: "read", Outcome: audit.MinorFailure, Patient: "a-1", Entities: []audit.Entity{{Type: "Observation", ID: "o-1"}}}, false, false},
	} {
		event := tt.event
		event.Type, event.Action = audit.TypeREST, audit.ActionRead
		receipt, err := log.Record(t.Context(), audit.Process, &event)
		if err != nil {
			t.Fatal(err)
		}
		check := func(what string, s *Sealed, want bool) {
			var dst [NumClasses][]byte
			err := openRow(aead, s, AllClasses, receipt, &dst, new([]byte))
			switch {
			case want && (err != nil || !bytes.Equal(dst[ClassName], plain[ClassName])):
				t.Errorf("%s does not open %s: %v", tt.name, what, err)
			case !want && (!errors.Is(err, errNoReceipt) || dst[ClassName] != nil):
				t.Errorf("%s opens %s: %v", tt.name, what, err)
			}
		}
		check("a patient's record", &row, tt.row)
		check("a record of nobody's", &nobodys, tt.nobodys)
	}
}

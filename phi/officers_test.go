package phi_test

import (
	"errors"
	"testing"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/phi"
	"github.com/chartkeep/chartkeep/phi/phitest"
)

func TestQueryTextOpensAgainstItsReceiptOnly(t *testing.T) {
	room := phitest.Open(t, phitest.Options{})
	event := &audit.Event{Interaction: "search-type", Entities: []audit.Entity{{Type: "Patient"}}, Query: room.Records.SealQuery("family=Novak", "Patient")}
	if _, err := room.Log.Record(t.Context(), audit.Process, event); err != nil {
		t.Fatal(err)
	}
	look := func(id string) audit.Receipt {
		r, err := room.Log.Record(t.Context(), audit.Process, &audit.Event{
			Type: audit.TypeAuditLogUsed, Interaction: "audit-read", Entities: []audit.Entity{{Type: "AuditEvent", ID: id}},
		})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	if text, err := room.Records.OpenQuery(event, look(event.ID.String())); err != nil || text != "family=Novak" {
		t.Errorf("text %q, %v", text, err)
	}
	for name, receipt := range map[string]audit.Receipt{"none": {}, "of another event": look(audit.ID{1}.String())} {
		var e *phi.Error
		if text, err := room.Records.OpenQuery(event, receipt); !errors.As(err, &e) || e.Kind != phi.Denied || text != "" {
			t.Errorf("receipt %s: %q, %v", name, text, err)
		}
	}
	moved := *event
	moved.Entities = []audit.Entity{{Type: "Observation"}}
	var e *phi.Error
	if _, err := room.Records.OpenQuery(&moved, look(event.ID.String())); !errors.As(err, &e) || e.Kind != phi.Integrity {
		t.Errorf("text of another type: %v", err)
	}
}

package phi_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/audit/audittest"
	"github.com/chartkeep/chartkeep/phi"
	"github.com/chartkeep/chartkeep/phi/phitest"
)

func officer(name string) phi.Officer {
	return phi.Officer{Agent: audit.Agent{User: name, Client: "test"}, RequestID: "erasure", Decision: audit.Decision{Allowed: true, Rule: "officer:erasure:approve"}}
}

// TestErasureOutcomeIsTold lets the process die between the erasure and the event of its outcome: another tells it, once.
func TestErasureOutcomeIsTold(t *testing.T) {
	now := time.Now()
	trail := &audittest.Storage{}
	room := phitest.Open(t, phitest.Options{Trail: trail, Now: func() time.Time { return now }})
	backend := phitest.Caller(phitest.Principal("backend", ""))
	if _, err := room.Records.Update(t.Context(), backend, phi.Ref{Type: "Patient", ID: "p-1"}, []byte(`{"resourceType":"Patient","id":"p-1"}`), 0); err != nil {
		t.Fatal(err)
	}
	erasures := phi.NewErasures(phi.ErasureConfig{Records: room.Records, Storage: room.Storage})
	e, scope, err := erasures.Request(t.Context(), officer("Diaz"), "p-1", "case 1")
	if err != nil {
		t.Fatal(err)
	}
	var made []byte
	err = room.Storage.Erase(t.Context(), e.ID, "Amari", scope.Subjects[0], func(*phi.ErasureScope) ([]byte, error) {
		c := phi.Certificate{Erasure: e.ID.String(), Patients: []string{"p-1", "p-0"}, Events: []string{e.RequestEvent.String(), "01234567-89ab-7def-8123-456789abcdef"}}
		text, err := c.Text()
		made = []byte(text)
		return made, err
	})
	if err != nil {
		t.Fatal(err)
	}
	if n, err := erasures.Tell(t.Context()); n != 0 || err != nil {
		t.Errorf("told %d, %v, while whoever erased may still do it", n, err)
	}
	now = now.Add(2 * time.Minute)
	for _, want := range []int{1, 0} {
		if n, err := erasures.Tell(t.Context()); n != want || err != nil {
			t.Errorf("told %d, %v; want %d", n, err, want)
		}
	}
	found, err := trail.Find(t.Context(), audit.Query{Terms: []audit.Term{audit.Is(audit.FieldInteraction, "patient-shred")}, Limit: 10})
	if err != nil || len(found.Events) != 1 {
		t.Fatalf("%d events, %v", len(found.Events), err)
	}
	if got := found.Events[0].Event; got.Patient != "p-1" || got.Agent.User != "Amari" || got.Correlation.String() != "01234567-89ab-7def-8123-456789abcdef" || got.Outcome != audit.Success ||
		len(got.Entities) != 2 || got.Entities[1] != (audit.Entity{Type: "Patient", ID: "p-0"}) {
		t.Errorf("told %+v", got)
	}
	if c, err := phi.ReadCertificate(made); err != nil || c.Erasure != e.ID.String() {
		t.Errorf("the certificate reads back as %+v, %v", c, err)
	}
	if _, err := phi.ReadCertificate([]byte(strings.Replace(string(made), "certificate v1", "certificate v2", 1))); err == nil {
		t.Error("another header was read")
	}
}

// TestErasureOfEditedRow does not follow a row that an administrator has pointed at another person's keys.
func TestErasureOfEditedRow(t *testing.T) {
	room := phitest.Open(t, phitest.Options{Trail: &audittest.Storage{}})
	backend := phitest.Caller(phitest.Principal("backend", ""))
	for _, id := range []string{"p-1", "p-2"} {
		if _, err := room.Records.Update(t.Context(), backend, phi.Ref{Type: "Patient", ID: id}, []byte(`{"resourceType":"Patient","id":"`+id+`"}`), 0); err != nil {
			t.Fatal(err)
		}
	}
	var other phi.UUID
	room.Storage.Edit(phi.Ref{Type: "Patient", ID: "p-2"}, func(s *phi.Sealed) { other = s.Subject })
	room.Storage.Edit(phi.Ref{Type: "Patient", ID: "p-1"}, func(s *phi.Sealed) { s.Subject = other })
	erasures := phi.NewErasures(phi.ErasureConfig{Records: room.Records, Storage: room.Storage})
	_, _, err := erasures.Request(t.Context(), officer("Diaz"), "p-1", "case 1")
	if e, ok := errors.AsType[*phi.Error](err); !ok || e.Kind != phi.Integrity {
		t.Errorf("requested: %v", err)
	}
	if n := room.Storage.Count("RequestErasure"); n != 0 {
		t.Errorf("%d requests were stored", n)
	}
}

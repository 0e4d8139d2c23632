package phi_test

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/phi"
)

const forged = `{"resourceType":"AuditEvent","id":"forged","type":{"system":"http://terminology.hl7.org/CodeSystem/audit-event-type","code":"rest"},` +
	`"recorded":"2026-01-01T00:00:00Z","agent":[{"requestor":true}],"source":{"observer":{"display":"x"}}}`

// TestTrailIsNoRecord tries every door with an AuditEvent, as the caller who may do the most.
func TestTrailIsNoRecord(t *testing.T) {
	w := newWard(t)
	ctx := context.Background()
	ref := phi.Ref{Type: "AuditEvent", ID: "forged"}
	for name, door := range map[string]struct {
		try  func() error
		kind phi.Kind
	}{
		"create": {func() error { _, err := w.Records.Create(ctx, backend(), ref.Type, []byte(forged), nil); return err }, phi.NotAllowed},
		"conditional create": {func() error {
			_, err := w.Records.Create(ctx, backend(), ref.Type, []byte(forged), params("_id", "forged"))
			return err
		}, phi.NotAllowed},
		"create under another type": {func() error { _, err := w.Records.Create(ctx, backend(), "Patient", []byte(forged), nil); return err }, phi.Invalid},
		"update":                    {func() error { _, err := w.Records.Update(ctx, backend(), ref, []byte(forged), 0); return err }, phi.NotAllowed},
		"update of a version":       {func() error { _, err := w.Records.Update(ctx, backend(), ref, []byte(forged), 1); return err }, phi.NotAllowed},
		"delete":                    {func() error { _, err := w.Records.Delete(ctx, backend(), ref, 0); return err }, phi.NotAllowed},
		"read":                      {func() error { _, err := w.Records.Read(ctx, backend(), ref); return err }, phi.NotFound},
		"vread":                     {func() error { _, err := w.Records.ReadVersion(ctx, backend(), ref, 1); return err }, phi.NotFound},
		"history":                   {func() error { _, err := w.Records.History(ctx, backend(), ref, 0, ""); return err }, phi.NotFound},
		"search":                    {func() error { _, err := w.Records.Search(ctx, backend(), ref.Type, nil, false); return err }, phi.NotFound},
		"transaction, POST": {func() error {
			_, err := w.Records.Bundle(ctx, backend(), bundle("transaction", [5]string{"", "POST", "Patient", adam}, [5]string{"", "POST", "AuditEvent", forged}))
			return err
		}, phi.NotAllowed},
		"transaction, PUT": {func() error {
			_, err := w.Records.Bundle(ctx, backend(), bundle("transaction", [5]string{"", "POST", "Patient", adam}, [5]string{"", "PUT", "AuditEvent/forged", forged}))
			return err
		}, phi.NotAllowed},
		"transaction, DELETE": {func() error {
			_, err := w.Records.Bundle(ctx, backend(), bundle("transaction", [5]string{"", "POST", "Patient", adam}, [5]string{"", "DELETE", "AuditEvent/forged"}))
			return err
		}, phi.NotAllowed},
		"transaction, GET": {func() error {
			_, err := w.Records.Bundle(ctx, backend(), bundle("transaction", [5]string{"", "POST", "Patient", adam}, [5]string{"", "GET", "AuditEvent?patient=1"}))
			return err
		}, phi.NotFound},
		"conditional reference": {func() error {
			_, err := w.Records.Bundle(ctx, backend(), bundle("transaction", [5]string{"", "POST", "Patient", strings.Replace(adam, `"gender"`,
				`"link":[{"other":{"reference":"AuditEvent?patient=1"},"type":"seealso"}],"gender"`, 1)}))
			return err
		}, phi.NotFound},
	} {
		t.Run(name, func(t *testing.T) {
			rows := w.Storage.Len()
			var err error
			events := w.during(func() { err = door.try() })
			wantKind(t, err, door.kind)
			if w.Storage.Len() != rows {
				t.Error("something was stored")
			}
			if len(events) == 0 || !slices.ContainsFunc(events, func(e audit.Event) bool { return e.Outcome == audit.MinorFailure }) {
				t.Errorf("recorded %+v", events)
			}
		})
	}
}

// TestTrailInBatchAndImport: an AuditEvent is refused by name, and the rest goes on.
func TestTrailInBatchAndImport(t *testing.T) {
	w := newWard(t)
	ctx := context.Background()
	clinic := `{"resourceType":"Organization","id":"clinic","name":"Clinic"}`
	entries := [][5]string{
		{"", "POST", "AuditEvent", forged}, {"", "PUT", "AuditEvent/forged", forged}, {"", "PUT", "Organization/clinic", clinic},
	}
	result, err := w.Records.Bundle(ctx, backend(), bundle("batch", entries...))
	if err != nil {
		t.Fatal(err)
	}
	for i, e := range result.Entries {
		if refused := e.Err != nil && e.Err.Kind == phi.NotAllowed && strings.HasPrefix(e.Err.Issues[0].Expression, "Bundle.entry["); refused != (i < 2) {
			t.Errorf("entry %d: %+v", i, e.Err)
		}
	}
	for _, kind := range []string{"transaction", "batch", "collection"} {
		var in *phi.ImportResult
		events := w.during(func() { in, err = w.Records.Import(ctx, backend(), bundle(kind, entries[1:]...), false) })
		if err != nil || len(in.Failed) != 1 || in.Failed[0].Entry != 0 || in.Failed[0].Err.Kind != phi.NotAllowed || in.Written+in.Unchanged != 1 {
			t.Errorf("importing a %s: %+v, %v", kind, in, err)
		}
		if last := events[len(events)-1]; last.Outcome != audit.MinorFailure || len(last.Entities) != 1 || last.Entities[0].Type != "AuditEvent" {
			t.Errorf("importing a %s recorded %+v", kind, last)
		}
	}
	in, err := w.Records.Import(ctx, backend(), []byte(forged), false)
	if err != nil || len(in.Failed) != 1 || in.Failed[0].Err.Kind != phi.NotAllowed {
		t.Errorf("importing one alone: %+v, %v", in, err)
	}
}

// TestQueryOverPatients: a search that discloses N patients is N events beside that of the query, tied by the request's id and
// its sealed text.
func TestQueryOverPatients(t *testing.T) {
	w := newWard(t)
	caller := backend()
	caller.RequestID = "request-77"
	var page *phi.Page
	var err error
	events := w.during(func() {
		page, err = w.Records.Search(context.Background(), caller, "Patient", params("name", "lindq,lindg"), false)
	})
	if err != nil || len(page.Resources) != 2 || len(events) != 3 {
		t.Fatalf("recorded %d events, %v", len(events), err)
	}
	for _, e := range events {
		if e.RequestID != "request-77" || len(e.Query) == 0 || !bytes.Equal(e.Query, events[0].Query) || e.Type != audit.TypeREST {
			t.Errorf("recorded %+v", e)
		}
	}
}

// TestDisclosures: what leaves for a purpose that the patient can ask an accounting of is recorded as such.
func TestDisclosures(t *testing.T) {
	w := newWard(t)
	ctx := context.Background()
	research := func() *phi.Caller {
		c := backend()
		c.Purpose = "HRESCH"
		return c
	}
	for name, c := range map[string]struct {
		do   func() error
		kind []audit.Type
	}{
		"read for treatment": {func() error { _, err := w.Records.Read(ctx, backend(), w.mine.Ref); return err }, []audit.Type{audit.TypeREST}},
		"read for research":  {func() error { _, err := w.Records.Read(ctx, research(), w.mineObs.Ref); return err }, []audit.Type{audit.TypeExport}},
		"history for research": {func() error { _, err := w.Records.History(ctx, research(), w.mineObs.Ref, 0, ""); return err },
			[]audit.Type{audit.TypeExport}},
		"search for research": {func() error {
			_, err := w.Records.Search(ctx, research(), "Patient", params("name", "lindq,lindg"), false)
			return err
		},
			[]audit.Type{audit.TypeREST, audit.TypeExport, audit.TypeExport}},
		"de-identified": {func() error {
			_, err := w.Records.Search(ctx, w.as("researcher"), "Patient", params("gender", "male"), false)
			return err
		}, []audit.Type{audit.TypeREST, audit.TypeREST}},
		"nothing found": {func() error {
			_, err := w.Records.Read(ctx, research(), phi.Ref{Type: "Patient", ID: "nobody"})
			if e, ok := errors.AsType[*phi.Error](err); ok && e.Kind == phi.NotFound {
				return nil
			}
			return err
		}, []audit.Type{audit.TypeREST}},
	} {
		var err error
		events := w.during(func() { err = c.do() })
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		var got []audit.Type
		for _, e := range events {
			got = append(got, e.Type)
			if e.Type == audit.TypeExport && (e.Action != audit.ActionRead || e.Patient == "" || len(e.Entities) == 0) {
				t.Errorf("%s: %+v", name, e)
			}
		}
		if !slices.Equal(got, c.kind) {
			t.Errorf("%s recorded %v, want %v", name, got, c.kind)
		}
	}
}

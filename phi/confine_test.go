package phi_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/auth"
	"github.com/chartkeep/chartkeep/phi"
	"github.com/chartkeep/chartkeep/phi/phitest"
)

const (
	categories = "http://terminology.hl7.org/CodeSystem/observation-category"
	laboratory = "user/Observation.cruds?category=" + categories + "|laboratory"
)

// observed is an Observation of a category.
func observed(patient, category string) string {
	return fmt.Sprintf(`{"resourceType":"Observation","status":"final","category":[{"coding":[{"system":%q,"code":%q}]}],`+
		`"code":{"coding":[{"system":"http://loinc.org","code":"29463-7"}]},"subject":{"reference":"Patient/%s"},"effectiveDateTime":"2024-05-06",`+
		`"valueQuantity":{"value":71.10,"unit":"kg"},"identifier":[{"system":"http://lab.test","value":"%s-%s"}]}`, categories, category, patient, category, patient)
}

// scoped is a caller whose token has other scopes.
func scoped(c *phi.Caller, scopes string) *phi.Caller {
	p := *c.Principal
	p.Scopes = auth.ParseScopes(scopes)
	return phitest.Caller(&p)
}

func withID(body, id string) string { return strings.Replace(body, `{`, `{"id":"`+id+`",`, 1) }

// wantScopeRefusal holds that the trail tells of a look into a record that came to nothing, and why.
func wantScopeRefusal(t *testing.T, events []audit.Event, announced bool) {
	t.Helper()
	if len(events) == 0 {
		t.Fatal("nothing was recorded")
	}
	last := events[len(events)-1]
	if last.Outcome != audit.MinorFailure || last.Decision.Allowed || last.Decision.Reason != string(auth.ReasonScope) || len(last.Classes) != 0 {
		t.Errorf("the refusal is recorded as %+v", last)
	}
	if !slices.ContainsFunc(last.Entities, func(e audit.Entity) bool {
		return e.Type == "scope" && strings.HasPrefix(e.ID, "category="+categories+"|laboratory")
	}) {
		t.Errorf("the refusal does not say what the scopes left: %+v", last.Entities)
	}
	intents := 0
	for _, e := range events {
		switch {
		case e.Outcome == audit.Intent:
			intents++
			if e.Correlation != events[0].ID {
				t.Errorf("intent without its correlation: %+v", e)
			}
		case e.Outcome == audit.Success && e.OutcomeDesc == "":
			t.Errorf("a disclosure is recorded that was none: %+v", e)
		}
	}
	if announced != (intents > 0) {
		t.Errorf("%d intents are recorded, want some: %v", intents, announced)
	}
}

func TestConfinedReads(t *testing.T) {
	w := newWard(t)
	in := w.create("Observation", observed(w.mine.ID, "laboratory"))
	out := w.create("Observation", observed(w.mine.ID, "vital-signs"))
	foreign := w.create("Observation", observed(w.other.ID, "laboratory"))
	caller := func() *phi.Caller { return scoped(w.as("dr-rivera"), laboratory) }
	ctx := context.Background()
	nothing := wantKind(t, second(w.Records.Read(ctx, caller(), phi.Ref{Type: "Observation", ID: "there-is-none"})), phi.NotFound)

	for name, read := range map[string]func(ref phi.Ref) (any, error){
		"read":    func(ref phi.Ref) (any, error) { return w.Records.Read(ctx, caller(), ref) },
		"vread":   func(ref phi.Ref) (any, error) { return w.Records.ReadVersion(ctx, caller(), ref, 1) },
		"history": func(ref phi.Ref) (any, error) { return w.Records.History(ctx, caller(), ref, 0, "") },
	} {
		t.Run(name, func(t *testing.T) {
			var err error
			events := w.during(func() { _, err = read(in.Ref) })
			if err != nil {
				t.Fatal(err)
			}
			if len(events) != 2 || events[0].Outcome != audit.Intent || events[1].Outcome != audit.Success || events[1].Correlation != events[0].ID ||
				events[0].Patient != w.mine.ID || events[1].Patient != w.mine.ID || !events[1].Decision.Allowed || len(events[1].Classes) == 0 {
				t.Errorf("recorded %+v", events)
			}
			events = w.during(func() { _, err = read(out.Ref) })
			if got := wantKind(t, err, phi.NotFound); got.Issues[0] != nothing.Issues[0] {
				t.Errorf("a record outside the scopes is refused with %+v, none with %+v", got.Issues, nothing.Issues)
			}
			wantScopeRefusal(t, events, true)
			if len(events) != 2 || events[1].Correlation != events[0].ID || events[1].Patient != w.mine.ID {
				t.Errorf("recorded %+v", events)
			}
			_, err = read(foreign.Ref)
			wantKind(t, err, phi.NotFound)
		})
	}
	if _, err := w.Records.Delete(ctx, backend(), in.Ref, 0); err != nil {
		t.Fatal(err)
	}
	// What is left of a deleted record does not say whether it was inside.
	wantKind(t, second(w.Records.Read(ctx, caller(), in.Ref)), phi.NotFound)
	wantKind(t, second(w.Records.History(ctx, caller(), in.Ref, 0, "")), phi.NotFound)
}

func second[T any](_ T, err error) error { return err }

// A record that changed its category: each version decides about itself.
func TestConfinedHistory(t *testing.T) {
	w := newWard(t)
	ctx := context.Background()
	caller := scoped(w.as("dr-rivera"), laboratory)
	ref := w.create("Observation", observed(w.mine.ID, "laboratory")).Ref
	for _, category := range []string{"vital-signs", "survey", "laboratory"} {
		if _, err := w.Records.Update(ctx, backend(), ref, []byte(withID(observed(w.mine.ID, category), ref.ID)), 0); err != nil {
			t.Fatal(err)
		}
	}
	p, err := w.Records.History(ctx, caller, ref, 0, "")
	if err != nil {
		t.Fatal(err)
	}
	if len(p.Resources) != 2 || p.Resources[0].Version != 4 || p.Resources[1].Version != 1 || p.Total != 2 {
		t.Errorf("shown: %d versions, total %d", len(p.Resources), p.Total)
	}
	wantKind(t, second(w.Records.ReadVersion(ctx, caller, ref, 2)), phi.NotFound)
	if _, err := w.Records.ReadVersion(ctx, caller, ref, 1); err != nil {
		t.Error(err)
	}
	// Deleted, and made again: what is left of the deleted version says nothing by which it could be inside.
	if _, err := w.Records.Delete(ctx, backend(), ref, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Records.Update(ctx, backend(), ref, []byte(withID(observed(w.mine.ID, "laboratory"), ref.ID)), 0); err != nil {
		t.Fatal(err)
	}
	if p, err = w.Records.History(ctx, caller, ref, 0, ""); err != nil || len(p.Resources) != 3 || p.Total != 3 || p.Resources[0].Version != 6 || p.Resources[1].Version != 4 {
		t.Errorf("shown: %+v, %v", p, err)
	}
	if _, err := w.Records.Update(ctx, backend(), ref, []byte(withID(observed(w.mine.ID, "survey"), ref.ID)), 0); err != nil {
		t.Fatal(err)
	}
	events := w.during(func() { _, err = w.Records.History(ctx, caller, ref, 0, "") })
	wantKind(t, err, phi.NotFound)
	wantScopeRefusal(t, events, true)
}

// What a search shows, counts and pages over is the same whether or not there are records outside the scopes.
func TestConfinedSearch(t *testing.T) {
	type world struct {
		*ward
		labs []string
	}
	make := func(hidden int) world {
		w := world{ward: newWard(t)}
		for i := range 7 {
			for range hidden {
				w.create("Observation", observed(w.mine.ID, "vital-signs"))
			}
			w.labs = append(w.labs, w.create("Observation", observed(w.mine.ID, "laboratory")).ID)
			_ = i
		}
		for range hidden {
			w.create("Observation", observed(w.mine.ID, "survey"))
		}
		slices.Sort(w.labs)
		return w
	}
	// pages is what a caller sees: how many hits on each page, its total, whether it goes on; and the ids.
	pages := func(w world, caller *phi.Caller, count string, extra ...string) (shape string, ids []string) {
		query := params(append([]string{"patient", w.mine.ID, "_count", count}, extra...)...)
		for {
			p, err := w.Records.Search(context.Background(), caller, "Observation", query, true)
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range p.Resources {
				ids = append(ids, r.ID)
			}
			shape += fmt.Sprintf("%d/%d/%v ", len(p.Resources), p.Total, p.Next != "")
			if p.Next == "" {
				return shape, ids
			}
			query = params("_page", p.Next)
		}
	}
	alone, among := make(0), make(3)
	for _, count := range []string{"1", "2", "3", "6", "7", "8", "200"} {
		for _, extra := range [][]string{nil, {"code", "29463-7"}, {"category", "vital-signs,laboratory"}, {"category", "survey"}, {"_lastUpdated", "ge2020"}} {
			want, _ := pages(alone, scoped(alone.as("dr-rivera"), laboratory), count, extra...)
			got, ids := pages(among, scoped(among.as("dr-rivera"), laboratory), count, extra...)
			if got != want {
				t.Errorf("_count=%s %v: pages are %s with hidden records, %s without", count, extra, got, want)
			}
			if slices.Sort(ids); len(ids) > 0 && !slices.Equal(ids, among.labs) {
				t.Errorf("_count=%s %v: found %d records", count, extra, len(ids))
			}
		}
	}
	// By id, one in and one out.
	out := among.create("Observation", observed(among.mine.ID, "vital-signs"))
	var p *phi.Page
	events := among.during(func() {
		var err error
		if p, err = among.Records.Search(context.Background(), scoped(among.as("dr-rivera"), laboratory), "Observation", params("_id", among.labs[0]+","+out.ID), true); err != nil {
			t.Fatal(err)
		}
	})
	if len(p.Resources) != 1 || p.Resources[0].ID != among.labs[0] || p.Total != 1 {
		t.Errorf("found %d of total %d", len(p.Resources), p.Total)
	}
	for _, e := range events {
		if slices.ContainsFunc(e.Entities, func(x audit.Entity) bool { return x.ID == out.ID }) {
			t.Error("an event tells of a disclosure that was none")
		}
	}
}

func TestConfinedWrites(t *testing.T) {
	w := newWard(t)
	ctx := context.Background()
	caller := func() *phi.Caller { return scoped(w.as("dr-rivera"), laboratory) }
	lab, vital := observed(w.mine.ID, "laboratory"), observed(w.mine.ID, "vital-signs")
	in, out := w.create("Observation", lab).Ref, w.create("Observation", vital).Ref

	if _, err := w.Records.Create(ctx, caller(), "Observation", []byte(lab), nil); err != nil {
		t.Error(err)
	}
	var err error
	events := w.during(func() { _, err = w.Records.Create(ctx, caller(), "Observation", []byte(vital), nil) })
	wantKind(t, err, phi.Denied)
	wantScopeRefusal(t, events, false)
	if _, err := w.Records.Update(ctx, caller(), in, []byte(withID(lab, in.ID)), 0); err != nil {
		t.Error(err)
	}
	wantKind(t, second(w.Records.Update(ctx, caller(), in, []byte(withID(vital, in.ID)), 0)), phi.Denied)       // out of the scopes
	events = w.during(func() { _, err = w.Records.Update(ctx, caller(), out, []byte(withID(lab, out.ID)), 0) }) // into them
	wantKind(t, err, phi.NotFound)
	wantScopeRefusal(t, events, true)
	events = w.during(func() { _, err = w.Records.Delete(ctx, caller(), out, 0) })
	wantKind(t, err, phi.NotFound)
	wantScopeRefusal(t, events, true)
	// With a version the answers are those for a record that is not there.
	wantKind(t, second(w.Records.Update(ctx, caller(), out, []byte(withID(lab, out.ID)), 1)), phi.PreconditionFailed)
	wantKind(t, second(w.Records.Update(ctx, caller(), phi.Ref{Type: "Observation", ID: "none"}, []byte(withID(lab, "none")), 1)), phi.PreconditionFailed)
	wantKind(t, second(w.Records.Delete(ctx, caller(), out, 1)), phi.NotFound)
	wantKind(t, second(w.Records.Delete(ctx, caller(), phi.Ref{Type: "Observation", ID: "none"}, 1)), phi.NotFound)
	if _, err := w.Records.Delete(ctx, caller(), in, 0); err != nil {
		t.Error(err)
	}
	// Each letter has its own scopes.
	created := scoped(w.as("dr-rivera"), "user/Observation.c?category=laboratory user/Observation.r")
	made, err := w.Records.Create(ctx, created, "Observation", []byte(lab), nil)
	if err != nil {
		t.Fatal(err)
	}
	wantKind(t, second(w.Records.Update(ctx, created, made.Ref, []byte(withID(lab, made.ID)), 0)), phi.Denied)
	if _, err := w.Records.Read(ctx, created, out); err != nil {
		t.Error(err)
	}
	// In a transaction one entry outside fails all; in a batch it fails alone.
	entries := [][5]string{{"urn:uuid:1", "POST", "Observation", lab, ""}, {"urn:uuid:2", "POST", "Observation", vital, ""}}
	wantKind(t, second(w.Records.Bundle(ctx, caller(), bundle("transaction", entries...))), phi.Denied)
	result, err := w.Records.Bundle(ctx, caller(), bundle("batch", append(entries, [5]string{"", "GET", "Observation/" + out.ID, "", ""})...))
	if err != nil {
		t.Fatal(err)
	}
	if result.Entries[0].Err != nil || result.Entries[1].Err == nil || result.Entries[1].Err.Kind != phi.Denied || result.Entries[2].Err == nil || result.Entries[2].Err.Kind != phi.NotFound {
		t.Errorf("batch: %+v", result.Entries)
	}
}

// Who may not know of a record gets the same answer to a conditional create whether or not it exists; who may know gets it.
func TestConditionalCreateTellsNothingHidden(t *testing.T) {
	w := newWard(t)
	ctx := context.Background()
	out := w.create("Observation", observed(w.mine.ID, "vital-signs"))
	foreign := w.create("Observation", observed(w.other.ID, "laboratory"))
	lab := observed(w.mine.ID, "laboratory")
	for name, c := range map[string]struct {
		caller     *phi.Caller
		identifier string
	}{
		"outside the scopes":     {scoped(w.as("dr-rivera"), laboratory), "vital-signs-" + w.mine.ID},
		"of a foreign patient":   {w.as("dr-rivera"), "laboratory-" + w.other.ID},
		"that is not there":      {w.as("dr-rivera"), "nothing"},
		"not there, constrained": {scoped(w.as("dr-rivera"), laboratory), "nothing"},
	} {
		var err error
		var made *phi.Written
		events := w.during(func() {
			made, err = w.Records.Create(ctx, c.caller, "Observation", []byte(lab), params("identifier", "http://lab.test|"+c.identifier))
		})
		if err != nil || !made.Created || made.ID == out.ID || made.ID == foreign.ID {
			t.Errorf("%s: %v, %+v", name, err, made)
		}
		for _, e := range events {
			if slices.ContainsFunc(e.Entities, func(x audit.Entity) bool { return x.ID == out.ID || x.ID == foreign.ID }) {
				t.Errorf("%s: an event tells of a disclosure that was none", name)
			}
		}
	}
	again, err := w.Records.Create(ctx, w.as("dr-rivera"), "Observation", []byte(lab), params("identifier", "http://lab.test|vital-signs-"+w.mine.ID))
	if err != nil || !again.Unchanged || again.ID != out.ID {
		t.Errorf("whoever may see the match: %v, %+v", err, again)
	}
}

// What cannot be evaluated, or not without what the caller may not see, leaves nothing.
func TestConfinesThatLeaveNothing(t *testing.T) {
	w := newWard(t)
	ctx := context.Background()
	lab := w.create("Observation", observed(w.mine.ID, "laboratory"))
	for _, scopes := range []string{
		"user/Observation.rs?nonsense=1", "user/Observation.rs?category=a|b|c", "user/Observation.rs?combo-code-value-quantity=1", "user/Observation.rs?date=ap2024",
		"user/Observation.rs?category=laboratory&nonsense=1",
	} {
		caller := scoped(w.as("dr-rivera"), scopes)
		var err error
		events := w.during(func() { _, err = w.Records.Read(ctx, caller, lab.Ref) })
		wantKind(t, err, phi.Denied)
		if len(events) != 1 || events[0].Decision.Reason != string(auth.ReasonScope) {
			t.Errorf("%s: recorded %+v", scopes, events)
		}
		wantKind(t, second(w.Records.Search(ctx, caller, "Observation", params("patient", w.mine.ID), false)), phi.Denied)
	}
	// One of several that can be evaluated is enough.
	if _, err := w.Records.Read(ctx, scoped(w.as("dr-rivera"), "user/Observation.rs?nonsense=1 "+laboratory), lab.Ref); err != nil {
		t.Error(err)
	}
	// The registrar sees no gender, and the constraint would tell it.
	wantKind(t, second(w.Records.Read(ctx, scoped(w.as("registrar"), "user/Patient.rs?gender=male"), w.mine.Ref)), phi.Denied)
	if _, err := w.Records.Read(ctx, scoped(w.as("registrar"), "user/Patient.rs?birthdate=1970-02-03"), w.mine.Ref); err != nil {
		t.Error(err)
	}
	wantKind(t, second(w.Records.Read(ctx, scoped(w.as("registrar"), "user/Patient.rs?birthdate=1970-02-03"), w.other.Ref)), phi.NotFound)
	// The de-identified view is held against the record as it is stored.
	if _, err := w.Records.Read(ctx, scoped(w.as("researcher"), laboratory), lab.Ref); err != nil {
		t.Error(err)
	}
}

// A launch beside a narrowed user/ scope: the laboratory of everybody whom the role reaches, and all of the launch patient.
func TestConfinedBesideLaunch(t *testing.T) {
	w := newWard(t)
	ctx := context.Background()
	vital := w.create("Observation", observed(w.mine.ID, "vital-signs"))
	foreign := w.create("Observation", observed(w.other.ID, "vital-signs"))
	lab := w.create("Observation", observed(w.other.ID, "laboratory"))
	c := scoped(backend(), strings.ReplaceAll(laboratory, "user/", "system/")+" patient/Observation.rs")
	c.Principal.Patient = w.mine.ID
	for ref, want := range map[phi.Ref]bool{vital.Ref: true, foreign.Ref: false, lab.Ref: true} {
		if _, err := w.Records.Read(ctx, c, ref); (err == nil) != want {
			t.Errorf("reading %v: %v", ref, err)
		}
	}
	p, err := w.Records.Search(ctx, c, "Observation", params("_id", vital.ID+","+foreign.ID+","+lab.ID), true)
	if err != nil || len(p.Resources) != 2 {
		t.Errorf("found %v, %v", p, err)
	}
	c.Principal.Patient = ""
	wantKind(t, second(w.Records.Read(ctx, c, vital.Ref)), phi.NotFound)
}

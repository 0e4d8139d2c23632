package phi_test

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tidwall/gjson"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/phi"
	"github.com/chartkeep/chartkeep/phi/phitest"
)

// named returns the exports that events tell of, each once.
func named(events []audit.Event) (exports []string) {
	for _, e := range events {
		for _, n := range e.Entities {
			if n.Type == "deidentified-export" && !slices.Contains(exports, n.ID) {
				exports = append(exports, n.ID)
			}
		}
	}
	return exports
}

// What is read together joins, and what is read apart does not: the records of one batch, and of one search with its pages.
func TestExportsDoNotJoin(t *testing.T) {
	w := newWard(t)
	ctx := context.Background()
	w.create("Observation", strings.ReplaceAll(weight, "%s", w.mine.ID))
	batch := func() (patients, subjects []string, export string) {
		var result *phi.BundleResult
		events := w.during(func() {
			var err error
			result, err = w.Records.Bundle(ctx, w.as("researcher"), bundle("batch",
				[5]string{"", "GET", "Patient", "", ""}, [5]string{"", "GET", "Observation?code=29463-7", "", ""}, [5]string{"", "GET", w.mine.Ref.String(), "", ""}))
			if err != nil {
				t.Fatal(err)
			}
		})
		for _, e := range result.Entries {
			if e.Err != nil {
				t.Fatal(e.Err)
			}
		}
		for _, r := range result.Entries[0].Page.Resources {
			patients = append(patients, r.ID)
		}
		for _, r := range result.Entries[1].Page.Resources {
			subjects = append(subjects, strings.TrimPrefix(gjson.GetBytes(r.JSON.Reveal(), "subject.reference").String(), "Patient/"))
		}
		if !slices.Contains(patients, result.Entries[2].Resource.ID) {
			t.Error("a read and a search of one batch do not join")
		}
		if !slices.IsSorted(patients) {
			t.Errorf("patients in the order %v, which another export has too", patients)
		}
		exports := named(events)
		if len(exports) != 1 {
			t.Fatalf("the events of one batch name the exports %v", exports)
		}
		return patients, subjects, exports[0]
	}
	patients, subjects, export := batch()
	if len(patients) != 2 || len(subjects) != 3 {
		t.Fatalf("%d patients, %d observations", len(patients), len(subjects))
	}
	for _, s := range subjects {
		if !slices.Contains(patients, s) {
			t.Errorf("the subject %s is none of the patients %v", s, patients)
		}
	}
	others, _, another := batch()
	if export == another || slices.ContainsFunc(others, func(id string) bool { return slices.Contains(patients, id) }) {
		t.Errorf("two exports join: %v, %v", patients, others)
	}

	var all []string
	var exports []string
	page := params("code", "29463-7", "_count", "1")
	for range 3 {
		exports = append(exports, named(w.during(func() {
			p, err := w.Records.Search(ctx, w.as("researcher"), "Observation", page, false)
			if err != nil || len(p.Resources) != 1 {
				t.Fatalf("%+v, %v", p, err)
			}
			all = append(all, gjson.GetBytes(p.Resources[0].JSON.Reveal(), "subject.reference").String())
			page = params("_page", p.Next)
		}))...)
	}
	slices.Sort(all)
	if len(slices.Compact(all)) != 2 {
		t.Errorf("three observations of two patients, in three pages, are of %v", all)
	}
	if len(slices.Compact(exports)) != 1 {
		t.Errorf("the pages of one search are the exports %v", exports)
	}
}

// An export ends with its day: whoever keeps a cursor cannot join what comes later to it.
func TestExportEnds(t *testing.T) {
	now := time.Now()
	room := phitest.Open(t, phitest.Options{Now: func() time.Time { return now }})
	for range 3 {
		if _, err := room.Records.Create(context.Background(), backend(), "Patient", []byte(adam), nil); err != nil {
			t.Fatal(err)
		}
	}
	researcher := func() *phi.Caller { return phitest.Caller(phitest.Principal("researcher", "")) }
	page := params("_count", "1")
	for n, later := range []time.Duration{0, 23 * time.Hour, 2 * time.Hour} { // since the page before
		now = now.Add(later)
		p, err := room.Records.Search(context.Background(), researcher(), "Patient", page, false)
		if n == 2 {
			wantKind(t, err, phi.Invalid)
			continue
		}
		if err != nil || p.Next == "" {
			t.Fatalf("page %d: %+v, %v", n, p, err)
		}
		page = params("_page", p.Next)
	}
}

// A history goes on under its pseudonym; of what stands outside the export no reference stays.
func TestExportOfAHistory(t *testing.T) {
	w := newWard(t)
	ctx := context.Background()
	body := strings.Replace(strings.ReplaceAll(weight, "%s", w.mine.ID), `{`, `{"id":"`+w.mineObs.ID+`","performer":[{"reference":"Practitioner/`+drRivera+`"}],`, 1)
	if _, err := w.Records.Update(ctx, backend(), w.mineObs.Ref, []byte(body), 0); err != nil {
		t.Fatal(err)
	}
	first, err := w.Records.History(ctx, w.as("researcher"), w.mineObs.Ref, 1, "")
	if err != nil || first.Next == "" {
		t.Fatalf("%+v, %v", first, err)
	}
	second, err := w.Records.History(ctx, w.as("researcher"), w.mineObs.Ref, 1, first.Next)
	if err != nil {
		t.Fatal(err)
	}
	if a, b := first.Resources[0], second.Resources[0]; a.ID != b.ID || a.ID == w.mineObs.ID {
		t.Errorf("versions of %s are shown as %s and %s", w.mineObs.ID, a.ID, b.ID)
	}
	if text := string(first.Resources[0].JSON.Reveal()); strings.Contains(text, drRivera) || !strings.Contains(text, `"subject":{"reference":"Patient/`) {
		t.Errorf("references in %s", text)
	}
}

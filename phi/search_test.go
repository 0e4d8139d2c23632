package phi_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/phi"
)

func ids(p *phi.Page) []string {
	var out []string
	for _, r := range p.Resources {
		out = append(out, r.ID)
	}
	slices.Sort(out)
	return out
}

func TestSearch(t *testing.T) {
	w := newWard(t)
	day := time.Now().UTC().Format("2006-01-02")
	mine, other := w.mine.ID, w.other.ID
	mineObs, otherObs := w.mineObs.ID, w.otherObs.ID
	for _, c := range []struct {
		who, typ string
		params   []phi.Param
		want     any // ids, or the refusal
	}{
		{"backend", "Patient", params("identifier", "http://hospital.test/mrn|MRN-1"), []string{mine}},
		{"backend", "Patient", params("identifier", "MRN-2"), []string{other}},
		{"backend", "Patient", params("identifier", "MRN-1,MRN-2"), []string{mine, other}},
		{"backend", "Patient", params("identifier", "http://other.test|MRN-1"), []string{}},
		{"backend", "Patient", params("name", "lind"), []string{mine, other}},
		{"backend", "Patient", params("name", "LINDQ"), []string{mine}},
		{"backend", "Patient", params("given", "adam"), []string{mine, other}},
		{"backend", "Patient", params("given", "Adàm", "family", "lindg"), []string{other}},
		{"backend", "Patient", params("family:exact", "Lindqvist"), []string{mine}},
		{"backend", "Patient", params("family:exact", "lindqvist"), []string{}},
		{"backend", "Patient", params("family:contains", "dqv"), []string{mine}},
		{"backend", "Patient", params("birthdate", "1970-02-03"), []string{mine}},
		{"backend", "Patient", params("birthdate", "ge1975"), []string{other}},
		{"backend", "Patient", params("gender", "female"), []string{other}},
		{"backend", "Patient", params("phone", "555-014-0001", "gender", "male"), []string{mine}},
		{"backend", "Patient", params("_id", mine), []string{mine}},
		{"backend", "Patient", params("_id", mine+","+other), []string{mine, other}},
		{"backend", "Patient", params("_id", mine, "_id", other), []string{}},
		{"backend", "Patient", params("_lastUpdated", "ge"+day), []string{mine, other}},
		{"backend", "Patient", params("_lastUpdated", "lt"+day), []string{}},
		{"backend", "Patient", params("_lastUpdated", "lt2000"), []string{}},
		{"backend", "Patient", params("_lastUpdated", "xx2000"), phi.Invalid},
		{"backend", "Patient", params("_count", "0"), phi.Invalid},
		{"backend", "Patient", params("birthdate", "never"), phi.Invalid},
		{"backend", "Observation", params("patient", mine), []string{mineObs}},
		{"backend", "Observation", params("patient", "Patient/"+mine), []string{mineObs}},
		{"backend", "Observation", params("subject", "Patient/"+mine), []string{mineObs}},
		{"backend", "Observation", params("patient", mine, "code", "http://loinc.org|29463-7"), []string{mineObs}},
		{"backend", "Observation", params("patient", mine, "code", "8867-4"), []string{}},
		{"backend", "Observation", params("patient", mine+","+other), []string{mineObs, otherObs}},
		{"backend", "Observation", params("patient", mine, "date", "ge2024-05-01"), []string{mineObs}},
		{"backend", "Observation", params("code", "29463-7"), []string{mineObs, otherObs}},
		{"backend", "Zebra", nil, phi.NotFound},

		{"dr-rivera", "Patient", params("name", "lind"), []string{mine}},
		{"dr-rivera", "Patient", nil, []string{mine}},
		{"dr-rivera", "Observation", params("patient", mine), []string{mineObs}},
		{"dr-rivera", "Observation", params("patient", other), []string{}},
		{"dr-rivera", "Observation", params("_id", otherObs), []string{}},
		{"dr-rivera", "Observation", params("code", "29463-7"), phi.Invalid},
		{"dr-chen", "Patient", params("name", "lind"), []string{}},
		{"patient", "Observation", nil, []string{mineObs}},
		{"patient", "Observation", params("patient", other), []string{}},
		{"registrar", "Patient", params("name", "lindq"), []string{mine}},
		{"registrar", "Patient", params("gender", "female"), phi.Denied}, // not in the view, so not in a predicate
		{"registrar", "Observation", params("patient", mine), phi.Denied},
		{"researcher", "Patient", params("birthdate", "1970-02-03"), phi.Denied},
		{"officer", "Patient", params("name", "lind"), phi.Denied},
	} {
		t.Run(fmt.Sprint(c.who, " ", c.typ, " ", c.params), func(t *testing.T) {
			page, err := w.Records.Search(context.Background(), w.as(c.who), c.typ, c.params, true)
			if kind, refused := c.want.(phi.Kind); refused {
				wantKind(t, err, kind)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			want := slices.Sorted(slices.Values(c.want.([]string)))
			if got := ids(page); !slices.Equal(got, want) {
				t.Errorf("found %v, want %v", got, want)
			}
			if page.Total != len(want) || page.Next != "" {
				t.Errorf("total %d, next %q", page.Total, page.Next)
			}
		})
	}
}

func TestSearchUnknownParameter(t *testing.T) {
	w := newWard(t)
	page, err := w.Records.Search(context.Background(), backend(), "Patient", params("stripes", "many", "name", "lind"), false)
	if err != nil || len(page.Warnings) != 1 || len(page.Resources) != 2 || len(page.Self) != 1 {
		t.Errorf("lenient: %+v, %v", page, err)
	}
	_, err = w.Records.Search(context.Background(), backend(), "Patient", params("stripes", "many"), true)
	wantKind(t, err, phi.Invalid)
}

func TestSearchEvents(t *testing.T) {
	w := newWard(t)
	var err error
	events := w.during(func() {
		_, err = w.Records.Search(context.Background(), backend(), "Patient", params("name", "lindq,lindg"), false)
	})
	if err != nil || len(events) != 3 {
		t.Fatalf("recorded %+v, %v", events, err)
	}
	query := events[0]
	if query.Interaction != "search-type" || query.Action != audit.ActionExecute || len(query.Query) == 0 ||
		query.Entities[0] != (audit.Entity{Type: "Patient"}) || query.Patient != "" {
		t.Errorf("the query: %+v", query)
	}
	if strings.Contains(fmt.Sprintf("%s %+v", query.Query, query), "lindq") {
		t.Error("search text is readable in the event")
	}
	named := []string{events[1].Patient, events[2].Patient}
	want := []string{w.mine.ID, w.other.ID}
	slices.Sort(want)
	slices.Sort(named)
	if !slices.Equal(named, want) || events[1].Entities[0].ID != events[1].Patient || events[1].Entities[0].Version != 1 {
		t.Errorf("the hits: %+v", events[1:])
	}

	events = w.during(func() {
		_, err = w.Records.Search(context.Background(), clinician(drRivera), "Observation", params("patient", w.mine.ID), false)
	})
	if err != nil || len(events) != 1 || events[0].Patient != w.mine.ID {
		t.Errorf("by patient: %+v, %v", events, err)
	}
}

func TestPaging(t *testing.T) {
	w := newWard(t)
	for range 6 {
		w.create("Observation", fmt.Sprintf(weight, w.mine.ID))
	}
	ctx := context.Background()
	seen := map[string]bool{}
	page, err := w.Records.Search(ctx, w.as("dr-rivera"), "Observation", params("patient", w.mine.ID, "_count", "3"), false)
	first := page
	for pages := 1; ; pages++ {
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range page.Resources {
			if seen[r.ID] {
				t.Errorf("%s came twice", r.ID)
			}
			seen[r.ID] = true
		}
		if page.Next == "" {
			break
		}
		if page.Total != -1 || len(page.Resources) != 3 || pages > 3 {
			t.Fatalf("page %d: total %d, %d resources", pages, page.Total, len(page.Resources))
		}
		page, err = w.Records.Search(ctx, w.as("dr-rivera"), "Observation", params("_page", page.Next), false)
	}
	if len(seen) != 7 {
		t.Errorf("saw %d of 7", len(seen))
	}

	// A cursor is bound to caller and listing, opaque, and no proof of access.
	next := first.Next
	if strings.Contains(next, w.mine.ID) {
		t.Error("the cursor can be read")
	}
	flipped := []byte(next)
	flipped[len(flipped)/2] ^= 1
	for name, try := range map[string]func() error{
		"foreign": func() error {
			_, err := w.Records.Search(ctx, w.as("backend"), "Observation", params("_page", next), false)
			return err
		},
		"other type": func() error {
			_, err := w.Records.Search(ctx, w.as("dr-rivera"), "Condition", params("_page", next), false)
			return err
		},
		"tampered": func() error {
			_, err := w.Records.Search(ctx, w.as("dr-rivera"), "Observation", params("_page", string(flipped)), false)
			return err
		},
		"garbage": func() error {
			_, err := w.Records.Search(ctx, w.as("dr-rivera"), "Observation", params("_page", "%%%"), false)
			return err
		},
		"not alone": func() error {
			_, err := w.Records.Search(ctx, w.as("dr-rivera"), "Observation", params("_page", next, "patient", w.other.ID), false)
			return err
		},
		"of a search, for a history": func() error { _, err := w.Records.History(ctx, w.as("dr-rivera"), w.mineObs.Ref, 0, next); return err },
	} {
		t.Run(name, func(t *testing.T) { wantKind(t, try(), phi.Invalid) })
	}
}

// Candidates that a truncated prefix offers and that are no match stay inside, in pages too.
func TestSearchScansOnlyWhatItMust(t *testing.T) {
	w := newWard(t)
	for i := range 30 {
		w.create("Patient", strings.NewReplacer("Lindqvist", fmt.Sprintf("Abcdefghijklmnop%02d", i)).Replace(adam))
	}
	page, err := w.Records.Search(context.Background(), backend(), "Patient", params("family", "abcdefghijklmnop2"), false)
	if err != nil || len(page.Resources) != 10 || page.Total != 10 {
		t.Errorf("found %d of 10, %v", len(page.Resources), err)
	}
}

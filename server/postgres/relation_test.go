package postgres

import (
	"fmt"
	"testing"
	"time"

	"github.com/chartkeep/chartkeep/auth"
	"github.com/chartkeep/chartkeep/phi"
)

// TestRelationshipPeriods: what holds is between the lead before and the tail after a relationship, and follows the setting at once.
func TestRelationshipPeriods(t *testing.T) {
	db, name := open(t)
	keyed(t, db)
	admin := connect(t, name, "")
	ctx, a := t.Context(), db.Auth()
	today := time.Now().UTC().Truncate(24 * time.Hour)
	day := func(n int) time.Time { return today.AddDate(0, 0, n) }
	for i, x := range []struct {
		kind        string
		from, until time.Time
		holds       bool
		ends        time.Time // with the tail
	}{
		{"Encounter", time.Time{}, time.Time{}, true, time.Time{}},
		{"Encounter", day(3), time.Time{}, true, time.Time{}},
		{"Encounter", day(5), time.Time{}, false, time.Time{}},
		{"Encounter", time.Time{}, day(-29), true, day(1)},
		{"Encounter", time.Time{}, day(-31), false, day(-1)},
		{"CareTeam", day(1), time.Time{}, false, time.Time{}},
		{"EpisodeOfCare", day(-60), day(-20), true, day(10)},
		{"Basic", time.Time{}, time.Time{}, false, time.Time{}}, // nothing that states relationships
	} {
		patient := fmt.Sprint("p-", i)
		w := write(phi.Ref{Type: x.kind, ID: fmt.Sprint("r-", i)}, 1, patient)
		w.Treats = []phi.Treatment{{Practitioner: "rivera", Patient: patient, From: x.from, Until: x.until}}
		if err := db.Records().Commit(ctx, []phi.Write{w}, nil); err != nil {
			t.Fatal(err)
		}
		facts, err := a.Facts(ctx, auth.Actor{Practitioner: "rivera"}, []string{patient})
		if err != nil || (facts[0].Related == x.kind) != x.holds || x.holds && !facts[0].Until.Equal(x.ends) {
			t.Errorf("%s from %s until %s: %+v, %v", x.kind, x.from, x.until, facts, err)
		}
		rows, err := db.Records().Search(ctx, phi.Selection{Type: x.kind, IDs: []string{w.ID}, Practitioner: "rivera", Named: true, Limit: 1}, 0)
		if err != nil || (len(rows) == 1) != x.holds {
			t.Errorf("%s from %s until %s: a search finds %d, %v", x.kind, x.from, x.until, len(rows), err)
		}
	}
	// Of several the one that lasts longest counts.
	if err := a.Grant(ctx, auth.Relationship{Practitioner: "rivera", Patient: "p-6", By: "admin", From: day(-1), Until: day(20)}); err != nil {
		t.Fatal(err)
	}
	if facts, err := a.Facts(ctx, auth.Actor{Practitioner: "rivera"}, []string{"p-6"}); err != nil || facts[0].Related != "grant" || !facts[0].Until.Equal(day(20)) {
		t.Errorf("%+v, %v", facts, err)
	}
	list, err := a.Relationships(ctx, "", "p-6", 10)
	if err != nil || len(list) != 2 || !list[0].Ends.Equal(day(10)) || !list[0].Holds || list[1].By != "admin" || !list[1].From.Equal(day(-1)) || !list[1].Holds {
		t.Errorf("%+v, %v", list, err)
	}
	if list, err := a.Relationships(ctx, "rivera", "", 100); err != nil || len(list) != 7 { // but what is over, and what is none
		t.Errorf("%d, %v", len(list), err)
	}
	w := write(phi.Ref{Type: "Encounter", ID: "old"}, 1, "p-old")
	w.Treats = []phi.Treatment{{Practitioner: "rivera", Patient: "p-old", Until: day(-367)}, {Practitioner: "chen", Patient: "p-old", Until: day(-365)}}
	if err := db.Records().Commit(ctx, []phi.Write{w}, nil); err != nil {
		t.Fatal(err)
	}
	if err := a.ForgetRelationships(ctx); err != nil {
		t.Fatal(err)
	}
	var left string
	if err := admin.QueryRow(ctx, `SELECT string_agg(practitioner, ' ') FROM treatment WHERE patient = 'p-old'`).Scan(&left); err != nil || left != "chen" {
		t.Errorf("left of what is over for a year: %q, %v", left, err)
	}
	before, err := a.Epochs(ctx)
	if err != nil {
		t.Fatal(err)
	}
	woken := notices(t, db)
	must(t, admin, `UPDATE treatment_source SET tail_days = 60 WHERE source = 'Encounter'`)
	expect(t, woken, 1)
	facts, err := a.Facts(ctx, auth.Actor{Practitioner: "rivera"}, []string{"p-4"})
	if err != nil || facts[0].Related != "Encounter" {
		t.Errorf("%+v, %v", facts, err)
	}
	after, err := a.Epochs(ctx)
	for i := range after.Relationship {
		if err != nil || after.Relationship[i] != before.Relationship[i]+1 {
			t.Fatalf("shard %d went from %d to %d, %v", i, before.Relationship[i], after.Relationship[i], err)
		}
	}
}

// TestConsentRules: the rules of a Consent come with it, are the ones of its newest version, and go with it; each change is told of, in its
// patient's shard alone.
func TestConsentRules(t *testing.T) {
	db, _ := open(t)
	keyed(t, db)
	ctx, a := t.Context(), db.Auth()
	woken := notices(t, db)
	until := time.Now().Add(time.Hour).UTC().Truncate(time.Microsecond)
	commit := func(version int64, method string, rules ...auth.ConsentRule) {
		t.Helper()
		w := write(phi.Ref{Type: "Consent", ID: "c"}, version, "p")
		w.Method, w.Consent, w.Rules = method, "p", rules
		if err := db.Records().Commit(ctx, []phi.Write{w}, nil); err != nil {
			t.Fatal(err)
		}
	}
	rule := auth.ConsentRule{Depth: 1, Permit: true, Actor: "Practitioner/rivera", Segments: 6, Purposes: []string{"BTG", "ETREAT"}, Until: until}
	for _, step := range []struct {
		do      func()
		changed bool
		rivera  []auth.ConsentRule
		others  []auth.ConsentRule
	}{
		{func() { commit(1, "PUT", auth.ConsentRule{}, rule) }, true, []auth.ConsentRule{{Consent: "c"}, func() auth.ConsentRule { r := rule; r.Consent = "c"; return r }()}, []auth.ConsentRule{{Consent: "c"}}},
		{func() { commit(2, "PUT", auth.ConsentRule{Actor: "Practitioner/rivera"}) }, true, []auth.ConsentRule{{Consent: "c", Actor: "Practitioner/rivera"}}, nil},
		{func() { commit(3, "PUT") }, true, nil, nil},
		{func() { commit(4, "PUT") }, false, nil, nil},
		{func() { commit(5, "PUT", auth.ConsentRule{Until: time.Now().Add(-time.Hour)}) }, true, nil, nil}, // over
		{func() { commit(6, "DELETE") }, true, nil, nil},
	} {
		before, err := a.Epochs(ctx)
		if err != nil {
			t.Fatal(err)
		}
		step.do()
		if step.changed {
			expect(t, woken, 1)
		} else {
			expect(t, woken, 0)
		}
		after, err := a.Epochs(ctx)
		if err != nil {
			t.Fatal(err)
		}
		facts, err := a.Facts(ctx, auth.Actor{Practitioner: "rivera"}, []string{"p"})
		if err != nil || fmt.Sprint(facts[0].Consents) != fmt.Sprint(step.rivera) {
			t.Errorf("rivera: %+v, want %+v (%v)", facts[0].Consents, step.rivera, err)
		}
		changed := 0
		for i := range after.Consent {
			if after.Consent[i] != before.Consent[i] {
				changed++
			}
		}
		if after.Relationship != before.Relationship || (changed == 1) != step.changed || step.changed && after.Consent[facts[0].ConsentShard] == before.Consent[facts[0].ConsentShard] {
			t.Errorf("%d shards changed", changed)
		}
		for _, who := range []auth.Actor{{}, {Practitioner: "chen"}} {
			if facts, err := a.Facts(ctx, who, []string{"p"}); err != nil || fmt.Sprint(facts[0].Consents) != fmt.Sprint(step.others) {
				t.Errorf("%+v: %+v, want %+v (%v)", who, facts[0].Consents, step.others, err)
			}
		}
	}
}

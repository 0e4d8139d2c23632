package postgres

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"pgregory.net/rapid"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/audit/audittest"
)

// varied makes batches of a stream, with events of many kinds over a few days, clocks that step, timings and poison.
func varied(t testing.TB, random *rand.Rand, stream audit.StreamID, batches, rows int) []audit.Batch {
	t.Helper()
	pick := func(list ...string) string { return list[random.IntN(len(list))] }
	some := func(list ...string) []string {
		return slices.Clone(list[random.IntN(len(list)):])
	}
	var all []audit.Batch
	var prev audit.Hash
	parts := make([]time.Time, batches*rows) // a stream's never go back
	for i := range parts {
		parts[i] = noon.Add(-time.Duration(random.IntN(60*3600)) * time.Second)
	}
	slices.SortFunc(parts, time.Time.Compare)
	for b := range batches {
		batch := audit.Batch{Stream: stream, First: uint64(b * rows), Prev: prev, Chain: audit.Hash(randomBytes(32))}
		prev = batch.Chain
		for i := range rows {
			part := parts[b*rows+i]
			e := audit.Event{
				Type: audit.TypeREST, Interaction: pick("read", "search-type", "create"), Action: audit.Action(pick("R", "E", "C")[0]),
				Outcome: []audit.Outcome{audit.Intent, 0, 0, 4, 8}[random.IntN(5)], Patient: pick("", "p-1", "p-2"), Purpose: pick("TREAT", ""),
				Agent:    audit.Agent{User: fmt.Sprint("u-", random.IntN(9)), Client: pick("app", "portal", ""), Roles: some("nurse", "clinician", "nurse")},
				Decision: audit.Decision{Allowed: random.IntN(2) == 0, Reason: pick("allowed", "scope-missing", ""), View: pick("full", "", "demographics")},
				Recorded: part.Add(time.Duration(random.IntN(4_000)) * time.Millisecond), Classes: some("name", "clinical", "narrative"),
				RequestID: fmt.Sprint("r-", random.IntN(50)), Timing: audit.Timing{Total: random.Uint32N(900)},
			}
			for _, kind := range some("Patient", "Observation", "Patient", "Condition") {
				e.Entities = append(e.Entities, audit.Entity{Type: kind, ID: fmt.Sprint(random.IntN(5))})
			}
			switch random.IntN(12) {
			case 0: // a clock that had stepped
				e.Recorded = part.Add(time.Duration(random.IntN(200)-100) * time.Hour)
			case 1:
				e = audit.Event{Type: audit.TypeApplication, Interaction: audit.InteractionTimings, Recorded: e.Recorded, Detail: audit.AppendTimings(nil, []audit.Timed{
					{RequestID: "r", Route: pick("/fhir/R4/:type/:id", "/v1/audit/events"), Role: pick("clinician", ""), Status: 200, Timing: audit.Timing{
						Total: random.Uint32N(1 << random.IntN(30)), Auth: random.Uint32N(40), Crypto: random.Uint32N(300), Database: random.Uint32()}},
					{Route: "/fhir/R4/:type", Role: "nurse", Timing: audit.Timing{Total: 1, Audit: 7}},
				})}
			case 2:
				e.Agent.Client, e.Agent.Roles, e.Decision.Reason = "zero\x00 \xff", []string{"", "a,b", `"{}"`}, `back\slash`
			}
			batch.Rows = append(batch.Rows, rowOf(t, batch.First+uint64(i), part.Truncate(time.Minute), e))
		}
		if b%3 == 1 { // what no column holds goes to the quarantine, and into no count
			batch.Rows[rows/2].Event.Recorded = time.Date(-100_000, 1, 1, 0, 0, 0, 0, time.UTC)
		}
		all = append(all, batch)
	}
	return all
}

// dump is what the rollups hold, without what depends on the order of writing.
func dump(t testing.TB, name string) (lines []string) {
	t.Helper()
	admin := connect(t, name, "")
	for _, table := range []string{"audit_rollup_total", "audit_rollup_deed", "audit_rollup_actor", "audit_rollup_latency"} {
		rows, err := admin.Query(t.Context(), `SELECT r::text FROM `+table+` r ORDER BY 1`)
		if err != nil {
			t.Fatal(err)
		}
		for rows.Next() {
			var line string
			if err := rows.Scan(&line); err != nil {
				t.Fatal(err)
			}
			lines = append(lines, table+" "+line)
		}
		if rows.Err() != nil {
			t.Fatal(rows.Err())
		}
	}
	return lines
}

// TestRollupsAreRecounts: what several instances count while they store rows is what a recount from the rows gives, and facets,
// histograms and latencies are the same from rollups as one by one in memory.
func TestRollupsAreRecounts(t *testing.T) {
	db, name := open(t)
	ctx := t.Context()
	random := rand.New(rand.NewPCG(7, 11))
	memory := &audittest.Storage{}
	var wg sync.WaitGroup
	for s := range 4 {
		stream := audit.StreamID{byte(s + 1)}
		batches := varied(t, random, stream, 6, 80)
		for _, b := range batches {
			for _, r := range b.Rows {
				if r.Event.Recorded.Year() > 0 {
					memory.Plant(audit.Stored{Row: r, Stream: stream})
				}
			}
		}
		wg.Go(func() {
			for i, b := range batches {
				if err := db.Audit().Ingest(ctx, b); err != nil {
					t.Errorf("ingesting: %v", err)
				}
				if i == 2 { // a replay counts nothing
					_ = db.Audit().Ingest(ctx, b)
				}
			}
		})
	}
	wg.Wait()
	counted := dump(t, name)
	if len(counted) < 100 {
		t.Fatalf("%d rows in the rollups", len(counted))
	}
	if err := db.RebuildRollups(ctx); err != nil {
		t.Fatal(err)
	}
	if recount := dump(t, name); !slices.Equal(counted, recount) {
		t.Errorf("%d rows in the rollups, %d after a recount, or others", len(counted), len(recount))
	}
	admin := connect(t, name, "")
	must(t, admin, `UPDATE audit_rollup_deed SET events = events + 1`)
	must(t, admin, `DELETE FROM audit_rollup_total WHERE unit = 60`)
	must(t, admin, `DELETE FROM audit_rollup_latency`)
	if err := db.RebuildRollups(ctx); err != nil {
		t.Fatal(err)
	}
	if recount := dump(t, name); !slices.Equal(counted, recount) {
		t.Error("a recount does not put right what was changed")
	}

	all := func(r *rapid.T, label string, q audit.Query) {
		from, err := db.Trail().Facets(ctx, q, []audit.Field{
			audit.FieldType, audit.FieldInteraction, audit.FieldAction, audit.FieldOutcome, audit.FieldAllowed, audit.FieldReason, audit.FieldEntityType,
			audit.FieldClient, audit.FieldRole, audit.FieldPurpose, audit.FieldView, audit.FieldPatient, audit.FieldClass, audit.FieldAgent, audit.FieldStream, audit.FieldEntity,
		}, 0)
		if err != nil {
			r.Fatalf("%s: %v", label, err)
		}
		for _, f := range from {
			want, err := memory.Facets(ctx, q, []audit.Field{f.Field}, 0)
			if err != nil || !f.Complete || !reflect.DeepEqual(f.Values, want[0].Values) {
				r.Fatalf("%s: facet %s\n%v, want\n%v (%v)", label, f.Field, f.Values, want[0].Values, err)
			}
		}
	}
	rapid.Check(t, func(r *rapid.T) {
		q := audit.Query{Quiet: rapid.Bool().Draw(r, "quiet")}
		at := rapid.Custom(func(r *rapid.T) time.Time {
			return noon.Add(rapid.SampledFrom([]time.Duration{time.Hour, time.Minute, 24 * time.Hour, 1}).Draw(r, "unit") * time.Duration(rapid.IntRange(-80, 5).Draw(r, "ago")))
		})
		if rapid.Bool().Draw(r, "from?") {
			q.From = at.Draw(r, "from")
		}
		if rapid.Bool().Draw(r, "to?") {
			q.To = at.Draw(r, "to")
		}
		if q.To.Before(q.From) && !q.To.IsZero() {
			q.From, q.To = q.To, q.From
		}
		values := map[audit.Field][]string{
			audit.FieldInteraction: {"read", "create"}, audit.FieldOutcome: {"-1", "8"}, audit.FieldAllowed: {"true"}, audit.FieldRole: {"nurse", ""},
			audit.FieldClient: {"portal"}, audit.FieldEntityType: {"Patient"}, audit.FieldReason: {"allowed", `back\slash`}, audit.FieldPatient: {"p-1"},
		}
		for _, f := range rapid.SliceOfNDistinct(rapid.SampledFrom([]audit.Field{
			audit.FieldInteraction, audit.FieldOutcome, audit.FieldAllowed, audit.FieldRole, audit.FieldClient, audit.FieldEntityType, audit.FieldReason, audit.FieldPatient,
		}), 0, 2, rapid.ID[audit.Field]).Draw(r, "fields") {
			q.Terms = append(q.Terms, audit.Term{Field: f, Not: rapid.Bool().Draw(r, "not"), Values: values[f]})
		}
		all(r, "facets", q)
		q.From, q.To = noon.Add(-200*time.Hour), noon.Add(time.Duration(rapid.IntRange(-90, 100).Draw(r, "minutes"))*time.Minute)
		step := rapid.SampledFrom([]time.Duration{time.Hour, 24 * time.Hour, 6 * time.Hour, 7 * time.Minute * 60, 48 * time.Hour, 10 * time.Minute}).Draw(r, "step")
		got, err := db.Trail().Histogram(ctx, q, step)
		if err != nil {
			r.Fatal(err)
		}
		want, err := memory.Histogram(ctx, q, step)
		if err != nil || !reflect.DeepEqual(got, want) {
			r.Fatalf("histogram\n%v, want\n%v (%v)", got, want, err)
		}
		lq := audit.LatencyQuery{
			From: q.To.Add(-time.Duration(rapid.IntRange(1, 40).Draw(r, "hours")) * time.Hour), To: q.To, Step: 30 * time.Minute,
			ByRoute: rapid.Bool().Draw(r, "by route"), ByRole: rapid.Bool().Draw(r, "by role"), Role: rapid.SampledFrom([]string{"", "nurse"}).Draw(r, "role"),
			Part: rapid.SampledFrom(append(audit.Parts(), "")).Draw(r, "part"),
		}
		gotLatency, err := db.Trail().Latency(ctx, lq)
		if err != nil {
			r.Fatal(err)
		}
		wantLatency, err := memory.Latency(ctx, lq)
		if err != nil || !reflect.DeepEqual(gotLatency, wantLatency) {
			r.Fatalf("latency\n%+v, want\n%+v (%v)", gotLatency, wantLatency, err)
		}
	})
}

// TestFacetsOfPartHours: what lies before and after the whole hours is counted from rows to the last one, and a facet says when there
// are more than it looks at. Rows of one time, events without a correlation and items that stand twice in a list count as ever.
func TestFacetsOfPartHours(t *testing.T) {
	db, _ := open(t)
	memory := &audittest.Storage{}
	b := audit.Batch{Stream: audit.StreamID{1}}
	store := func(rows int, at time.Time) {
		b.First, b.Prev, b.Rows = b.First+uint64(len(b.Rows)), b.Chain, nil
		for i := range rows {
			e := audit.Event{Type: audit.TypeREST, Interaction: "read", Action: audit.ActionRead, Recorded: at, Agent: audit.Agent{
				User: fmt.Sprint("u-", i%7), Client: fmt.Sprint("c-", i%3), Roles: [][]string{{"nurse", "nurse"}, {"clinician", "nurse"}, nil}[i%3],
			}}
			if i%2 == 0 {
				e.Correlation = audit.ID{7}
			}
			for range i % 4 {
				e.Entities = append(e.Entities, audit.Entity{Type: []string{"Patient", "Condition"}[i%2], ID: fmt.Sprint(i % 5)})
			}
			r := rowOf(t, b.First+uint64(i), at, e)
			b.Rows = append(b.Rows, r)
			memory.Plant(audit.Stored{Row: r, Stream: b.Stream})
		}
		b.Seal()
		if err := db.Audit().Ingest(t.Context(), b); err != nil {
			t.Fatal(err)
		}
	}
	fields := []audit.Field{audit.FieldClient, audit.FieldRole, audit.FieldAgent, audit.FieldOutcome, audit.FieldCorrelation, audit.FieldEntityType, audit.FieldEntity}
	q := audit.Query{From: noon.Add(-150*time.Minute - 3*time.Second), To: noon.Add(-20*time.Minute + 3*time.Second)}
	check := func(when string, known, unknown bool) {
		t.Helper()
		got, err := db.Trail().Facets(t.Context(), q, fields, 0)
		if err != nil {
			t.Fatal(err)
		}
		want, err := memory.Facets(t.Context(), q, fields, 0)
		if err != nil {
			t.Fatal(err)
		}
		for i, f := range got {
			complete := unknown
			if rollupFor(&q, f.Field) != nil {
				complete = known
			}
			if f.Complete != complete || complete && !reflect.DeepEqual(f, want[i]) {
				t.Errorf("%s: facet %s, complete: %t\n%v, want\n%v", when, f.Field, f.Complete, f.Values, want[i].Values)
			}
		}
	}
	check("no rows", true, true)
	store(50, q.From.Add(-time.Second)) // looked at for the clocks' sake
	store(60, q.From)
	store(500, noon.Add(-90*time.Minute)) // of a whole hour
	store(countScan-650, q.To.Add(-time.Second))
	store(40, q.To)
	check("as many rows as are looked at", true, true)
	store(1, q.To.Add(time.Second))
	check("one more", true, false)
	store(700, q.To.Add(time.Second))
	check("more rows at an end", false, false)
}

// TestRollupCost: counting is a small share of storing.
func TestRollupCost(t *testing.T) {
	db, _ := open(t)
	ctx := t.Context()
	stream := newPopulation().stream(5, 6, noon, time.Millisecond)
	var counting, storing []time.Duration
	for i := range 24 {
		b, err := stream.next(1000)
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		if err := db.Audit().Ingest(ctx, b); err != nil {
			t.Fatal(err)
		}
		storing = append(storing, time.Since(began))
		began = time.Now()
		counted := newRollup()
		for i := range b.Rows {
			counted.add(b.Rows[i].Time(), &b.Rows[i].Event)
		}
		if err := pgx.BeginFunc(ctx, db.writer, func(tx pgx.Tx) error {
			began = time.Now().Add(-time.Since(began)) // without the beginning of a transaction
			err := counted.store(ctx, tx)
			counting = append(counting, time.Since(began))
			return err
		}); err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			t.Logf("%d cells of deeds, %d of actors, %d of latencies in a batch", len(counted.deeds), len(counted.actors), len(counted.latencies))
		}
	}
	slices.Sort(counting)
	slices.Sort(storing)
	share := float64(counting[len(counting)/2]) / float64(storing[len(storing)/2])
	t.Logf("counting takes %v of %v: %.1f %%", counting[len(counting)/2], storing[len(storing)/2], 100*share)
	if share > 0.4 {
		t.Errorf("counting takes %.0f %% of storing", 100*share)
	}
}

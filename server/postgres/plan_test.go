package postgres

import (
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/auth"
	"github.com/chartkeep/chartkeep/phi"
)

// explain returns the plan of a statement, as text.
func explain(t *testing.T, conn *pgx.Conn, sql string, args ...any) string {
	t.Helper()
	rows, err := conn.Query(t.Context(), `EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, SUMMARY OFF) `+sql, args...)
	if err != nil {
		t.Fatal(err)
	}
	lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(lines, "\n")
}

// fillRecords stores enough of everything for the planner to care.
func fillRecords(t *testing.T, admin *pgx.Conn) {
	t.Helper()
	must(t, admin, `INSERT INTO record SELECT CASE WHEN i % 20 = 0 THEN 'Patient' ELSE 'Observation' END, 'id-' || i, gen_random_uuid(), 1,
		now() - make_interval(mins => i), 'PUT', ARRAY['p-' || i % 1000], gen_random_uuid(), 0, 1, null, null, null, null, '\x0100000001' || sha256(i::text::bytea) || sha256('') || substr(sha256('x'), 1, 28), null,
		'\x01' || decode(repeat('00', 113), 'hex') || '\x0100000001' || decode(repeat('00', 28), 'hex'), substr(sha256(''), 1, 16), 1
		FROM generate_series(1, 40000) i`)
	must(t, admin, `INSERT INTO record_patient SELECT unnest(patients), type, id FROM record`)
	must(t, admin, `INSERT INTO index_token SELECT 1, substr(sha256(id::bytea), 1, 16), type, id FROM record`)
	must(t, admin, `INSERT INTO treatment SELECT 'dr-' || i % 10, 'p-' || i, 'Encounter', 'Encounter', 'e-' || i FROM generate_series(0, 999) i`)
	must(t, admin, `INSERT INTO phi_kek VALUES ('kek-1', 'test', '\x00', true)`)
	must(t, admin, `INSERT INTO phi_key SELECT subject, segment, key_id, 'kek-1', substr(sha256('') || sha256(''), 1, 60) FROM record`)
	must(t, admin, `INSERT INTO consent_rule SELECT 'p-' || i, 'c-' || i, 0, 0, i % 2 = 0, '', '{}', '{}', '-infinity', 'infinity' FROM generate_series(0, 999) i`)
	must(t, admin, `ANALYZE record, record_patient, index_token, treatment, consent_rule, phi_key`)
}

// TestPlans fills the tables and demands that every hot statement goes by its index, with plans made for the values and with
// generic ones: no sequential scan of a table that grows.
func TestPlans(t *testing.T) {
	db, name := open(t)
	admin := connect(t, name, "")
	fillRecords(t, admin)

	records := db.recordStorage
	token := phi.Token{Kind: 1, Value: random16()}
	gates := &auth.Filter{Decision: auth.Decision{Purpose: "TREAT"}, Actor: auth.Actor{Practitioner: "dr-1"}, Segments: 2, Closed: 4}
	for _, mode := range []string{"force_custom_plan", "force_generic_plan"} {
		conn := connect(t, name, "chartkeep_records")
		must(t, conn, `SET search_path = public`)
		must(t, conn, `SET plan_cache_mode = `+mode)
		plans := map[string]string{
			"Fetch":        explain(t, conn, records.statements[phi.AllClasses].current, "Patient", "id-20"),
			"FetchVersion": explain(t, conn, records.statements[phi.AllClasses].version, "Patient", "id-20", int64(1)),
			"FetchHistory": explain(t, conn, records.statements[phi.AllClasses].history, "Patient", "id-20", int64(9), 10),
			"FetchMany":    explain(t, conn, records.statements[0].many, []string{"Patient", "Observation"}, []string{"id-20", "id-21"}),
			"Forget":       explain(t, connect(t, name, ""), `SELECT`+strings.TrimPrefix(forgetSQL, `DELETE`)),
			"Facts":        explain(t, conn, factsSQL, "dr-1", []string{"p-1", "p-2"}, []string{"", "Practitioner/dr-1"}),
			"Commit, a guard": explain(t, conn, guardSQL, "Patient", []int32{0, 0}, []int16{1, 1}, [][]byte{token.Value[:], make([]byte, 16)}, 1,
				[]string{"id-20"}, []int64{0}),
		}
		for _, who := range [][2]string{{"dr-1", ""}, {"", "p-1"}, {"dr-1", "p-1"}} {
			sql, args := relationshipsSQL(who[0], who[1], 100)
			plans["Relationships of "+strings.Join(who[:], ",")] = explain(t, conn, sql, args...)
		}
		for what, sel := range map[string]phi.Selection{
			"by patient":                    {Patients: []string{"p-7"}},
			"by token":                      {Tokens: [][]phi.Token{{token}}},
			"by token for a practitioner":   {Tokens: [][]phi.Token{{token}}, Practitioner: "dr-1"},
			"by tokens of two generations":  {Tokens: [][]phi.Token{{token, {Kind: 1, Value: random16()}}, {token, {Kind: 6, Value: random16()}}}},
			"by id":                         {IDs: []string{"id-20", "id-40"}},
			"by patient for a practitioner": {Patients: []string{"p-7"}, Practitioner: "dr-1"},
			"everything of one's own":       {Patient: "p-7"},
			"everything":                    {},
			"everything from somewhere on":  {After: "id-30000"},
			"everything through gates":      {Gates: gates},
			"by patient through gates":      {Patients: []string{"p-7"}, Practitioner: "dr-1", Gates: gates},
			"by token through gates":        {Tokens: [][]phi.Token{{token}}, Gates: gates},
		} {
			sel.Type, sel.Limit = "Observation", 50
			sql, args := searchSQL(records.statements[phi.AllClasses].columns, sel)
			plans["Search "+what] = explain(t, conn, sql, args...)
		}
		for what, plan := range plans {
			if strings.Contains(strings.ReplaceAll(plan, "Seq Scan on treatment_source", ""), "Seq Scan") { // that has four rows
				t.Errorf("%s with %s scans a table:\n%s", what, mode, plan)
			}
			if strings.HasPrefix(what, "Search everything") && what != "Search everything of one's own" && strings.Contains(plan, "Sort") {
				t.Errorf("%s with %s sorts the type:\n%s", what, mode, plan)
			}
		}
		// A practitioner's whole list is read by index too; how much of record_patient depends on how many patients they have.
		sql, args := searchSQL(records.statements[0].columns, phi.Selection{Type: "Patient", Limit: 50, Practitioner: "dr-1"})
		if plan := explain(t, conn, sql, args...); strings.Contains(plan, "Seq Scan on record ") {
			t.Errorf("Search for a practitioner with %s scans record:\n%s", mode, plan)
		}
	}
}

// TestPlanOfRecentChanges: a client that polls for the last minutes does not walk the type.
func TestPlanOfRecentChanges(t *testing.T) {
	db, name := open(t)
	admin := connect(t, name, "")
	fillRecords(t, admin)
	conn := connect(t, name, "chartkeep_records")
	must(t, conn, `SET search_path = public`)
	must(t, conn, `SET plan_cache_mode = force_custom_plan`)
	sql, args := searchSQL(db.recordStorage.statements[0].columns, phi.Selection{
		Type: "Observation", Limit: 50, UpdatedFrom: time.Now().Add(-time.Hour), UpdatedTo: time.Now(),
	})
	if plan := explain(t, conn, sql, args...); !strings.Contains(plan, "record_updated") {
		t.Errorf("recent changes do not go by record_updated:\n%s", plan)
	}
}

// TestTrailPlans demands of officers' queries on a generated year that each goes by its index, scans no month, and leaves months
// alone that it need not look at.
func TestTrailPlans(t *testing.T) {
	_, name := open(t)
	g := &Generation{Rows: 100_000}
	if err := g.Generate(t.Context(), cluster.DSN(name)); err != nil {
		t.Fatal(err)
	}
	conn := connect(t, name, "chartkeep_audit_reader")
	must(t, conn, `SET search_path = public; SET max_parallel_workers_per_gather = 0`)
	now := time.Now().UTC()
	lastMonth := time.Date(now.Year(), now.Month()-1, 1, 0, 0, 0, 0, time.UTC)
	month, old := "audit_event_"+lastMonth.Format("2006_01"), "audit_event_"+g.from.Format("2006_01")
	then := lastMonth.AddDate(0, 0, 14)
	is := func(f audit.Field, v string) audit.Query {
		return audit.Query{Terms: []audit.Term{audit.Is(f, v)}, To: then}
	}
	after := audit.Position{PartTime: then, ID: random16()}
	for what, test := range map[string]struct {
		query audit.Query
		index string
		old   bool // the oldest month is looked at, too
	}{
		"newest":       {audit.Query{}, month + "_pkey", false},
		"quiet":        {audit.Query{Quiet: true}, month + "_pkey", false},
		"older than":   {audit.Query{After: after}, month + "_pkey", false},
		"newer than":   {audit.Query{After: after, Forward: true}, month + "_pkey", false},
		"of a day":     {audit.Query{From: then, To: then.AddDate(0, 0, 1)}, month + "_pkey", false},
		"free text":    {audit.Query{Text: "x", After: after}, month + "_pkey", false},
		"of a patient": {is(audit.FieldPatient, g.people.patients[7]), month + "_patient_part_ts_event_id_idx", false},
		"of a user":    {is(audit.FieldAgent, g.people.users[7]), month + "_agent_user_part_ts_event_id_idx", false},
		"of a request": {is(audit.FieldRequest, "r-77"), month + "_request_id_idx", true},
		"one event":    {is(audit.FieldID, strings.Repeat("a1", 16)), month + "_event_id_idx", true},
		"failures":     {is(audit.FieldOutcome, "8"), month + "_part_ts_event_id_idx", false},
		"alerts":       {is(audit.FieldType, string(audit.TypeSecurityAlert)), month + "_part_ts_event_id_idx", false},
	} {
		f := newFindSQL(test.query, nearby(&test.query))
		sql, args := f.page(50)
		plan := explain(t, conn, sql, args...)
		if !strings.Contains(plan, test.index) || strings.Contains(plan, "Seq Scan on "+month) {
			t.Errorf("%s does not go by %s:\n%s", what, test.index, plan)
		}
		if strings.Contains(plan, old) != test.old {
			t.Errorf("%s: is the oldest month looked at? want %t:\n%s", what, test.old, plan)
		}
		sql, args = f.last()
		if plan := explain(t, conn, sql, args...); strings.Contains(plan, "Seq Scan on "+month) {
			t.Errorf("%s scans for its last row:\n%s", what, plan)
		}
	}
	for what, q := range map[string]audit.Query{
		"a day":   {From: then, To: then.AddDate(0, 0, 1)},
		"90 days": {From: then.AddDate(0, 0, -90), To: then, Quiet: true, Terms: []audit.Term{audit.Is(audit.FieldOutcome, "4")}},
	} {
		for _, rollup := range []*relation{totals, deeds, actors} {
			if rollup == totals && len(q.Terms) > 0 {
				continue
			}
			for _, step := range []time.Duration{0, time.Hour, day} {
				for _, p := range parts(q, rollup, step) {
					if plan := explain(t, conn, `SELECT sum(events) FROM `+p.from, p.args...); strings.Contains(plan, "Seq Scan on audit_event_2") ||
						what == "a day" && strings.Contains(plan, "Seq Scan on audit_rollup") {
						t.Errorf("counting %s scans:\n%s", what, plan)
					}
				}
			}
		}
	}
}

// A statement that is planned and kept while the tables are still empty must not scan them when they have grown: the pool that
// runs it is asked, not a connection of the test's own.
func TestPlansOfSmallTables(t *testing.T) {
	db, _ := open(t)
	pooled, err := db.records.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer pooled.Release()
	must(t, pooled.Conn(), `SET plan_cache_mode = force_generic_plan`)
	statements := db.recordStorage.statements[phi.AllClasses]
	for what, plan := range map[string]string{
		"Fetch":     explain(t, pooled.Conn(), statements.current, "Patient", "p"),
		"FetchMany": explain(t, pooled.Conn(), statements.many, []string{"Patient"}, []string{"p"}),
	} {
		if strings.Contains(plan, "Seq Scan") || !strings.Contains(plan, "record_pkey") {
			t.Errorf("%s does not go by the primary key:\n%s", what, plan)
		}
	}
}

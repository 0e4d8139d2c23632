package postgres

import (
	"strings"
	"testing"
	"time"

	"github.com/chartkeep/chartkeep/auth"
	"github.com/chartkeep/chartkeep/phi"
)

// TestFilterOfManyPatients: what a clinician of 5,000 patients may see is a join, not a list. The statement and the number of its
// parameters are those of a clinician of one; it goes by index; and it finds what is theirs alone.
func TestFilterOfManyPatients(t *testing.T) {
	db, name := open(t)
	admin := connect(t, name, "")
	fillRecords(t, admin)
	const treated = 5000
	must(t, admin, `INSERT INTO record SELECT 'Observation', 'many-' || i, gen_random_uuid(), 1, now(), 'PUT', ARRAY['m-' || i], gen_random_uuid(), 0, 1, null, null, null, null,
		'\x0100000001' || sha256(i::text::bytea) || sha256('') || substr(sha256('x'), 1, 28), null,
		'\x01' || decode(repeat('00', 113), 'hex') || '\x0100000001' || decode(repeat('00', 28), 'hex'), substr(sha256(''), 1, 16), 1 FROM generate_series(1, $1::integer) i`, treated)
	must(t, admin, `INSERT INTO record_patient SELECT unnest(patients), type, id FROM record WHERE id LIKE 'many-%'`)
	must(t, admin, `INSERT INTO phi_key SELECT subject, segment, key_id, 'kek-1', substr(sha256('') || sha256(''), 1, 60) FROM record WHERE id LIKE 'many-%'`)
	must(t, admin, `INSERT INTO treatment SELECT 'dr-many', 'm-' || i, 'Encounter', 'Encounter', 'e-' || i FROM generate_series(1, $1::integer) i`, treated)
	must(t, admin, `INSERT INTO treatment VALUES ('dr-one', 'm-1', 'Encounter', 'Encounter', 'f-1')`)
	must(t, admin, `ANALYZE record, record_patient, treatment, phi_key`)

	selection := func(practitioner string) phi.Selection {
		return phi.Selection{
			Type: "Observation", Limit: 50, Practitioner: practitioner, Named: true,
			Gates: &auth.Filter{Decision: auth.Decision{Purpose: "TREAT"}, Practitioner: practitioner, Actor: auth.Actor{Practitioner: practitioner}},
		}
	}
	many, args := searchSQL(db.recordStorage.statements[0].columns, selection("dr-many"))
	one, fewer := searchSQL(db.recordStorage.statements[0].columns, selection("dr-one"))
	if many != one || len(args) != len(fewer) || len(args) > 10 {
		t.Errorf("a clinician of %d patients asks with %d parameters, one of a single patient with %d", treated, len(args), len(fewer))
	}
	for i, arg := range args {
		if list, ok := arg.([]string); ok && len(list) > 4 {
			t.Errorf("parameter %d lists %d values", i+1, len(list))
		}
	}
	for _, mode := range []string{"force_custom_plan", "force_generic_plan"} {
		conn := connect(t, name, "chartkeep_records")
		must(t, conn, `SET search_path = public`)
		must(t, conn, `SET enable_seqscan = off`) // as the pool of records has it
		must(t, conn, `SET plan_cache_mode = `+mode)
		for what, sel := range map[string]phi.Selection{
			"all of it":  selection("dr-many"),
			"by patient": func() phi.Selection { s := selection("dr-many"); s.Patients = []string{"m-77"}; return s }(),
			"by id":      func() phi.Selection { s := selection("dr-many"); s.IDs = []string{"many-77", "id-21"}; return s }(),
		} {
			sql, args := searchSQL(db.recordStorage.statements[0].columns, sel)
			if plan := explain(t, conn, sql, args...); strings.Contains(plan, "Seq Scan") {
				t.Errorf("%s with %s scans a table:\n%s", what, mode, plan)
			}
		}
	}
	found := func(sel phi.Selection) (ids []string) {
		began := time.Now()
		rows, err := db.recordStorage.Search(t.Context(), sel, 0)
		if err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("the search took %v", took)
		}
		for _, row := range rows {
			ids = append(ids, row.ID)
		}
		return ids
	}
	sel := selection("dr-many")
	sel.Limit = 1000
	if ids := found(sel); len(ids) != 1000 || strings.HasPrefix(ids[0], "id-") || strings.HasPrefix(ids[999], "id-") {
		t.Errorf("found %d, from %v on", len(ids), ids[:min(3, len(ids))])
	}
	sel = selection("dr-many")
	sel.IDs = []string{"many-77", "id-21"}
	if ids := found(sel); len(ids) != 1 || ids[0] != "many-77" {
		t.Errorf("found %v", ids)
	}
	if ids := found(selection("dr-one")); len(ids) != 1 || ids[0] != "many-1" {
		t.Errorf("found %v", ids)
	}
}

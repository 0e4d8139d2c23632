package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/phi"
)

// Experiments 4 (second half), 5 and 12 on a running demo: what a superuser does to stored records that no read would notice is
// found by the next sweep, named, with exit code 1 and as security alerts; undone, there is nothing to be found.
func TestSweep(t *testing.T) {
	d := demoFresh(t, "--patients", "3")
	backend := d.token(t, "app-backend")
	put := func(id, body string, want int) {
		t.Helper()
		if res := d.do(t, "PUT", "/fhir/R4/Patient/"+id, backend, body); res.StatusCode != want {
			t.Fatalf("%s: %s\n%s", id, res.Status, res.body)
		}
	}
	patient := func(id, gender string) string {
		return fmt.Sprintf(`{"resourceType":"Patient","id":%q,"gender":%q,"name":[{"family":"Quillfeather"}]}`, id, gender)
	}
	for n, gender := range []string{"other", "female", "male"} {
		put("swept", patient("swept", gender), map[bool]int{true: http.StatusCreated, false: http.StatusOK}[n == 0])
	}
	put("again", patient("again", "other"), http.StatusCreated)
	put("again", patient("again", "female"), http.StatusOK)
	put("erased", patient("erased", "other"), http.StatusCreated)

	admin, err := pgx.Connect(t.Context(), d.DatabaseURL)
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close(t.Context())
	do := func(sql string) {
		t.Helper()
		if _, err := admin.Exec(t.Context(), sql); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
	sweep := func() (report phi.SweepReport, code int) {
		t.Helper()
		out, errs, code := d.verb(t, "sweep", "--data", d.dir, "--json")
		if err := json.Unmarshal([]byte(out), &report); err != nil {
			t.Fatalf("exit code %d, %v\n%s%s", code, err, out, errs)
		}
		if strings.Contains(out+errs, "Quillfeather") {
			t.Error("a sweep says what it opened")
		}
		return report, code
	}
	clean := func(after string) {
		t.Helper()
		if report, code := sweep(); code != 0 || report.Total != 0 || report.Rows < 100 {
			t.Fatalf("%s: exit code %d, %d rows, findings %v", after, code, report.Rows, report.Findings)
		}
	}
	clean("untouched")

	// All that is stored of the records, to be put back after each attack.
	tables := []string{"record", "record_version", "record_patient", "index_token", "phi_key"}
	for _, table := range tables {
		do(`CREATE TEMPORARY TABLE kept_` + table + ` AS SELECT * FROM ` + table)
	}
	do(`SET session_replication_role = replica`) // no trigger, no foreign key
	restore := func() {
		for _, table := range tables {
			do(`DELETE FROM ` + table)
			do(`INSERT INTO ` + table + ` SELECT * FROM kept_` + table)
		}
	}
	const swept = ` WHERE type = 'Patient' AND id = 'swept'`
	const rollBack = `WITH gone AS (DELETE FROM record` + swept + ` RETURNING index_id),
		back AS (DELETE FROM record_version` + swept + ` AND version = 2 RETURNING *)
		SELECT * INTO TEMPORARY back FROM back CROSS JOIN gone; INSERT INTO record SELECT * FROM back; DROP TABLE back`
	for _, attack := range []struct {
		name, sql string
		kind      phi.FindingKind
		version   int64
		trail     int64
	}{
		{"a whole row is rolled back", rollBack, phi.FindingRolledBack, 2, 3},
		{"a record is deleted with everything", `DELETE FROM record` + swept + `; DELETE FROM record_version` + swept + `; DELETE FROM record_patient` + swept +
			`; DELETE FROM index_token` + swept, phi.FindingDeleted, 0, 3},
		{"a record is deleted and its tokens stay", `DELETE FROM record` + swept, phi.FindingStray, 0, 3},
		{"a cell is nulled", `UPDATE record SET name = NULL` + swept, phi.FindingUnopened, 3, 0},
		{"a bit of a cell is turned", `UPDATE record SET clinical = set_byte(clinical, 40, get_byte(clinical, 40) # 1)` + swept, phi.FindingUnopened, 3, 0},
		{"a bit of an old version is turned", `UPDATE record_version SET name = set_byte(name, 20, get_byte(name, 20) # 1)` + swept + ` AND version = 1`,
			phi.FindingUnopened, 1, 0},
		{"a sealed column in the clear is edited", `UPDATE record SET updated = updated + interval '1 day'` + swept, phi.FindingUnopened, 3, 0},
		{"an old version is removed", `DELETE FROM record_version` + swept + ` AND version = 1`, phi.FindingHistory, 3, 3},
		{"a token is removed", `DELETE FROM index_token` + swept, phi.FindingTokens, 3, 3},
		{"another's tokens are added", `INSERT INTO index_token SELECT kind, token, 'Patient', 'swept' FROM kept_index_token WHERE id <> 'swept' AND type = 'Patient' AND kind = 1 ON CONFLICT DO NOTHING`,
			phi.FindingTokens, 3, 3},
		{"tokens of nobody", `INSERT INTO index_token VALUES (1, substring(sha256('x') FOR 16), 'Patient', 'nobody')`, phi.FindingStray, 0, 0},
		{"it is moved to another's chart", `UPDATE record_patient SET patient = 'again'` + swept, phi.FindingPatients, 3, 3},
		{"its key is removed", `DELETE FROM phi_key WHERE subject = (SELECT subject FROM record` + swept + `)`, phi.FindingNoKey, 3, 0},
	} {
		t.Run(attack.name, func(t *testing.T) {
			do(attack.sql)
			report, code := sweep()
			restore()
			found := false
			for _, f := range report.Findings {
				found = found || f.Kind == attack.kind && f.Version == attack.version && (attack.trail == 0 || f.Trail == attack.trail)
			}
			if code != 1 || !found {
				t.Errorf("exit code %d, findings %v; want %q, version %d, trail %d", code, report.Findings, attack.kind, attack.version, attack.trail)
			}
		})
	}
	clean("everything put back")

	t.Run("what the sweep remembers is edited", func(t *testing.T) {
		do(rollBack)
		defer restore()
		for name, cover := range map[string]string{
			"a head": `UPDATE record_head SET version = 2, seen = 3` + swept, "a head is removed": `DELETE FROM record_head` + swept,
			"the state": `UPDATE sweep_state SET sealed = set_byte(sealed, 20, get_byte(sealed, 20) # 1)`, "all of it": `DELETE FROM sweep_state; DELETE FROM record_head`,
		} {
			do(cover)
			report, code := sweep()
			kinds := map[phi.FindingKind]bool{}
			for _, f := range report.Findings {
				kinds[f.Kind] = true
			}
			if code != 1 || !kinds[phi.FindingRolledBack] || !kinds[phi.FindingMemory] && name != "all of it" {
				t.Errorf("%s: exit code %d, findings %v", name, code, report.Findings)
			}
		}
	})
	clean("everything put back again")

	// A client writes over a record that was rolled back before anybody looks: the trail tells of that version twice.
	do(strings.ReplaceAll(strings.ReplaceAll(rollBack, "'swept'", "'again'"), "version = 2", "version = 1"))
	put("again", patient("again", "male"), http.StatusOK)
	if report, code := sweep(); code != 1 || len(report.Findings) != 1 || report.Findings[0].Kind != phi.FindingRewritten || report.Findings[0].Ref.ID != "again" {
		t.Errorf("written over: exit code %d, findings %v", code, report.Findings)
	}
	clean("it was told once")

	// A shredded key comes back from a backup; then somebody takes the mark away as well.
	id, errs, code := d.verb(t, "keys", "shred", "erased", "--reason", "case 7", "--by", "Ines Diaz", "--data", d.dir)
	if code != 0 {
		t.Fatal(errs)
	}
	if _, errs, code := d.verb(t, "keys", "shred", "--approve", strings.TrimSpace(id), "--by", "Sam Amari", "--data", d.dir); code != 0 {
		t.Fatal(errs)
	}
	clean("an erasure by the book")
	do(`INSERT INTO phi_key SELECT * FROM kept_phi_key WHERE subject = (SELECT subject FROM record WHERE type = 'Patient' AND id = 'erased')`)
	for _, step := range []struct {
		sql  string
		kind phi.FindingKind
	}{{`SELECT`, phi.FindingLiveKey}, {`DELETE FROM phi_erased`, phi.FindingUnerased}} {
		do(step.sql)
		report, code := sweep()
		found := false
		for _, f := range report.Findings {
			found = found || f.Kind == step.kind && f.Ref.ID == "erased"
		}
		if code != 1 || !found {
			t.Errorf("after %s: exit code %d, findings %v; want %q", step.sql, code, report.Findings, step.kind)
		}
	}

	// Every finding is an alert that officers see.
	db := d.open(t)
	defer db.Close()
	for _, interaction := range []string{"phi.sweep_finding", "phi.integrity_failure"} {
		alerts, err := db.Trail().Find(t.Context(), audit.Query{Terms: []audit.Term{audit.Is(audit.FieldInteraction, interaction), audit.Is(audit.FieldType, string(audit.TypeSecurityAlert))}})
		if err != nil || len(alerts.Events) < 4 {
			t.Errorf("%d alerts of %s, %v", len(alerts.Events), interaction, err)
		}
	}
}

// A sweep beside everything that changes rows finds nothing: clients write, keys and index keys rotate, keys are wrapped anew,
// charts are merged and parted, a patient is erased.
func TestSweepUnderLoad(t *testing.T) {
	d := demoFresh(t, "--patients", "15")
	backend := d.token(t, "app-backend")
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	var writes, sweeps atomic.Int64
	for w := range 2 {
		wg.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				id := fmt.Sprintf("load-%d-%d", w, n%20)
				body := fmt.Sprintf(`{"resourceType":"Patient","id":%q,"name":[{"family":"Quillfeather%d"}],"identifier":[{"system":"urn:example:load","value":"%d-%d"}]}`, id, n, w, n)
				if res := d.do(t, "PUT", "/fhir/R4/Patient/"+id, backend, body); res.StatusCode < 300 {
					writes.Add(1)
				}
			}
		})
	}
	wg.Go(func() {
		for ctx.Err() == nil {
			out, errs, code := d.verb(t, "sweep", "--data", d.dir)
			if sweeps.Add(1); code != 0 {
				t.Errorf("exit code %d\n%s%s", code, out, errs)
			}
		}
	})
	merge := `{"resourceType":"Parameters","parameter":[{"name":"source-patient","valueReference":{"reference":"Patient/load-0-1"}},{"name":"target-patient","valueReference":{"reference":"Patient/load-1-1"}}]}`
	for _, args := range [][]string{{"rotate", "--all"}, {"rotate", "--index"}, {"rewrap"}} {
		if out, errs, code := d.verb(t, append(append([]string{"keys"}, args...), "--data", d.dir)...); code != 0 {
			t.Errorf("keys %v: exit code %d\n%s%s", args, code, out, errs)
		}
	}
	for _, operation := range []string{"$merge", "$unmerge"} {
		if res := d.do(t, "POST", "/fhir/R4/Patient/"+operation, backend, merge); res.StatusCode != http.StatusOK && res.StatusCode != http.StatusAccepted {
			t.Errorf("%s: %s\n%s", operation, res.Status, res.body)
		}
	}
	id, errs, code := d.verb(t, "keys", "shred", "load-0-3", "--reason", "case 5", "--by", "Ines Diaz", "--data", d.dir)
	if code != 0 {
		t.Fatal(errs)
	}
	if _, errs, code := d.verb(t, "keys", "shred", "--approve", strings.TrimSpace(id), "--by", "Sam Amari", "--data", d.dir); code != 0 {
		t.Error(errs)
	}
	stop()
	wg.Wait()
	out, _, code := d.verb(t, "sweep", "--data", d.dir)
	t.Logf("%d sweeps beside %d writes; %s", sweeps.Load(), writes.Load(), out)
	if code != 0 || sweeps.Load() < 3 || writes.Load() < 200 {
		t.Errorf("exit code %d after %d sweeps and %d writes\n%s", code, sweeps.Load(), writes.Load(), out)
	}
}

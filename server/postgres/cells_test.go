package postgres

import (
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/auth"
	"github.com/chartkeep/chartkeep/phi"
	"github.com/chartkeep/chartkeep/phi/keyset"
	"github.com/chartkeep/chartkeep/phi/phitest"
)

// chart is a patient's chart on PostgreSQL with real keys and a superuser beside it.
type chart struct {
	records *phi.Records
	admin   *pgx.Conn
	patient phi.Ref
	weight  phi.Ref
}

func openChart(t *testing.T) *chart {
	t.Helper()
	db, name := open(t)
	dir := t.TempDir()
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	root, err := keyset.NewFileRoot(filepath.Join(dir, "root.key"), true)
	check(err)
	keys, err := keyset.Open(t.Context(), root, db.Keys())
	check(err)
	access, err := auth.NewAccess(t.Context(), auth.AccessConfig{Storage: phitest.NewStorage(), Logger: slog.New(slog.DiscardHandler)})
	check(err)
	log, err := audit.Open(audit.Config{Dir: filepath.Join(dir, "journal"), Logger: slog.New(slog.DiscardHandler)})
	check(err)
	t.Cleanup(func() {
		if err := log.Close(); err != nil {
			t.Error(err)
		}
		access.Close()
		keys.Close()
	})
	c := &chart{admin: connect(t, name, "")}
	c.records, err = phi.Open(t.Context(), phi.Config{
		Storage: db.Records(), Keys: keys, Access: access, Audit: log, Level: phi.Levels{Disclosure: audit.Process, Other: audit.Process},
	})
	check(err)
	create := func(resourceType, body string) phi.Ref {
		w, err := c.records.Create(t.Context(), backend(), resourceType, []byte(body), nil)
		check(err)
		return w.Ref
	}
	patient := `{"resourceType":"Patient","text":{"status":"generated","div":"<div xmlns=\"http://www.w3.org/1999/xhtml\">A patient</div>"},` +
		`"identifier":[{"system":"http://hospital.test/mrn","value":"MRN-%d"}],"name":[{"family":"Lindqvist"}],"telecom":[{"system":"phone","value":"555-014-0001"}],` +
		`"gender":"male","birthDate":"1970-02-03"}`
	c.patient = create("Patient", fmt.Sprintf(patient, 1))
	create("Patient", fmt.Sprintf(patient, 2))
	c.weight = create("Observation", `{"resourceType":"Observation","status":"final","code":{"text":"weight"},"subject":{"reference":"`+c.patient.String()+`"},`+
		`"identifier":[{"value":"A-1"}],"note":[{"text":"weighed"}]}`)
	again := strings.Replace(fmt.Sprintf(patient, 1), "{", `{"id":"`+c.patient.ID+`",`, 1)
	_, err = c.records.Update(t.Context(), backend(), c.patient, []byte(again), 0)
	check(err)
	return c
}

func backend() *phi.Caller { return phitest.Caller(phitest.Principal("backend", "")) }

// TestHostileCells edits sealed rows as a superuser (experiments 3 to 6 and 26 on PostgreSQL): what a CHECK refuses, and the same
// again after the CHECKs were dropped. No edit is served.
func TestHostileCells(t *testing.T) {
	c := openChart(t)
	ctx := t.Context()
	columns := []string{"identifier", "name", "birth_date", "contact", "clinical", "narrative"}
	const refused, allowed = true, false
	type attack struct {
		name, sql string
		check     bool // refused by the schema
	}
	mine := ` WHERE type = 'Patient' AND id = '` + c.patient.ID + `'`
	from := func(table, where string) string {
		return `UPDATE record r SET (%s) = (SELECT %s FROM ` + table + ` o WHERE ` + where + `)` + mine
	}
	other, old, weight := from("record", "o.type = 'Patient' AND o.id <> r.id"), from("record_version", "o.type = r.type AND o.id = r.id"), from("record", "o.type = 'Observation'")
	attacks := []attack{
		{"the seal nulled", `UPDATE record SET seal = NULL` + mine, refused},
		{"the seal cut", `UPDATE record SET seal = substring(seal FROM 1 FOR 146)` + mine, refused},
		{"the seal lengthened", `UPDATE record SET seal = seal || '\x00'` + mine, refused},
		{"a bit of the seal", `UPDATE record SET seal = set_bit(seal, 320, 1 - get_bit(seal, 320))` + mine, allowed},
		{"the token digest", `UPDATE record SET seal = set_byte(seal, 3, 255 - get_byte(seal, 3))` + mine, allowed},
		{"generation", `UPDATE record SET key_id = 2` + mine, refused},
		{"subject", `UPDATE record SET subject = '00000000-0000-0000-0000-000000000000'` + mine, allowed},
		{"the other's subject", fmt.Sprintf(other, "subject", "subject"), allowed},
		{"segment", `UPDATE record SET segment = 1` + mine, allowed},
		{"row", `UPDATE record SET row_id = gen_random_uuid()` + mine, allowed},
		{"version up", `UPDATE record SET version = 3` + mine, allowed},
		{"version nought", `UPDATE record SET version = 0` + mine, refused},
		{"time", `UPDATE record SET updated = updated - interval '1 ms'` + mine, allowed},
		{"method", `UPDATE record SET method = 'POST'` + mine, allowed},
		{"no method", `UPDATE record SET method = 'PATCH'` + mine, refused},
		{"patients", `UPDATE record SET patients = patients || 'somebody-else'::text` + mine, allowed},
		{"nobody's", `UPDATE record SET patients = '{}'` + mine, allowed},
		{"digest", `UPDATE record SET digest = set_byte(digest, 0, 255 - get_byte(digest, 0))` + mine, allowed},
		{"digest cut", `UPDATE record SET digest = '\x00'` + mine, refused},
		{"all cells and the seal of the other", fmt.Sprintf(other, strings.Join(columns, ", ")+", seal", strings.Join(columns, ", ")+", seal"), allowed},
		{"all cells and the seal of before", fmt.Sprintf(old, strings.Join(columns, ", ")+", seal", strings.Join(columns, ", ")+", seal"), allowed},
		{"the row of the other", fmt.Sprintf(other, strings.Join(columns, ", ")+", seal, row_id, version, updated, method, subject, digest",
			strings.Join(columns, ", ")+", seal, row_id, version, updated, method, subject, digest"), allowed},
		{"a bit of the wrapped key", `UPDATE phi_key SET wrapped = set_bit(wrapped, 200, 1 - get_bit(wrapped, 200))`, allowed},
		{"the wrapped key cut", `UPDATE phi_key SET wrapped = substring(wrapped FROM 1 FOR 59)`, refused},
		{"the other's wrapped key", `UPDATE phi_key k SET wrapped = (SELECT o.wrapped FROM phi_key o WHERE o.subject <> k.subject LIMIT 1)`, allowed},
		{"wrapped by another", `UPDATE phi_key SET kek = 'kek-9'`, refused},
	}
	for _, to := range columns {
		attacks = append(attacks,
			attack{to + " nulled", `UPDATE record SET ` + to + ` = NULL` + mine, allowed},
			attack{to + " emptied", `UPDATE record SET ` + to + ` = ''` + mine, refused},
			attack{"plaintext as " + to, `UPDATE record SET ` + to + ` = convert_to('Lindqvist', 'UTF8')` + mine, refused},
			attack{"long plaintext as " + to, `UPDATE record SET ` + to + ` = convert_to(repeat('Lindqvist', 100), 'UTF8')` + mine, refused},
			attack{"plaintext of a cell's length as " + to, `UPDATE record SET ` + to + ` = '\x01'::bytea || convert_to(repeat('L', 64), 'UTF8')` + mine, refused},
			attack{"a byte added to " + to, `UPDATE record SET ` + to + ` = ` + to + ` || '\x00'` + mine, refused},
			attack{to + " cut by a block", `UPDATE record SET ` + to + ` = substring(` + to + ` FROM 1 FOR octet_length(` + to + `) - 32)` + mine, to == "name" || to == "birth_date"},
			attack{"a bit of " + to, `UPDATE record SET ` + to + ` = set_bit(` + to + `, 160, 1 - get_bit(` + to + `, 160))` + mine, allowed},
			attack{"the format of " + to, `UPDATE record SET ` + to + ` = set_byte(` + to + `, 0, 2)` + mine, refused},
			attack{"the key of " + to, `UPDATE record SET ` + to + ` = set_byte(` + to + `, 4, 9)` + mine, refused},
			attack{to + " of before", fmt.Sprintf(old, to, to), allowed},
			attack{to + " of the other", fmt.Sprintf(other, to, to), allowed},
		)
		for _, source := range columns {
			if source != to {
				attacks = append(attacks, attack{source + " as " + to, `UPDATE record SET ` + to + ` = ` + source + mine, allowed},
					attack{source + " of the other as " + to, fmt.Sprintf(other, to, source), allowed})
			}
			if source == "identifier" || source == "clinical" || source == "narrative" { // what the Observation has
				attacks = append(attacks, attack{source + " of another type as " + to, fmt.Sprintf(weight, to, source), allowed})
			}
		}
	}
	must(t, c.admin, `CREATE TABLE saved AS TABLE record`)
	must(t, c.admin, `CREATE TABLE saved_key AS TABLE phi_key`)
	must(t, c.admin, `SET session_replication_role = replica`) // past triggers and foreign keys, on the way back
	restore := func() {
		must(t, c.admin, `DELETE FROM record`)
		must(t, c.admin, `INSERT INTO record SELECT * FROM saved`)
		must(t, c.admin, `DELETE FROM phi_key`)
		must(t, c.admin, `INSERT INTO phi_key SELECT * FROM saved_key`)
	}
	edit := func(a attack, role string) error {
		must(t, c.admin, `SET session_replication_role = `+role)
		tag, err := c.admin.Exec(ctx, a.sql)
		if err == nil && tag.RowsAffected() == 0 {
			t.Errorf("%s: touches nothing", a.name)
		}
		must(t, c.admin, `SET session_replication_role = replica`)
		return err
	}
	withheld := func(when string, a attack) {
		res, err := c.records.Read(ctx, backend(), c.patient)
		if e, ok := errors.AsType[*phi.Error](err); !ok || e.Kind != phi.Integrity {
			t.Errorf("%s, %s: %v, want %v", a.name, when, err, phi.Integrity)
		}
		if res != nil {
			t.Errorf("%s, %s: disclosed", a.name, when)
		}
	}
	failures := c.records.Stats().IntegrityFailures
	served := uint64(0)
	for _, a := range attacks {
		err := edit(a, "origin")
		violation, _ := errors.AsType[*pgconn.PgError](err)
		switch {
		case a.check && (violation == nil || !strings.HasPrefix(violation.Code, "23")):
			t.Errorf("%s: %v, want it refused by a constraint", a.name, err)
		case !a.check && err != nil:
			t.Errorf("%s: %v", a.name, err)
		}
		if err == nil {
			served++
			withheld("with the constraints", a)
		}
		restore()
	}
	for _, drop := range []string{
		`DO $$ DECLARE c record; BEGIN
			FOR c IN SELECT conname, conrelid::regclass AS rel, contypid::regtype AS typ, contypid FROM pg_constraint
				WHERE contype IN ('c', 'f') AND (conrelid IN ('record'::regclass, 'record_version'::regclass, 'phi_key'::regclass)
					OR contypid IN ('sealed'::regtype, 'wrapped_key'::regtype)) LOOP
				IF c.contypid <> 0 THEN EXECUTE format('ALTER DOMAIN %s DROP CONSTRAINT %I', c.typ, c.conname);
				ELSE EXECUTE format('ALTER TABLE %s DROP CONSTRAINT %I', c.rel, c.conname); END IF;
			END LOOP; END $$`,
		`ALTER TABLE record ALTER seal DROP NOT NULL`,
	} {
		must(t, c.admin, drop)
	}
	for _, a := range attacks {
		if err := edit(a, "replica"); err != nil {
			t.Errorf("%s, without the constraints: %v", a.name, err)
			continue
		}
		served++
		withheld("without the constraints", a)
		restore()
	}
	if got := c.records.Stats().IntegrityFailures - failures; got != served {
		t.Errorf("%d edits were noticed %d times", served, got)
	}
	if _, err := c.records.Read(ctx, backend(), c.patient); err != nil {
		t.Errorf("the row as it was: %v", err)
	}
	t.Logf("%d attacks", len(attacks))
}

// TestRenamed renames the table and every sealed column behind a view with the old names (experiment 28): what a cell is bound
// to is no name.
func TestRenamed(t *testing.T) {
	c := openChart(t)
	read := func(get func(*phi.Records, phi.Ref) (*phi.Resource, error)) string {
		text := ""
		for _, ref := range []phi.Ref{c.patient, c.weight} {
			res, err := get(c.records, ref)
			if err != nil {
				t.Fatal(err)
			}
			text += string(res.JSON.Reveal())
		}
		return text
	}
	before := read(func(r *phi.Records, ref phi.Ref) (*phi.Resource, error) { return r.Read(t.Context(), backend(), ref) })
	must(t, c.admin, `ALTER TABLE record RENAME TO chart`)
	for _, column := range []string{"identifier", "name", "birth_date", "contact", "clinical", "narrative", "seal"} {
		must(t, c.admin, `ALTER TABLE chart RENAME COLUMN `+column+` TO `+column+`_renamed`)
	}
	must(t, c.admin, `CREATE VIEW record AS SELECT type, id, row_id, version, updated, method, patients, subject, segment, key_id, identifier_renamed AS identifier,
		name_renamed AS name, birth_date_renamed AS birth_date, contact_renamed AS contact, clinical_renamed AS clinical, narrative_renamed AS narrative,
		seal_renamed AS seal, digest FROM chart`)
	must(t, c.admin, `GRANT SELECT ON record TO chartkeep_records`)
	// By statements that were not prepared before.
	after := read(func(r *phi.Records, ref phi.Ref) (*phi.Resource, error) {
		version := int64(1)
		if ref == c.patient {
			version = 2
		}
		return r.ReadVersion(t.Context(), backend(), ref, version)
	})
	if after != before {
		t.Errorf("read back %s", after)
	}
}

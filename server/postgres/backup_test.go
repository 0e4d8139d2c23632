package postgres

import (
	"bytes"
	"io"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/chartkeep/chartkeep/audit"
)

// Every table of the records is in a backup of the data or in one of the keys, never in both, or it is known why not.
func TestEveryTableIsBackedUp(t *testing.T) {
	without := map[string]string{
		"deployment":    "its id is in the manifest",
		"record_head":   "the sweep reads the trail anew",
		"sweep_state":   "the sweep reads the trail anew",
		"phi_renewal":   "the state of a rotation that a restore ends",
		"authz_epoch":   "counts up from wherever it is",
		"role":          "policy: migrations make it, pg_dump keeps what was changed",
		"permission":    "policy",
		"capability":    "policy",
		"role_conflict": "policy", "role_assignment": "policy", "policy_setting": "policy", "policy_proposal": "policy", "treatment_source": "policy",
		"policy_version": "policy: the restored database begins its own history",

		"issuer_publication": "fetched anew from the issuers",
		"session_seen":       "when sessions were used last: one that is not known begins anew, its sign-in is as old as it is",
	}
	_, name := open(t)
	admin := connect(t, name, "")
	rows, err := admin.Query(t.Context(), `SELECT tablename::text FROM pg_tables WHERE tableowner = 'chartkeep_owner' ORDER BY 1`)
	if err != nil {
		t.Fatal(err)
	}
	tables, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil || len(tables) < 12 {
		t.Fatalf("%d tables, %v", len(tables), err)
	}
	for _, table := range tables {
		data, keys := slices.Contains(BackupData.tables(), table), slices.Contains(BackupKeys.tables(), table)
		if why := without[table]; data == keys == (why == "") {
			t.Errorf("%s: in backups of the data %v, of the keys %v, and otherwise %q", table, data, keys, why)
		}
	}
	for table := range without {
		if !slices.Contains(tables, table) {
			t.Errorf("%s is left out of backups and is not there", table)
		}
	}
	for _, table := range slices.Concat(BackupData.tables(), BackupKeys.tables()) {
		if !slices.Contains(tables, table) {
			t.Errorf("%s is backed up and is not there", table)
		}
	}
	// Whoever makes backups of the data cannot read keys, nor change what is there; whoever sweeps changes nothing but what he remembers.
	backup, sweep := connect(t, name, "chartkeep_backup"), connect(t, name, "chartkeep_sweep")
	refused := func(conn *pgx.Conn, sql string) {
		t.Helper()
		if _, err := conn.Exec(t.Context(), sql); sqlState(err) != "42501" {
			t.Errorf("%s: %v", sql, err)
		}
	}
	for _, table := range BackupKeys.tables() {
		refused(backup, `SELECT FROM `+table)
	}
	for _, table := range BackupData.tables() {
		refused(backup, `DELETE FROM `+table)
		refused(sweep, `DELETE FROM `+table)
		refused(sweep, `INSERT INTO `+table+` DEFAULT VALUES`)
	}
	for _, table := range []string{"phi_key", "phi_erased"} {
		refused(sweep, `DELETE FROM `+table)
	}
	refused(sweep, `SELECT FROM phi_secret`)
	refused(sweep, `UPDATE record SET version = 1`)
}

// phiLike is what a column that holds PHI would be called.
var phiLike = regexp.MustCompile(`name|birth|born|death|dob|gender|sex|race|ethnic|address|street|city|zip|postal|phone|fax|mail|contact|ssn|mrn|identif|` +
	`insur|account|family|given|diagnos|medic|clinical|narrative|note|comment|text|description|photo|value|content|body|search|query`)

// Experiment 27: a column that could hold text and is called like PHI is a sealed cell, or is registered here with what it holds.
func TestColumnsNamedLikePHI(t *testing.T) {
	registered := map[string]string{
		"role.name": "of a role", "role.description": "of a role", "migration.name": "of a file", "phi_secret.name": "of an organisation's secret", "index_generation.names": "how names are indexed",
		"audit_event.body": "an event's bytes: references and sealed search text", "audit_quarantine.body": "an event's bytes",
		"audit_checkpoint.note": "a signed checkpoint", "phi_erasure.certificate": "signed, names pseudonyms",
		"audit_pruned.note": "a signed record of what was dropped", "capability.name": "of a permission", "policy_setting.name": "of a setting",
	}
	_, name := open(t)
	admin := connect(t, name, "")
	columns := func() (list []string) {
		t.Helper()
		// Views and partitions show what their tables have; the domain sealed takes nothing but cells.
		rows, err := admin.Query(t.Context(), `SELECT c.relname::text || '.' || a.attname FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
			JOIN pg_type t ON t.oid = a.atttypid WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relnamespace = 'public'::regnamespace
			AND a.attnum > 0 AND NOT a.attisdropped AND (t.typcategory IN ('S', 'U', 'A', 'X') OR t.typtype = 'd') AND t.typname NOT IN ('uuid', '_uuid', 'sealed', 'wrapped_key')
			ORDER BY 1`)
		if err != nil {
			t.Fatal(err)
		}
		all, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil || len(all) < 40 {
			t.Fatalf("%d columns, %v", len(all), err)
		}
		for _, c := range all {
			if _, column, _ := strings.Cut(c, "."); phiLike.MatchString(column) && registered[c] == "" {
				list = append(list, c)
			}
		}
		return list
	}
	if found := columns(); len(found) > 0 {
		t.Errorf("called like PHI, not sealed and not registered: %v", found)
	}
	must(t, admin, `ALTER TABLE record ADD COLUMN birth_city text`)
	must(t, admin, `CREATE TABLE visit (id uuid, clinical_note jsonb)`)
	must(t, admin, `ALTER TABLE record ADD COLUMN next_name sealed`)
	if found := columns(); !slices.Equal(found, []string{"record.birth_city", "visit.clinical_note"}) {
		t.Errorf("two columns too many, found: %v", found)
	}
}

// TestRestoreForgets restores data and keys from before an erasure that only the trail tells of: neither the key comes back nor what leads to
// the records, and no key counts as replaced by a rotation that the new database does not know.
func TestRestoreForgets(t *testing.T) {
	old, name := open(t)
	keyed(t, old)
	chartOf(t, old, "p-1")
	chartOf(t, old, "p-2")
	must(t, connect(t, name, ""), `UPDATE phi_key SET renewal = 3`)
	ctx, kept := t.Context(), map[string]*bytes.Buffer{}
	backUp := func(kind BackupKind) *Backup {
		t.Helper()
		b, err := old.Backup(ctx, kind, func(table string, rows func(io.Writer) (int64, error)) error {
			kept[table] = &bytes.Buffer{}
			_, err := rows(kept[table])
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	data, keys := backUp(BackupData), backUp(BackupKeys)
	db, name := open(t)
	admin := connect(t, name, "")
	read := func(table string, rows func(io.Reader) (int64, error)) error {
		_, err := rows(kept[table])
		return err
	}
	if err := db.RestoreData(ctx, data, read); err != nil {
		t.Fatal(err)
	}
	shredded := []Shredded{{Patient: "p-1", Erasure: audit.ID(random16()), At: time.Now()}}
	if done, err := db.RestoreKeys(ctx, keys, shredded, false, read); err != nil || done.Erased != 1 || done.Keys != 2 || done.Shut != 0 {
		t.Fatalf("%+v, %v", done, err)
	}
	for sql, want := range map[string]int{
		`SELECT count(*) FROM index_token WHERE id = 'p-1'`:                               0,
		`SELECT count(*) FROM index_token WHERE id = 'p-2'`:                               1,
		`SELECT count(*) FROM record_patient WHERE patient = 'p-1'`:                       1, // of somebody else's
		`SELECT count(*) FROM record_patient WHERE patient = 'p-2'`:                       4,
		`SELECT count(*) FROM treatment WHERE patient = 'p-1'`:                            0,
		`SELECT count(*) FROM treatment WHERE patient = 'p-2'`:                            2,
		`SELECT count(*) FROM phi_key WHERE renewal <> 0`:                                 0,
		`SELECT count(*) FROM phi_key k JOIN record r USING (subject) WHERE r.id = 'p-1'`: 0,
	} {
		var n int
		if err := admin.QueryRow(ctx, sql).Scan(&n); err != nil || n != want {
			t.Errorf("%s: %d, %v; want %d", sql, n, err, want)
		}
	}
}

package postgres

import (
	"bufio"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/chartkeep/chartkeep/audit"
)

// BackupKind says what a backup holds: the data, of which every value is ciphertext, a keyed token or a pseudonym, or the key
// tables, in which every key is wrapped. Neither is of use without the other, so they belong into different hands.
type BackupKind string

// The kinds.
const (
	BackupData BackupKind = "data"
	BackupKeys BackupKind = "keys"
)

// tables lists what a backup holds, in the order in which it goes back.
func (k BackupKind) tables() []string {
	if k == BackupKeys {
		return []string{"phi_kek", "phi_secret", "index_generation", "phi_erasure", "phi_erased", "phi_key"}
	}
	return []string{"record", "record_version", "record_patient", "index_token", "treatment", "consent_rule", "import_source", "phi_merge", "phi_merge_row",
		"emergency_access", "emergency_review", "alert", "revocation"}
}

func (k BackupKind) role() string {
	if k == BackupKeys {
		return "chartkeep_keys"
	}
	return "chartkeep_backup"
}

// backupTimeout bounds one table of a backup.
const backupTimeout = 24 * time.Hour

// Backup describes a backup: everything in it is of one moment.
type Backup struct {
	Kind       BackupKind    `json:"kind"`
	Deployment string        `json:"deployment"` // UUID
	Made       time.Time     `json:"made"`       // UTC
	Schema     []string      `json:"schema"`     // migrations that the database had, with their SHA-256
	KEKs       []BackupKEK   `json:"key_encryption_keys"`
	Tables     []BackupTable `json:"tables"`
}

// BackupKEK is a key-encryption key: a backup of keys opens as long as its root can be asked.
type BackupKEK struct {
	ID     string `json:"id"`
	Root   string `json:"root"`
	Active bool   `json:"active"`
}

// BackupTable is a table's part of a backup: PostgreSQL's COPY in binary format for data, a line of JSON a row for keys.
type BackupTable struct {
	Name    string   `json:"name"`
	Columns []string `json:"columns"`
	Rows    int64    `json:"rows"`
}

// Errors of backups.
var (
	ErrNotEmpty        = errors.New("postgres: the database holds records already")
	ErrOtherSchema     = errors.New("postgres: the backup was made from another version of the schema")
	ErrOtherDeployment = errors.New("postgres: the backup is another deployment's")
	ErrKeysThere       = errors.New("postgres: the database holds other keys than the backup")
	ErrBackupContent   = errors.New("postgres: the backup does not hold what it says")
)

// Backup writes tables from one snapshot: write is called for each of them in turn, and gets its rows.
func (d *DB) Backup(ctx context.Context, kind BackupKind, write func(table string, copy func(io.Writer) (rows int64, err error)) error) (*Backup, error) {
	pool, err := openPool(ctx, d.records.Config().ConnString(), kind.role(), 1, backupTimeout, pgx.QueryExecModeCacheDescribe)
	if err != nil {
		return nil, err
	}
	defer pool.Close()
	b := &Backup{Kind: kind}
	err = pgx.BeginTxFunc(ctx, pool, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		if err := b.describe(ctx, tx); err != nil {
			return err
		}
		for i := range b.Tables {
			t := &b.Tables[i]
			if err := write(t.Name, func(w io.Writer) (int64, error) {
				tag, err := tx.Conn().PgConn().CopyTo(ctx, w, t.copySQL(kind))
				t.Rows = tag.RowsAffected()
				if err != nil {
					return 0, bare("copying "+t.Name, err)
				}
				return t.Rows, nil
			}); err != nil {
				return err
			}
		}
		return nil
	})
	return b, err
}

// copySQL is the statement by which a table's rows come out. The quote and delimiter of keys are characters that JSON never has.
func (t *BackupTable) copySQL(kind BackupKind) string {
	if kind == BackupKeys {
		return `COPY (SELECT row_to_json(t) FROM ` + t.Name + ` t) TO STDOUT (FORMAT csv, QUOTE E'\x01', DELIMITER E'\x02')`
	}
	return `COPY ` + t.Name + ` (` + strings.Join(t.Columns, ", ") + `) TO STDOUT (FORMAT binary)`
}

// describe fills in everything but the rows.
func (b *Backup) describe(ctx context.Context, tx pgx.Tx) error {
	if err := tx.QueryRow(ctx, `SELECT id::text, now() FROM deployment`).Scan(&b.Deployment, &b.Made); err != nil {
		return bare("reading the deployment's id", err)
	}
	b.Made = b.Made.UTC()
	applied, err := appliedMigrations(ctx, tx)
	if err != nil {
		return err
	}
	for _, m := range applied {
		b.Schema = append(b.Schema, m.name+" "+hex.EncodeToString(m.sum[:]))
	}
	if b.Kind == BackupKeys {
		rows, err := tx.Query(ctx, `SELECT id, root, active FROM phi_kek ORDER BY created, id`)
		if err != nil {
			return bare("reading key-encryption keys", err)
		}
		if b.KEKs, err = pgx.CollectRows(rows, pgx.RowToStructByPos[BackupKEK]); err != nil {
			return bare("reading key-encryption keys", err)
		}
	}
	for _, name := range b.Kind.tables() {
		t := BackupTable{Name: name}
		rows, err := tx.Query(ctx, `SELECT attname::text FROM pg_attribute WHERE attrelid = $1::text::regclass AND attnum > 0 AND NOT attisdropped
			ORDER BY attname`, "public."+name)
		if err != nil {
			return bare("reading columns", err)
		}
		if t.Columns, err = pgx.CollectRows(rows, pgx.RowTo[string]); err != nil {
			return bare("reading columns", err)
		}
		b.Tables = append(b.Tables, t)
	}
	return nil
}

// fits says whether a backup can go into a database: of which the answer to describe is there.
func (b *Backup) fits(there *Backup) error {
	if strings.Join(b.Schema, "\n") != strings.Join(there.Schema, "\n") || len(b.Tables) != len(there.Tables) {
		return ErrOtherSchema
	}
	for i, t := range b.Tables {
		if t.Name != there.Tables[i].Name || strings.Join(t.Columns, "\n") != strings.Join(there.Tables[i].Columns, "\n") {
			return ErrOtherSchema
		}
	}
	return nil
}

// RestoreData puts a backup of the data into a migrated database without records, which becomes the deployment that it was made
// of, in one transaction. read is called for each table in turn; it says whether what it handed over was what it should be.
func (d *DB) RestoreData(ctx context.Context, b *Backup, read func(table string, copy func(io.Reader) (rows int64, err error)) error) error {
	pool, err := openPool(ctx, d.records.Config().ConnString(), BackupData.role(), 1, backupTimeout, pgx.QueryExecModeCacheDescribe)
	if err != nil {
		return err
	}
	defer pool.Close()
	return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		there := &Backup{Kind: BackupData}
		if err := there.describe(ctx, tx); err != nil {
			return err
		}
		if err := b.fits(there); err != nil {
			return err
		}
		// Locks out a second restore; whoever writes now meets the primary keys, and this fails.
		if _, err := tx.Exec(ctx, `UPDATE deployment SET id = $1`, b.Deployment); err != nil {
			return bare("taking the deployment's id", err)
		}
		for i := range b.Tables {
			t := &b.Tables[i]
			var full bool
			if err := tx.QueryRow(ctx, `SELECT EXISTS (SELECT FROM `+there.Tables[i].Name+`)`).Scan(&full); err != nil {
				return bare("looking into "+t.Name, err)
			}
			if full {
				return ErrNotEmpty
			}
			if err := read(t.Name, func(r io.Reader) (int64, error) {
				tag, err := tx.Conn().PgConn().CopyFrom(ctx, r, `COPY `+there.Tables[i].Name+` (`+strings.Join(there.Tables[i].Columns, ", ")+`) FROM STDIN (FORMAT binary)`)
				if sqlState(err) != "" {
					return 0, errors.Join(ErrBackupContent, bare("copying "+t.Name, err))
				}
				return tag.RowsAffected(), err
			}); err != nil {
				return err
			}
		}
		return nil
	})
}

// Shredded is an erasure that the audit trail tells of, whatever the tables say.
type Shredded struct {
	Patient string
	Erasure audit.ID
	At      time.Time
}

// RestoredKeys counts what RestoreKeys did.
type RestoredKeys struct {
	Keys   int64 // data keys put back
	Erased int64 // data keys left out: their subjects are erased
	Kept   int64 // data keys that were there

	Shut  int64 // rows whose data key was rotated away since the backup of the data: it is in backups of the keys of that time
	Stale int64 // records whose index tokens were minted under index keys that are gone: searches find them when the index is made anew
}

// RestoreKeys puts a backup of the key tables back, in one transaction. Into a database without data keys everything goes, as
// it was; what the program made at a start without keys gives way. Into one that has other keys than the backup it is
// ErrKeysThere, unless forced: then what is missing is added, what is there stays as it is, and an added key opens what it
// sealed and seals nothing new where there is another one. A key of a subject who is erased never comes back: because the
// database says so, the backup, or the trail (shredded); and what leads to the subject's records goes. read is as in RestoreData.
func (d *DB) RestoreKeys(ctx context.Context, b *Backup, shredded []Shredded, force bool, read func(table string, copy func(io.Reader) (rows int64, err error)) error) (*RestoredKeys, error) {
	pool, err := openPool(ctx, d.records.Config().ConnString(), BackupKeys.role(), 1, backupTimeout, pgx.QueryExecModeCacheDescribe)
	if err != nil {
		return nil, err
	}
	defer pool.Close()
	done := &RestoredKeys{}
	err = pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		r := keyRestore{tx: tx, backup: b, done: done}
		if err := r.begin(ctx, force); err != nil {
			return err
		}
		for _, t := range b.Tables {
			if err := read(t.Name, func(lines io.Reader) (int64, error) { return r.table(ctx, t.Name, lines) }); err != nil {
				return err
			}
			if t.Name == "phi_erased" { // before the data keys
				if err := r.erase(ctx, shredded); err != nil {
					return err
				}
			}
		}
		if err := r.forget(ctx); err != nil {
			return err
		}
		if err := r.compare(ctx); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, `SELECT pg_notify('chartkeep_keys', '')`)
		if err != nil {
			return bare("telling of restored keys", err)
		}
		return nil
	})
	return done, err
}

// keyRestore is one RestoreKeys under way.
type keyRestore struct {
	tx     pgx.Tx
	backup *Backup
	force  bool // into tables that hold keys
	done   *RestoredKeys
}

func (r *keyRestore) begin(ctx context.Context, force bool) error {
	there := &Backup{Kind: BackupKeys}
	if err := there.describe(ctx, r.tx); err != nil {
		return err
	}
	if err := r.backup.fits(there); err != nil {
		return err
	}
	// No key is made, rewrapped or erased meanwhile.
	if _, err := r.tx.Exec(ctx, `LOCK TABLE phi_key, phi_kek, phi_secret IN SHARE ROW EXCLUSIVE MODE`); err != nil {
		return bare("locking key tables", err)
	}
	var records bool
	if err := r.tx.QueryRow(ctx, `SELECT (SELECT count(*) FROM phi_key), EXISTS (SELECT FROM record)`).Scan(&r.done.Kept, &records); err != nil {
		return bare("looking at key tables", err)
	}
	if r.backup.Deployment != there.Deployment {
		if records || r.done.Kept > 0 {
			return ErrOtherDeployment
		}
		if _, err := r.tx.Exec(ctx, `UPDATE deployment SET id = $1`, r.backup.Deployment); err != nil {
			return bare("taking the deployment's id", err)
		}
	}
	switch {
	case r.done.Kept == 0:
		// Nothing is sealed under what is here: a start of the program made it.
		for _, table := range []string{"phi_secret", "phi_kek", "index_generation"} {
			if _, err := r.tx.Exec(ctx, `DELETE FROM `+table); err != nil {
				return bare("clearing "+table, err)
			}
		}
	case !force:
		return ErrKeysThere
	default:
		r.force = true
	}
	return nil
}

// insertSQL puts lines of JSON into a table. What is there stays; of two active keys the one that is there stays that.
func (r *keyRestore) insertSQL(table string) string {
	source := ` FROM (SELECT (json_populate_record(NULL::` + table + `, l::json)).* FROM unnest($1::text[]) l) b `
	columns := r.columns(table)
	list := strings.Join(columns, ", ")
	values := "b." + strings.Join(columns, ", b.")
	switch table {
	case "phi_kek":
		values = strings.Replace(values, "b.active", "b.active AND NOT EXISTS (SELECT FROM phi_kek k WHERE k.active)", 1)
	case "phi_key":
		values = strings.Replace(values, "b.state", `CASE WHEN b.state = 'active' AND EXISTS (SELECT FROM phi_key k
			WHERE k.subject = b.subject AND k.segment = b.segment AND k.state = 'active') THEN 'decrypt_only' ELSE b.state END`, 1)
		// Renewals count from one in a new database: none of them has replaced this key.
		values = strings.Replace(values, "b.renewal", "0", 1)
		source += `WHERE NOT EXISTS (SELECT FROM phi_erased e WHERE e.subject = b.subject)`
	case "index_generation":
		if r.force { // tokens that were minted under another one are gone, or here and so is the generation
			source += `WHERE false`
		}
	}
	return `INSERT INTO ` + table + ` (` + list + `) SELECT ` + values + source + ` ON CONFLICT DO NOTHING`
}

func (r *keyRestore) columns(table string) []string {
	for _, t := range r.backup.Tables {
		if t.Name == table {
			return t.Columns
		}
	}
	return nil
}

// restoreBatch is how many lines go into one statement.
const restoreBatch = 1000

// table takes a table's lines and returns how many there were.
func (r *keyRestore) table(ctx context.Context, table string, lines io.Reader) (rows int64, err error) {
	statement := r.insertSQL(table)
	var batch []string
	flush := func() error {
		if len(batch) == 0 {
			return nil
		}
		tag, err := r.tx.Exec(ctx, statement, batch)
		if err != nil {
			return errors.Join(ErrBackupContent, bare("restoring "+table, err))
		}
		if table == "phi_key" {
			r.done.Keys += tag.RowsAffected()
			var erased int64
			if err := r.tx.QueryRow(ctx, `SELECT count(*) FROM unnest($1::text[]) l JOIN phi_erased e ON e.subject = (l::json->>'subject')::uuid`, batch).Scan(&erased); err != nil {
				return bare("counting erased keys", err)
			}
			r.done.Erased += erased
		}
		batch = batch[:0]
		return nil
	}
	s := bufio.NewScanner(lines)
	s.Buffer(nil, 16<<20)
	for s.Scan() {
		batch = append(batch, s.Text())
		rows++
		if len(batch) == restoreBatch {
			if err := flush(); err != nil {
				return rows, err
			}
		}
	}
	if err := s.Err(); err != nil {
		return rows, fmt.Errorf("reading %s: %w", table, err)
	}
	return rows, flush()
}

// erase notes the subjects whom the trail says to be erased, as far as their records are here, before keys come back.
func (r *keyRestore) erase(ctx context.Context, shredded []Shredded) error {
	for _, s := range shredded {
		if _, err := r.tx.Exec(ctx, `INSERT INTO phi_erased (subject, patient, erasure, erased_at)
			SELECT subject, $1, $2, $3 FROM record WHERE type = 'Patient' AND id = $1 AND subject <> '00000000-0000-0000-0000-000000000000'
			ON CONFLICT DO NOTHING`, s.Patient, [16]byte(s.Erasure), s.At); err != nil {
			return bare("noting erased subjects", err)
		}
	}
	return nil
}

// forget removes what leads to the records of erased subjects, and is in data that was backed up before they were erased.
func (r *keyRestore) forget(ctx context.Context) error {
	const erased = ` t USING phi_erased e, record r WHERE r.subject = e.subject AND `
	for _, sql := range []string{
		`DELETE FROM index_token` + erased + `t.type = r.type AND t.id = r.id`,
		`DELETE FROM record_patient` + erased + `t.type = r.type AND t.id = r.id`,
		`DELETE FROM treatment` + erased + `t.type <> '' AND t.type = r.type AND t.id = r.id`,
		`DELETE FROM treatment` + erased + `r.type = 'Patient' AND t.patient = r.id`,
		`DELETE FROM consent_rule` + erased + `r.type = 'Patient' AND t.patient = r.id`,
	} {
		if _, err := r.tx.Exec(ctx, sql); err != nil {
			return bare("forgetting erased subjects", err)
		}
	}
	return nil
}

// compare says what the data, older than the keys, lacks. Index generations that records name and that are gone come back as retiring, so that
// the rotation of the index takes them up.
func (r *keyRestore) compare(ctx context.Context) error {
	if err := r.tx.QueryRow(ctx, `SELECT count(*) FROM (SELECT subject, segment, key_id FROM record UNION ALL SELECT subject, segment, key_id FROM record_version) r
		WHERE NOT EXISTS (SELECT FROM phi_key k WHERE k.subject = r.subject AND k.segment = r.segment AND k.key_id = r.key_id)
		AND NOT EXISTS (SELECT FROM phi_erased e WHERE e.subject = r.subject)`).Scan(&r.done.Shut); err != nil {
		return bare("looking for rows without a key", err)
	}
	if err := r.tx.QueryRow(ctx, `SELECT count(*) FROM record r WHERE NOT EXISTS (SELECT FROM index_generation g WHERE g.id = r.index_id)`).Scan(&r.done.Stale); err != nil {
		return bare("looking for records without an index", err)
	}
	if r.done.Stale > 0 {
		if _, err := r.tx.Exec(ctx, `INSERT INTO index_generation (id, state, rules, names) SELECT DISTINCT r.index_id, 'retiring', g.rules, g.names
			FROM record r CROSS JOIN index_generation g WHERE g.state = 'active' ON CONFLICT DO NOTHING`); err != nil {
			return bare("noting index generations", err)
		}
	}
	return nil
}

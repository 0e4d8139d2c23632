package postgres

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Evidence looks at the live database for compliance's probes, with the program's own rights and no others.
type Evidence struct{ db *DB }

// Evidence of this database.
func (d *DB) Evidence() *Evidence { return &Evidence{d} }

// SealedColumns returns the columns of record tables that hold cells, and those of any type bytea or text that the schema does
// not constrain to the sealed domain though they carry a PHI class's name.
func (e *Evidence) SealedColumns(ctx context.Context, classes []string) (sealed, open []string, err error) {
	rows, err := e.db.reader.Query(ctx, `
		SELECT c.relname || '.' || a.attname, t.typname = 'sealed' AND EXISTS (SELECT FROM pg_constraint k WHERE k.contypid = t.oid AND k.contype = 'c')
		FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_type t ON t.oid = a.atttypid
		WHERE c.relnamespace = 'public'::regnamespace AND c.relname IN ('record', 'record_version') AND a.attnum > 0 AND NOT a.attisdropped
		  AND a.attname = ANY($1)`, classes)
	if err != nil {
		return nil, nil, bare("reading columns", err)
	}
	var name string
	var ok bool
	_, err = pgx.ForEachRow(rows, []any{&name, &ok}, func() error {
		if ok {
			sealed = append(sealed, name)
		} else {
			open = append(open, name)
		}
		return nil
	})
	if err != nil {
		return nil, nil, bare("reading columns", err)
	}
	return sealed, open, nil
}

// UnsealedCells counts stored cells that are no cells: a constraint that was added or dropped by hand does not look back.
func (e *Evidence) UnsealedCells(ctx context.Context, classes []string) (n int64, err error) {
	var looks []string
	for _, c := range classes {
		c = pgx.Identifier{c}.Sanitize()
		looks = append(looks, c+" IS NOT NULL AND (octet_length("+c+") < 33 OR get_byte("+c+", 0) <> 1)")
	}
	err = e.db.records.QueryRow(ctx, "SELECT count(*) FROM record WHERE "+strings.Join(looks, " OR ")).Scan(&n)
	if err != nil {
		return 0, bare("counting cells", err)
	}
	return n, nil
}

// refusals are the codes of an attempt that was refused: by a privilege, or by the trail's triggers.
var refusals = []string{"42501", "CKA10"}

// TrailAttempts tries to change the trail with each of the program's roles, each attempt in a transaction that is rolled back
// whatever happens. It returns how many were made and those that were not refused.
func (e *Evidence) TrailAttempts(ctx context.Context) (tried int, succeeded []string, err error) {
	for _, pool := range []*pgxpool.Pool{e.db.records, e.db.writer, e.db.reader, e.db.sequencer} {
		for _, sql := range []string{
			"UPDATE audit_event SET agent_user = agent_user", "DELETE FROM audit_event", "TRUNCATE audit_event",
			"UPDATE audit_batch SET chain = chain", "DELETE FROM audit_batch", "TRUNCATE audit_batch",
			"UPDATE audit_checkpoint SET note = note", "DELETE FROM audit_span", "TRUNCATE audit_tile",
		} {
			tried++
			_, err := e.attempt(ctx, pool, sql)
			var pg *pgconn.PgError
			switch {
			case err == nil:
				succeeded = append(succeeded, pool.Config().ConnConfig.RuntimeParams["role"]+": "+sql)
			case errors.As(err, &pg) && slices.Contains(refusals, pg.Code):
			default:
				return tried, succeeded, bare("attempting a change", err)
			}
		}
	}
	return tried, succeeded, nil
}

func (e *Evidence) attempt(ctx context.Context, pool *pgxpool.Pool, sql string) (pgconn.CommandTag, error) {
	tx, err := pool.Begin(ctx)
	if err != nil {
		return pgconn.CommandTag{}, err
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
	return tx.Exec(ctx, sql)
}

// UnguardedPartitions lists what guards the trail and is missing, or does not fire always: the refusing triggers of each of its
// tables, what checks rows and manifests on their way in, and the event triggers against DDL. Tables of derived data, which
// change, have none.
func (e *Evidence) UnguardedPartitions(ctx context.Context) ([]string, error) {
	rows, err := e.db.reader.Query(ctx, `
		WITH firing AS (SELECT t.tgrelid, t.tgname, t.tgfoid FROM pg_trigger t WHERE t.tgenabled = 'A')
		SELECT c.relname FROM pg_class c
		WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p')
		  AND c.relname ~ '^audit_(event|batch|quarantine|tile|checkpoint|cosignature|span|key|policy|hold|release|pruned)'
		  AND (SELECT count(*) FROM firing t WHERE t.tgrelid = c.oid AND t.tgfoid = 'public.audit_refuse'::regproc) < 2
		UNION ALL
		SELECT p.relid::regclass::text || ' (audit_covered)' FROM pg_partition_tree('public.audit_event') p
		WHERE NOT EXISTS (SELECT FROM firing t WHERE t.tgrelid = p.relid AND t.tgname = 'audit_covered')
		UNION ALL
		SELECT 'audit_batch (audit_continues)' WHERE NOT EXISTS (SELECT FROM firing t WHERE t.tgrelid = 'public.audit_batch'::regclass AND t.tgname = 'audit_continues')
		UNION ALL
		SELECT 'event trigger ' || n FROM unnest(ARRAY['audit_guard_ddl', 'audit_guard_drop']) n
		WHERE NOT EXISTS (SELECT FROM pg_event_trigger v WHERE v.evtname = n AND v.evtenabled = 'A')`)
	if err != nil {
		return nil, bare("reading triggers", err)
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, bare("reading triggers", err)
	}
	return names, nil
}

// Settings reads settings by name.
func (e *Evidence) Settings(ctx context.Context, names ...string) (map[string]string, error) {
	values := map[string]string{}
	for _, n := range names {
		var v string
		if err := e.db.reader.QueryRow(ctx, "SELECT current_setting($1)", n).Scan(&v); err != nil {
			return nil, bare("reading setting", err)
		}
		values[n] = v
	}
	return values, nil
}

// ExcessRights lists what the program's login, and the roles that it takes, may do and should not.
func (e *Evidence) ExcessRights(ctx context.Context) ([]string, error) {
	rows, err := e.db.reader.Query(ctx, `
		SELECT what FROM pg_roles r, LATERAL (VALUES
			(rolsuper, 'is superuser'), (rolcreatedb, 'may create databases'), (rolcreaterole, 'may create roles'), (rolbypassrls, 'bypasses row security'),
			(rolinherit, 'inherits its rooms'' roles'), (EXISTS (SELECT FROM pg_class c WHERE c.relowner = r.oid), 'owns tables'),
			(pg_has_role(r.oid, 'chartkeep_audit_owner', 'MEMBER'), 'may become the owner of the trail')
		) AS x (excess, what) WHERE rolname = session_user AND excess
		UNION ALL
		SELECT substr(r.rolname, 11) || ' may ' || lower(p) || ' ' || t FROM pg_roles r, unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'TRIGGER']) p,
			unnest(ARRAY['audit_event', 'audit_event_default', 'audit_batch', 'audit_quarantine']) t
		WHERE r.rolname LIKE 'chartkeep\_%' AND r.rolname <> 'chartkeep_audit_owner' AND has_table_privilege(r.oid, t, p)
		  AND NOT (r.rolname = 'chartkeep_audit_writer' AND p = 'INSERT' AND t <> 'audit_event_default')
		  AND NOT (r.rolname = 'chartkeep_audit_sequencer' AND p = 'SELECT')`)
	if err != nil {
		return nil, bare("reading rights", err)
	}
	excess, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, bare("reading rights", err)
	}
	return excess, nil
}

// TakesPlaintext reports whether the sealed domain, which every PHI column has, takes a readable value.
func (e *Evidence) TakesPlaintext(ctx context.Context) (bool, error) {
	const checkViolation = "23514"
	_, err := e.db.records.Exec(ctx, "SELECT convert_to('a readable value of more than thirty-three bytes', 'UTF8')::sealed")
	switch {
	case err == nil:
		return true, nil
	case sqlState(err) == checkViolation:
		return false, nil
	}
	return false, bare("casting plaintext to a cell", err)
}

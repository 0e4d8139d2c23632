package postgres

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"embed"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"path"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

//go:embed migration/*.sql
var migrationFiles embed.FS

// migration is one file; sum is the SHA-256 of sql.
type migration struct {
	name string
	sql  string
	sum  [sha256.Size]byte
}

// ErrHistory says that the database was migrated by files that this program does not have, or that were edited since.
var ErrHistory = errors.New("postgres: migration history does not match this program")

// migrations reads a file system's migration files, in order of their names.
func migrations(fsys fs.FS) ([]migration, error) {
	names, err := fs.Glob(fsys, "migration/*.sql")
	if err != nil {
		return nil, fmt.Errorf("listing migrations: %w", err)
	}
	var all []migration
	for _, name := range names {
		b, err := fs.ReadFile(fsys, name)
		if err != nil {
			return nil, fmt.Errorf("reading migration: %w", err)
		}
		all = append(all, migration{name: path.Base(name), sql: string(b), sum: sha256.Sum256(b)})
	}
	return all, nil
}

// Migrate brings the database to the newest schema: ordered files, one transaction each, under an advisory lock; it
// refuses a history that was edited (ErrHistory). adminDSN logs in as somebody who may create roles. password is set for
// the login role "chartkeep" when not empty; it must be printable ASCII, and only its SCRAM verifier (RFC 5802) leaves this
// process.
func Migrate(ctx context.Context, adminDSN, password string) error {
	return migrate(ctx, adminDSN, password, migrationFiles)
}

func migrate(ctx context.Context, adminDSN, password string, fsys fs.FS) (err error) {
	want, err := migrations(fsys)
	if err != nil {
		return err
	}
	cfg, err := pgx.ParseConfig(adminDSN)
	if err != nil {
		return errors.New("parsing the database URL: malformed")
	}
	cfg.RuntimeParams["application_name"] = "chartkeep migrate"
	cfg.RuntimeParams["search_path"] = "public"
	cfg.RuntimeParams["timezone"] = "UTC"
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return fmt.Errorf("connecting to migrate: %w", err)
	}
	defer func() {
		if cerr := conn.Close(context.WithoutCancel(ctx)); err == nil && cerr != nil {
			err = fmt.Errorf("closing connection: %w", cerr)
		}
	}()
	// The lock is the session's: it ends with the connection, however this ends.
	if _, err := conn.Exec(ctx, `SELECT pg_advisory_lock(7390)`); err != nil {
		return fmt.Errorf("locking migrations: %w", err)
	}
	if _, err := conn.Exec(ctx, `CREATE TABLE IF NOT EXISTS migration (
		name text PRIMARY KEY, sha256 bytea NOT NULL, applied_at timestamptz NOT NULL DEFAULT now())`); err != nil {
		return fmt.Errorf("creating migration table: %w", err)
	}
	applied, err := appliedMigrations(ctx, conn)
	if err != nil {
		return err
	}
	if err := compareHistory(want, applied); err != nil {
		return err
	}
	for _, m := range want[len(applied):] {
		if err := applyMigration(ctx, conn, m); err != nil {
			return err
		}
	}
	if password != "" {
		return setPassword(ctx, conn, password)
	}
	return nil
}

func applyMigration(ctx context.Context, conn *pgx.Conn, m migration) error {
	err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		if _, err := tx.Conn().PgConn().Exec(ctx, m.sql).ReadAll(); err != nil {
			return err
		}
		if m.name == "0001_roles.sql" {
			// An administrator who is no superuser must be a member of the owners to make things in their name.
			if _, err := tx.Exec(ctx, `DO $$ BEGIN
				IF NOT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) THEN
					EXECUTE format('GRANT chartkeep_owner, chartkeep_audit_owner TO %I', current_user);
				END IF; END $$`); err != nil {
				return err
			}
		}
		_, err := tx.Exec(ctx, `INSERT INTO migration (name, sha256) VALUES ($1, $2)`, m.name, m.sum[:])
		return err
	})
	if err != nil {
		return fmt.Errorf("applying migration %s: %w", m.name, err)
	}
	return nil
}

type querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

func appliedMigrations(ctx context.Context, q querier) ([]migration, error) {
	rows, err := q.Query(ctx, `SELECT name, sha256 FROM migration ORDER BY name COLLATE "C"`)
	if err != nil {
		return nil, fmt.Errorf("reading migration history: %w", err)
	}
	applied, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (migration, error) {
		var m migration
		var sum []byte
		err := row.Scan(&m.name, &sum)
		copy(m.sum[:], sum)
		return m, err
	})
	if err != nil {
		return nil, fmt.Errorf("reading migration history: %w", err)
	}
	return applied, nil
}

// compareHistory demands that applied is a prefix of want.
func compareHistory(want, applied []migration) error {
	for i, a := range applied {
		switch {
		case i >= len(want):
			return fmt.Errorf("%w: %s is newer than this program", ErrHistory, a.name)
		case a.name != want[i].name:
			return fmt.Errorf("%w: found %s where %s is expected", ErrHistory, a.name, want[i].name)
		case !bytes.Equal(a.sum[:], want[i].sum[:]):
			return fmt.Errorf("%w: %s was edited after it was applied", ErrHistory, a.name)
		}
	}
	return nil
}

// checkSchema demands that exactly this program's migrations were applied.
func checkSchema(ctx context.Context, pool *pgxpool.Pool) error {
	want, err := migrations(migrationFiles)
	if err != nil {
		return err
	}
	applied, err := appliedMigrations(ctx, pool)
	if err != nil {
		return err
	}
	if err := compareHistory(want, applied); err != nil {
		return err
	}
	if len(applied) < len(want) {
		return fmt.Errorf("%w: %s is not applied yet; run migrate", ErrHistory, want[len(applied)].name)
	}
	return nil
}

// setPassword gives the login role a password. Neither the password nor, for an administrator who may say so, the statement
// with its verifier reaches the server's log.
func setPassword(ctx context.Context, conn *pgx.Conn, password string) error {
	verifier, err := scramVerifier(password)
	if err != nil {
		return err
	}
	err = pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		var super bool
		if err := tx.QueryRow(ctx, `SELECT rolsuper FROM pg_roles WHERE rolname = current_user`).Scan(&super); err != nil {
			return err
		}
		if super {
			if _, err := tx.Exec(ctx, `SELECT set_config(name, value, true) FROM (VALUES ('log_statement', 'none'),
				('log_min_duration_statement', '-1'), ('log_min_error_statement', 'panic')) s(name, value)`); err != nil {
				return err
			}
		}
		// ALTER ROLE takes no parameters, and format quotes what a setting carried over.
		if _, err := tx.Exec(ctx, `SELECT set_config('chartkeep.verifier', $1, true)`, verifier); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, `DO $$ BEGIN
			EXECUTE format('ALTER ROLE chartkeep PASSWORD %L', current_setting('chartkeep.verifier')); END $$`)
		return err
	})
	if err != nil {
		return fmt.Errorf("setting the password of chartkeep: %w", err)
	}
	return nil
}

// scramVerifier returns what PostgreSQL stores for a password: RFC 5802 section 3 with SHA-256, in the form of
// pg_authid.rolpassword.
func scramVerifier(password string) (string, error) {
	for _, c := range []byte(password) {
		// SASLprep (RFC 4013) leaves printable ASCII as it is; anything else would need its tables.
		if c < ' ' || c > '~' {
			return "", errors.New("password of chartkeep must be printable ASCII")
		}
	}
	const iterations = 4096
	salt := make([]byte, 16)
	rand.Read(salt)
	salted, err := pbkdf2.Key(sha256.New, password, salt, iterations, sha256.Size)
	if err != nil {
		return "", fmt.Errorf("deriving SCRAM verifier: %w", err)
	}
	sign := func(text string) []byte {
		h := hmac.New(sha256.New, salted)
		h.Write([]byte(text))
		return h.Sum(nil)
	}
	stored := sha256.Sum256(sign("Client Key"))
	b64 := base64.StdEncoding.EncodeToString
	return fmt.Sprintf("SCRAM-SHA-256$%d:%s$%s:%s", iterations, b64(salt), b64(stored[:]), b64(sign("Server Key"))), nil
}

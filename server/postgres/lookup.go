package postgres

import (
	"context"
	"crypto/sha256"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/chartkeep/chartkeep/phi"
)

// Lookups is bench's yardstick of the blind index: many copies of one sealed row, found by token in record, and by the readable
// identifier in a table that has nothing else to do. The copies do not open: they are looked up, not read.
type Lookups struct {
	pool  *pgxpool.Pool
	plain *recordStorage
	sql   string
	n     int
}

// lookupSystem is of the identifiers.
const lookupSystem = "http://hospital.test/mrn|MRN-"

// OpenLookups makes n copies of a Patient that is stored. It takes tens of seconds and about 3 KB a copy, and is for a deployment that is
// thrown away.
func OpenLookups(ctx context.Context, adminDSN string, n int) (*Lookups, error) {
	admin, err := pgx.Connect(ctx, adminDSN)
	if err != nil {
		return nil, fmt.Errorf("connecting: %w", err)
	}
	defer func() { _ = admin.Close(context.WithoutCancel(ctx)) }()
	copied := `type, 'lookup-' || g AS id, gen_random_uuid() AS row_id, version, updated, method, ARRAY['lookup-' || g] AS patients, subject, segment, key_id,
		identifier, name, birth_date, contact, clinical, narrative, seal, digest, index_id
		FROM (SELECT * FROM record WHERE type = 'Patient' AND method <> 'DELETE' LIMIT 1) r, generate_series(0, ` + strconv.Itoa(n-1) + `) g`
	for _, sql := range []string{
		`SET session_replication_role = replica`, // triggers are not measured
		`INSERT INTO record (` + recordColumns + `, index_id) SELECT ` + copied,
		`INSERT INTO index_token (kind, token, type, id)
			SELECT 1, substring(sha256(convert_to('` + lookupSystem + `' || g, 'UTF8')) FROM 1 FOR 16), 'Patient', 'lookup-' || g FROM generate_series(0, ` + strconv.Itoa(n-1) + `) g`,
		`CREATE TABLE bench_lookup AS SELECT '` + lookupSystem + `' || g AS mrn, ` + copied,
		`CREATE INDEX ON bench_lookup (mrn)`,
		`GRANT SELECT ON bench_lookup TO chartkeep_records`,
		`VACUUM ANALYZE record, index_token, bench_lookup`,
		`CHECKPOINT`,
	} {
		if _, err := admin.Exec(ctx, sql); err != nil {
			return nil, fmt.Errorf("making rows to look up: %w", err)
		}
	}
	l := &Lookups{n: n}
	if l.pool, err = openPool(ctx, adminDSN, "chartkeep_records", 2, recordsTimeout, pgx.QueryExecModeCacheStatement); err != nil {
		return nil, err
	}
	l.plain = newRecordStorage(l.pool)
	// The same columns, but for the data key, which a plaintext system has not.
	l.sql = `SELECT ` + strings.Replace(sealedColumns(phi.AllClasses), wrappedKey, `NULL::bytea`, 1) + ` FROM bench_lookup r
		WHERE r.type = 'Patient' AND r.mrn = $1 AND r.method <> 'DELETE' ORDER BY r.id LIMIT 51`
	return l, nil
}

// Close ends the connections.
func (l *Lookups) Close() { l.pool.Close() }

// spread makes successive numbers ask for rows far from each other.
func (l *Lookups) spread(n int) string { return strconv.Itoa(n * 7919 % l.n) }

// Selection finds the n-th by its token.
func (l *Lookups) Selection(n int) phi.Selection {
	sum := sha256.Sum256([]byte(lookupSystem + l.spread(n)))
	return phi.Selection{Type: "Patient", Tokens: [][]phi.Token{{{Kind: phi.TokenIdentifier, Value: [16]byte(sum[:16])}}}, Limit: 51}
}

// Plain finds the n-th by its readable identifier.
func (l *Lookups) Plain(ctx context.Context, n int) error {
	rows, err := l.plain.all(ctx, l.sql, phi.AllClasses, l.plain.binary, lookupSystem+l.spread(n))
	if err == nil && len(rows) != 1 {
		err = fmt.Errorf("the plaintext index found %d rows", len(rows))
	}
	return err
}

// PGCrypto is bench's yardstick of opening in the database: the content of sealed rows, encrypted by pgcrypto column by column.
type PGCrypto struct{ conn *pgx.Conn }

// OpenPGCrypto connects; nil where the PostgreSQL has no pgcrypto (its contrib modules are a package of their own).
func OpenPGCrypto(ctx context.Context, adminDSN string) (*PGCrypto, error) {
	conn, err := pgx.Connect(ctx, adminDSN)
	if err != nil {
		return nil, fmt.Errorf("connecting: %w", err)
	}
	var there bool
	if err = conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_available_extensions WHERE name = 'pgcrypto')`).Scan(&there); err == nil && there {
		_, err = conn.Exec(ctx, `CREATE EXTENSION IF NOT EXISTS pgcrypto`)
	}
	if err != nil || !there {
		_ = conn.Close(ctx)
		return nil, err
	}
	return &PGCrypto{conn}, nil
}

// Close ends the connection.
func (p *PGCrypto) Close() { _ = p.conn.Close(context.Background()) }

// pgcryptoKey is long enough to be one, and as public as every key that is sent to a server.
const pgcryptoKey = "a key of bench's that the server's log may well show"

// Read stores n rows of contents (the columns of one row each) under PGP options and returns how long it takes to read and decrypt
// them all: the median of three.
func (p *PGCrypto) Read(ctx context.Context, options string, n int, contents func(n int) [][]byte) (time.Duration, error) {
	if _, err := p.conn.Exec(ctx, `CREATE TEMPORARY TABLE bench_pgp (id int PRIMARY KEY, c0 bytea, c1 bytea, c2 bytea, c3 bytea, c4 bytea, c5 bytea)`); err != nil {
		return 0, fmt.Errorf("making table of pgcrypto: %w", err)
	}
	var encrypt, decrypt []string
	for i := range phi.NumClasses {
		encrypt = append(encrypt, fmt.Sprintf(`pgp_sym_encrypt_bytea($%d, $2, $3)`, i+4))
		decrypt = append(decrypt, fmt.Sprintf(`pgp_sym_decrypt_bytea(c%d, $1)`, i))
	}
	for row := range n {
		args := []any{row, pgcryptoKey, "cipher-algo=aes256, compress-algo=0, " + options}
		for _, c := range contents(row) {
			args = append(args, c)
		}
		if _, err := p.conn.Exec(ctx, `INSERT INTO bench_pgp VALUES ($1, `+strings.Join(encrypt, ", ")+`)`, args...); err != nil {
			return 0, fmt.Errorf("encrypting with pgcrypto: %w", err)
		}
	}
	var took []time.Duration
	for range 3 {
		began := time.Now()
		rows, err := p.conn.Query(ctx, `SELECT `+strings.Join(decrypt, ", ")+` FROM bench_pgp`, pgx.QueryResultFormats{pgx.BinaryFormatCode}, pgcryptoKey)
		if err != nil {
			return 0, fmt.Errorf("decrypting with pgcrypto: %w", err)
		}
		read := 0
		for rows.Next() {
			read++
		}
		if err := rows.Err(); err != nil || read != n {
			return 0, fmt.Errorf("decrypting with pgcrypto: %d of %d rows: %w", read, n, err)
		}
		took = append(took, time.Since(began))
	}
	if _, err := p.conn.Exec(ctx, `DROP TABLE bench_pgp`); err != nil {
		return 0, fmt.Errorf("dropping table of pgcrypto: %w", err)
	}
	return max(min(took[0], took[1]), min(max(took[0], took[1]), took[2])), nil
}

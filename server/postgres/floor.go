package postgres

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Floor is bench's yardstick: rows as readable jsonb, one primary key look-up each. It never holds real records; Close drops
// the table.
type Floor struct{ pool *pgxpool.Pool }

// OpenFloor makes the table and fills it. The pool has as many connections as the compliant server's.
func OpenFloor(ctx context.Context, adminDSN string, rows map[string][]byte) (*Floor, error) {
	cfg, err := pgxpool.ParseConfig(adminDSN)
	if err != nil {
		return nil, fmt.Errorf("parsing database URL: %w", err)
	}
	cfg.MaxConns = recordsConns()
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("connecting: %w", err)
	}
	if _, err := pool.Exec(ctx, `CREATE TABLE bench_floor (id text PRIMARY KEY, body jsonb NOT NULL)`); err != nil {
		pool.Close()
		return nil, fmt.Errorf("creating table: %w", err)
	}
	var source [][]any
	for id, body := range rows {
		source = append(source, []any{id, string(body)})
	}
	if _, err := pool.CopyFrom(ctx, pgx.Identifier{"bench_floor"}, []string{"id", "body"}, pgx.CopyFromRows(source)); err != nil {
		pool.Close()
		return nil, fmt.Errorf("filling table: %w", err)
	}
	return &Floor{pool}, nil
}

// Fetch returns one row's text.
func (f *Floor) Fetch(ctx context.Context, id string) (body []byte, err error) {
	err = f.pool.QueryRow(ctx, `SELECT body FROM bench_floor WHERE id = $1`, id).Scan(&body)
	return body, err
}

// Close drops the table and the connections.
func (f *Floor) Close() {
	_, _ = f.pool.Exec(context.Background(), `DROP TABLE bench_floor`)
	f.pool.Close()
}

package postgres

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// scratchSeed sets the advisory locks of scratch databases apart from others.
const scratchSeed = "20261122"

// Scratch makes a database beside the one that adminDSN names, and returns what drops it again. Databases whose names begin with left,
// and whose makers were killed before they could drop them, are dropped first.
func Scratch(ctx context.Context, adminDSN, name, left string) (drop func() error, err error) {
	conn, err := pgx.Connect(ctx, adminDSN)
	if err != nil {
		return nil, errors.New("connecting to make a scratch database: not possible with this URL")
	}
	defer func() {
		if err != nil {
			conn.Close(context.WithoutCancel(ctx)) //nolint:errcheck // what went wrong is said already
		}
	}()
	// The lock is the session's: who holds it is alive.
	rows, err := conn.Query(ctx, `WITH made AS MATERIALIZED (SELECT datname::text AS name FROM pg_database WHERE starts_with(datname::text, $1))
		SELECT name FROM made WHERE pg_try_advisory_lock(hashtextextended(name, `+scratchSeed+`))`, left)
	if err != nil {
		return nil, bare("scratch databases", err)
	}
	dead, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, bare("scratch databases", err)
	}
	run := func(ctx context.Context, sql string, args ...any) error {
		if _, err := conn.Exec(ctx, sql, args...); err != nil {
			return bare("scratch database", err)
		}
		return nil
	}
	dropping := func(name string) string {
		return "DROP DATABASE " + pgx.Identifier{name}.Sanitize() + " WITH (FORCE)"
	}
	for _, name := range dead {
		if err := run(ctx, dropping(name)); err != nil {
			return nil, fmt.Errorf("dropping what was left: %w", err)
		}
	}
	if err := run(ctx, `SELECT pg_advisory_lock(hashtextextended($1, `+scratchSeed+`))`, name); err != nil {
		return nil, err
	}
	if err := run(ctx, "CREATE DATABASE "+pgx.Identifier{name}.Sanitize()); err != nil {
		return nil, fmt.Errorf("making it: %w", err)
	}
	return func() error {
		clean := context.WithoutCancel(ctx)
		return errors.Join(run(clean, dropping(name)), conn.Close(clean))
	}, nil
}

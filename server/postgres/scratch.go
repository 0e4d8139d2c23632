package postgres

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// Scratch makes a database beside the one that adminDSN names, and returns what drops it again.
func Scratch(ctx context.Context, adminDSN, name string) (drop func() error, err error) {
	run := func(ctx context.Context, sql string) error {
		conn, err := pgx.Connect(ctx, adminDSN)
		if err != nil {
			return errors.New("connecting to make a scratch database: not possible with this URL")
		}
		defer conn.Close(ctx) //nolint:errcheck // it has answered
		if _, err := conn.Exec(ctx, sql); err != nil {
			return bare("scratch database", err)
		}
		return nil
	}
	quoted := pgx.Identifier{name}.Sanitize()
	if err := run(ctx, "CREATE DATABASE "+quoted); err != nil {
		return nil, fmt.Errorf("making it: %w", err)
	}
	return func() error { return run(context.WithoutCancel(ctx), "DROP DATABASE "+quoted+" WITH (FORCE)") }, nil
}

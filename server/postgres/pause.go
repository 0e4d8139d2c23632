package postgres

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// PauseIngest makes every Ingest wait until resume is called, while everything else goes on: an outage of the trail alone, for bench.
// adminDSN logs in as a superuser.
func PauseIngest(ctx context.Context, adminDSN string) (resume func() error, err error) {
	conn, err := pgx.Connect(ctx, adminDSN)
	if err != nil {
		return nil, fmt.Errorf("connecting: %w", err)
	}
	if _, err := conn.Exec(ctx, `BEGIN; LOCK TABLE audit_batch IN SHARE ROW EXCLUSIVE MODE`); err != nil {
		return nil, bare("locking manifests", err)
	}
	return func() error { return conn.Close(context.WithoutCancel(ctx)) }, nil
}

package postgres

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/chartkeep/chartkeep/auth"
)

// AuthStorage is auth.Storage, and the administration of what it reads.
type AuthStorage struct{ pool *pgxpool.Pool }

var _ auth.Storage = (*AuthStorage)(nil)

// Epochs implements auth.Storage.
func (s *AuthStorage) Epochs(ctx context.Context) (auth.Epochs, error) {
	var e auth.Epochs
	var relationship, consent []int64
	err := s.pool.QueryRow(ctx, `SELECT coalesce(sum(n) FILTER (WHERE scope = 'policy'), 0)::bigint, coalesce(sum(n) FILTER (WHERE scope = 'emergency'), 0)::bigint,
		array_agg(n ORDER BY shard) FILTER (WHERE scope = 'relationship'), array_agg(n ORDER BY shard) FILTER (WHERE scope = 'consent')
		FROM authz_epoch`).Scan(&e.Policy, &e.Emergency, &relationship, &consent)
	if err != nil {
		return auth.Epochs{}, bare("reading epochs", err)
	}
	if copy(e.Relationship[:], relationship) < len(e.Relationship) || copy(e.Consent[:], consent) < len(e.Consent) {
		return auth.Epochs{}, errors.New("reading epochs: some are missing")
	}
	return e, nil
}

func epoch(ctx context.Context, q interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}, scope string) (n int64, err error) {
	err = q.QueryRow(ctx, `SELECT sum(n)::bigint FROM authz_epoch WHERE scope = $1`, scope).Scan(&n)
	return n, err
}

// Listen calls wake after each NOTIFY of a policy or relationship change, and once after each (re)connect, until ctx is
// done; then it returns nil. A lost connection is made anew with jittered backoff of 0.1 to 5 s: what was notified in
// between is covered by the call after the reconnect.
func (d *DB) Listen(ctx context.Context, wake func()) error {
	return d.listenTo(ctx, "chartkeep_authz", wake)
}

// ListenIngested does the same for batches of the trail, and ListenTrail for checkpoints of its tree.
func (d *DB) ListenIngested(ctx context.Context, wake func()) error {
	return d.listenTo(ctx, "audit_ingested", wake)
}

// ListenTrail calls wake after each new checkpoint, see Listen.
func (d *DB) ListenTrail(ctx context.Context, wake func()) error {
	return d.listenTo(ctx, "audit_checkpoint", wake)
}

// ListenKeys calls wake after keys were rotated, rewrapped or erased, see Listen.
func (d *DB) ListenKeys(ctx context.Context, wake func()) error {
	return d.listenTo(ctx, "chartkeep_keys", wake)
}

func (d *DB) listenTo(ctx context.Context, channel string, wake func()) error {
	backoff := 100 * time.Millisecond
	for ctx.Err() == nil {
		start := time.Now()
		err := d.listenOnce(ctx, channel, wake)
		if ctx.Err() != nil {
			break
		}
		d.logger.WarnContext(ctx, "listening broke off", "channel", channel, "error", err)
		if time.Since(start) > 10*time.Second {
			backoff = 100 * time.Millisecond
		}
		select {
		case <-ctx.Done():
		case <-time.After(backoff/2 + rand.N(backoff)):
		}
		backoff = min(2*backoff, 5*time.Second)
	}
	return nil //nolint:nilerr // to be stopped is no failure
}

func (d *DB) listenOnce(ctx context.Context, channel string, wake func()) error {
	conn, err := pgx.ConnectConfig(ctx, d.listen.Copy())
	if err != nil {
		return fmt.Errorf("connecting listener: %w", err)
	}
	defer func() {
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = conn.Close(closing)
	}()
	if _, err := conn.Exec(ctx, `LISTEN `+pgx.Identifier{channel}.Sanitize()); err != nil {
		return bare("listening", err)
	}
	wake()
	for {
		// A connection that died without a word shows up at the ping.
		waiting, cancel := context.WithTimeout(ctx, 15*time.Second)
		_, err := conn.WaitForNotification(waiting)
		cancel()
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err == nil:
			wake()
		case errors.Is(err, context.DeadlineExceeded):
			pinging, cancel := context.WithTimeout(ctx, 5*time.Second)
			err := conn.Ping(pinging)
			cancel()
			if err != nil {
				return fmt.Errorf("pinging: %w", err)
			}
		default:
			return fmt.Errorf("waiting for notification: %w", err)
		}
	}
}

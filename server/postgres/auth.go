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

// Policy implements auth.Storage: all of it as of one moment.
func (s *AuthStorage) Policy(ctx context.Context) (auth.Policy, error) {
	var p auth.Policy
	err := pgx.BeginTxFunc(ctx, s.pool, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		var err error
		if p.Version, err = epoch(ctx, tx, "policy"); err != nil {
			return err
		}
		rows, err := tx.Query(ctx, `SELECT role, type, interactions, view, relation, purposes FROM permission ORDER BY position`)
		if err != nil {
			return err
		}
		if p.Permissions, err = pgx.CollectRows(rows, pgx.RowToStructByPos[auth.Permission]); err != nil {
			return err
		}
		rows, err = tx.Query(ctx, `SELECT role, name FROM capability ORDER BY role, name`)
		if err != nil {
			return err
		}
		p.Capabilities, err = pgx.CollectRows(rows, pgx.RowToStructByPos[auth.Capability])
		return err
	})
	if err != nil {
		return auth.Policy{}, bare("reading policy", err)
	}
	return p, nil
}

// PolicyVersion implements auth.Storage.
func (s *AuthStorage) PolicyVersion(ctx context.Context) (int64, error) {
	n, err := epoch(ctx, s.pool, "policy")
	if err != nil {
		return 0, bare("reading policy version", err)
	}
	return n, nil
}

// RelationshipEpoch implements auth.Storage.
func (s *AuthStorage) RelationshipEpoch(ctx context.Context) (int64, error) {
	n, err := epoch(ctx, s.pool, "relationship")
	if err != nil {
		return 0, bare("reading relationship epoch", err)
	}
	return n, nil
}

func epoch(ctx context.Context, q interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}, scope string) (n int64, err error) {
	err = q.QueryRow(ctx, `SELECT sum(n)::bigint FROM authz_epoch WHERE scope = $1`, scope).Scan(&n)
	return n, err
}

// Related implements auth.Storage.
func (s *AuthStorage) Related(ctx context.Context, practitioner string, patients []string) (string, bool, error) {
	var source string
	err := s.pool.QueryRow(ctx, `SELECT source FROM treatment WHERE practitioner = $1 AND patient = ANY ($2) ORDER BY source LIMIT 1`,
		practitioner, patients).Scan(&source)
	if errors.Is(err, pgx.ErrNoRows) {
		return "", false, nil
	}
	if err != nil {
		return "", false, bare("looking up relationship", err)
	}
	return source, true, nil
}

// Grant makes an explicit treatment relationship; granting what is granted changes nothing. reason is a code or a ticket
// number, never clinical text: it is stored in the clear.
func (s *AuthStorage) Grant(ctx context.Context, practitioner, patient, reason, by string) error {
	if practitioner == "" || patient == "" || by == "" {
		return errors.New("granting relationship: practitioner, patient and grantor are needed")
	}
	if _, err := s.pool.Exec(ctx, `WITH changed AS (
			INSERT INTO treatment (practitioner, patient, source, type, id, reason, granted_by, granted_at)
			VALUES ($1, $2, 'grant', '', '', $3, $4, now()) ON CONFLICT DO NOTHING RETURNING practitioner),`+bumpRelationships,
		practitioner, patient, reason, by); err != nil {
		return bare("granting relationship", err)
	}
	return nil
}

// Ungrant ends an explicit treatment relationship; ending what is not there changes nothing. Who ended it is in the audit
// trail: by must be named and is not stored here.
func (s *AuthStorage) Ungrant(ctx context.Context, practitioner, patient, by string) error {
	if by == "" {
		return errors.New("ending relationship: nobody is named")
	}
	if _, err := s.pool.Exec(ctx, `WITH changed AS (
			DELETE FROM treatment WHERE practitioner = $1 AND patient = $2 AND type = '' AND id = '' RETURNING practitioner),`+
		bumpRelationships, practitioner, patient); err != nil {
		return bare("ending relationship", err)
	}
	return nil
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

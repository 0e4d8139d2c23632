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
		rows, err := tx.Query(ctx, `SELECT role, type, interactions, view, relation, purposes, effect, segments, acr, max_age FROM permission ORDER BY position`)
		if err != nil {
			return err
		}
		p.Permissions, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (x auth.Permission, err error) {
			var seconds int64
			err = row.Scan(&x.Role, &x.Type, &x.Interactions, &x.View, &x.Relation, &x.Purposes, &x.Effect, &x.Segments, &x.StepUp.ACR, &seconds)
			x.StepUp.MaxAge = time.Duration(seconds) * time.Second
			return x, err
		})
		if err != nil {
			return err
		}
		rows, err = tx.Query(ctx, `SELECT role, name, acr, max_age FROM capability ORDER BY role, name`)
		if err != nil {
			return err
		}
		p.Capabilities, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (x auth.Capability, err error) {
			var seconds int64
			err = row.Scan(&x.Role, &x.Name, &x.StepUp.ACR, &seconds)
			x.StepUp.MaxAge = time.Duration(seconds) * time.Second
			return x, err
		})
		return err
	})
	if err != nil {
		return auth.Policy{}, bare("reading policy", err)
	}
	return p, nil
}

// Epochs implements auth.Storage.
func (s *AuthStorage) Epochs(ctx context.Context) (auth.Epochs, error) {
	var e auth.Epochs
	err := s.pool.QueryRow(ctx, `SELECT coalesce(sum(n) FILTER (WHERE scope = 'policy'), 0)::bigint,
		coalesce(sum(n) FILTER (WHERE scope = 'relationship'), 0)::bigint, coalesce(sum(n) FILTER (WHERE scope = 'emergency'), 0)::bigint
		FROM authz_epoch`).Scan(&e.Policy, &e.Relationship, &e.Emergency)
	if err != nil {
		return auth.Epochs{}, bare("reading epochs", err)
	}
	return e, nil
}

func epoch(ctx context.Context, q interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}, scope string) (n int64, err error) {
	err = q.QueryRow(ctx, `SELECT sum(n)::bigint FROM authz_epoch WHERE scope = $1`, scope).Scan(&n)
	return n, err
}

// Facts implements auth.Storage.
func (s *AuthStorage) Facts(ctx context.Context, a auth.Actor, patients []string) ([]auth.Fact, error) {
	rows, err := s.pool.Query(ctx, `SELECT coalesce((SELECT min(t.source) FROM treatment t WHERE t.practitioner = $1 AND t.patient = p.patient), '')
		FROM unnest($2::text[]) WITH ORDINALITY p(patient, place) ORDER BY p.place`, a.Practitioner, patients)
	if err != nil {
		return nil, bare("looking up facts", err)
	}
	facts, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (f auth.Fact, err error) {
		err = row.Scan(&f.Related)
		return f, err
	})
	if err != nil {
		return nil, bare("looking up facts", err)
	}
	return facts, nil
}

// Emergencies implements auth.Storage.
func (s *AuthStorage) Emergencies(context.Context) ([]auth.Grant, error) { return nil, nil }

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

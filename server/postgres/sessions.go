package postgres

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/chartkeep/chartkeep/auth"
)

// SessionStorage is auth.RevocationStorage and auth.SessionStorage, and what those who administer sessions read.
type SessionStorage struct{ pool *pgxpool.Pool }

var (
	_ auth.RevocationStorage = (*SessionStorage)(nil)
	_ auth.SessionStorage    = (*SessionStorage)(nil)
)

// Sessions is the storage of sessions and revocations.
func (d *DB) Sessions() *SessionStorage { return &SessionStorage{d.records} }

// Revoke implements auth.RevocationStorage.
func (s *SessionStorage) Revoke(ctx context.Context, list ...auth.Revocation) error {
	if err := pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error { return storeRevocations(ctx, tx, list) }); err != nil {
		return bare("storing revocations", err)
	}
	return nil
}

// storeRevocations stores revocations under one new epoch, in somebody's transaction. Whoever reads up to that epoch sees them: until the
// commit nobody gets a later one.
func storeRevocations(ctx context.Context, tx pgx.Tx, list []auth.Revocation) error {
	if len(list) == 0 {
		return nil
	}
	var kinds, ids, reasons, authors []string
	var notBefore []time.Time
	var expires []*time.Time
	seen := map[[2]string]bool{}
	for _, r := range list {
		if k := [2]string{string(r.Kind), r.ID}; seen[k] {
			continue
		} else {
			seen[k] = true
		}
		kinds, ids, notBefore = append(kinds, string(r.Kind)), append(ids, r.ID), append(notBefore, r.NotBefore)
		reasons, authors, expires = append(reasons, r.Reason), append(authors, r.By), append(expires, optional(r.Expires))
	}
	var epoch int64
	if err := tx.QueryRow(ctx, `SELECT revocation_epoch()`).Scan(&epoch); err != nil {
		return err
	}
	_, err := tx.Exec(ctx, `INSERT INTO revocation (epoch, kind, id, not_before, reason, by, expires_at)
		SELECT $1, x.kind, x.id, x.not_before, x.reason, x.by, x.expires_at
		FROM unnest($2::text[], $3::text[], $4::timestamptz[], $5::text[], $6::text[], $7::timestamptz[]) x(kind, id, not_before, reason, by, expires_at)`,
		epoch, kinds, ids, notBefore, reasons, authors, expires)
	return err
}

// optional is a time for a column that may be null.
func optional(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

// Revocations implements auth.RevocationStorage, in one statement.
func (s *SessionStorage) Revocations(ctx context.Context, after int64) (epoch int64, list []auth.Revocation, err error) {
	rows, err := s.pool.Query(ctx, `SELECT greatest(e.n, (SELECT max(epoch) FROM revocation)), r.kind, r.id, r.not_before, r.reason, r.by, r.at, r.expires_at
		FROM authz_epoch e LEFT JOIN revocation r ON r.epoch > $1 AND (r.expires_at IS NULL OR r.expires_at > now())
		WHERE e.scope = 'revocation' AND e.shard = 0 ORDER BY r.epoch`, after)
	if err != nil {
		return 0, nil, bare("reading revocations", err)
	}
	defer rows.Close()
	for rows.Next() {
		var kind, id, reason, by *string
		var notBefore, at, expires *time.Time
		if err := rows.Scan(&epoch, &kind, &id, &notBefore, &reason, &by, &at, &expires); err != nil {
			return 0, nil, bare("reading revocations", err)
		}
		if kind == nil { // there are none
			continue
		}
		r := auth.Revocation{Kind: auth.RevocationKind(*kind), ID: *id, NotBefore: notBefore.UTC(), Reason: *reason, By: *by, At: at.UTC()}
		if expires != nil {
			r.Expires = expires.UTC()
		}
		list = append(list, r)
	}
	if err := rows.Err(); err != nil {
		return 0, nil, bare("reading revocations", err)
	}
	return epoch, list, nil
}

// Revoked lists revocations in force, newest first.
func (s *SessionStorage) Revoked(ctx context.Context, limit int) ([]auth.Revocation, error) {
	rows, err := s.pool.Query(ctx, `SELECT kind, id, not_before, reason, by, at, expires_at FROM revocation
		WHERE expires_at IS NULL OR expires_at > now() ORDER BY epoch DESC, kind DESC, id DESC LIMIT $1`, limit)
	if err != nil {
		return nil, bare("listing revocations", err)
	}
	list, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (r auth.Revocation, err error) {
		var expires *time.Time
		err = row.Scan(&r.Kind, &r.ID, &r.NotBefore, &r.Reason, &r.By, &r.At, &expires)
		r.NotBefore, r.At = r.NotBefore.UTC(), r.At.UTC()
		if expires != nil {
			r.Expires = expires.UTC()
		}
		return r, err
	})
	if err != nil {
		return nil, bare("listing revocations", err)
	}
	return list, nil
}

// DropOver drops revocations that are over, and sessions that were not used for longer than a session's revocation is kept.
func (s *SessionStorage) DropOver(ctx context.Context) error {
	if _, err := s.pool.Exec(ctx, `SELECT drop_revocations()`); err != nil {
		return bare("dropping revocations", err)
	}
	if _, err := s.pool.Exec(ctx, `DELETE FROM session_seen WHERE first_use < now() - interval '90 days' AND last_use < now() - interval '90 days'`); err != nil {
		return bare("dropping sessions", err)
	}
	return nil
}

// Saw implements auth.SessionStorage.
func (s *SessionStorage) Saw(ctx context.Context, instance string, uses []auth.SessionUse) error {
	n := len(uses)
	var (
		text  [6][]string // session, subject, client, fhirUser, acr, network
		times [3][]time.Time
		auths = make([]*time.Time, 0, n)
	)
	for _, u := range uses {
		for i, v := range []string{u.Session, u.Subject, u.Client, u.FHIRUser, u.ACR, u.Network} {
			text[i] = append(text[i], v)
		}
		for i, v := range []time.Time{u.First, u.Last, u.Expires} {
			times[i] = append(times[i], v)
		}
		auths = append(auths, optional(u.AuthTime))
	}
	// In order of the key, so that two instances do not wait for one another.
	_, err := s.pool.Exec(ctx, `INSERT INTO session_seen AS s (id, subject, client, fhir_user, acr, network, auth_time, first_use, last_use, expires_at, instances)
		SELECT x.id, x.subject, x.client, x.fhir_user, x.acr, x.network, x.auth_time, x.first_use, x.last_use, x.expires_at, ARRAY[$1::text]
		FROM unnest($2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::timestamptz[], $9::timestamptz[], $10::timestamptz[], $11::timestamptz[])
			x(id, subject, client, fhir_user, acr, network, auth_time, first_use, last_use, expires_at)
		ORDER BY x.id, x.subject, x.client
		ON CONFLICT (id, subject, client) DO UPDATE SET
			fhir_user = EXCLUDED.fhir_user, acr = EXCLUDED.acr, auth_time = greatest(s.auth_time, EXCLUDED.auth_time),
			last_use = greatest(s.last_use, EXCLUDED.last_use), expires_at = greatest(s.expires_at, EXCLUDED.expires_at),
			instances = CASE WHEN s.instances @> EXCLUDED.instances THEN s.instances ELSE (s.instances || EXCLUDED.instances)[greatest(1, cardinality(s.instances) - 14):] END`,
		instance, text[0], text[1], text[2], text[3], text[4], text[5], auths, times[0], times[1], times[2])
	if err != nil {
		return bare("storing uses of sessions", err)
	}
	return nil
}

const sessionColumns = `id, subject, client, fhir_user, acr, network, auth_time, first_use, last_use, expires_at, instances`

func scanSession(row pgx.CollectableRow) (u auth.SessionUse, err error) {
	var signedIn *time.Time
	err = row.Scan(&u.Session, &u.Subject, &u.Client, &u.FHIRUser, &u.ACR, &u.Network, &signedIn, &u.First, &u.Last, &u.Expires, &u.Instances)
	if signedIn != nil {
		u.AuthTime = signedIn.UTC()
	}
	u.First, u.Last, u.Expires = u.First.UTC(), u.Last.UTC(), u.Expires.UTC()
	return u, err
}

// Use implements auth.SessionStorage.
func (s *SessionStorage) Use(ctx context.Context, session, subject, client string) (use auth.SessionUse, known bool, err error) {
	rows, err := s.pool.Query(ctx, `SELECT `+sessionColumns+` FROM session_seen WHERE id = $1 AND subject = $2 AND client = $3`, session, subject, client)
	if err != nil {
		return use, false, bare("reading session", err)
	}
	use, err = pgx.CollectExactlyOneRow(rows, scanSession)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return use, false, nil
	case err != nil:
		return use, false, bare("reading session", err)
	}
	return use, true, nil
}

// List returns sessions, newest first.
func (s *SessionStorage) List(ctx context.Context, q auth.SessionQuery) ([]auth.SessionUse, error) {
	where, args := `first_use < $1`, []any{q.Before}
	if q.Before.IsZero() {
		args[0] = time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)
	}
	for column, value := range map[string]string{"id": q.Session, "subject": q.Subject} {
		if value != "" {
			args = append(args, value)
			where += fmt.Sprintf(` AND %s = $%d`, column, len(args))
		}
	}
	if !q.Over {
		where += ` AND expires_at > now()`
	}
	args = append(args, q.Limit)
	rows, err := s.pool.Query(ctx, `SELECT `+sessionColumns+` FROM session_seen WHERE `+where+
		fmt.Sprintf(` ORDER BY first_use DESC, id DESC LIMIT $%d`, len(args)), args...)
	if err != nil {
		return nil, bare("listing sessions", err)
	}
	list, err := pgx.CollectRows(rows, scanSession)
	if err != nil {
		return nil, bare("listing sessions", err)
	}
	return list, nil
}

package postgres

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/chartkeep/chartkeep/auth"
)

// Policy implements auth.Storage: all of it as of one moment.
func (s *AuthStorage) Policy(ctx context.Context) (auth.Policy, error) {
	var p auth.Policy
	err := pgx.BeginTxFunc(ctx, s.pool, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) (err error) {
		p, err = readPolicy(ctx, tx)
		return err
	})
	if err != nil {
		return auth.Policy{}, bare("reading policy", err)
	}
	return p, nil
}

// readPolicy reads the policy as a transaction sees it.
func readPolicy(ctx context.Context, tx pgx.Tx) (p auth.Policy, err error) {
	if p.Version, err = epoch(ctx, tx, "policy"); err != nil {
		return p, err
	}
	if p.Roles, err = collect(ctx, tx, func(r *auth.Role) []any { return []any{&r.Name, &r.Description, &r.Workforce, &r.Approval} },
		`SELECT name, description, workforce, approval FROM role ORDER BY position`); err != nil {
		return p, err
	}
	var seconds int64
	age := func(u *auth.StepUp) { u.MaxAge = time.Duration(seconds) * time.Second }
	p.Permissions, err = collect(ctx, tx, func(x *auth.Permission) []any {
		return []any{&x.Role, &x.Type, &x.Interactions, &x.View, &x.Relation, &x.Purposes, &x.Effect, &x.Segments, &x.StepUp.ACR, &seconds, &x.Approval}
	}, `SELECT p.role, p.type, p.interactions, p.view, p.relation, p.purposes, p.effect, p.segments, p.acr, p.max_age, p.approval
		FROM permission p JOIN role r ON r.name = p.role ORDER BY r.position, p.position`, func(x *auth.Permission) { age(&x.StepUp) })
	if err != nil {
		return p, err
	}
	p.Capabilities, err = collect(ctx, tx, func(x *auth.Capability) []any { return []any{&x.Role, &x.Name, &x.StepUp.ACR, &seconds, &x.Approval} },
		`SELECT c.role, c.name, c.acr, c.max_age, c.approval FROM capability c JOIN role r ON r.name = c.role ORDER BY r.position, c.name`,
		func(x *auth.Capability) { age(&x.StepUp) })
	if err != nil {
		return p, err
	}
	if p.Conflicts, err = collect(ctx, tx, func(x *auth.Conflict) []any { return []any{&x.Role, &x.Other, &x.Reason} },
		`SELECT role, other, reason FROM role_conflict ORDER BY role, other`); err != nil {
		return p, err
	}
	if err := tx.QueryRow(ctx, `SELECT coalesce((SELECT value FROM policy_setting WHERE name = 'emergency-over-consent'), false)`).Scan(&p.EmergencyOverConsent); err != nil {
		return p, err
	}
	p.Assignments, err = collectAssignments(ctx, tx, `SELECT subject, role, from_at, until_at FROM role_assignment
		WHERE state = 'approved' AND (until_at IS NULL OR until_at > now()) ORDER BY subject, id`)
	return p, err
}

// collect reads rows into values; then each is called with every one.
func collect[T any](ctx context.Context, tx pgx.Tx, into func(*T) []any, sql string, each ...func(*T)) ([]T, error) {
	rows, err := tx.Query(ctx, sql)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (x T, err error) {
		if err = row.Scan(into(&x)...); err == nil {
			for _, f := range each {
				f(&x)
			}
		}
		return x, err
	})
}

func collectAssignments(ctx context.Context, q querier, sql string, args ...any) ([]auth.Assignment, error) {
	rows, err := q.Query(ctx, sql, args...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (a auth.Assignment, err error) {
		var until *time.Time
		if err = row.Scan(&a.Subject, &a.Role, &a.From, &until); err != nil {
			return a, err
		}
		a.From = a.From.UTC()
		if until != nil {
			a.Until = until.UTC()
		}
		return a, nil
	})
}

// PolicyAt returns the policy that decisions of an epoch (Decision.Policy) were made under, without assignments: see AssignmentsAt. Its
// Version is that of the document, at most the epoch. The error wraps ErrNoVersion for one from before versions were kept.
func (s *AuthStorage) PolicyAt(ctx context.Context, epoch int64) (auth.Policy, error) {
	var version int64
	var document []byte
	err := s.pool.QueryRow(ctx, `SELECT version, document FROM policy_version WHERE version <= $1 ORDER BY version DESC LIMIT 1`, epoch).Scan(&version, &document)
	if errors.Is(err, pgx.ErrNoRows) {
		return auth.Policy{}, fmt.Errorf("reading policy of epoch %d: %w", epoch, ErrNoVersion)
	}
	if err != nil {
		return auth.Policy{}, bare("reading policy", err)
	}
	d, err := auth.ReadDocument(document)
	if err != nil {
		return auth.Policy{}, fmt.Errorf("reading version %d of the policy: %w", version, err)
	}
	p := d.Policy()
	p.Version = version
	return p, nil
}

// ErrNoVersion says that there is no such version of the policy.
var ErrNoVersion = errors.New("postgres: no such version of the policy")

// AssignmentsAt returns the roles that were assigned to a subject at a moment.
func (s *AuthStorage) AssignmentsAt(ctx context.Context, subject string, at time.Time) ([]auth.Assignment, error) {
	list, err := collectAssignments(ctx, s.pool, `SELECT subject, role, greatest(from_at, decided_at), least(until_at, ended_at) FROM role_assignment
		WHERE subject = $1 AND state IN ('approved', 'ended') AND from_at <= $2 AND decided_at <= $2
			AND (until_at IS NULL OR until_at > $2) AND (ended_at IS NULL OR ended_at > $2) ORDER BY id`, subject, at)
	if err != nil {
		return nil, bare("reading assignments", err)
	}
	return list, nil
}

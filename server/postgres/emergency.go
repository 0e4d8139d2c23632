package postgres

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/chartkeep/chartkeep/auth"
	"github.com/chartkeep/chartkeep/compliance"
)

// statePast is the SQLSTATE of migration/0019_emergency.sql for what can no longer be done with emergency access.
const statePast = "CKP19"

// Emergencies implements auth.Storage.
func (s *AuthStorage) Emergencies(ctx context.Context) ([]auth.Grant, error) {
	rows, err := s.pool.Query(ctx, `SELECT id::text, subject, session, patient, until_at, (extract(epoch FROM until_at - clock_timestamp()) * 1e6)::bigint
		FROM emergency_access WHERE state = 'granted' AND until_at > statement_timestamp()`)
	if err != nil {
		return nil, bare("reading emergency access", err)
	}
	list, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (g auth.Grant, err error) {
		var left int64
		err = row.Scan(&g.ID, &g.Subject, &g.Session, &g.Patient, &g.Until, &left)
		g.Left = time.Duration(left) * time.Microsecond
		return g, err
	})
	if err != nil {
		return nil, bare("reading emergency access", err)
	}
	return list, nil
}

// emergencyColumns are scanned by scanEmergency. What was granted or asked for and is over by now is expired.
const emergencyColumns = `id::text, subject, session, client, patient, reason_code, justification, event::text,
	CASE WHEN state = 'granted' AND until_at <= statement_timestamp() OR state = 'requested' AND requested_at + duration <= statement_timestamp() THEN 'expired' ELSE state END,
	requested_at, extract(epoch FROM duration)::bigint, until_at, coalesce(decided_by, ''), decided_at, coalesce(ended_by, ''), ended_at, review_by`

func scanEmergency(row pgx.CollectableRow) (*auth.EmergencyAccess, error) {
	e := &auth.EmergencyAccess{}
	var seconds int64
	var until, decided, ended, review *time.Time
	err := row.Scan(&e.ID, &e.Subject, &e.Session, &e.Client, &e.Patient, &e.Reason, &e.Justification, &e.Event, (*string)(&e.State), &e.RequestedAt,
		&seconds, &until, &e.DecidedBy, &decided, &e.EndedBy, &ended, &review)
	e.Duration = time.Duration(seconds) * time.Second
	e.RequestedAt = e.RequestedAt.UTC()
	e.Until, e.DecidedAt, e.EndedAt, e.ReviewBy = orZero(until), orZero(decided), orZero(ended), orZero(review)
	return e, err
}

// orZero is a time that may be missing.
func orZero(t *time.Time) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.UTC()
}

// RequestEmergency puts a line into the register, and with it the alert that tells officers, in one transaction: granted while the user's
// requests within the shift are below the limit, otherwise to be decided by a second person. It fills in State, Until and ReviewBy. All
// instances are told.
func (s *AuthStorage) RequestEmergency(ctx context.Context, e *auth.EmergencyAccess, limits auth.EmergencyLimits) error {
	err := pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		// Requests of one user are counted one after the other.
		if _, err := tx.Exec(ctx, `SELECT pg_advisory_xact_lock(7393, hashtext($1))`, e.Subject); err != nil {
			return err
		}
		var used int
		if err := tx.QueryRow(ctx, `SELECT count(*) FROM emergency_access WHERE subject = $1 AND requested_at > statement_timestamp() - $2 * interval '1 second'
			AND decided_by IS NULL AND granted_at IS NOT NULL`, e.Subject, limits.Shift.Seconds()).Scan(&used); err != nil {
			return err
		}
		e.State, e.Duration = auth.EmergencyGranted, limits.Duration
		kind, severity := compliance.AlertEmergency, compliance.High
		if used >= limits.PerShift {
			e.State, kind = auth.EmergencyRequested, compliance.AlertEmergencyLimit
		}
		var until, review *time.Time
		err := tx.QueryRow(ctx, `INSERT INTO emergency_access (id, subject, session, client, patient, reason_code, justification, event, state, requested_at, duration,
				granted_at, until_at, review_by)
			SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, at, d, g, g + d, g + $11 * interval '1 second'
			FROM (SELECT clock_timestamp() AS at, $10 * interval '1 second' AS d) asked, LATERAL (SELECT CASE WHEN $9 = 'granted' THEN at END AS g) granted
			RETURNING requested_at, until_at, review_by`,
			e.ID, e.Subject, e.Session, e.Client, e.Patient, e.Reason, e.Justification, e.Event, string(e.State), limits.Duration.Seconds(), limits.Review.Seconds()).
			Scan(&e.RequestedAt, &until, &review)
		if err != nil {
			return err
		}
		e.RequestedAt, e.Until, e.ReviewBy = e.RequestedAt.UTC(), orZero(until), orZero(review)
		return raise(ctx, tx, &compliance.Alert{Kind: kind, Severity: severity, About: aboutEmergency(e.ID), Event: e.Event})
	})
	return emergencyError("storing emergency access", err)
}

// aboutEmergency is what alerts about a line of the register name.
func aboutEmergency(id string) string { return "EmergencyAccess/" + id }

// Emergency returns a line of the register with its reviews.
func (s *AuthStorage) Emergency(ctx context.Context, id string) (*auth.EmergencyAccess, error) {
	rows, err := s.pool.Query(ctx, `SELECT `+emergencyColumns+` FROM emergency_access WHERE id = $1`, id)
	if err != nil {
		return nil, emergencyError("reading emergency access", err)
	}
	e, err := pgx.CollectExactlyOneRow(rows, scanEmergency)
	if err != nil {
		return nil, emergencyError("reading emergency access", err)
	}
	if rows, err = s.pool.Query(ctx, `SELECT by, at, outcome, remark FROM emergency_review WHERE access = $1 ORDER BY n`, id); err != nil {
		return nil, emergencyError("reading emergency access", err)
	}
	e.Reviews, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (r auth.EmergencyReview, err error) {
		err = row.Scan(&r.By, &r.At, &r.Outcome, &r.Remark)
		r.At = r.At.UTC()
		return r, err
	})
	return e, emergencyError("reading emergency access", err)
}

// EmergencyRegister returns lines of the register without their reviews.
func (s *AuthStorage) EmergencyRegister(ctx context.Context, q auth.EmergencyQuery) ([]*auth.EmergencyAccess, error) {
	var args arguments
	where := conditions{}
	if q.Subject != "" {
		where = append(where, "subject = "+args.add(q.Subject))
	}
	if q.Patient != "" {
		where = append(where, "patient = "+args.add(q.Patient))
	}
	switch q.Review {
	case "due":
		where = append(where, "review_by IS NOT NULL")
	case "overdue":
		where = append(where, "review_by <= statement_timestamp()")
	case "done":
		where = append(where, "review_by IS NULL AND granted_at IS NOT NULL")
	}
	if q.Before != "" {
		where = append(where, "(requested_at, id) < (SELECT requested_at, id FROM emergency_access WHERE id = "+args.add(q.Before)+")")
	}
	rows, err := s.pool.Query(ctx, `SELECT `+emergencyColumns+` FROM emergency_access WHERE `+where.String()+` ORDER BY requested_at DESC, id DESC LIMIT `+args.add(q.Limit), args...)
	if err != nil {
		return nil, emergencyError("reading emergency access", err)
	}
	list, err := pgx.CollectRows(rows, scanEmergency)
	return list, emergencyError("reading emergency access", err)
}

// DecideEmergency is the second person's word on a request beyond the limit; granted, it begins now, and officers are alerted to it. It fails with ErrEmergencyPerson for
// whoever asked, and with ErrEmergencyDecided for what is decided or was asked for too long ago.
func (s *AuthStorage) DecideEmergency(ctx context.Context, id, by string, grant bool, event string, limits auth.EmergencyLimits) error {
	var rows int64
	err := pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		done, err := tx.Exec(ctx, `UPDATE emergency_access SET state = CASE WHEN $3 THEN 'granted' ELSE 'refused' END, decided_by = $2, decided_at = clock_timestamp(),
				granted_at = CASE WHEN $3 THEN clock_timestamp() END, until_at = CASE WHEN $3 THEN statement_timestamp() + duration END,
				review_by = CASE WHEN $3 THEN clock_timestamp() + $4 * interval '1 second' END
			WHERE id = $1 AND (state <> 'requested' OR requested_at + duration > statement_timestamp())`, id, by, grant, limits.Review.Seconds())
		if rows = done.RowsAffected(); err != nil || rows == 0 {
			return err
		}
		if err := closeAbout(ctx, tx, aboutEmergency(id), by, compliance.AlertEmergencyLimit); err != nil || !grant {
			return err
		}
		return raise(ctx, tx, &compliance.Alert{Kind: compliance.AlertEmergency, Severity: compliance.High, About: aboutEmergency(id), Event: event})
	})
	return s.changed(ctx, "deciding about emergency access", id, rows, err)
}

// EndEmergency ends a grant on every instance: by whoever has it, or by an officer, who revokes it.
func (s *AuthStorage) EndEmergency(ctx context.Context, id, by string, state auth.EmergencyState) error {
	done, err := s.pool.Exec(ctx, `UPDATE emergency_access SET state = $3, ended_by = $2, ended_at = clock_timestamp()
		WHERE id = $1 AND (state <> 'granted' OR until_at > statement_timestamp())`, id, by, string(state))
	return s.changed(ctx, "ending emergency access", id, done.RowsAffected(), err)
}

// changed tells apart why nothing was changed: nobody was there, or its time is over.
func (s *AuthStorage) changed(ctx context.Context, doing, id string, rows int64, err error) error {
	if err != nil || rows > 0 {
		return emergencyError(doing, err)
	}
	if _, err := s.Emergency(ctx, id); err != nil {
		return err
	}
	return fmt.Errorf("%s: %w", doing, auth.ErrEmergencyDecided)
}

// ReviewEmergency stores what a reviewer found. One that needs follow-up is due again after limits.Review; every other outcome ends the
// task and closes what alerts there are about it, a misuse raises one. It fails with ErrEmergencyPerson for whoever had the access and
// for who granted it, and with ErrEmergencyDecided while it is still in force or when there is nothing to review.
func (s *AuthStorage) ReviewEmergency(ctx context.Context, id string, r auth.EmergencyReview, event string, limits auth.EmergencyLimits) error {
	err := pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		rows, err := tx.Query(ctx, `SELECT `+emergencyColumns+` FROM emergency_access WHERE id = $1 FOR UPDATE`, id)
		if err != nil {
			return err
		}
		e, err := pgx.CollectExactlyOneRow(rows, scanEmergency)
		switch {
		case err != nil:
			return err
		case auth.SamePerson(r.By, e.DecidedBy):
			return auth.ErrEmergencyPerson
		case e.ReviewBy.IsZero() || e.State == auth.EmergencyGranted:
			return auth.ErrEmergencyDecided
		}
		_, err = tx.Exec(ctx, `INSERT INTO emergency_review (access, n, subject, by, outcome, remark)
			SELECT $1, (SELECT count(*) FROM emergency_review WHERE access = $1) + 1, $2, $3, $4, $5`, id, e.Subject, r.By, r.Outcome, r.Remark)
		if err != nil {
			return err
		}
		var again *float64
		if seconds := limits.Review.Seconds(); r.Outcome == auth.ReviewFollowUp {
			again = &seconds
		}
		if _, err = tx.Exec(ctx, `UPDATE emergency_access SET review_by = clock_timestamp() + $2 * interval '1 second' WHERE id = $1`, id, again); err != nil {
			return err
		}
		if r.Outcome == auth.ReviewFollowUp {
			return nil
		}
		if err := closeAbout(ctx, tx, aboutEmergency(id), r.By, compliance.AlertEmergency, compliance.AlertReviewOverdue); err != nil {
			return err
		}
		if r.Outcome != auth.ReviewInappropriate {
			return nil
		}
		return raise(ctx, tx, &compliance.Alert{Kind: compliance.AlertInappropriateUse, Severity: compliance.Critical, About: aboutEmergency(id), Event: event})
	})
	return emergencyError("reviewing emergency access", err)
}

// OverdueEmergencies returns those that nobody has looked into in time and that no open alert tells of.
func (s *AuthStorage) OverdueEmergencies(ctx context.Context) ([]*auth.EmergencyAccess, error) {
	rows, err := s.pool.Query(ctx, `SELECT `+emergencyColumns+` FROM emergency_access e WHERE review_by <= statement_timestamp() AND NOT EXISTS (
			SELECT FROM alert a WHERE a.kind = $1 AND a.about = 'EmergencyAccess/' || e.id AND a.state <> 'closed') ORDER BY review_by LIMIT 1000`, string(compliance.AlertReviewOverdue))
	if err != nil {
		return nil, emergencyError("reading emergency access", err)
	}
	list, err := pgx.CollectRows(rows, scanEmergency)
	return list, emergencyError("reading emergency access", err)
}

// UntoldEmergencies returns those asked for before a time of which it is not known that the trail has the outcome; ToldEmergency says that
// it has.
func (s *AuthStorage) UntoldEmergencies(ctx context.Context, before time.Time) ([]*auth.EmergencyAccess, error) {
	rows, err := s.pool.Query(ctx, `SELECT `+emergencyColumns+` FROM emergency_access WHERE NOT told AND requested_at < $1 ORDER BY requested_at LIMIT 1000`, before)
	if err != nil {
		return nil, emergencyError("reading emergency access", err)
	}
	list, err := pgx.CollectRows(rows, scanEmergency)
	return list, emergencyError("reading emergency access", err)
}

// ToldEmergency notes that the trail has the outcome of a request.
func (s *AuthStorage) ToldEmergency(ctx context.Context, id string) error {
	_, err := s.pool.Exec(ctx, `UPDATE emergency_access SET told = true WHERE id = $1`, id)
	return emergencyError("noting an outcome", err)
}

// EmergencyCounts are figures of the register for metrics.
type EmergencyCounts struct{ InForce, Waiting, Due, Overdue int64 }

// EmergencyCounts counts grants in force, requests that wait for a second person, and reviews.
func (s *AuthStorage) EmergencyCounts(ctx context.Context) (c EmergencyCounts, err error) {
	err = s.pool.QueryRow(ctx, `SELECT (SELECT count(*) FROM emergency_access WHERE state = 'granted' AND until_at > statement_timestamp()),
		(SELECT count(*) FROM alert WHERE kind = $1 AND state <> 'closed'),
		(SELECT count(*) FROM emergency_access WHERE review_by IS NOT NULL), (SELECT count(*) FROM emergency_access WHERE review_by <= statement_timestamp())`,
		string(compliance.AlertEmergencyLimit)).Scan(&c.InForce, &c.Waiting, &c.Due, &c.Overdue)
	return c, emergencyError("counting emergency access", err)
}

// emergencyError says an error in auth's words.
func emergencyError(doing string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, pgx.ErrNoRows):
		return fmt.Errorf("%s: %w", doing, auth.ErrNoEmergency)
	case errors.Is(err, auth.ErrEmergencyDecided), errors.Is(err, auth.ErrEmergencyPerson):
		return fmt.Errorf("%s: %w", doing, err)
	case sqlState(err) == statePast:
		return fmt.Errorf("%s: %w", doing, auth.ErrEmergencyDecided)
	case sqlState(err) == stateCheck && (violates(err, "two_persons") || violates(err, "decided_by_another")):
		return fmt.Errorf("%s: %w", doing, auth.ErrEmergencyPerson)
	}
	return bare(doing, err)
}

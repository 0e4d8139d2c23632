package postgres

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/chartkeep/chartkeep/compliance"
)

// AlertStorage keeps what officers have to look at. Safe for concurrent use.
type AlertStorage struct{ pool *pgxpool.Pool }

// Alerts is the storage of alerts.
func (d *DB) Alerts() *AlertStorage { return &AlertStorage{d.records} }

// Raise stores an alert; one of the kind about the same that is still open counts up. ID, state and times are its own.
func (s *AlertStorage) Raise(ctx context.Context, a *compliance.Alert) error {
	if err := raise(ctx, s.pool, a); err != nil {
		return bare("raising alert", err)
	}
	return nil
}

// raise does so in a transaction or out of one.
func raise(ctx context.Context, q interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
}, a *compliance.Alert) error {
	var id [16]byte
	rand.Read(id[:])
	id[6], id[8] = id[6]&0x0f|0x40, id[8]&0x3f|0x80 // RFC 9562 section 5.4
	_, err := q.Exec(ctx, `INSERT INTO alert (id, kind, severity, about, event) VALUES ($1, $2, $3, left($4, 300), nullif($5, '')::uuid)
			ON CONFLICT (kind, about) WHERE state <> 'closed' DO UPDATE SET times = alert.times + 1, last_at = clock_timestamp(), severity = excluded.severity,
				event = coalesce(excluded.event, alert.event), state = 'new', seen_by = NULL, seen_at = NULL`, id, string(a.Kind), string(a.Severity), a.About, a.Event)
	return err
}

// closeAbout closes the open alerts of some kinds about something that was dealt with.
func closeAbout(ctx context.Context, tx pgx.Tx, about, by string, kinds ...compliance.AlertKind) error {
	_, err := tx.Exec(ctx, `UPDATE alert SET state = 'closed', closed_by = $3, closed_at = clock_timestamp() WHERE kind = ANY ($1) AND about = $2 AND state <> 'closed'`, kinds, about, by)
	return err
}

const alertColumns = `id::text, kind, severity, about, coalesce(event::text, ''), state, times, first_at, last_at, coalesce(seen_by, ''), seen_at, coalesce(closed_by, ''), closed_at`

func scanAlert(row pgx.CollectableRow) (*compliance.Alert, error) {
	a := &compliance.Alert{}
	var seen, closed *time.Time
	err := row.Scan(&a.ID, (*string)(&a.Kind), (*string)(&a.Severity), &a.About, &a.Event, (*string)(&a.State), &a.Times, &a.FirstAt, &a.LastAt,
		&a.SeenBy, &seen, &a.ClosedBy, &closed)
	a.FirstAt, a.LastAt, a.SeenAt, a.ClosedAt = a.FirstAt.UTC(), a.LastAt.UTC(), orZero(seen), orZero(closed)
	return a, err
}

// Alerts returns alerts, the last raised first.
func (s *AlertStorage) Alerts(ctx context.Context, q compliance.AlertQuery) ([]*compliance.Alert, error) {
	var args arguments
	where := conditions{}
	if q.State != "" {
		where = append(where, "state = "+args.add(string(q.State)))
	}
	if q.Before != "" {
		where = append(where, "(last_at, id) < (SELECT last_at, id FROM alert WHERE id = "+args.add(q.Before)+")")
	}
	rows, err := s.pool.Query(ctx, `SELECT `+alertColumns+` FROM alert WHERE `+where.String()+` ORDER BY last_at DESC, id DESC LIMIT `+args.add(q.Limit), args...)
	if err != nil {
		return nil, bare("reading alerts", err)
	}
	list, err := pgx.CollectRows(rows, scanAlert)
	if err != nil {
		return nil, bare("reading alerts", err)
	}
	return list, nil
}

// MoveAlert says that somebody has seen or closed an alert, and returns it as it is then. An alert that is closed stays so: ErrNoAlert.
func (s *AlertStorage) MoveAlert(ctx context.Context, id, by string, to compliance.AlertState) (*compliance.Alert, error) {
	set := `state = 'seen', seen_by = $2, seen_at = clock_timestamp()`
	if to == compliance.AlertClosed {
		set = `state = 'closed', closed_by = $2, closed_at = clock_timestamp()`
	}
	rows, err := s.pool.Query(ctx, `UPDATE alert SET `+set+` WHERE id = $1 AND state <> 'closed' RETURNING `+alertColumns, id, by)
	if err != nil {
		return nil, bare("moving alert", err)
	}
	a, err := pgx.CollectExactlyOneRow(rows, scanAlert)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return nil, fmt.Errorf("moving alert: %w", compliance.ErrNoAlert)
	case err != nil:
		return nil, bare("moving alert", err)
	}
	return a, nil
}

// OpenAlerts counts alerts that are not closed, by severity.
func (s *AlertStorage) OpenAlerts(ctx context.Context) (map[compliance.Severity]int64, error) {
	rows, err := s.pool.Query(ctx, `SELECT severity, count(*) FROM alert WHERE state <> 'closed' GROUP BY severity`)
	if err != nil {
		return nil, bare("counting alerts", err)
	}
	open := map[compliance.Severity]int64{}
	var severity string
	var n int64
	if _, err := pgx.ForEachRow(rows, []any{&severity, &n}, func() error { open[compliance.Severity(severity)] = n; return nil }); err != nil {
		return nil, bare("counting alerts", err)
	}
	return open, nil
}

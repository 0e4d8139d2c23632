package postgres

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/chartkeep/chartkeep/audit"
)

// SQLSTATEs of migration/0007_retention.sql.
const (
	stateUnknown     = "CKA20"
	stateKept        = "CKA21"
	stateOtherRows   = "CKA22"
	stateEarly       = "CKA23"
	stateLocked      = "55P03"
	stateInUse       = "55006"
	stateDeadlock    = "40P01"
	retentionTimeout = 30 * time.Minute // a month may hold tens of millions of rows
)

// Errors of Retention.
var (
	ErrNoHold  = errors.New("postgres: no such legal hold, or it was released before")
	ErrNoMonth = errors.New("postgres: no such month of the trail")
	ErrKept    = errors.New("postgres: the month is kept: it is younger than the policy, or on legal hold")
	ErrGrace   = errors.New("postgres: the month is not detached, or not for long enough")
	ErrBusy    = errors.New("postgres: the trail is too busy to detach a month now")
)

// Retention drops the trail's oldest months when their time has come, and keeps legal holds. It works with a role that may
// execute a few functions of the database, which check every step again, and nothing else.
type Retention struct{ pool *pgxpool.Pool }

// Retention opens the role's pool, for the verb or the request that needs it. Close it.
func (d *DB) Retention(ctx context.Context) (*Retention, error) {
	pool, err := openPool(ctx, d.writer.Config().ConnString(), "chartkeep_audit_retention", 1, retentionTimeout, pgx.QueryExecModeCacheDescribe)
	if err != nil {
		return nil, err
	}
	return &Retention{pool}, nil
}

// Close closes the pool.
func (r *Retention) Close() { r.pool.Close() }

// Years is the policy in force: how long the trail is kept.
func (r *Retention) Years(ctx context.Context) (years int, err error) {
	if err := r.pool.QueryRow(ctx, `SELECT audit_retention_years()`).Scan(&years); err != nil {
		return 0, bare("reading retention policy", err)
	}
	return years, nil
}

// SetYears changes the policy. Fewer than audit.RetentionYears are refused.
func (r *Retention) SetYears(ctx context.Context, years int, by string) error {
	if years < audit.RetentionYears || years > 1000 {
		return fmt.Errorf("setting retention policy: %d years, at least %d are required (45 CFR 164.316(b)(2)(i))", years, audit.RetentionYears)
	}
	return r.exec(ctx, "setting retention policy", `SELECT audit_set_retention($1, $2)`, years, by)
}

// Hold is a legal hold: on every month with an event of the patient, or on every month that the period [From, To) touches. Patient
// is a reference; Reason must not hold PHI.
type Hold struct {
	ID         audit.ID
	Patient    string    // "" for a period
	From, To   time.Time // of a period
	Reason, By string
	Placed     time.Time
	ReleasedBy string // "" while it stands
	Released   time.Time
}

// Place places a hold. ID, Patient or period, Reason and By are the caller's.
func (r *Retention) Place(ctx context.Context, h Hold) error {
	switch period := !h.From.IsZero() || !h.To.IsZero(); {
	case h.Patient != "" && period, h.Patient == "" && !period:
		return errors.New("placing legal hold: it is on a patient or on a period")
	case period && !h.From.Before(h.To):
		return errors.New("placing legal hold: the period ends before it begins")
	case len(h.Patient) > maxProjection || projected(h.Patient) != h.Patient:
		return errors.New("placing legal hold: the patient's id is malformed")
	case h.Reason == "" || len(h.Reason) > 1000 || projected(h.Reason[:min(len(h.Reason), 400)]) != h.Reason[:min(len(h.Reason), 400)]:
		return errors.New("placing legal hold: a reason of at most 1000 bytes is required")
	case h.By == "":
		return errors.New("placing legal hold: nobody places it")
	}
	var from, to *time.Time
	if h.Patient == "" {
		from, to = &h.From, &h.To
	}
	return r.exec(ctx, "placing legal hold", `SELECT audit_place_hold($1, $2, $3, $4, $5, $6)`, [16]byte(h.ID), h.Patient, from, to, h.Reason, h.By)
}

// Release ends a hold. It fails with ErrNoHold.
func (r *Retention) Release(ctx context.Context, id audit.ID, by string) error {
	err := r.exec(ctx, "releasing legal hold", `SELECT audit_release_hold($1, $2)`, [16]byte(id), by)
	if errors.Is(err, ErrNoMonth) {
		return ErrNoHold
	}
	return err
}

// Holds returns every hold, those that were released as well, in the order in which they were placed.
func (r *Retention) Holds(ctx context.Context) ([]Hold, error) {
	rows, err := r.pool.Query(ctx, `SELECT * FROM audit_holds()`)
	if err != nil {
		return nil, bare("reading legal holds", err)
	}
	holds, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (Hold, error) {
		var h Hold
		var id [16]byte
		var from, to, released *time.Time
		var by *string
		err := row.Scan(&id, &h.Patient, &from, &to, &h.Reason, &h.By, &h.Placed, &by, &released)
		h.ID = id
		if from != nil && to != nil {
			h.From, h.To = *from, *to
		}
		if by != nil && released != nil {
			h.ReleasedBy, h.Released = *by, *released
		}
		return h, err
	})
	if err != nil {
		return nil, bare("reading legal holds", err)
	}
	return holds, nil
}

// Month is a partition of the trail.
type Month struct {
	Partition string
	From, To  time.Time // part times of its rows, [From, To)
	Noted     bool      // its pruning record is stored
	Detached  time.Time // zero while it is part of the trail
	Kept      string    // why it must stay: "young", "hold ID", "stored late"; "" when it may go
}

// Months lists the trail's months, oldest first, and those that are detached and not dropped yet.
func (r *Retention) Months(ctx context.Context) ([]Month, error) {
	rows, err := r.pool.Query(ctx, `SELECT * FROM audit_months()`)
	if err != nil {
		return nil, bare("listing months", err)
	}
	months, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (Month, error) {
		var m Month
		var detached *time.Time
		var kept *string
		err := row.Scan(&m.Partition, &m.From, &m.To, &m.Noted, &detached, &kept)
		if detached != nil {
			m.Detached = *detached
		}
		if kept != nil {
			m.Kept = *kept
		}
		return m, err
	})
	if err != nil {
		return nil, bare("listing months", err)
	}
	return months, nil
}

// Run is a run of a stream's records in a month, without a gap.
type Run struct {
	Stream audit.StreamID
	First  uint64
	Count  uint64
}

// Runs returns the runs of a month's records, by stream, then number.
func (r *Retention) Runs(ctx context.Context, partition string) ([]Run, error) {
	rows, err := r.pool.Query(ctx, `SELECT stream, first_seq, rows FROM audit_runs($1)`, partition)
	if err != nil {
		return nil, retentionError("reading a month's runs", err)
	}
	runs, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (Run, error) {
		var stream [16]byte
		var first, count int64
		err := row.Scan(&stream, &first, &count)
		return Run{stream, uint64(first), uint64(count)}, err
	})
	if err != nil {
		return nil, retentionError("reading a month's runs", err)
	}
	return runs, nil
}

// Note stores the signed record of a month that is about to go. From then on its rows may be missing. It fails with ErrKept, and
// when the month has another number of rows.
func (r *Retention) Note(ctx context.Context, p *audit.Pruning, note []byte) error {
	return r.exec(ctx, "storing pruning record", `SELECT audit_note_pruning($1, $2, $3, $4)`, p.Partition, p.Rows, p.Archive[:], note)
}

// Detach takes a month, whose record is stored, out of the trail; its table stays, guarded as before. It asks for the locks
// again and again, each time so briefly that inserts do not notice, and gives up with ErrBusy after patience.
func (r *Retention) Detach(ctx context.Context, partition string, patience time.Duration) error {
	until := time.Now().Add(patience)
	for {
		_, err := r.pool.Exec(ctx, `SELECT audit_detach($1)`, partition)
		switch sqlState(err) {
		case stateLocked, stateDeadlock, stateInUse:
			if time.Now().After(until) {
				return fmt.Errorf("detaching %s: %w", partition, ErrBusy)
			}
			timer := time.NewTimer(100*time.Millisecond + rand.N(200*time.Millisecond)) //nolint:gosec // jitter
			select {
			case <-timer.C:
			case <-ctx.Done():
				timer.Stop()
				return ctx.Err()
			}
			continue
		}
		if err != nil {
			return retentionError("detaching "+partition, err)
		}
		return nil
	}
}

// Drop drops a month that was detached at least grace ago. It fails with ErrGrace before, and with ErrKept when a hold was
// placed meanwhile.
func (r *Retention) Drop(ctx context.Context, partition string, grace time.Duration) error {
	return r.exec(ctx, "dropping "+partition, `SELECT audit_drop_month($1, $2)`, partition, grace)
}

// Rehouse gives months whose rows wait in the default partition a partition of their own, however many rows that are. It
// returns how many it made.
func (r *Retention) Rehouse(ctx context.Context) (made int, err error) {
	if err := r.pool.QueryRow(ctx, `SELECT audit_rehouse()`).Scan(&made); err != nil {
		return 0, retentionError("rehousing rows", err)
	}
	return made, nil
}

func (r *Retention) exec(ctx context.Context, doing, sql string, args ...any) error {
	if _, err := r.pool.Exec(ctx, sql, args...); err != nil {
		return retentionError(doing, err)
	}
	return nil
}

func retentionError(doing string, err error) error {
	switch sqlState(err) {
	case stateUnknown:
		return fmt.Errorf("%s: %w", doing, ErrNoMonth)
	case stateKept:
		return fmt.Errorf("%s: %w", doing, ErrKept)
	case stateOtherRows:
		return fmt.Errorf("%s: the month has other rows than its record says", doing)
	case stateEarly:
		return fmt.Errorf("%s: %w", doing, ErrGrace)
	case stateLocked, stateDeadlock:
		return fmt.Errorf("%s: %w", doing, ErrBusy)
	}
	return bare(doing, err)
}

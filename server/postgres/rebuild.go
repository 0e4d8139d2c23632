package postgres

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/chartkeep/chartkeep/audit"
)

// RebuildRollups counts the rollups anew from the rows, from the oldest month that is still stored on. It reads the whole trail
// (two minutes for twenty million rows or so); meanwhile batches wait with their counts, and the journals hold what comes.
func (d *DB) RebuildRollups(ctx context.Context) error {
	return pgx.BeginFunc(ctx, d.writer, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `SET LOCAL statement_timeout = 0`); err != nil {
			return bare("resetting rollups", err)
		}
		var since *time.Time
		if err := tx.QueryRow(ctx, `SELECT audit_reset_rollups()`).Scan(&since); err != nil {
			return bare("resetting rollups", err)
		}
		if since == nil {
			return nil // there are no rows
		}
		counted := newRollup()
		// The reader's transaction begins after the lock was taken: it sees every row whose batch was counted.
		if err := pgx.BeginFunc(ctx, d.reader, func(reading pgx.Tx) error {
			if _, err := reading.Exec(ctx, `SET LOCAL statement_timeout = 0; SET LOCAL max_parallel_workers_per_gather = 2`); err != nil {
				return bare("recounting rows", err)
			}
			return counted.recount(ctx, reading, *since)
		}); err != nil {
			return err
		}
		return counted.store(ctx, tx)
	})
}

// recount counts the rows that happened since.
func (r *rollup) recount(ctx context.Context, tx pgx.Tx, since time.Time) error {
	rows, err := tx.Query(ctx, `SELECT date_trunc('hour', `+when+`) AS hour, type, interaction, action, coalesce(outcome, -1), allowed, reason,
			ARRAY(SELECT split_part(n, '/', 1) FROM unnest(entities) n) AS kinds, client, roles, purpose, view, count(*)
		FROM audit_trail WHERE `+when+` >= $1 GROUP BY 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12`, since)
	if err != nil {
		return bare("recounting rows", err)
	}
	var hour time.Time
	var action string
	var outcome int16
	var kinds []string
	var n int64
	var e audit.Event
	if _, err := pgx.ForEachRow(rows, []any{
		&hour, (*string)(&e.Type), &e.Interaction, &action, &outcome, &e.Decision.Allowed, &e.Decision.Reason, &kinds, &e.Agent.Client, &e.Agent.Roles,
		&e.Purpose, &e.Decision.View, &n,
	}, func() error {
		e.Outcome, e.Action, e.Entities = audit.Outcome(outcome), 0, e.Entities[:0]
		for _, c := range action {
			e.Action = audit.Action(c)
		}
		for _, k := range kinds {
			e.Entities = append(e.Entities, audit.Entity{Type: k})
		}
		r.addKinds(hour, &e, ended(&e), n)
		return nil
	}); err != nil {
		return bare("recounting rows", err)
	}
	rows, err = tx.Query(ctx, `SELECT (extract(epoch FROM date_trunc('minute', `+when+`)) / 60)::bigint, `+housekeeping+`, sum(events)::bigint,
			coalesce(`+sumDenied+`, 0)::bigint, coalesce(`+sumFailed+`, 0)::bigint
		FROM (SELECT *, 1 AS events FROM audit_trail) t WHERE `+when+` >= $1 GROUP BY 1, 2`, since)
	if err != nil {
		return bare("recounting rows", err)
	}
	var t total
	var ends endings
	if _, err := pgx.ForEachRow(rows, []any{&t.minute, &t.housekeeping, &ends.events, &ends.denied, &ends.failed}, func() error {
		r.addTotal(t, ends)
		return nil
	}); err != nil {
		return bare("recounting rows", err)
	}
	rows, err = tx.Query(ctx, `SELECT `+when+` AS at, body FROM audit_trail
		WHERE `+when+` >= $1 AND type = $2 AND interaction = $3`, since, string(audit.TypeApplication), audit.InteractionTimings)
	if err != nil {
		return bare("recounting timings", err)
	}
	var at time.Time
	var body []byte
	if _, err := pgx.ForEachRow(rows, []any{&at, &body}, func() error {
		if e, err := audit.DecodeEvent(body); err == nil {
			r.addTimings(at, &e)
		}
		return nil
	}); err != nil {
		return bare("recounting timings", err)
	}
	return nil
}

package postgres

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/chartkeep/chartkeep/audit"
)

// trailReader is audit.Reader, as the role that may only read the view.
type trailReader struct{ pool *pgxpool.Pool }

var _ audit.Reader = (*trailReader)(nil)

// Find implements audit.Reader. The events are decoded from the bytes that were hashed, not from the columns; a body that
// does not decode yields what its columns say, so that a damaged row stays visible.
func (r *trailReader) Find(ctx context.Context, q audit.Query) ([]audit.Stored, error) {
	sql, args := findSQL(q)
	rows, err := r.pool.Query(ctx, sql, args...)
	if err != nil {
		return nil, bare("querying trail", err)
	}
	found, err := pgx.CollectRows(rows, scanStored)
	if err != nil {
		return nil, bare("querying trail", err)
	}
	return found, nil
}

// findSQL builds the statement: its text depends on which fields are set, never on their values.
func findSQL(q audit.Query) (string, []any) {
	args := []any{min(max(q.Limit, 1), 200)}
	var where strings.Builder
	and := func(condition string, values ...any) {
		marks := make([]any, len(values))
		for i, v := range values {
			args = append(args, v)
			marks[i] = "$" + strconv.Itoa(len(args))
		}
		if where.Len() > 0 {
			where.WriteString(" AND ")
		}
		fmt.Fprintf(&where, condition, marks...)
	}
	and("true")
	if q.ID != (audit.ID{}) {
		and("event_id = %s", [16]byte(q.ID))
	}
	for _, f := range []struct{ column, value string }{
		{"agent_user", q.User}, {"client", q.Client}, {"interaction", q.Interaction}, {"type", string(q.Type)},
	} {
		if f.value != "" {
			and(f.column+" = %s", projected(f.value))
		}
	}
	// The indexes of these two leave empty values out.
	if q.Patient != "" {
		and("patient = %s AND patient <> ''", projected(q.Patient))
	}
	if q.RequestID != "" {
		and("request_id = %s AND request_id <> ''", projected(q.RequestID))
	}
	switch {
	case q.EntityType != "" && q.EntityID != "":
		and("%s = ANY (entities)", projected(q.EntityType+"/"+q.EntityID))
	case q.EntityType != "":
		and("EXISTS (SELECT FROM unnest(entities) n WHERE starts_with(n, %s))", projected(q.EntityType)+"/")
	case q.EntityID != "":
		and("EXISTS (SELECT FROM unnest(entities) n WHERE split_part(n, '/', 2) = %s)", projected(q.EntityID))
	}
	if q.Action != 0 {
		and("action = %s", string(rune(q.Action)))
	}
	switch {
	case q.Outcome == nil:
	case *q.Outcome == audit.Intent:
		and("outcome IS NULL")
	default:
		and("outcome = %s", int16(*q.Outcome))
	}
	// part_ts is the wall clock but for a clock that stepped, by at most a day either way: it prunes, recorded decides.
	const slack = 25 * time.Hour
	if !q.From.IsZero() {
		and("recorded >= %s AND part_ts >= %s", q.From, q.From.Add(-slack))
	}
	if !q.To.IsZero() {
		and("recorded < %s AND part_ts < %s", q.To, q.To.Add(slack))
	}
	if q.Text != "" {
		and(`strpos(lower(concat_ws(' ', type, interaction, agent_user, client, network, array_to_string(roles, ' '), purpose,
			patient, array_to_string(entities, ' '), rule, reason, view, request_id)), lower(%s)) > 0`, projected(q.Text))
	}
	if q.After != (audit.Position{}) {
		// The first condition alone prunes partitions.
		and("part_ts <= %[1]s AND (part_ts, event_id) < (%[1]s, %[2]s)", q.After.PartTime, [16]byte(q.After.ID))
	}
	return `SELECT stream, seq, part_ts, event_id, recorded, ingested_at, type, interaction, action, outcome, agent_user, client,
		session, network, roles, purpose, patient, entity_type, entity_id, allowed, rule, reason, view, policy, request_id,
		correlation, total_us, salt, leaf, body
		FROM audit_trail WHERE ` + where.String() + ` ORDER BY part_ts DESC, event_id DESC LIMIT $1`, args
}

func scanStored(row pgx.CollectableRow) (audit.Stored, error) {
	var s audit.Stored
	var e audit.Event
	var seq, total int64
	var action string
	var outcome *int16
	var entity audit.Entity
	var correlation *[16]byte
	var salt, leaf []byte
	err := row.Scan((*[16]byte)(&s.Stream), &seq, &s.PartTime, (*[16]byte)(&e.ID), &e.Recorded, &s.Ingested, (*string)(&e.Type),
		&e.Interaction, &action, &outcome, &e.Agent.User, &e.Agent.Client, &e.Agent.Session, &e.Agent.Network, &e.Agent.Roles,
		&e.Purpose, &e.Patient, &entity.Type, &entity.ID, &e.Decision.Allowed, &e.Decision.Rule, &e.Decision.Reason,
		&e.Decision.View, &e.Decision.Policy, &e.RequestID, &correlation, &total, &salt, &leaf, &s.Body)
	if err != nil {
		return s, err
	}
	s.Seq = uint64(seq)
	s.PartTime, s.Ingested = s.PartTime.UTC(), s.Ingested.UTC()
	copy(s.Salt[:], salt)
	copy(s.Leaf[:], leaf)
	if s.Event, err = audit.DecodeEvent(s.Body); err == nil {
		return s, nil
	}
	e.Outcome = audit.Intent
	if outcome != nil {
		e.Outcome = audit.Outcome(*outcome)
	}
	if action != "" {
		e.Action = audit.Action(action[0])
	}
	if entity != (audit.Entity{}) {
		e.Entities = []audit.Entity{entity}
	}
	if correlation != nil {
		e.Correlation = *correlation
	}
	e.Recorded = e.Recorded.UTC()
	e.Timing.Total = uint32(total)
	s.Event = e
	return s, nil
}

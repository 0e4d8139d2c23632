package postgres

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
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

const (
	// findScan bounds the rows that one statement of Find looks at, and findTime how long it goes on with further ones.
	findScan = 20_000
	findTime = 500 * time.Millisecond
)

// Find implements audit.Reader. The events are decoded from the bytes that were hashed, not from the columns; a body that
// does not decode yields what its columns say, so that a damaged row stays visible.
func (r *trailReader) Find(ctx context.Context, q audit.Query) (audit.Found, error) {
	var found audit.Found
	if err := q.Validate(); err != nil {
		return found, fmt.Errorf("querying trail: %w", err)
	}
	page, deadline := q.Page(), time.Now().Add(findTime)
	near := nearby(&q)
	for {
		f := newFindSQL(q, near)
		sql, args := f.page(page + 1 - len(found.Events))
		rows, err := r.pool.Query(ctx, sql, args...)
		if err != nil {
			return found, bare("querying trail", err)
		}
		events, err := pgx.CollectRows(rows, scanStored)
		if err != nil {
			return found, bare("querying trail", err)
		}
		found.Events = append(found.Events, events...)
		if len(found.Events) > page {
			found.Events = found.Events[:page]
			found.Next = found.Events[page-1].Position()
			return found, nil
		}
		var last audit.Position
		more := false
		if len(f.others) > 0 { // so there were rows that do not fit: were they all there are?
			if last, more, err = r.last(ctx, f); err != nil {
				return found, err
			}
		}
		switch {
		case more && time.Now().After(deadline):
			found.Next = last
			return found, nil
		case more:
			q.After = last
		case near.IsZero():
			return found, nil
		default:
			q.After, near = beyond(near, q.Forward), time.Time{}
		}
	}
}

// nearTime is where a query without an end looks first, in the direction of reading. It is most often enough, and a plan for some
// partitions is made much sooner than one for six years of them.
const nearTime = 35 * 24 * time.Hour

// nearby is the part time up to which a query looks first; zero when it looks everywhere at once.
func nearby(q *audit.Query) time.Time {
	if path := pathOf(q.Terms); path >= 0 && (q.Terms[path].Field == audit.FieldID || q.Terms[path].Field == audit.FieldRequest) {
		return time.Time{}
	}
	start, end, towards := q.After.PartTime, q.From, -nearTime
	if q.Forward {
		end, towards = q.To, nearTime
		if start.IsZero() {
			start = q.From
		}
	} else if start.IsZero() {
		start = cmp.Or(q.To, time.Now())
	}
	near := start.Add(towards).Truncate(time.Microsecond)
	if start.IsZero() || !end.IsZero() && near.Before(end) == !q.Forward {
		return time.Time{}
	}
	return near
}

// beyond is the position after which everything lies that a query with this near does not look at.
func beyond(near time.Time, forward bool) audit.Position {
	if !forward {
		return audit.Position{PartTime: near}
	}
	p := audit.Position{PartTime: near.Add(-time.Microsecond)}
	for i := range p.ID {
		p.ID[i] = 0xff
	}
	return p
}

// last returns the position of the last row that a statement may look at; more is false when it looks at all there are.
func (r *trailReader) last(ctx context.Context, f *findSQL) (p audit.Position, more bool, err error) {
	sql, args := f.last()
	switch err := r.pool.QueryRow(ctx, sql, args...).Scan(&p.PartTime, (*[16]byte)(&p.ID)); {
	case errors.Is(err, pgx.ErrNoRows):
		return p, false, nil
	case err != nil:
		return p, false, bare("querying trail", err)
	}
	p.PartTime = p.PartTime.UTC()
	return p, true, nil
}

// findSQL is a query's statement. Its text depends on which fields are asked for, never on their values. The conditions of
// path are what an index in the order of reading gives: how many rows are looked at is bounded by them alone. The others
// are tried on those rows.
type findSQL struct {
	path, others conditions
	args         arguments
	pathArgs     int // how many of args the path takes
	order        string
	scan         int // the most rows that are looked at
}

// conditions hold all.
type conditions []string

func (c conditions) String() string { return strings.Join(append(conditions{"true"}, c...), " AND ") }

// arguments are the values of a statement.
type arguments []any

// add returns the mark that stands for the value in the statement.
func (a *arguments) add(v any) string {
	*a = append(*a, v)
	return "$" + strconv.Itoa(len(*a))
}

// newFindSQL builds the statement for what is near, see nearby.
func newFindSQL(q audit.Query, near time.Time) *findSQL {
	f := &findSQL{order: "part_ts DESC, event_id DESC", scan: findScan}
	// part_ts prunes, see audit.Row.Time.
	if !q.From.IsZero() {
		f.path = append(f.path, "part_ts >= "+f.args.add(q.From.Add(-audit.ClockTolerance)))
	}
	if !q.To.IsZero() {
		f.path = append(f.path, "part_ts < "+f.args.add(q.To.Add(audit.ClockTolerance)))
	}
	than := "<"
	if q.Forward {
		f.order, than = "part_ts, event_id", ">"
	}
	switch {
	case near.IsZero():
	case q.Forward:
		f.path = append(f.path, "part_ts < "+f.args.add(near))
	default:
		f.path = append(f.path, "part_ts >= "+f.args.add(near))
	}
	if q.After != (audit.Position{}) {
		// The first condition alone prunes partitions.
		t, id := f.args.add(q.After.PartTime), f.args.add([16]byte(q.After.ID))
		f.path = append(f.path, fmt.Sprintf("part_ts %s= %s AND (part_ts, event_id) %[1]s (%[2]s, %[3]s)", than, t, id))
	}
	path := pathOf(q.Terms)
	switch {
	case path >= 0:
		t := &q.Terms[path]
		f.path = append(f.path, trail.term(t, &f.args))
		if t.Field == audit.FieldPatient || t.Field == audit.FieldRequest {
			f.path = append(f.path, trail.columns[t.Field]+" <> ''") // as its index has it
		}
	case slices.ContainsFunc(q.Terms, failing):
		f.path = append(f.path, "(outcome >= 4 OR type = '110113')") // the failures' index
	}
	f.pathArgs = len(f.args)
	for i := range q.Terms {
		if i != path {
			f.others = append(f.others, trail.term(&q.Terms[i], &f.args))
		}
	}
	if !q.From.IsZero() {
		f.others = append(f.others, when+" >= "+f.args.add(q.From))
	}
	if !q.To.IsZero() {
		f.others = append(f.others, when+" < "+f.args.add(q.To))
	}
	if q.Quiet {
		f.others = append(f.others, "NOT "+housekeeping)
	}
	if q.Text != "" {
		f.others = append(f.others, `strpos(lower(concat_ws(' ', type, interaction, agent_user, client, network, array_to_string(roles, ' '),
			purpose, patient, array_to_string(entities, ' '), rule, reason, view, request_id)), lower(`+f.args.add(projected(q.Text))+`)) > 0`)
	}
	return f
}

// pathOf is the index of the term that leads to the fewest rows by an index; -1 when there is none and the trail is read in
// order of time.
func pathOf(terms []audit.Term) int {
	for _, f := range []audit.Field{audit.FieldID, audit.FieldRequest, audit.FieldPatient, audit.FieldAgent} {
		for i, t := range terms {
			if t.Field == f && t.Op == audit.OpIs && !t.Not && len(t.Values) == 1 && t.Values[0] != "" {
				return i
			}
		}
	}
	return -1
}

// failing reports whether a term lets nothing through but refusals, failures and security alerts.
func failing(t audit.Term) bool {
	switch {
	case t.Not:
		return false
	case t.Field == audit.FieldType && t.Op == audit.OpIs:
		return !slices.ContainsFunc(t.Values, func(v string) bool { return v != string(audit.TypeSecurityAlert) })
	case t.Field == audit.FieldOutcome && t.Op != audit.OpBelow:
		return !slices.ContainsFunc(t.Values, func(v string) bool { n, err := strconv.Atoi(v); return err != nil || n < 4 })
	}
	return false
}

// scanned are the rows that are looked at.
func (f *findSQL) scanned(columns string, limit int) string {
	return `SELECT ` + columns + ` FROM audit_trail WHERE ` + f.path.String() + ` ORDER BY ` + f.order + ` LIMIT ` + strconv.Itoa(limit)
}

// page is the statement that finds rows.
func (f *findSQL) page(limit int) (string, []any) {
	if len(f.others) == 0 {
		return f.scanned(storedColumns, limit), f.args
	}
	return `SELECT ` + storedColumns + ` FROM (` + f.scanned("*", f.scan) + `) scanned WHERE ` + f.others.String() +
		` ORDER BY ` + f.order + ` LIMIT ` + strconv.Itoa(limit), f.args
}

// last is the statement for the position of the last row that page may look at; there is none when it looks at all there are.
func (f *findSQL) last() (string, []any) {
	return f.scanned("part_ts, event_id", 1) + ` OFFSET ` + strconv.Itoa(f.scan-1), f.args[:f.pathArgs]
}

// storedColumns are scanned by scanStored.
const storedColumns = `stream, seq, part_ts, event_id, recorded, ingested_at, type, interaction, action, outcome, agent_user, client,
	session, network, roles, purpose, patient, entity_type, entity_id, allowed, rule, reason, view, policy, request_id,
	correlation, total_us, salt, leaf, body`

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

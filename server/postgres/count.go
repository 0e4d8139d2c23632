package postgres

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/chartkeep/chartkeep/audit"
)

// relation is what a query is answered from: which fields it knows, as expressions of one value or of an array of values.
type relation struct {
	name           string
	units          []unit // of a rollup, the longest first
	denied, failed string // sums of those events
	columns        map[audit.Field]string
	lists          map[audit.Field]string
}

// unit is what a rollup's rows are of: a day, an hour or a minute.
type unit struct {
	time.Duration
	where string // tells its rows
}

const day = 24 * time.Hour

// Sums over what knows how each of its events ended.
const (
	sumDenied = `sum(events) FILTER (WHERE NOT allowed AND reason <> '')`
	sumFailed = `sum(events) FILTER (WHERE outcome >= 8)`
)

// when is the SQL of audit.Row.Time.
const when = `(CASE WHEN recorded - part_ts BETWEEN interval '-10 seconds' AND interval '10 seconds' THEN recorded ELSE part_ts END)`

// housekeeping is the SQL of audit.Event.Housekeeping.
const housekeeping = `(type = '110100' AND interaction IN ('heartbeat', 'timings'))`

// The trail itself, and its rollups.
var (
	trail = &relation{
		"audit_trail", nil, sumDenied, sumFailed,
		map[audit.Field]string{
			audit.FieldID: "event_id", audit.FieldRequest: "request_id", audit.FieldPatient: "patient", audit.FieldAgent: "agent_user",
			audit.FieldClient: "client", audit.FieldSession: "session", audit.FieldNetwork: "network", audit.FieldType: "type",
			audit.FieldInteraction: "interaction", audit.FieldAction: "action", audit.FieldOutcome: "coalesce(outcome, -1)",
			audit.FieldPurpose: "purpose", audit.FieldRule: "rule", audit.FieldReason: "reason", audit.FieldView: "view",
			audit.FieldPolicy: "policy", audit.FieldAllowed: "allowed", audit.FieldDuration: "total_us", audit.FieldStream: "stream",
			audit.FieldSeq: "seq", audit.FieldCorrelation: "correlation",
		},
		map[audit.Field]string{
			audit.FieldRole: "roles", audit.FieldClass: "classes", audit.FieldEntity: "entities",
			// A subquery a row is dear, and most rows have one entity.
			audit.FieldEntityType: "CASE cardinality(entities) WHEN 1 THEN ARRAY[split_part(entities[1], '/', 1)] ELSE ARRAY(SELECT split_part(n, '/', 1) FROM unnest(entities) n) END",
		},
	}
	totals = &relation{
		name:   "audit_rollup_total",
		units:  []unit{{day, "unit = 86400"}, {time.Hour, "unit = 3600"}, {time.Minute, "unit = 60"}},
		denied: "sum(denied)", failed: "sum(failed)",
	}
	deeds = &relation{
		"audit_rollup_deed", []unit{{day, "daily"}, {time.Hour, "NOT daily"}}, sumDenied, sumFailed,
		map[audit.Field]string{
			audit.FieldType: "type", audit.FieldInteraction: "interaction", audit.FieldAction: "action", audit.FieldOutcome: "outcome",
			audit.FieldAllowed: "allowed", audit.FieldReason: "reason",
		},
		map[audit.Field]string{audit.FieldEntityType: "entity_types"},
	}
	actors = &relation{
		"audit_rollup_actor", []unit{{day, "daily"}, {time.Hour, "NOT daily"}}, sumDenied, sumFailed,
		map[audit.Field]string{
			audit.FieldClient: "client", audit.FieldPurpose: "purpose", audit.FieldView: "view", audit.FieldOutcome: "outcome",
			audit.FieldAllowed: "allowed", audit.FieldReason: "reason",
		},
		map[audit.Field]string{audit.FieldRole: "roles"},
	}
)

func (r *relation) has(f audit.Field) bool { return r.columns[f] != "" || r.lists[f] != "" }

// term is the condition of a valid term.
func (r *relation) term(t *audit.Term, args *arguments) string {
	if t.Not {
		return "(" + r.fits(t, args) + ") IS NOT TRUE" // no value is no value that fits
	}
	return r.fits(t, args)
}

func (r *relation) fits(t *audit.Term, args *arguments) string {
	column := r.columns[t.Field]
	kind, _ := t.Field.Kind()
	switch {
	case kind == audit.NumberField:
		numbers := make([]int64, len(t.Values))
		for i, v := range t.Values {
			numbers[i], _ = strconv.ParseInt(v, 10, 64) // a valid term holds numbers
		}
		switch t.Op {
		case audit.OpAtLeast:
			return column + " >= " + args.add(numbers[0]) + "::bigint"
		case audit.OpBelow:
			return column + " < " + args.add(numbers[0]) + "::bigint"
		}
		return column + " = ANY (" + args.add(numbers) + "::bigint[])"
	case kind == audit.UUIDField:
		ids := make([][16]byte, len(t.Values))
		for i, v := range t.Values {
			id, _ := audit.ParseID(v) // a valid term holds ids
			ids[i] = id
		}
		if len(ids) == 1 {
			return column + " = " + args.add(ids[0])
		}
		return column + " = ANY (" + args.add(ids) + "::uuid[])"
	case t.Field == audit.FieldAllowed:
		return column + "::text = ANY (" + args.add(t.Values) + "::text[])"
	}
	values := make([]string, len(t.Values))
	for i, v := range t.Values {
		values[i] = projected(v)
	}
	list := r.lists[t.Field]
	switch {
	case list != "" && t.Op == audit.OpPrefix:
		return "EXISTS (SELECT FROM unnest(" + list + ") v, unnest(" + args.add(values) + "::text[]) p WHERE starts_with(v, p))"
	case list != "":
		return list + " && " + args.add(values) + "::text[]"
	case t.Op == audit.OpPrefix:
		return "EXISTS (SELECT FROM unnest(" + args.add(values) + "::text[]) p WHERE starts_with(" + column + ", p))"
	case len(values) == 1:
		return column + " = " + args.add(values[0])
	}
	return column + " = ANY (" + args.add(values) + "::text[])"
}

// part is a share of what a query counts: whole hours (or minutes) out of a rollup, or rows of the trail.
type part struct {
	of   *relation
	from string // FROM item of all that fits, with how many events each stands for (events) and when they happened (at)
	args arguments
	rows *findSQL // nil for a rollup
}

// parts divides a query between a rollup, for the whole hours or minutes that it knows, and the rows before and after them.
// Without a rollup, or without a whole hour, all are rows. What is counted by the step needs units that divide it; 0 is
// divided by all.
func parts(q audit.Query, rollup *relation, step time.Duration) []part {
	if rollup == nil {
		return []part{rowsOf(q)}
	}
	first, last, some := rollup.units[len(rollup.units)-1].within(q.From, q.To)
	if !some {
		return []part{rowsOf(q)}
	}
	all := []part{rolled(q, rollup, first, last, step)}
	if !first.Equal(q.From) {
		before := q
		before.To = first
		all = append(all, rowsOf(before))
	}
	if !last.Equal(q.To) {
		after := q
		after.From = last
		all = append(all, rowsOf(after))
	}
	return all
}

// countScan bounds the rows that a count looks at.
const countScan = 10_000

// rowsOf are the newest rows of a query. Which of two of one time is newer does not matter: whole rows need not be sorted.
func rowsOf(q audit.Query) part {
	q.After, q.Forward = audit.Position{}, false
	f := newFindSQL(q, time.Time{})
	f.scan, f.order = countScan, "part_ts DESC"
	return part{
		of: trail, rows: f, args: f.args,
		from: `(SELECT *, 1::bigint AS events, ` + when + ` AS at FROM (` + f.scanned("*", f.scan) + `) scanned WHERE ` + f.others.String() + `) fitting`,
	}
}

// within are the ends of the whole units in [from, to), and whether there are some. Zero does not restrict.
func (u unit) within(from, to time.Time) (first, last time.Time, some bool) {
	if !from.IsZero() {
		from = from.Add(u.Duration - 1).Truncate(u.Duration)
	}
	if !to.IsZero() {
		to = to.Truncate(u.Duration)
	}
	return from, to, from.IsZero() || to.IsZero() || from.Before(to)
}

// rolled are a rollup's rows of the whole units in [first, last), in the longest units that divide step; zero does not restrict.
func rolled(q audit.Query, rollup *relation, first, last time.Time, step time.Duration) part {
	p := part{of: rollup}
	where := conditions{}
	for i := range q.Terms {
		where = append(where, rollup.term(&q.Terms[i], &p.args))
	}
	if q.Quiet {
		where = append(where, "NOT housekeeping")
	}
	var spans []string
	var span func(units []unit, from, to time.Time)
	span = func(units []unit, from, to time.Time) {
		if len(units) == 0 || !from.IsZero() && from.Equal(to) {
			return
		}
		u := units[0]
		inner, outer, some := u.within(from, to)
		if !some || step%u.Duration != 0 {
			span(units[1:], from, to)
			return
		}
		c := conditions{u.where}
		if !inner.IsZero() {
			c = append(c, "at >= "+p.args.add(inner))
		}
		if !outer.IsZero() {
			c = append(c, "at < "+p.args.add(outer))
		}
		spans = append(spans, "("+c.String()+")")
		if !from.IsZero() {
			span(units[1:], from, inner)
		}
		if !to.IsZero() {
			span(units[1:], outer, to)
		}
	}
	span(rollup.units, first, last)
	p.from = rollup.name + ` WHERE (` + strings.Join(spans, " OR ") + `) AND ` + where.String()
	return p
}

// Facets implements audit.Reader. What a rollup knows is counted in full; what it does not know is counted among the newest rows.
func (r *trailReader) Facets(ctx context.Context, q audit.Query, fields []audit.Field, top int) ([]audit.Facet, error) {
	if err := errors.Join(q.Validate(), audit.ValidateFacets(fields)); err != nil {
		return nil, fmt.Errorf("counting trail: %w", err)
	}
	counts := make(map[audit.Field]map[string]int64, len(fields))
	partial := map[audit.Field]bool{}
	by := map[*relation][]audit.Field{}
	var rolled []audit.Field // by any rollup: they share the rows before and after the whole hours
	for _, f := range fields {
		counts[f] = map[string]int64{}
		rollup := rollupFor(&q, f)
		by[rollup] = append(by[rollup], f)
		if rollup != nil {
			rolled = append(rolled, f)
		}
	}
	count := func(p *part, fields []audit.Field) error {
		if err := r.facets(ctx, p, fields, counts); err != nil {
			return err
		}
		more, err := r.more(ctx, p)
		for _, f := range fields {
			partial[f] = partial[f] || more
		}
		return err
	}
	shared := false
	for rollup, fields := range by {
		for _, p := range parts(q, rollup, 0) {
			of := fields
			if rollup != nil && p.rows != nil {
				if shared {
					continue
				}
				of = rolled
			}
			if err := count(&p, of); err != nil {
				return nil, err
			}
		}
		shared = shared || rollup != nil
	}
	facets := make([]audit.Facet, len(fields))
	for i, f := range fields {
		facets[i] = audit.NewFacet(f, counts[f], top, !partial[f])
	}
	return facets, nil
}

// rollupFor is the rollup that knows a query's fields and these; nil when there is none.
func rollupFor(q *audit.Query, fields ...audit.Field) *relation {
	for _, rollup := range []*relation{totals, deeds, actors} {
		knows := q.Text == ""
		for i := range q.Terms {
			knows = knows && rollup.has(q.Terms[i].Field)
		}
		for _, f := range fields {
			knows = knows && rollup.has(f)
		}
		if knows {
			return rollup
		}
	}
	return nil
}

// facets adds the counts of a part. It reads it once, and counts fields together that a rollup tells apart together: their combinations
// are few, and one hash of all of them costs less than one of each.
func (r *trailReader) facets(ctx context.Context, p *part, fields []audit.Field, counts map[audit.Field]map[string]int64) error {
	columns, counted, sets := make([]string, len(fields)), make([]string, len(fields)), map[any][]string{}
	texts, lists := make([]*string, len(fields)), make([][]string, len(fields)) // null where a set has no such field
	var n int64
	into := make([]any, 0, len(fields)+1)
	for i, f := range fields {
		name := "f" + strconv.Itoa(i)
		if list := p.of.lists[f]; list != "" {
			columns[i], counted[i], into = list+" AS "+name, name, append(into, &lists[i])
		} else {
			columns[i], counted[i], into = p.of.columns[f]+" AS "+name, name+"::text", append(into, &texts[i])
		}
		var set any = f
		if rollup := rollupFor(&audit.Query{}, f); rollup != nil {
			set = rollup
		}
		sets[set] = append(sets[set], name)
	}
	var grouping []string
	for _, set := range sets {
		grouping = append(grouping, "("+strings.Join(set, ", ")+")")
	}
	slices.Sort(grouping) // one text is prepared once
	rows, err := r.pool.Query(ctx, `SELECT `+strings.Join(counted, ", ")+`, sum(events)::bigint FROM (SELECT `+strings.Join(columns, ", ")+`, events FROM `+p.from+
		`) cells GROUP BY GROUPING SETS (`+strings.Join(grouping, ", ")+`)`, p.args...)
	if err != nil {
		return bare("counting trail", err)
	}
	if _, err = pgx.ForEachRow(rows, append(into, &n), func() error {
		for i, f := range fields {
			if texts[i] != nil {
				value := *texts[i]
				if kind, _ := f.Kind(); kind == audit.UUIDField {
					value = strings.ReplaceAll(value, "-", "")
				}
				counts[f][value] += n
			}
			for j, value := range lists[i] {
				if !slices.Contains(lists[i][:j], value) {
					counts[f][value] += n
				}
			}
		}
		return nil
	}); err != nil {
		return bare("counting trail", err)
	}
	return nil
}

// more reports whether there are rows beyond those that a part looks at.
func (r *trailReader) more(ctx context.Context, p *part) (bool, error) {
	if p.rows == nil {
		return false, nil
	}
	var more bool
	err := r.pool.QueryRow(ctx, `SELECT EXISTS (`+p.rows.scanned("", 1)+` OFFSET `+strconv.Itoa(p.rows.scan)+`)`, p.rows.args[:p.rows.pathArgs]...).Scan(&more)
	if err != nil {
		return false, bare("counting trail", err)
	}
	return more, nil
}

// Histogram implements audit.Reader.
func (r *trailReader) Histogram(ctx context.Context, q audit.Query, step time.Duration) (audit.Histogram, error) {
	if err := q.Validate(); err != nil {
		return audit.Histogram{}, fmt.Errorf("counting trail: %w", err)
	}
	h, err := audit.NewHistogram(&q, step)
	if err != nil {
		return h, fmt.Errorf("counting trail: %w", err)
	}
	rollup := rollupFor(&q)
	if rollup != nil && step%rollup.units[len(rollup.units)-1].Duration != 0 {
		rollup = nil
	}
	for _, p := range parts(q, rollup, step) {
		rows, err := r.pool.Query(ctx, `SELECT date_bin(`+p.args.add(step)+`, at, 'epoch'), sum(events)::bigint, coalesce(`+p.of.denied+`, 0)::bigint,
			coalesce(`+p.of.failed+`, 0)::bigint FROM `+p.from+` GROUP BY 1`, p.args...)
		if err != nil {
			return h, bare("counting trail", err)
		}
		var b audit.Bin
		if _, err := pgx.ForEachRow(rows, []any{&b.Start, &b.Events, &b.Denied, &b.Failed}, func() error {
			if bin := h.Bin(b.Start, step); bin != nil {
				bin.Events, bin.Denied, bin.Failed = bin.Events+b.Events, bin.Denied+b.Denied, bin.Failed+b.Failed
			}
			return nil
		}); err != nil {
			return h, bare("counting trail", err)
		}
		more, err := r.more(ctx, &p)
		if err != nil {
			return h, err
		}
		h.Complete = h.Complete && !more
	}
	return h, nil
}

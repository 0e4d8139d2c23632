package postgres

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/chartkeep/chartkeep/audit"
)

// Latency implements audit.Reader. Histograms are summed by the database, see migration/0006_rollup.sql.
func (r *trailReader) Latency(ctx context.Context, q audit.LatencyQuery) (audit.Latency, error) {
	q, unit, err := q.Widen(time.Now())
	if err != nil {
		return audit.Latency{}, fmt.Errorf("reading latencies: %w", err)
	}
	l := audit.Latency{From: q.From, To: q.To}
	var args arguments
	where := conditions{"hourly = " + args.add(unit == time.Hour), "at >= " + args.add(q.From), "at < " + args.add(q.To)}
	if q.Route != "" {
		where = append(where, "route = "+args.add(projected(q.Route)))
	}
	if q.Role != "" {
		where = append(where, "role = "+args.add(projected(q.Role)))
	}
	route, role := "''", "''"
	if q.ByRoute {
		route = "route"
	}
	if q.ByRole {
		role = "role"
	}
	var sums []string
	for _, p := range audit.Parts() {
		sums = append(sums, "sum("+string(p)+")::text")
	}
	rows, err := r.pool.Query(ctx, `SELECT `+route+`::text COLLATE "C", `+role+`::text COLLATE "C", ARRAY[`+strings.Join(sums, ", ")+`]
		FROM audit_rollup_latency WHERE `+where.String()+` GROUP BY 1, 2 ORDER BY 1, 2`, args...)
	if err != nil {
		return l, bare("reading latencies", err)
	}
	var byRoute, byRole string
	var packed []string
	if _, err = pgx.ForEachRow(rows, []any{&byRoute, &byRole, &packed}, func() error {
		for i, p := range audit.Parts() {
			h, err := unpacked(packed[i])
			if err != nil {
				return err
			}
			l.Series = append(l.Series, audit.NewLatencySeries(byRoute, byRole, p, &h))
		}
		return nil
	}); err != nil || q.Step == 0 {
		if err != nil {
			err = bare("reading latencies", err)
		}
		return l, err
	}

	rows, err = r.pool.Query(ctx, `SELECT date_bin(`+args.add(q.Step)+`, at, 'epoch'), sum(`+string(q.Part)+`)::text
		FROM audit_rollup_latency WHERE `+where.String()+` GROUP BY 1 ORDER BY 1`, args...)
	if err != nil {
		return l, bare("reading latencies", err)
	}
	var start time.Time
	var column string
	if _, err = pgx.ForEachRow(rows, []any{&start, &column}, func() error {
		h, err := unpacked(column)
		if c := audit.NewLatencyColumn(start.UTC(), &h); len(c.Cells) > 0 {
			l.Columns = append(l.Columns, c)
		}
		return err
	}); err != nil {
		return l, bare("reading latencies", err)
	}
	return l, nil
}

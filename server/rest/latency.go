package rest

import (
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/chartkeep/chartkeep/audit"
)

// latencyJSON is how long requests took; durations are microseconds.
type latencyJSON struct {
	From    time.Time    `json:"from"` // what was counted: whole minutes, or whole hours
	To      time.Time    `json:"to"`
	Series  []seriesJSON `json:"series"`
	Part    string       `json:"part"` // of the heatmap
	Step    int64        `json:"step"` // width of its columns, seconds
	Heatmap []columnJSON `json:"heatmap"`
}

type seriesJSON struct {
	Route    string `json:"route,omitempty"`
	Role     string `json:"role,omitempty"`
	Part     string `json:"part"`
	Requests int64  `json:"requests"`
	P50      uint32 `json:"p50"`
	P95      uint32 `json:"p95"`
	P99      uint32 `json:"p99"`
}

type columnJSON struct {
	Start time.Time  `json:"start"`
	Cells []cellJSON `json:"cells"`
}

// cellJSON counts the requests that took at least From and less than To microseconds.
type cellJSON struct {
	From     uint64 `json:"from"`
	To       uint64 `json:"to"`
	Requests int64  `json:"requests"`
}

// latency shows percentiles by route, role and part, and a heatmap, of any time.
func (c *call) latency() error {
	asked, err := c.parameters("from", "to", "route", "role", "by", "part", "step")
	if err != nil {
		return err
	}
	q := audit.LatencyQuery{Route: asked["route"], Role: asked["role"], Part: audit.PartTotal}
	for name, bound := range map[string]*time.Time{"from": &q.From, "to": &q.To} {
		if v, ok := asked[name]; ok {
			if *bound, err = time.Parse(time.RFC3339, v); err != nil || bound.Year() < 1970 || bound.Year() > 9000 {
				return faulty(&fault{text: "a time like 2026-11-22T08:30:00Z is needed", parameter: name, position: -1})
			}
			*bound = bound.UTC()
		}
	}
	q.From, q.To = c.window(q.From, q.To)
	if !q.From.Before(q.To) {
		return faulty(&fault{text: "not before to", parameter: "from", position: -1})
	}
	if v, ok := asked["by"]; ok {
		by := strings.Split(v, ",")
		q.ByRoute, q.ByRole = slices.Contains(by, "route"), slices.Contains(by, "role")
		if v != "route" && v != "role" && v != "route,role" {
			return faulty(&fault{text: "not one of those allowed", parameter: "by", position: -1, allowed: []string{"route", "role", "route,role"}})
		}
	}
	if v, ok := asked["part"]; ok {
		if q.Part = audit.Part(v); !slices.Contains(audit.Parts(), q.Part) {
			wrong := &fault{text: "not one of those allowed", parameter: "part", position: -1}
			for _, p := range audit.Parts() {
				wrong.allowed = append(wrong.allowed, string(p))
			}
			return faulty(wrong)
		}
	}
	if q.Step, err = stepOf(asked["step"], q.To.Sub(q.From)); err != nil {
		return err
	}
	wide, _, err := q.Widen(c.start)
	if err != nil {
		return faulty(&fault{text: "too many steps for this time, or a step that is no whole number of minutes", parameter: "step", position: -1})
	}
	if _, err := c.recordLook(nil, audit.Entity{Type: "AuditEvent"}); err != nil {
		return err
	}
	l, err := c.s.cfg.Trail.Latency(c.ctx, q)
	if err != nil {
		return unavailable(err)
	}
	j := latencyJSON{l.From, l.To, []seriesJSON{}, string(q.Part), int64(wide.Step / time.Second), []columnJSON{}}
	for _, s := range l.Series {
		j.Series = append(j.Series, seriesJSON{s.Route, s.Role, string(s.Part), s.Requests, s.P50, s.P95, s.P99})
	}
	for _, column := range l.Columns {
		cells := []cellJSON{}
		for _, cell := range column.Cells {
			cells = append(cells, cellJSON(cell))
		}
		j.Heatmap = append(j.Heatmap, columnJSON{column.Start, cells})
	}
	return c.sendJSON(http.StatusOK, j)
}

package rest

import (
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/chartkeep/chartkeep/audit"
)

// facetFields are the fields by which events are counted: those whose values say something about many events.
func facetFields() []audit.Field {
	one := []audit.Field{audit.FieldID, audit.FieldRequest, audit.FieldCorrelation, audit.FieldSeq, audit.FieldDuration, audit.FieldEntity}
	return slices.DeleteFunc(audit.Fields(), func(f audit.Field) bool { return slices.Contains(one, f) })
}

type facetJSON struct {
	Field    string      `json:"field"`
	Values   []countJSON `json:"values"`   // most frequent first
	Complete bool        `json:"complete"` // false: only the newest events were counted
}

type countJSON struct {
	Value  string `json:"value"`
	Events int64  `json:"events"`
}

// facets counts the events of a query by the values of fields.
func (c *call) facets() error {
	look, err := c.look("fields", "top")
	if err != nil {
		return err
	}
	fields := []audit.Field{
		audit.FieldType, audit.FieldInteraction, audit.FieldAction, audit.FieldOutcome, audit.FieldAgent, audit.FieldClient, audit.FieldPurpose,
		audit.FieldReason, audit.FieldEntityType,
	}
	if v, ok := look.asked["fields"]; ok {
		fields = nil
		for name := range strings.SplitSeq(v, ",") {
			fields = append(fields, audit.Field(name))
		}
	}
	for i, f := range fields {
		if !slices.Contains(facetFields(), f) || slices.Contains(fields[:i], f) || audit.ValidateFacets(fields) != nil {
			wrong := &fault{text: "a list of fields is needed, each once", parameter: "fields", position: -1}
			for _, f := range facetFields() {
				wrong.allowed = append(wrong.allowed, string(f))
			}
			return faulty(wrong)
		}
	}
	top, err := upTo(100, look.asked, "top", 10)
	if err != nil {
		return err
	}
	if _, err := c.recordLook(look); err != nil {
		return err
	}
	counted, err := c.s.cfg.Trail.Facets(c.ctx, look.query, fields, top)
	if err != nil {
		return unavailable(err)
	}
	page := struct {
		Facets []facetJSON `json:"facets"`
		Query  queryJSON   `json:"query"`
	}{[]facetJSON{}, look.shown}
	lens := c.lens()
	for _, f := range counted {
		j := facetJSON{string(f.Field), []countJSON{}, f.Complete}
		for _, v := range f.Values {
			j.Values = append(j.Values, countJSON{lens.showField(f.Field, v.Value), v.Events})
		}
		page.Facets = append(page.Facets, j)
	}
	return c.sendJSON(http.StatusOK, page)
}

type binJSON struct {
	Start  time.Time `json:"start"`
	Events int64     `json:"events"`
	Denied int64     `json:"denied"`
	Failed int64     `json:"failed"`
}

// histogram counts the events of a query by when they were recorded; of the last day, when the query does not say of when.
func (c *call) histogram() error {
	look, err := c.look("step")
	if err != nil {
		return err
	}
	q := &look.query
	q.From, q.To = c.window(q.From, q.To)
	step, err := stepOf(look.asked["step"], q.To.Sub(q.From))
	if err != nil {
		return err
	}
	if _, err := audit.NewHistogram(q, step); err != nil {
		return faulty(&fault{text: "too many steps for this time, or a step that is no whole number of seconds", parameter: "step", position: -1})
	}
	if _, err := c.recordLook(look); err != nil {
		return err
	}
	h, err := c.s.cfg.Trail.Histogram(c.ctx, *q, step)
	if err != nil {
		return unavailable(err)
	}
	page := struct {
		Step     int64     `json:"step"` // seconds
		Bins     []binJSON `json:"bins"` // one after the other, empty ones included
		Complete bool      `json:"complete"`
		Query    queryJSON `json:"query"`
	}{int64(step / time.Second), []binJSON{}, h.Complete, look.shown}
	page.Query.From, page.Query.To = &q.From, &q.To
	for _, b := range h.Bins {
		page.Bins = append(page.Bins, binJSON(b))
	}
	return c.sendJSON(http.StatusOK, page)
}

// window completes the bounds of a time: until now, and a day long.
func (c *call) window(from, to time.Time) (time.Time, time.Time) {
	if to.IsZero() {
		to = c.start.UTC().Truncate(time.Microsecond)
	}
	if from.IsZero() {
		from = to.AddDate(0, 0, -1)
	}
	return from, to
}

// steps are the widths of bins that people read easily.
func steps() []time.Duration {
	const day = 24 * time.Hour
	return []time.Duration{time.Minute, 5 * time.Minute, 15 * time.Minute, time.Hour, 6 * time.Hour, day, 7 * day, 28 * day}
}

// stepOf reads the width of a bin, such as 15m, 6h or 1d; without one it is such that a time has at most about a hundred bins.
func stepOf(text string, of time.Duration) (time.Duration, error) {
	if text == "" {
		for _, s := range steps() {
			if of/s <= 100 {
				return s, nil
			}
		}
		return steps()[len(steps())-1], nil
	}
	days, isDays := strings.CutSuffix(text, "d")
	step, err := time.ParseDuration(text)
	if isDays {
		var n uint64
		n, err = strconv.ParseUint(days, 10, 12)
		step = time.Duration(n) * 24 * time.Hour
	}
	if err != nil || step <= 0 {
		return 0, faulty(&fault{text: "a duration is needed", parameter: "step", position: -1, allowed: []string{"1m", "15m", "6h", "1d"}})
	}
	return step, nil
}

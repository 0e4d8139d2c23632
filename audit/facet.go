package audit

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// Count is how many events have a value.
type Count struct {
	Value  string
	Events int64
}

// Facet counts the events of a query by the values of one field, most frequent first. An event with several values counts for
// each of them, one with none for none.
type Facet struct {
	Field    Field
	Values   []Count
	Complete bool // false: only the newest events of the query were counted
}

// NewFacet makes a facet of the top most frequent values; all of them when top is 0. Values of the same count are in order.
func NewFacet(f Field, counts map[string]int64, top int, complete bool) Facet {
	facet := Facet{Field: f, Values: make([]Count, 0, len(counts)), Complete: complete}
	for v, n := range counts {
		facet.Values = append(facet.Values, Count{v, n})
	}
	slices.SortFunc(facet.Values, func(a, b Count) int { return cmp.Or(cmp.Compare(b.Events, a.Events), cmp.Compare(a.Value, b.Value)) })
	if top > 0 && len(facet.Values) > top {
		facet.Values = facet.Values[:top]
	}
	return facet
}

// Histogram counts the events of a query by when they were recorded: one bin after the other, empty ones included.
type Histogram struct {
	Bins     []Bin
	Complete bool // false: only the newest events of the query were counted
}

// Bin is the time from Start until the next bin's.
type Bin struct {
	Start                  time.Time
	Events, Denied, Failed int64 // see Event.Denied and Event.Failed
}

// Denied reports whether access control said no.
func (e *Event) Denied() bool { return !e.Decision.Allowed && e.Decision.Reason != "" }

// Failed reports whether the server could not do what was asked.
func (e *Event) Failed() bool { return e.Outcome >= SeriousFailure }

const maxBins = 5000

// NewHistogram makes the empty bins of a query: they are step wide, counted from 1970 on, and cover [From, To), both of which
// must be set. It fails when the step is not a positive number of whole seconds, or makes too many bins.
func NewHistogram(q *Query, step time.Duration) (Histogram, error) {
	switch {
	case q.From.IsZero() || q.To.IsZero():
		return Histogram{}, fmt.Errorf("a histogram needs from and to: %w", ErrQuery)
	case step < time.Second || step%time.Second != 0:
		return Histogram{}, fmt.Errorf("step is no whole number of seconds: %w", ErrQuery)
	case q.To.Sub(q.From)/step >= maxBins:
		return Histogram{}, fmt.Errorf("step makes more than %d bins: %w", maxBins, ErrQuery)
	}
	h := Histogram{Complete: true}
	for start := BinStart(q.From, step); start.Before(q.To); start = start.Add(step) {
		h.Bins = append(h.Bins, Bin{Start: start})
	}
	return h, nil
}

// BinStart is when the bin that holds t starts: bins of step, whole seconds, are counted from 1970 on.
func BinStart(t time.Time, step time.Duration) time.Time {
	seconds, at := int64(step/time.Second), t.Unix()
	return time.Unix(at-((at%seconds)+seconds)%seconds, 0).UTC()
}

// Bin returns the bin that holds t; nil when t lies outside.
func (h *Histogram) Bin(t time.Time, step time.Duration) *Bin {
	if len(h.Bins) == 0 {
		return nil
	}
	i := int(BinStart(t, step).Sub(h.Bins[0].Start) / step)
	if t.Before(h.Bins[0].Start) || i >= len(h.Bins) {
		return nil
	}
	return &h.Bins[i]
}

// maxFacets bounds the fields of one call.
const maxFacets = 16

// ValidateFacets names what is wrong with a list of fields to count by.
func ValidateFacets(fields []Field) error {
	if len(fields) == 0 || len(fields) > maxFacets {
		return fmt.Errorf("%d facets where 1 to %d fit: %w", len(fields), maxFacets, ErrQuery)
	}
	for i, f := range fields {
		if _, ok := f.Kind(); !ok || slices.Contains(fields[:i], f) {
			return fmt.Errorf("facet %d is unknown or repeated: %w", i+1, ErrQuery)
		}
	}
	return nil
}

package audit

import (
	"fmt"
	"math/bits"
	"time"
)

// Part is a part of a request's time.
type Part string

// Parts of Timing.
const (
	PartTotal    Part = "total"
	PartAuth     Part = "auth"
	PartDecision Part = "decision"
	PartDatabase Part = "database"
	PartCrypto   Part = "crypto"
	PartAudit    Part = "audit"
)

// Parts lists them, the whole first.
func Parts() []Part {
	return []Part{PartTotal, PartAuth, PartDecision, PartDatabase, PartCrypto, PartAudit}
}

// Part returns the part's duration in microseconds.
func (t *Timing) Part(p Part) uint32 {
	switch p {
	case PartTotal:
		return t.Total
	case PartAuth:
		return t.Auth
	case PartDecision:
		return t.Decision
	case PartDatabase:
		return t.Database
	case PartCrypto:
		return t.Crypto
	case PartAudit:
		return t.Audit
	}
	return 0
}

// LatencyQuery asks how long requests took.
type LatencyQuery struct {
	From, To    time.Time     // both needed; widened to whole minutes, beyond six hours or the last week to whole hours
	Route, Role string        // "" asks for all
	ByRoute     bool          // a series for each route
	ByRole      bool          // a series for each role
	Step        time.Duration // width of a column of the heatmap, whole minutes; 0 asks for none
	Part        Part          // of the heatmap; "" is PartTotal
}

// Latency is how long requests took. Durations are microseconds, within 6.25 % of what was measured.
type Latency struct {
	From, To time.Time // what was counted
	Series   []LatencySeries
	Columns  []LatencyColumn // of the heatmap, in order, without the empty ones
}

// LatencySeries is the distribution of a part. A request for which a part is not known, or took no whole microsecond, counts
// for that part not at all; every request counts for PartTotal.
type LatencySeries struct {
	Route, Role   string // "" when the query did not ask for one series each
	Part          Part
	Requests      int64
	P50, P95, P99 uint32
}

// LatencyColumn is one column of the heatmap.
type LatencyColumn struct {
	Start time.Time
	Cells []LatencyCell // fastest first, without the empty ones
}

// LatencyCell counts the requests that took at least From and less than To microseconds.
type LatencyCell struct {
	From, To uint64
	Requests int64
}

// Latencies are counted by the minute over a time of at most minuteRange, as long as it is not older than minuteAge.
const (
	minuteRange = 6 * time.Hour
	minuteAge   = 7 * 24 * time.Hour
)

// Widen validates the query and returns it with whole minutes or whole hours around its times, and which of the two.
func (q LatencyQuery) Widen(now time.Time) (wide LatencyQuery, unit time.Duration, err error) {
	switch {
	case q.From.IsZero() || q.To.IsZero() || !q.From.Before(q.To):
		return q, 0, fmt.Errorf("latency needs from before to: %w", ErrQuery)
	case q.From.Year() < 1970 || q.To.Year() > 9999:
		return q, 0, fmt.Errorf("from or to is out of range: %w", ErrQuery)
	case q.Step < 0 || q.Step%time.Minute != 0 || q.Step > 0 && q.To.Sub(q.From)/q.Step >= maxBins:
		return q, 0, fmt.Errorf("step is no whole number of minutes, or makes more than %d columns: %w", maxBins, ErrQuery)
	}
	known := q.Part == ""
	for _, p := range Parts() {
		known = known || p == q.Part
	}
	if !known {
		return q, 0, fmt.Errorf("unknown part: %w", ErrQuery)
	}
	if q.Part == "" {
		q.Part = PartTotal
	}
	unit = time.Hour
	if q.To.Sub(q.From) <= minuteRange && now.Sub(q.From) <= minuteAge {
		unit = time.Minute
	}
	if q.Step > 0 {
		q.Step = max(q.Step, unit).Round(unit)
	}
	q.From = BinStart(q.From, unit)
	if to := BinStart(q.To, unit); to.Before(q.To) {
		q.To = to.Add(unit)
	}
	return q, unit, nil
}

// LatencyBuckets is the number of buckets of a LatencyHistogram.
const LatencyBuckets = 240

// LatencyHistogram counts durations in buckets: one a microsecond up to 16, then eight for each doubling, so a bucket is at most
// an eighth as wide as what it holds.
type LatencyHistogram [LatencyBuckets]int64

// LatencyBucket is the bucket of a duration in microseconds.
func LatencyBucket(us uint32) int {
	shift := max(bits.Len32(us)-4, 0)
	return 8*shift + int(us>>shift)
}

// LatencyBounds are the durations of a bucket: from low on, below high.
func LatencyBounds(bucket int) (low, high uint64) {
	if bucket < 16 {
		return uint64(bucket), uint64(bucket) + 1
	}
	shift := bucket/8 - 1
	low = uint64(8+bucket%8) << shift
	return low, low + 1<<shift
}

// Add counts the durations of h in.
func (l *LatencyHistogram) Add(h *LatencyHistogram) {
	for i, n := range h {
		l[i] += n
	}
}

// Count is the number of durations.
func (l *LatencyHistogram) Count() (n int64) {
	for _, c := range l {
		n += c
	}
	return n
}

// Quantile is the duration in microseconds below which the fraction p of all lies; 0 when there are none.
func (l *LatencyHistogram) Quantile(p float64) uint32 {
	rank := int64(p*float64(l.Count())+0.999999) - 1
	for i, n := range l {
		if rank < n {
			low, high := LatencyBounds(i)
			return uint32(low + (high-low-1)/2)
		}
		rank -= n
	}
	return 0
}

// NewLatencySeries summarizes a histogram.
func NewLatencySeries(route, role string, p Part, h *LatencyHistogram) LatencySeries {
	return LatencySeries{route, role, p, h.Count(), h.Quantile(0.5), h.Quantile(0.95), h.Quantile(0.99)}
}

// NewLatencyColumn makes a column of a heatmap.
func NewLatencyColumn(start time.Time, h *LatencyHistogram) LatencyColumn {
	c := LatencyColumn{Start: start}
	for i, n := range h {
		if n > 0 {
			low, high := LatencyBounds(i)
			c.Cells = append(c.Cells, LatencyCell{low, high, n})
		}
	}
	return c
}

// LatencyHistograms are the distributions of all parts, in the order of Parts.
type LatencyHistograms [6]LatencyHistogram

// Count counts one request.
func (h *LatencyHistograms) Count(t *Timing) {
	for i, p := range Parts() {
		if us := t.Part(p); us > 0 || p == PartTotal {
			h[i][LatencyBucket(us)]++
		}
	}
}

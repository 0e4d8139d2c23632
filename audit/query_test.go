package audit_test

import (
	"errors"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/chartkeep/chartkeep/audit"
)

// TestQueryFaults: what is wrong is named, and never quoted.
func TestQueryFaults(t *testing.T) {
	day := time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)
	term := func(f audit.Field, op audit.Op, values ...string) audit.Query {
		return audit.Query{Terms: []audit.Term{audit.Is(audit.FieldAgent, "dr"), {Field: f, Op: op, Values: values}}}
	}
	for names, q := range map[string]audit.Query{
		"term 2: unknown field":                     term("secret", audit.OpIs, "x"),
		"term 2: patient has no value":              term(audit.FieldPatient, audit.OpIs),
		`term 2: patient does not take "at least"`:  term(audit.FieldPatient, audit.OpAtLeast, "secret"),
		`term 2: id does not take "prefix"`:         term(audit.FieldID, audit.OpPrefix, "secret"),
		`term 2: duration does not take "prefix"`:   term(audit.FieldDuration, audit.OpPrefix, "7"),
		`term 2: agent does not take "operation 9"`: term(audit.FieldAgent, 9, "x"),
		"term 2: id has a malformed value":          term(audit.FieldID, audit.OpIs, "secret"),
		"term 2: outcome has a malformed value":     term(audit.FieldOutcome, audit.OpIs, "5"),
		"term 2: duration has a malformed value":    term(audit.FieldDuration, audit.OpBelow, "secret"),
		"term 2: duration has 2 values":             term(audit.FieldDuration, audit.OpBelow, "1", "2"),
		"term 2: action has a malformed value":      term(audit.FieldAction, audit.OpIs, "X"),
		"term 2: allowed has a malformed value":     term(audit.FieldAllowed, audit.OpIs, "secret"),
		"term 2: client has a malformed value":      term(audit.FieldClient, audit.OpIs, "secret\x00"),
		"term 2: view has a malformed value":        term(audit.FieldView, audit.OpPrefix, ""),
		"term 2: rule has a malformed value":        term(audit.FieldRule, audit.OpIs, strings.Repeat("secret", 100)),
		"term 2: role has 101 values":               term(audit.FieldRole, audit.OpIs, slices.Repeat([]string{"x"}, 101)...),
		"33 terms":                                  {Terms: slices.Repeat([]audit.Term{audit.Is(audit.FieldAgent, "x")}, 33)},
		"limit 201":                                 {Limit: 201},
		"limit -1":                                  {Limit: -1},
		"text of 513 bytes":                         {Text: strings.Repeat("x", 513)},
		"text that no event can hold":               {Text: "\xff"},
		"from: year 1":                              {From: time.Time{}.Add(time.Hour)},
		"to: year 10000":                            {To: day.AddDate(7974, 0, 0)},
		"to is before from":                         {From: day, To: day.Add(-1)},
	} {
		err := q.Validate()
		if !errors.Is(err, audit.ErrQuery) || !strings.HasPrefix(err.Error(), names) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%v, want %q", err, names)
		}
	}
	for _, f := range audit.Fields() {
		kind, ok := f.Kind()
		value := map[audit.FieldKind]string{
			audit.TextField: "x", audit.NumberField: "4", audit.CodeField: "true", audit.UUIDField: "018F3E1A-0000-7000-8000-000000000001",
		}[kind]
		if f == audit.FieldAction {
			value = "R"
		}
		q := audit.Query{Terms: []audit.Term{{Field: f, Not: true, Values: []string{value}}}, Limit: audit.MaxPage}
		if err := q.Validate(); err != nil || !ok {
			t.Errorf("%s: %v", f, err)
		}
	}
}

func TestParseID(t *testing.T) {
	want := audit.ID{1, 0x8f, 0x3e, 0x1a, 0, 0, 0x70, 0, 0x80, 0, 0, 0, 0, 0, 0, 1}
	for _, s := range []string{"018f3e1a-0000-7000-8000-000000000001", "018F3E1A-0000-7000-8000-000000000001", "018f3e1a000070008000000000000001"} {
		if id, err := audit.ParseID(s); err != nil || id != want {
			t.Errorf("%s: %x, %v", s, [16]byte(id), err)
		}
	}
	for _, s := range []string{"", "018f3e1a", "018f3e1a-0000-7000-8000-00000000000g", "018f3e1a00007000-8000-000000000001", strings.Repeat("0", 36)} {
		if _, err := audit.ParseID(s); !errors.Is(err, audit.ErrQuery) {
			t.Errorf("%q: %v", s, err)
		}
	}
}

// TestTimeOfAnEvent: a clock that had stepped is not believed.
func TestTimeOfAnEvent(t *testing.T) {
	part := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	for off, believed := range map[time.Duration]bool{
		0: true, -audit.ClockTolerance: true, audit.ClockTolerance: true, audit.ClockTolerance + 1: false, -24 * time.Hour: false, math.MaxInt64: false, math.MinInt64: false,
	} {
		r := audit.Row{PartTime: part, Event: audit.Event{Recorded: part.Add(off)}}
		want := part
		if believed {
			want = part.Add(off)
		}
		if got := r.Time(); !got.Equal(want) {
			t.Errorf("off by %v: %v, want %v", off, got, want)
		}
	}
}

// TestLatencyBuckets: every duration lies in its bucket, buckets follow each other without a gap, and a quantile is within
// 6.25 % of what was measured.
func TestLatencyBuckets(t *testing.T) {
	var end uint64
	for i := range audit.LatencyBuckets {
		low, high := audit.LatencyBounds(i)
		if low != end || high <= low || low >= 16 && 8*(high-low) > low {
			t.Fatalf("bucket %d is [%d, %d) after %d", i, low, high, end)
		}
		end = high
	}
	if end != 1<<32 {
		t.Errorf("buckets end at %d", end)
	}
	rapid.Check(t, func(t *rapid.T) {
		durations := rapid.SliceOfN(rapid.Uint32(), 1, 200).Draw(t, "durations")
		var h audit.LatencyHistogram
		for _, us := range durations {
			i := audit.LatencyBucket(us)
			if low, high := audit.LatencyBounds(i); uint64(us) < low || uint64(us) >= high {
				t.Fatalf("%d is in [%d, %d)", us, low, high)
			}
			h[i]++
		}
		slices.Sort(durations)
		p := rapid.SampledFrom([]float64{0.5, 0.95, 0.99, 1}).Draw(t, "p")
		want := float64(durations[int(math.Ceil(p*float64(len(durations))-1e-6))-1])
		if got := float64(h.Quantile(p)); math.Abs(got-want) > 0.0625*want {
			t.Errorf("quantile %v is %v, want %v", p, got, want)
		}
	})
	if got := new(audit.LatencyHistogram).Quantile(0.5); got != 0 {
		t.Errorf("the median of nothing is %d", got)
	}
}

func TestHistogramBins(t *testing.T) {
	from := time.Date(2026, 3, 1, 10, 30, 0, 0, time.UTC)
	h, err := audit.NewHistogram(&audit.Query{From: from, To: from.Add(2 * time.Hour)}, time.Hour)
	if err != nil || len(h.Bins) != 3 || !h.Bins[0].Start.Equal(from.Add(-30*time.Minute)) {
		t.Fatalf("%+v, %v", h, err)
	}
	for at, want := range map[time.Duration]int{0: 0, 29 * time.Minute: 0, 30 * time.Minute: 1, 149 * time.Minute: 2} {
		if h.Bin(from.Add(at), time.Hour) != &h.Bins[want] {
			t.Errorf("%v is not in bin %d", at, want)
		}
	}
	for _, at := range []time.Duration{-31 * time.Minute, 150 * time.Minute} {
		if h.Bin(from.Add(at), time.Hour) != nil {
			t.Errorf("%v is in a bin", at)
		}
	}
	for what, q := range map[string]audit.Query{"no from": {To: from}, "no to": {From: from}, "too many": {From: from, To: from.AddDate(1, 0, 0)}} {
		if _, err := audit.NewHistogram(&q, time.Hour); !errors.Is(err, audit.ErrQuery) {
			t.Errorf("%s: %v", what, err)
		}
	}
	for _, step := range []time.Duration{0, -time.Hour, 1500 * time.Millisecond} {
		if _, err := audit.NewHistogram(&audit.Query{From: from, To: from.Add(time.Hour)}, step); !errors.Is(err, audit.ErrQuery) {
			t.Errorf("step %v: %v", step, err)
		}
	}
}

func TestLatencyQueryFaults(t *testing.T) {
	now := time.Date(2026, 3, 1, 10, 30, 15, 0, time.UTC)
	for names, q := range map[string]audit.LatencyQuery{
		"latency needs": {From: now, To: now}, "unknown part": {From: now.Add(-time.Hour), To: now, Part: "secret"},
		"step is no whole": {From: now.Add(-time.Hour), To: now, Step: time.Second}, "from or to": {From: now, To: now.AddDate(9000, 0, 0)},
	} {
		if _, _, err := q.Widen(now); !errors.Is(err, audit.ErrQuery) || !strings.HasPrefix(err.Error(), names) {
			t.Errorf("%v, want %q", err, names)
		}
	}
	q, unit, err := audit.LatencyQuery{From: now.Add(-time.Hour), To: now, Step: 7 * time.Minute}.Widen(now)
	if err != nil || unit != time.Minute || q.Part != audit.PartTotal || q.Step != 7*time.Minute || q.From.Second() != 0 || !q.To.Equal(now.Add(45*time.Second)) {
		t.Errorf("%+v, %v, %v", q, unit, err)
	}
	q, unit, err = audit.LatencyQuery{From: now.AddDate(0, 0, -9), To: now.AddDate(0, 0, -9).Add(time.Hour), Step: 7 * time.Minute}.Widen(now)
	if err != nil || unit != time.Hour || q.Step != time.Hour || q.To.Sub(q.From) != 2*time.Hour {
		t.Errorf("%+v, %v, %v", q, unit, err)
	}
}

package audit_test

import (
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/chartkeep/chartkeep/audit"
)

func TestParseQuery(t *testing.T) {
	now := time.Date(2026, 11, 22, 10, 30, 0, 1234, time.UTC)
	day := func(d int) time.Time { return time.Date(2026, 11, d, 0, 0, 0, 0, time.UTC) }
	is := func(f audit.Field, v ...string) audit.Term { return audit.Term{Field: f, Values: v} }
	for text, want := range map[string]audit.Query{
		"":                                  {},
		"  ":                                {},
		"agent:dr-rivera":                   {Terms: []audit.Term{is(audit.FieldAgent, "dr-rivera")}},
		"patient:Patient/1":                 {Terms: []audit.Term{is(audit.FieldPatient, "1")}},
		"action:R,C entity:Observation/123": {Terms: []audit.Term{is(audit.FieldAction, "R", "C"), is(audit.FieldEntity, "Observation/123")}},
		"-interaction:read":                 {Terms: []audit.Term{{Field: audit.FieldInteraction, Not: true, Values: []string{"read"}}}},
		"agent:dr-*,nurse-*":                {Terms: []audit.Term{{Field: audit.FieldAgent, Op: audit.OpPrefix, Values: []string{"dr-", "nurse-"}}}},
		`agent:"a b"*`:                      {Terms: []audit.Term{{Field: audit.FieldAgent, Op: audit.OpPrefix, Values: []string{"a b"}}}},
		`agent:"a, \"b\" \\",c`:             {Terms: []audit.Term{is(audit.FieldAgent, `a, "b" \`, "c")}},
		`patient:""`:                        {Terms: []audit.Term{is(audit.FieldPatient, "")}},
		"outcome:>=4":                       {Terms: []audit.Term{{Field: audit.FieldOutcome, Op: audit.OpAtLeast, Values: []string{"4"}}}},
		"-outcome:<=4":                      {Terms: []audit.Term{{Field: audit.FieldOutcome, Op: audit.OpBelow, Not: true, Values: []string{"5"}}}},
		"outcome:-1,12":                     {Terms: []audit.Term{is(audit.FieldOutcome, "-1", "12")}},
		"duration:>50000":                   {Terms: []audit.Term{{Field: audit.FieldDuration, Op: audit.OpAtLeast, Values: []string{"50001"}}}},
		"duration:<1.5s":                    {Terms: []audit.Term{{Field: audit.FieldDuration, Op: audit.OpBelow, Values: []string{"1500000"}}}},
		"duration:10ms..20ms": {Terms: []audit.Term{
			{Field: audit.FieldDuration, Op: audit.OpAtLeast, Values: []string{"10000"}}, {Field: audit.FieldDuration, Op: audit.OpBelow, Values: []string{"20001"}}}},
		"relationship-missing":                 {Text: "relationship-missing"},
		`one  "two  three" four`:               {Text: "one two  three four"},
		`- x`:                                  {Text: "- x"},
		"recorded:2026-11-01..2026-11-08":      {From: day(1), To: day(9)},
		"recorded:2026-11-01":                  {From: day(1), To: day(2)},
		"recorded:2026-11":                     {From: day(1), To: time.Date(2026, 12, 1, 0, 0, 0, 0, time.UTC)},
		"recorded:>=2026-11-01":                {From: day(1)},
		"recorded:<=2026-11-01":                {To: day(2)},
		"recorded:..2026-11-01T01:00:00+01:00": {To: day(1)},
		"recorded:24h":                         {From: now.Add(-24 * time.Hour).Truncate(time.Microsecond)},
		"recorded:7d..1d agent:x y": {
			From: now.AddDate(0, 0, -7).Truncate(time.Microsecond), To: now.AddDate(0, 0, -1).Truncate(time.Microsecond),
			Terms: []audit.Term{is(audit.FieldAgent, "x")}, Text: "y",
		},
	} {
		got, err := audit.ParseQuery(text, now)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v, %v; want %+v", text, got, err, want)
			continue
		}
		if again, err := audit.ParseQuery(audit.FormatQuery(got), now); err != nil || !reflect.DeepEqual(again, got) {
			t.Errorf("%s written as %s: %+v, %v", text, audit.FormatQuery(got), again, err)
		}
	}
}

func TestParseQueryRefuses(t *testing.T) {
	const secret = "p-secret"
	for text, position := range map[string]int{
		"nobody:" + secret:                  0,
		"agent:a Agent:" + secret:           8,
		"ü agent:":                          8,
		"agent:a,":                          8,
		"agent:a,,b":                        8,
		`agent:"` + secret:                  6,
		`agent:"a"b`:                        9,
		`"a"b`:                              3,
		`a"b"`:                              1,
		`agent:"\n"`:                        7,
		"agent:a*,b":                        9,
		"action:X":                          7,
		"action:C*":                         7,
		"allowed:yes":                       8,
		"id:" + secret:                      3,
		"outcome:5":                         8,
		"outcome:" + secret:                 8,
		"outcome:>=4,8":                     8,
		"outcome:8..4":                      8,
		"outcome:4..":                       8,
		"-outcome:0..4":                     9,
		"outcome:99999999999999999999":      8,
		"duration:5parsecs":                 9,
		"-recorded:24h":                     0,
		"recorded:24h recorded:1h":          13,
		"recorded:yesterday":                9,
		"recorded:..":                       9,
		"recorded:>=2026-11-01..2026-11-02": 9,
		"recorded:2026-11-01T00:00:00Z":     9,
		"recorded:2026-13-01":               9,
		"recorded:2026-11-08..2026-11-01":   9,
		"recorded:1969-12-31":               9,
		"recorded:2026-11-01,2026-11-02":    9,
		"-" + secret:                        0,
		`-"` + secret + `"`:                 0,
		"a\nb":                              1,
		"a\xff":                             0,
		strings.Repeat("x", audit.MaxQueryText+1): 0,
		strings.Repeat("x", audit.MaxQueryText):   0,
		strings.Repeat("agent:a ", 33):            0,
		"agent:a" + strings.Repeat(",a", 100):     0,
		"agent:" + strings.Repeat("x", 600):       6,
	} {
		q, err := audit.ParseQuery(text, time.Now())
		var e *audit.SyntaxError
		if !errors.As(err, &e) {
			t.Errorf("%.40s: %+v, %v", text, q, err)
			continue
		}
		if e.Position != position || strings.Contains(err.Error(), secret) {
			t.Errorf("%.40s: %v, want position %d", text, err, position)
		}
	}
}

func TestFormatQueryRoundTrip(t *testing.T) {
	value := rapid.StringMatching(`[a-z ,"\\*:>=<.-]{1,8}`)
	moment := rapid.Custom(func(t *rapid.T) time.Time {
		return time.UnixMicro(rapid.Int64Range(0, 4e15).Draw(t, "moment")).UTC()
	})
	term := rapid.Custom(func(t *rapid.T) audit.Term {
		x := audit.Term{Field: rapid.SampledFrom(audit.Fields()).Draw(t, "field"), Not: rapid.Bool().Draw(t, "not")}
		switch kind, _ := x.Field.Kind(); {
		case kind == audit.NumberField:
			x.Op = rapid.SampledFrom([]audit.Op{audit.OpIs, audit.OpAtLeast, audit.OpBelow}).Draw(t, "op")
			x.Values = []string{rapid.SampledFrom([]string{"-1", "0", "4", "8", "12"}).Draw(t, "number")}
		case x.Field == audit.FieldAllowed:
			x.Values = []string{"true"}
		case x.Field == audit.FieldAction:
			x.Values = rapid.SliceOfN(rapid.SampledFrom([]string{"C", "R", "U"}), 1, 3).Draw(t, "actions")
		case kind == audit.UUIDField:
			x.Values = []string{rapid.StringMatching(`[0-9a-f]{32}`).Draw(t, "id")}
		default:
			x.Op = rapid.SampledFrom([]audit.Op{audit.OpIs, audit.OpPrefix}).Draw(t, "op")
			x.Values = rapid.SliceOfN(value, 1, 3).Draw(t, "values")
		}
		return x
	})
	rapid.Check(t, func(t *rapid.T) {
		q := audit.Query{Text: rapid.StringMatching(`[a-zäß ,:"\\*-]{0,20}`).Draw(t, "text")}
		if terms := rapid.SliceOfN(term, 0, 5).Draw(t, "terms"); len(terms) > 0 {
			q.Terms = terms
		}
		if rapid.Bool().Draw(t, "from") {
			q.From = moment.Draw(t, "from")
		}
		if rapid.Bool().Draw(t, "to") {
			q.To = q.From.Add(time.Hour)
			if q.From.IsZero() {
				q.To = moment.Draw(t, "to")
			}
		}
		text := audit.FormatQuery(q)
		if got, err := audit.ParseQuery(text, time.Now()); err != nil || !reflect.DeepEqual(got, q) {
			t.Fatalf("%s: %+v, %v; want %+v", text, got, err, q)
		}
	})
}

func FuzzParseQuery(f *testing.F) {
	for _, s := range []string{`agent:dr-* -action:R,C "a b" recorded:24h`, `outcome:>=4 duration:10ms..20ms`, `entity:"x\"y"`, "recorded:2026-11-01..", "-", `-"`, ":"} {
		f.Add(s)
	}
	now := time.Date(2026, 11, 22, 10, 30, 0, 0, time.UTC)
	f.Fuzz(func(t *testing.T, text string) {
		q, err := audit.ParseQuery(text, now)
		if err != nil {
			return
		}
		if err := q.Validate(); err != nil {
			t.Fatalf("%q gives an invalid query: %v", text, err)
		}
		again, err := audit.ParseQuery(audit.FormatQuery(q), now)
		if err != nil || !reflect.DeepEqual(again, q) {
			t.Fatalf("%q written as %q: %+v, %v; want %+v", text, audit.FormatQuery(q), again, err, q)
		}
	})
}

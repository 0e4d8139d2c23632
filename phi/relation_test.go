package phi

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/chartkeep/chartkeep/phi/fhir"
)

func parsed(t *testing.T, text string) *fhir.Resource {
	t.Helper()
	r, issues := fhir.Parse([]byte(text))
	if issues != nil {
		t.Fatalf("%s: %v", text, issues)
	}
	return r
}

// TestTreatments holds what statuses and periods make of the relationships that a record states, on 15 May 2026.
func TestTreatments(t *testing.T) {
	now := time.Date(2026, 5, 15, 10, 0, 0, 0, time.UTC)
	encounter := func(status, period, participant string) string {
		return `{"resourceType":"Encounter","status":"` + status + `","class":{"code":"AMB"},"subject":{"reference":"Patient/p"},` + period +
			`"participant":[{"individual":{"reference":"Practitioner/a"}` + participant + `}]}`
	}
	team := func(status, period, participant string) string {
		return `{"resourceType":"CareTeam","status":"` + status + `","subject":{"reference":"Patient/p"},` + period +
			`"participant":[{"member":{"reference":"Practitioner/a/_history/2"}` + participant + `},{"member":{"reference":"Patient/q"}},{"member":{"reference":"https://other.test/Practitioner/x"}}]}`
	}
	episode := func(status, period string) string {
		return `{"resourceType":"EpisodeOfCare","status":"` + status + `","patient":{"reference":"Patient/p"},` + period + `"careManager":{"reference":"Practitioner/a"}}`
	}
	period := func(start, end string) string {
		var parts []string
		if start != "" {
			parts = append(parts, `"start":"`+start+`"`)
		}
		if end != "" {
			parts = append(parts, `"end":"`+end+`"`)
		}
		return `"period":{` + strings.Join(parts, ",") + `},`
	}
	within := func(start, end string) string { return "," + strings.TrimSuffix(period(start, end), ",") }
	for _, c := range []struct{ text, want string }{
		{encounter("in-progress", "", ""), "a of p from - until -"},
		{encounter("in-progress", period("2026-05-14T23:30:00Z", ""), ""), "a of p from - until -"},
		{encounter("in-progress", period("2026-05-14T23:30:00Z", "2026-05-20T08:00:00Z"), ""), "a of p from - until 2026-05-21"},
		{encounter("in-progress", period("", "2026-05-20T00:00:00Z"), ""), "a of p from - until 2026-05-21"},
		{encounter("in-progress", period("", "2026-05-20T23:30:00-05:00"), ""), "a of p from - until 2026-05-22"},
		{encounter("planned", "", ""), ""},
		{encounter("planned", period("", "2026-06-20"), ""), ""},
		{encounter("planned", period("2026-06-01T09:00:00+02:00", ""), ""), "a of p from 2026-06-01 until -"},
		{encounter("planned", period("2026-06-01T00:30:00+02:00", "2026-06-02"), ""), "a of p from 2026-05-31 until 2026-06-03"},
		{encounter("planned", period("2026-05-01", ""), ""), "a of p from - until -"},
		{encounter("finished", "", ""), "a of p from - until 2026-05-16"},
		{encounter("finished", period("2026-05-02", ""), ""), "a of p from - until 2026-05-03"},
		{encounter("finished", period("2026-05-02", "2026-05-09"), ""), "a of p from - until 2026-05-10"},
		{encounter("finished", period("2024-05-02", "2024-05-09"), ""), ""}, // longer ago than any tail
		{encounter("finished", period("2024-05", "2026-04"), ""), "a of p from - until 2026-05-01"},
		{encounter("unknown", "", ""), "a of p from - until 2026-05-16"},
		{encounter("cancelled", "", ""), ""},
		{encounter("entered-in-error", period("2026-05-02", "2026-06-09"), ""), ""},
		{encounter("in-progress", period("2026-06-02", "2026-06-01"), ""), ""},
		{encounter("in-progress", period("2026-05-01", ""), within("2026-05-20", "2026-05-22")), "a of p from 2026-05-20 until 2026-05-23"},
		{encounter("in-progress", period("2026-05-21", "2026-05-22"), within("2026-05-20", "2026-05-30")), "a of p from 2026-05-21 until 2026-05-23"},
		{team("active", "", ""), "a of p from - until -"},
		{team("active", period("2020-01-01", ""), within("", "2026-05-01")), "a of p from - until 2026-05-02"},
		{team("inactive", period("2020-01-01", "2026-05-01"), ""), "a of p from - until 2026-05-02"},
		{team("inactive", period("2020-01-01", ""), ""), ""},
		{team("suspended", "", ""), ""},
		{team("proposed", period("2026-06-01", ""), ""), ""},
		{team("entered-in-error", "", ""), ""},
		{episode("active", period("2020-01-01", "")), "a of p from - until -"},
		{episode("onhold", ""), "a of p from - until -"},
		{episode("waitlist", ""), ""},
		{episode("waitlist", period("2026-07-01", "")), "a of p from 2026-07-01 until -"},
		{episode("finished", period("2026-01-01", "2026-03-01")), "a of p from - until 2026-03-02"},
		{episode("cancelled", period("2026-01-01", "2026-07-01")), ""},
		{`{"resourceType":"Encounter","status":"in-progress","class":{"code":"AMB"},"subject":{"reference":"https://other.test/Patient/p"},"participant":[{"individual":{"reference":"Practitioner/a"}}]}`, ""},
		{`{"resourceType":"Observation","status":"final","code":{"text":"x"},"subject":{"reference":"Patient/p"},"performer":[{"reference":"Practitioner/a"}]}`, ""},
	} {
		day := func(t time.Time) string {
			if t.IsZero() {
				return "-"
			}
			if !t.Equal(t.Truncate(24 * time.Hour)) {
				return t.String() + " IS NO DAY"
			}
			return t.Format(time.DateOnly)
		}
		var got []string
		for _, x := range treatments(parsed(t, c.text), now) {
			got = append(got, fmt.Sprintf("%s of %s from %s until %s", x.Practitioner, x.Patient, day(x.From), day(x.Until)))
		}
		if strings.Join(got, "; ") != c.want {
			t.Errorf("%s\ngot  %q\nwant %q", c.text, got, c.want)
		}
	}
}

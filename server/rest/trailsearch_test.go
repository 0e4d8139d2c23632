package rest

import (
	"encoding/json"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/audit/balp"
	"github.com/chartkeep/chartkeep/phi"
)

func newTrailSearch() *trailSearch {
	return &trailSearch{base: "http://x.test/fhir/R4", issuer: "https://issuer.test", count: 50, alternatives: [][]audit.Term{nil}}
}

// finds reports whether a search with one parameter finds the event.
func finds(t *rapid.T, s *audit.Stored, name, value string) bool {
	search := newTrailSearch()
	if err := search.parse([]phi.Param{{Name: name, Value: value}}, true); err != nil {
		t.Fatalf("%s=%s: %v", name, value, err)
	}
	return slices.ContainsFunc(search.alternatives, func(terms []audit.Term) bool {
		q := audit.Query{Terms: terms, From: search.from, To: search.to}
		return q.Matches(s)
	})
}

// TestFoundAsShown: an event is found by a code exactly when the resource shows it.
func TestFoundAsShown(t *testing.T) {
	types := []string{"rest", "110100", "110101", "110106", "110107", "110113", "110114", "110137"}
	subtypes := []string{"read", "vread", "search-type", "create", "update", "delete", "transaction", "110122", "110123", "login", "journal", "AuthZ-Role", "disclose"}
	rapid.Check(t, func(t *rapid.T) {
		pick := func(label string, from ...string) string { return rapid.SampledFrom(from).Draw(t, label) }
		s := audit.Stored{Row: audit.Row{Event: audit.Event{
			ID: audit.ID{1}, Recorded: time.UnixMicro(rapid.Int64Range(0, 4_000_000_000_000_000).Draw(t, "recorded")).UTC(),
			Type:        audit.Type(pick("type", types...)),
			Interaction: pick("interaction", "read", "vread", "search-type", "create", "update", "delete", "transaction", "login", "logout", "journal", ""),
			Action:      audit.Action(pick("action", "C", "R", "U", "D", "E")[0]),
			Outcome:     rapid.SampledFrom([]audit.Outcome{audit.Intent, audit.Success, audit.MinorFailure, audit.SeriousFailure, audit.MajorFailure}).Draw(t, "outcome"),
			Decision:    audit.Decision{Reason: pick("reason", "", "allowed", "role-missing", "relationship-missing")},
			Patient:     pick("patient", "", "p1", "p2"), Purpose: pick("purpose", "", "TREAT"),
			Agent: audit.Agent{User: pick("user", "", "u1"), Client: pick("client", "", "u1", "c1"), Network: pick("network", "", "192.0.2.1")},
		}}}
		s.PartTime = s.Event.Recorded
		var r struct {
			Type     struct{ Code string }
			Subtype  []struct{ Code string }
			Action   string
			Outcome  string
			Recorded string
		}
		if err := json.Unmarshal(balp.Append(nil, &s, balp.Source{Base: "http://x.test"}), &r); err != nil {
			t.Fatal(err)
		}
		check := func(name, value string, shown bool) {
			if got := finds(t, &s, name, value); got != shown {
				t.Fatalf("%s=%s: found %v, shown %v: %+v", name, value, got, shown, s.Event)
			}
		}
		for _, v := range types {
			check("type", v, r.Type.Code == v)
		}
		for _, v := range subtypes {
			check("subtype", v, slices.ContainsFunc(r.Subtype, func(c struct{ Code string }) bool { return c.Code == v }))
		}
		for _, v := range []string{"C", "R", "U", "D", "E"} {
			check("action", v, r.Action == v)
		}
		for _, v := range []string{"0", "4", "8", "12"} {
			check("outcome", v, r.Outcome == v)
		}
		check("outcome:missing", "true", r.Outcome == "")
		check("patient", "Patient/p1", s.Event.Patient == "p1")
		check("agent", "u1", s.Event.Agent.User == "u1" || s.Event.Agent.Client == "u1")
		check("purpose", "TREAT", s.Event.Purpose == "TREAT")
		// The time as shown, cut to any precision, is when it was.
		for _, length := range []int{len("2006"), len("2006-01"), len("2006-01-02")} {
			check("date", r.Recorded[:length], true)
			check("date", "gt"+r.Recorded[:length], false)
			check("date", "lt"+r.Recorded[:length], false)
		}
		for _, length := range []int{len("2006-01-02T15:04"), len("2006-01-02T15:04:05"), len("2006-01-02T15:04:05.000"), len("2006-01-02T15:04:05.000000")} {
			check("date", r.Recorded[:length]+"Z", true)
			check("date", "ge"+r.Recorded[:length]+"Z", true)
			check("date", "lt"+r.Recorded[:length]+"Z", false)
		}
	})
}

// FuzzTrailSearch: whatever is asked is refused or comes down to queries that the trail takes, and asks the same again when
// its link is followed.
func FuzzTrailSearch(f *testing.F) {
	for _, p := range trailParams() {
		f.Add(p.name, "a,b", "date", "ge2020-01-01", true)
	}
	f.Add("_count", "5", "_sort", "date", false)
	f.Add("date", "2020-01-01T10:00:00.5+02:00", "type", "x|110113,rest", false)
	f.Fuzz(func(t *testing.T, name, value, name2, value2 string, strict bool) {
		s := newTrailSearch()
		if s.parse([]phi.Param{{Name: name, Value: value}, {Name: name2, Value: value2}}, strict) != nil {
			return
		}
		for _, terms := range s.alternatives {
			q := audit.Query{Terms: terms, From: s.from, To: s.to, Limit: s.count}
			if err := q.Validate(); err != nil {
				t.Fatalf("%s=%q&%s=%q: %v", name, value, name2, value2, err)
			}
		}
		again := newTrailSearch()
		if err := again.parse(s.self, true); err != nil {
			t.Fatalf("%v is refused the second time: %v", s.self, err)
		}
		if again.query() != s.query() || len(again.alternatives) != len(s.alternatives) || again.from != s.from || again.to != s.to {
			t.Fatalf("%v means something else the second time", s.self)
		}
	})
}

package auth

import (
	"context"
	"testing"
	"time"
)

// fhirUser comes relative or absolute; only a record of this server makes somebody a practitioner here.
func TestFHIRUser(t *testing.T) {
	is := newIssuer(t)
	cfg := is.config()
	cfg.Base = "https://chart.test/fhir/R4"
	v := newTestVerifier(t, cfg)
	for claim, want := range map[string]string{ // the practitioner
		"Practitioner/p1": "p1",
		"https://chart.test/fhir/R4/Practitioner/p1":            "p1",
		"https://other.test/fhir/R4/Practitioner/p1":            "",
		"http://chart.test/fhir/R4/Practitioner/p1":             "",
		"https://chart.test/fhir/R4.evil.test/Practitioner/p1":  "",
		"https://chart.test/fhir/R4//Practitioner/p1":           "",
		"https://CHART.test/fhir/R4/Practitioner/p1":            "",
		"https://chart.test/fhir/R4/Practitioner/p1/_history/2": "",
		"Patient/p1":                            "",
		"https://chart.test/fhir/R4/Patient/p1": "",
	} {
		p, err := ask(v, is.token(map[string]any{"fhirUser": claim}))
		if err != nil {
			t.Fatalf("%s: %v", claim, err)
		}
		if got := practitioner(p); got != want {
			t.Errorf("%s is practitioner %q, want %q", claim, got, want)
		}
	}
	if relative("/Practitioner/p1", "") != "/Practitioner/p1" {
		t.Error("without a base the root is ours")
	}
}

// A launch is for one patient, by id: a list, a reference or nothing binds patient/ scopes to nobody.
func TestLaunchPatient(t *testing.T) {
	is := newIssuer(t)
	v := newTestVerifier(t, is.config())
	a := newTestAccess(t, newFacts())
	for name, c := range map[string]struct {
		claim any
		token bool // verifies
	}{
		"one": {"pat-1", true}, "none": {nil, true}, "empty": {"", true},
		"a list": {[]string{"pat-1", "pat-2"}, false}, "a reference": {"Patient/pat-1", false}, "two": {"pat-1 pat-2", false}, "a number": {1, false},
	} {
		p, err := ask(v, is.token(map[string]any{"patient": c.claim, "scope": "launch/patient patient/*.rs", "roles": []string{"clinician"}, "fhirUser": "Practitioner/rivera"}))
		if (err == nil) != c.token {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil {
			continue
		}
		for _, patient := range []string{"pat-1", "pat-2"} { // rivera treats both
			d := a.Check(context.Background(), p, Request{Interaction: Read, Type: "Observation", Patients: []string{patient}})
			if want := patient == c.claim; d.Allowed != want {
				t.Errorf("%s: a record of %s: %+v", name, patient, d)
			}
		}
	}
}

// system/ scopes are for services: whoever signed in, or is somebody, has no use of them, whatever the roles.
func TestSystemScopesAreForServices(t *testing.T) {
	a := newTestAccess(t, newFacts())
	request := Request{Interaction: Read, Type: "Observation", Patients: []string{"pat-1"}}
	for name, c := range map[string]struct {
		change func(p *Principal)
		want   Reason
	}{
		"service":                  {func(*Principal) {}, ReasonAllowed},
		"of another role":          {func(p *Principal) { p.Roles = []string{"clinician"} }, ReasonScope},
		"no role":                  {func(p *Principal) { p.Roles = nil }, ReasonScope},
		"somebody signed in":       {func(p *Principal) { p.AuthTime = time.Now() }, ReasonScope},
		"a practitioner":           {func(p *Principal) { p.FHIRUser = "Practitioner/rivera" }, ReasonScope},
		"with a user's roles, too": {func(p *Principal) { p.Roles, p.FHIRUser = []string{"clinician", "backend"}, "Practitioner/rivera" }, ReasonScope},
	} {
		p := person("backend", "system/*.cruds", "", "")
		c.change(p)
		if d := a.Check(context.Background(), p, request); d.Reason != c.want {
			t.Errorf("%s: %s, want %s", name, d.Reason, c.want)
		}
		if d := a.Filter(context.Background(), p, Request{Interaction: Search, Type: "Observation"}); d.Reason != c.want {
			t.Errorf("%s, search: %s, want %s", name, d.Reason, c.want)
		}
	}
}

// What granular scopes leave comes with every decision, of whichever rule, also of emergency access and of denials that it may stand in for.
func TestDecisionsCarryConstraints(t *testing.T) {
	a := newTestAccess(t, newFacts())
	p := person("clinician", "user/Observation.rs?category=laboratory", "Practitioner/rivera", "")
	for name, d := range map[string]Decision{
		"read":     a.Check(context.Background(), p, Request{Interaction: Read, Type: "Observation", Patients: []string{"pat-1"}}),
		"type":     a.Type(p, Read, "Observation", ""),
		"search":   a.Filter(context.Background(), p, Request{Interaction: Search, Type: "Observation"}).Decision,
		"stranger": a.Check(context.Background(), p, Request{Interaction: Read, Type: "Observation", Patients: []string{"pat-9"}}),
	} {
		if len(d.Only) != 1 || len(d.Only[0].Predicates) != 1 || d.Only[0].Predicates[0] != (Predicate{"category", "laboratory"}) || d.Allowed == (name == "stranger") {
			t.Errorf("%s: %+v", name, d)
		}
	}
	if d := a.Check(context.Background(), p, Request{Interaction: Update, Type: "Observation", Patients: []string{"pat-1"}}); d.Reason != ReasonScope {
		t.Errorf("a letter that no scope has: %+v", d)
	}
	if raceEnabled {
		return
	}
	if n := testing.AllocsPerRun(100, func() {
		a.Check(context.Background(), p, Request{Interaction: Read, Type: "Observation"})
	}); n != 0 {
		t.Errorf("a decision with constraints allocates %v times", n)
	}
}

package auth

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// facts is a Storage in memory that can fail on command.
type facts struct {
	mu      sync.Mutex
	policy  Policy
	related map[[2]string]bool
	epoch   int64
	err     error
	lookups int
}

func (f *facts) Policy(context.Context) (Policy, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.policy, f.err
}

func (f *facts) Epochs(context.Context) (Epochs, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return Epochs{Policy: f.policy.Version, Relationship: Shards{f.epoch}}, f.err
}

func (f *facts) Emergencies(context.Context) ([]Grant, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return nil, f.err
}

func (f *facts) Facts(_ context.Context, a Actor, patients []string) ([]Fact, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lookups++
	if f.err != nil {
		return nil, f.err
	}
	list := make([]Fact, len(patients))
	for i, patient := range patients {
		if f.related[[2]string{a.Practitioner, patient}] {
			list[i].Related = "Encounter"
		}
	}
	return list, nil
}

func (f *facts) change(do func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	do()
}

func (f *facts) asked() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.lookups
}

// seed is the policy that a deployment starts with.
func seed() Policy {
	p := Policy{Version: 1, Capabilities: []Capability{
		{Role: "officer", Name: "audit:read"}, {Role: "officer", Name: "latency:read"}, {Role: "security", Name: "audit:read"}, {Role: "security", Name: "metrics:read"},
		{Role: "admin", Name: "policy:read"}, {Role: "admin", Name: "policy:write"}, {Role: "admin", Name: "relationships:write"},
	}}
	add := func(role, types, interactions, view string, relation Relation, purposes ...string) {
		for resourceType := range strings.SplitSeq(types, " ") {
			p.Permissions = append(p.Permissions, Permission{Role: role, Type: resourceType, Interactions: interactions, View: view, Relation: relation, Purposes: purposes})
		}
	}
	add("clinician", "*", "cruds", "full", RelationTreatment, "TREAT")
	add("nurse", "*", "crus", "full", RelationTreatment, "TREAT")
	add("registrar", "Patient RelatedPerson", "crs", "demographics", RelationNone, "HOPERAT")
	add("registrar", "Practitioner Organization Location", "rs", "full", RelationNone, "HOPERAT")
	add("billing", "Patient", "rs", "demographics", RelationNone, "HPAYMT")
	add("billing", "Coverage Claim ExplanationOfBenefit Encounter", "rs", "billing", RelationNone, "HPAYMT")
	add("researcher", "Patient Observation Condition", "rs", "deidentified", RelationNone, "HRESCH")
	add("patient", "*", "rs", "full", RelationSelf, "PATRQT")
	add("backend", "*", "cruds", "full", RelationNone, "TREAT", "HOPERAT", "HPAYMT", "HRESCH")
	return p
}

func newFacts() *facts {
	return &facts{policy: seed(), related: map[[2]string]bool{{"rivera", "pat-1"}: true, {"rivera", "pat-2"}: true}, epoch: 1}
}

func newTestAccess(t testing.TB, f *facts) *Access {
	t.Helper()
	a, err := NewAccess(context.Background(), AccessConfig{Storage: f})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Close)
	return a
}

func person(role, scope, fhirUser, patient string) *Principal {
	p := &Principal{Subject: role, Scopes: ParseScopes(scope), FHIRUser: fhirUser, Patient: patient}
	if role != "" {
		p.Roles = strings.Split(role, " ")
	}
	return p
}

// personas are those of DESIGN.md 4.1, and some that try to be more than they are.
func personas() map[string]*Principal {
	return map[string]*Principal{
		"rivera":      person("clinician", "user/*.cruds openid", "Practitioner/rivera", ""),
		"chen":        person("clinician", "user/*.cruds", "Practitioner/chen", ""),
		"okafor":      person("nurse", "user/*.cruds", "Practitioner/rivera", ""),
		"lee":         person("registrar", "user/*.cruds", "", ""),
		"novak":       person("billing", "user/*.cruds", "", ""),
		"kim":         person("researcher", "user/*.rs", "", ""),
		"patient":     person("patient", "patient/*.rs launch/patient", "Patient/pat-1", "pat-1"),
		"diaz":        person("officer", "openid fhirUser", "", ""),
		"root":        person("admin", "openid", "", ""),
		"backend":     person("backend", "system/*.cruds", "", ""),
		"reader":      person("clinician", "user/*.r", "Practitioner/rivera", ""),
		"searcher":    person("clinician", "user/Patient.s", "Practitioner/rivera", ""),
		"launched":    person("clinician", "patient/*.cruds", "Practitioner/rivera", "pat-1"),
		"misled":      person("clinician", "patient/*.cruds", "Practitioner/chen", "pat-1"),
		"unlaunched":  person("clinician", "patient/*.cruds", "Practitioner/rivera", ""),
		"no role":     person("", "user/*.cruds patient/*.cruds system/*.cruds", "Practitioner/rivera", "pat-1"),
		"no scope":    person("clinician", "", "Practitioner/rivera", ""),
		"system user": person("clinician", "system/*.cruds", "Practitioner/rivera", ""),
		"foreign":     person("clinician", "user/*.cruds", "https://other.test/Practitioner/rivera", ""),
		"self unset":  person("patient", "user/*.rs", "", ""),
		"self":        person("patient", "user/*.cruds", "", "pat-1"),
		"both":        person("registrar clinician", "user/*.cruds", "Practitioner/rivera", ""),
		"both, swap":  person("clinician registrar", "user/*.cruds", "Practitioner/rivera", ""),
		"nobody":      nil,
	}
}

func TestCheck(t *testing.T) {
	a := newTestAccess(t, newFacts())
	who := personas()
	for _, c := range []struct {
		who, letter, resourceType, patients, purpose string
		view, rule                                   string // of an allowance
		reason                                       Reason
	}{
		{"rivera", "r", "Patient", "pat-1", "", "full", "clinician:*:r:treatment", ReasonAllowed},
		{"rivera", "d", "Observation", "pat-2", "TREAT", "full", "clinician:*:d:treatment", ReasonAllowed},
		{"rivera", "r", "Patient", "pat-3", "", "", "", ReasonRelationship},
		{"rivera", "r", "Group", "pat-3 pat-2", "", "full", "clinician:*:r:treatment", ReasonAllowed},
		{"rivera", "r", "Organization", "", "", "full", "clinician:*:r:treatment", ReasonAllowed},
		{"rivera", "r", "Patient", "pat-1", "HPAYMT", "", "", ReasonPurpose},
		{"rivera", "x", "Patient", "pat-1", "", "", "", ReasonScope},
		{"chen", "r", "Patient", "pat-1", "", "", "", ReasonRelationship},
		{"chen", "r", "Organization", "", "", "full", "clinician:*:r:treatment", ReasonAllowed},
		{"okafor", "u", "Observation", "pat-1", "", "full", "nurse:*:u:treatment", ReasonAllowed},
		{"okafor", "d", "Observation", "pat-1", "", "", "", ReasonRole},
		{"lee", "r", "Patient", "pat-3", "", "demographics", "registrar:Patient:r:none", ReasonAllowed},
		{"lee", "c", "Patient", "pat-3", "", "demographics", "registrar:Patient:c:none", ReasonAllowed},
		{"lee", "u", "Patient", "pat-3", "", "", "", ReasonRole},
		{"lee", "r", "Observation", "pat-3", "", "", "", ReasonRole},
		{"novak", "r", "Coverage", "pat-3", "", "billing", "billing:Coverage:r:none", ReasonAllowed},
		{"novak", "r", "Coverage", "pat-3", "TREAT", "", "", ReasonPurpose},
		{"novak", "r", "Condition", "pat-3", "", "", "", ReasonRole},
		{"kim", "r", "Observation", "pat-3", "", "deidentified", "researcher:Observation:r:none", ReasonAllowed},
		{"kim", "c", "Observation", "pat-3", "", "", "", ReasonScope},
		{"patient", "r", "Observation", "pat-1", "", "full", "patient:*:r:self", ReasonAllowed},
		{"patient", "r", "Observation", "pat-2", "", "", "", ReasonCompartment},
		{"patient", "c", "Observation", "pat-1", "", "", "", ReasonScope},
		{"patient", "r", "Practitioner", "", "", "full", "patient:*:r:self", ReasonAllowed},
		{"diaz", "r", "Patient", "pat-1", "", "", "", ReasonScope},
		{"root", "r", "Patient", "pat-1", "", "", "", ReasonScope},
		{"backend", "c", "Patient", "pat-9", "HPAYMT", "full", "backend:*:c:none", ReasonAllowed},
		{"backend", "c", "Patient", "pat-9", "", "full", "backend:*:c:none", ReasonAllowed},
		{"backend", "c", "Patient", "pat-9", "MARKETING", "", "", ReasonPurpose},
		// Case 51: each letter is enforced by itself.
		{"reader", "r", "Patient", "pat-1", "", "full", "clinician:*:r:treatment", ReasonAllowed},
		{"reader", "s", "Patient", "pat-1", "", "", "", ReasonScope},
		{"reader", "u", "Patient", "pat-1", "", "", "", ReasonScope},
		{"searcher", "s", "Patient", "pat-1", "", "full", "clinician:*:s:treatment", ReasonAllowed},
		{"searcher", "s", "Observation", "pat-1", "", "", "", ReasonScope},
		{"searcher", "r", "Patient", "pat-1", "", "", "", ReasonScope},
		// A clinician in an app that was launched for one patient: both limits hold.
		{"launched", "r", "Observation", "pat-1", "", "full", "clinician:*:r:treatment", ReasonAllowed},
		{"launched", "r", "Observation", "pat-2", "", "", "", ReasonCompartment},
		{"launched", "c", "Organization", "", "", "", "", ReasonCompartment},
		{"misled", "r", "Observation", "pat-1", "", "", "", ReasonRelationship},
		{"unlaunched", "r", "Observation", "pat-1", "", "", "", ReasonCompartment},
		{"no role", "r", "Observation", "pat-1", "", "", "", ReasonRole},
		{"no scope", "r", "Observation", "pat-1", "", "", "", ReasonScope},
		{"system user", "r", "Observation", "pat-1", "", "", "", ReasonScope},
		{"foreign", "r", "Observation", "pat-1", "", "", "", ReasonRelationship},
		{"self unset", "r", "Observation", "pat-1", "", "", "", ReasonCompartment},
		{"self", "r", "Observation", "pat-1", "", "full", "patient:*:r:self", ReasonAllowed},
		{"self", "u", "Observation", "pat-1", "", "", "", ReasonRole},
		// Several roles: the widest view that applies, whatever their order in the token.
		{"both", "r", "Patient", "pat-1", "", "full", "clinician:*:r:treatment", ReasonAllowed},
		{"both, swap", "r", "Patient", "pat-1", "", "full", "clinician:*:r:treatment", ReasonAllowed},
		{"both", "r", "Patient", "pat-3", "", "demographics", "registrar:Patient:r:none", ReasonAllowed},
		{"both, swap", "r", "Patient", "pat-3", "", "demographics", "registrar:Patient:r:none", ReasonAllowed},
		{"both", "r", "Patient", "pat-1", "HOPERAT", "demographics", "registrar:Patient:r:none", ReasonAllowed},
		{"both", "r", "Observation", "pat-3", "", "", "", ReasonRelationship},
		{"nobody", "r", "Patient", "pat-1", "", "", "", ReasonScope},
	} {
		for range 2 { // cold, then warm
			d := a.Check(context.Background(), who[c.who], Request{
				Interaction: Interaction(c.letter[0]), Type: c.resourceType, Patients: strings.Fields(c.patients), Purpose: c.purpose,
			})
			a.known.cache.Wait()
			name := fmt.Sprintf("%s %s %s of %q for %q", c.who, c.letter, c.resourceType, c.patients, c.purpose)
			if d.Allowed != (c.reason == ReasonAllowed) || d.Reason != c.reason || d.View != c.view || d.Policy != 1 {
				t.Errorf("%s: %+v, want %s with view %q", name, d, c.reason, c.view)
			}
			if d.Allowed && (d.Rule != c.rule || d.Purpose == "" || c.purpose != "" && d.Purpose != c.purpose) {
				t.Errorf("%s: rule %q, purpose %q, want rule %q", name, d.Rule, d.Purpose, c.rule)
			}
			early := a.Type(who[c.who], Interaction(c.letter[0]), c.resourceType, c.purpose)
			if d.Allowed && !early.Allowed {
				t.Errorf("%s: allowed, but not by type: %+v", name, early)
			}
			hidden := d.Reason == ReasonRelationship || d.Reason == ReasonCompartment && who[c.who].Patient != "" && c.patients != ""
			if hidden && !early.Allowed {
				t.Errorf("%s: a denial that depends on the record came by type: %+v", name, early)
			}
			if !d.Allowed && !hidden && c.who != "launched" && early.Allowed {
				t.Errorf("%s: allowed by type: %+v", name, early)
			}
		}
	}
}

func TestFilter(t *testing.T) {
	a := newTestAccess(t, newFacts())
	who := personas()
	for _, c := range []struct {
		who, resourceType string
		want              string
	}{
		{"rivera", "Observation", "practitioner rivera"},
		{"chen", "Observation", "practitioner chen"},
		{"lee", "Patient", "all"},
		{"lee", "Observation", "role-missing"},
		{"novak", "Encounter", "all"},
		{"kim", "Patient", "all"},
		{"patient", "Observation", "patient pat-1"},
		{"self", "Observation", "patient pat-1"},
		{"self unset", "Observation", "outside-compartment"},
		{"launched", "Observation", "patient pat-1"},
		{"misled", "Observation", "relationship-missing"},
		{"unlaunched", "Observation", "outside-compartment"},
		{"reader", "Patient", "scope-missing"},
		{"foreign", "Patient", "relationship-missing"},
		{"backend", "Patient", "all"},
		{"diaz", "Patient", "scope-missing"},
		{"nobody", "Patient", "scope-missing"},
	} {
		f := a.Filter(context.Background(), who[c.who], Request{Interaction: Search, Type: c.resourceType})
		got := []string{}
		if f.All {
			got = append(got, "all")
		}
		if f.Patient != "" {
			got = append(got, "patient "+f.Patient)
		}
		if f.Practitioner != "" {
			got = append(got, "practitioner "+f.Practitioner)
		}
		if !f.Allowed {
			got = append(got, string(f.Reason))
		}
		if strings.Join(got, ", ") != c.want {
			t.Errorf("%s on %s: %v, want %s", c.who, c.resourceType, got, c.want)
		}
	}
}

func TestMay(t *testing.T) {
	a := newTestAccess(t, newFacts())
	for _, c := range []struct {
		roles, capability, rule string
	}{
		{"officer", "audit:read", "officer:audit:read"},
		{"clinician security", "audit:read", "security:audit:read"},
		{"admin", "audit:read", ""},
		{"officer", "policy:write", ""},
		{"officer", "", ""},
		{"", "audit:read", ""},
	} {
		d := a.May(person(c.roles, "", "", ""), c.capability)
		if d.Allowed != (c.rule != "") || d.Rule != c.rule || d.Policy != 1 {
			t.Errorf("%s may %s: %+v, want rule %q", c.roles, c.capability, d, c.rule)
		}
	}
	if a.May(nil, "audit:read").Allowed {
		t.Error("nobody may")
	}
}

// TestSeparators is case 47: names that would join to the same text stay apart.
func TestSeparators(t *testing.T) {
	f := newFacts()
	f.related = map[[2]string]bool{{"a-b", "c"}: true}
	a := newTestAccess(t, f)
	ctx := context.Background()
	for range 2 {
		if d := a.Check(ctx, person("clinician", "user/*.r", "Practitioner/a-b", ""), Request{Interaction: Read, Type: "Patient", Patients: []string{"c"}}); !d.Allowed {
			t.Fatalf("got %+v", d)
		}
		a.known.cache.Wait()
		if d := a.Check(ctx, person("clinician", "user/*.r", "Practitioner/a", ""), Request{Interaction: Read, Type: "Patient", Patients: []string{"b-c"}}); d.Allowed {
			t.Fatalf("got %+v", d)
		}
	}
}

func TestRelationshipsAreFollowed(t *testing.T) {
	f := newFacts()
	a := newTestAccess(t, f)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- a.Run(ctx) }()
	who := personas()
	read := func(name, patient string) Decision {
		return a.Check(ctx, who[name], Request{Interaction: Read, Type: "Patient", Patients: []string{patient}})
	}

	// A denial is not remembered: a relationship that was just made works at once, before any poll.
	if d := read("chen", "pat-1"); d.Allowed {
		t.Fatal("allowed without relationship")
	}
	f.change(func() { f.related[[2]string{"chen", "pat-1"}] = true })
	if d := read("chen", "pat-1"); !d.Allowed {
		t.Fatalf("just granted: %+v", d)
	}
	a.known.cache.Wait()
	before := f.asked()
	if d := read("chen", "pat-1"); !d.Allowed || f.asked() != before || a.Stats().Hits == 0 {
		t.Errorf("warm: %+v, %d lookups, stats %+v", d, f.asked()-before, a.Stats())
	}

	// One that ends is forgotten with the next epoch, case 46 for relationships.
	f.change(func() { delete(f.related, [2]string{"chen", "pat-1"}); f.epoch++ })
	a.Wake()
	eventually(t, func() bool { return !read("chen", "pat-1").Allowed })

	// Case 46: a role that loses a permission loses it on the next decision.
	f.change(func() { f.policy = Policy{Version: 2, Permissions: f.policy.Permissions[1:]} })
	a.Wake()
	eventually(t, func() bool { return read("rivera", "pat-1").Reason == ReasonRole })
	if d := read("rivera", "pat-1"); d.Policy != 2 || a.Stats().Policy != 2 {
		t.Errorf("policy %d and %d, want 2", d.Policy, a.Stats().Policy)
	}

	// A policy that does not compile leaves the old one in force and is reported.
	f.change(func() { f.policy = Policy{Version: 3, Permissions: []Permission{{Role: "x"}}} })
	a.Wake()
	eventually(t, func() bool { return a.Healthy() != nil })
	if d := read("lee", "pat-1"); !d.Allowed || d.Policy != 2 {
		t.Errorf("after a broken policy: %+v", d)
	}
	f.change(func() { f.policy = seed(); f.policy.Version = 4 })
	a.Wake()
	eventually(t, func() bool { return a.Healthy() == nil && a.Stats().Policy == 4 })
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func eventually(t *testing.T, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(3 * time.Second); !holds(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it did not come about within 3 s")
		}
	}
}

// TestLease is case 49: with the database gone cached relationships count for five seconds, and not a moment longer.
func TestLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFacts()
		a, err := NewAccess(t.Context(), AccessConfig{Storage: f})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		go func() { _ = a.Run(ctx) }()
		read := func() Decision {
			return a.Check(ctx, personas()["rivera"], Request{Interaction: Read, Type: "Patient", Patients: []string{"pat-1"}})
		}
		read()
		a.known.cache.Wait()
		f.change(func() { f.err = errors.New("no connection") })
		time.Sleep(3 * time.Second)
		if d := read(); !d.Allowed || a.Healthy() != nil {
			t.Errorf("after 3 s: %+v, healthy %v", d, a.Healthy())
		}
		time.Sleep(3 * time.Second)
		if d := read(); d.Allowed || d.Reason != ReasonUnavailable || a.Healthy() == nil {
			t.Errorf("after 6 s: %+v, healthy %v", d, a.Healthy())
		}
		f.change(func() { f.err = nil })
		if d := read(); !d.Allowed {
			t.Errorf("back again, before any poll: %+v", d)
		}
		time.Sleep(2 * time.Second)
		if a.Healthy() != nil {
			t.Errorf("back again: %v", a.Healthy())
		}

		// A cached relationship is asked for again after a minute even though nothing changed.
		read()
		a.known.cache.Wait()
		asked := f.asked()
		read()
		if f.asked() != asked {
			t.Error("the relationship was not cached")
		}
		time.Sleep(61 * time.Second)
		read()
		if f.asked() != asked+1 {
			t.Error("the relationship was believed for more than a minute")
		}
		cancel()
		synctest.Wait()
		a.Close()
	})
}

func TestPolicyIsRefused(t *testing.T) {
	good := Permission{Role: "nurse", Type: "Patient", Interactions: "rs", View: "full", Relation: RelationNone, Purposes: []string{"TREAT"}}
	for name, change := range map[string]func(*Permission){
		"no role":          func(p *Permission) { p.Role = "" },
		"no view":          func(p *Permission) { p.View = "" },
		"no type":          func(p *Permission) { p.Type = "" },
		"type with a dot":  func(p *Permission) { p.Type = "Patient.r" },
		"letters disorder": func(p *Permission) { p.Interactions = "sr" },
		"no letters":       func(p *Permission) { p.Interactions = "" },
		"unknown letter":   func(p *Permission) { p.Interactions = "rx" },
		"unknown relation": func(p *Permission) { p.Relation = "friend" },
		"no relation":      func(p *Permission) { p.Relation = "" },
	} {
		bad := good
		change(&bad)
		f := newFacts()
		f.policy = Policy{Permissions: []Permission{good, bad}}
		if _, err := NewAccess(context.Background(), AccessConfig{Storage: f}); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := NewAccess(context.Background(), AccessConfig{}); err == nil {
		t.Error("accepted no storage")
	}
	if _, err := NewAccess(context.Background(), AccessConfig{Storage: &facts{err: errors.New("down")}}); err == nil {
		t.Error("accepted a storage that is down")
	}
}

// TestExplicitRowsWin: a type that is named for a role is taken out of the role's "*".
func TestExplicitRowsWin(t *testing.T) {
	f := newFacts()
	f.policy.Permissions = []Permission{
		{Role: "r", Type: "*", Interactions: "cruds", View: "full", Relation: RelationNone, Purposes: []string{"TREAT"}},
		{Role: "r", Type: "Patient", Interactions: "r", View: "demographics", Relation: RelationNone, Purposes: []string{"TREAT"}},
	}
	a := newTestAccess(t, f)
	p := person("r", "user/*.cruds", "", "")
	if d := a.Type(p, Read, "Patient", ""); d.View != "demographics" {
		t.Errorf("read: %+v", d)
	}
	if d := a.Type(p, Update, "Patient", ""); d.Allowed {
		t.Errorf("update: %+v", d)
	}
	if d := a.Type(p, Update, "Observation", ""); !d.Allowed {
		t.Errorf("other type: %+v", d)
	}
}

func TestWarmCheckAllocatesNothing(t *testing.T) {
	a := newTestAccess(t, newFacts())
	p := personas()["rivera"]
	r := Request{Interaction: Read, Type: "Patient", Patients: []string{"pat-1"}}
	ctx := context.Background()
	a.Check(ctx, p, r)
	a.known.cache.Wait()
	if n := testing.AllocsPerRun(1000, func() {
		if !a.Check(ctx, p, r).Allowed || !a.Type(p, Read, "Patient", "").Allowed {
			t.Fatal("denied")
		}
	}); n != 0 && !raceEnabled {
		t.Errorf("%v allocations", n)
	}
}

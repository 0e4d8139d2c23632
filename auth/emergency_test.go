package auth

import (
	"context"
	"errors"
	"reflect"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"
)

// ward is facts with grants of emergency access and consents.
type ward struct {
	*facts
	grants    []Grant
	emergency int64
	consents  map[string][]ConsentRule // by patient
}

func newWard() *ward {
	w := &ward{facts: newFacts(), consents: map[string][]ConsentRule{}}
	w.policy.Capabilities = append(w.policy.Capabilities, Capability{Role: "clinician", Name: emergencyCapability, StepUp: StepUp{MaxAge: time.Minute}})
	return w
}

func (w *ward) Epochs(ctx context.Context) (Epochs, error) {
	e, err := w.facts.Epochs(ctx)
	w.mu.Lock()
	defer w.mu.Unlock()
	e.Emergency = w.emergency
	return e, err
}

func (w *ward) Emergencies(context.Context) ([]Grant, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.grants), w.err
}

func (w *ward) Facts(ctx context.Context, a Actor, patients []string) ([]Fact, error) {
	list, err := w.facts.Facts(ctx, a, patients)
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := range list {
		list[i].Consents = w.consents[patients[i]]
	}
	return list, err
}

// grant gives emergency access for a while from now on.
func (w *ward) grant(p *Principal, patient string, lasts time.Duration) {
	w.change(func() {
		w.grants = append(w.grants, Grant{ID: "g-" + patient, Subject: p.Subject, Session: p.Session, Patient: patient, Until: time.Now().Add(lasts), Left: lasts})
		w.emergency++
	})
}

func doctor(subject string) *Principal {
	return &Principal{Subject: subject, Issuer: "https://issuer.test", Session: "s-" + subject, Roles: []string{"clinician"}, Scopes: ParseScopes("user/*.cruds"), FHIRUser: "Practitioner/" + subject}
}

func newWardAccess(t testing.TB, w *ward) *Access {
	t.Helper()
	a, err := NewAccess(context.Background(), AccessConfig{Storage: w})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Close)
	return a
}

// TestEmergency: a grant lets whoever has it read the patient's records from the session that it was given to, and nothing else.
func TestEmergency(t *testing.T) {
	ctx := t.Context()
	chen := doctor("chen")
	other := *chen
	other.Session = "another"
	narrow := *chen
	narrow.Scopes = ParseScopes("user/Patient.r")
	launched := *chen
	launched.Scopes, launched.Patient = ParseScopes("patient/*.rs"), "pat-1"
	nurse := *chen
	nurse.Roles = []string{"nurse"} // has no such capability here
	read := Request{Interaction: Read, Type: "Observation", Patients: []string{"pat-9"}}
	with := func(change func(*Request)) Request {
		r := read
		change(&r)
		return r
	}
	deny := func(c ConsentRule) func(*ward) {
		return func(w *ward) { c.Consent = "c"; w.consents["pat-9"] = []ConsentRule{c} }
	}
	for name, c := range map[string]struct {
		who     *Principal
		request Request
		change  func(*ward)
		want    Reason
	}{
		"reads":                {chen, read, nil, ReasonAllowed},
		"reads for treatment":  {chen, with(func(r *Request) { r.Purpose = "TREAT" }), nil, ReasonAllowed},
		"says that it is one":  {chen, with(func(r *Request) { r.Purpose = "BTG" }), nil, ReasonAllowed},
		"part 2":               {chen, with(func(r *Request) { r.Segment = SegmentPart2 }), nil, ReasonAllowed},
		"psychotherapy":        {chen, with(func(r *Request) { r.Segment = SegmentPsychotherapy }), nil, ReasonRelationship},
		"another patient":      {chen, with(func(r *Request) { r.Patients = []string{"pat-8"} }), nil, ReasonRelationship},
		"another session":      {&other, read, nil, ReasonRelationship},
		"another person":       {doctor("lopez"), read, nil, ReasonRelationship},
		"writes":               {chen, with(func(r *Request) { r.Interaction = Update }), nil, ReasonRelationship},
		"deletes":              {chen, with(func(r *Request) { r.Interaction = Delete }), nil, ReasonRelationship},
		"creates":              {chen, with(func(r *Request) { r.Interaction = Create }), nil, ReasonRelationship},
		"research":             {chen, with(func(r *Request) { r.Purpose = "HRESCH" }), nil, ReasonPurpose},
		"a stray":              {chen, with(func(r *Request) { r.Patients, r.Stray = nil, true }), nil, ReasonRelationship},
		"a scope too narrow":   {&narrow, read, nil, ReasonScope},
		"a launch for another": {&launched, read, nil, ReasonCompartment},
		"a role that may not":  {&nurse, read, nil, ReasonRelationship},
		"the patient says no":  {chen, read, deny(ConsentRule{}), ReasonConsent},
		"no to this one":       {chen, read, deny(ConsentRule{Actor: "Practitioner/chen"}), ReasonConsent},
		"no, but in emergencies": {chen, read, func(w *ward) {
			w.consents["pat-9"] = []ConsentRule{{Consent: "c"}, {Consent: "c", Depth: 1, Permit: true, Purposes: []string{"BTG"}}}
		}, ReasonAllowed},
		"no, and the law": {chen, read, func(w *ward) { deny(ConsentRule{})(w); w.policy.EmergencyOverConsent = true }, ReasonAllowed},
		"forbidden": {chen, read, func(w *ward) {
			w.policy.Permissions = append(w.policy.Permissions, Permission{Role: "clinician", Type: "Observation", Interactions: "rs", Relation: RelationNone, Effect: Forbid})
		}, ReasonForbidden},
		"forbidden for treatment": {chen, read, func(w *ward) {
			w.policy.Permissions = append(w.policy.Permissions, Permission{Role: "clinician", Type: "Observation", Interactions: "rs", Relation: RelationNone, Effect: Forbid, Purposes: []string{"TREAT"}})
		}, ReasonForbidden},
		"forbidden for research": {chen, read, func(w *ward) {
			w.policy.Permissions = append(w.policy.Permissions, Permission{Role: "clinician", Type: "Observation", Interactions: "rs", Relation: RelationNone, Effect: Forbid, Purposes: []string{"HRESCH"}})
		}, ReasonAllowed},
		"a type that the role has not": {chen, with(func(r *Request) { r.Type = "Claim" }), func(w *ward) {
			w.policy.Permissions = slices.DeleteFunc(w.policy.Permissions, func(p Permission) bool { return p.Role == "clinician" })
		}, ReasonAllowed},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWard()
			if c.change != nil {
				c.change(w)
			}
			w.grant(chen, "pat-9", time.Hour)
			a := newWardAccess(t, w)
			d := a.Check(ctx, c.who, c.request)
			if d.Reason != c.want || d.Allowed != (c.want == ReasonAllowed) {
				t.Fatalf("%+v, want %s", d, c.want)
			}
			if d.Allowed && (d.Emergency != "g-pat-9" || d.Purpose != "BTG" || d.View != "full" || d.Rule != "emergency:"+c.request.Type+":r:grant") {
				t.Errorf("the allowance is %+v", d)
			}
			if allowed, reason := Verdict(explained(ctx, a, c.who, c.request)); allowed != d.Allowed || reason != d.Reason {
				t.Errorf("explained as %v, %s", allowed, reason)
			}
			// What may be read is what a search within the patient finds.
			search := c.request
			search.Interaction = Search
			if f := a.Filter(ctx, c.who, search); c.request.Interaction == Read && len(search.Patients) == 1 && search.Segment == SegmentGeneral && (c.want == ReasonAllowed) != (f.Emergency != "") {
				t.Errorf("a search is decided as %+v", f)
			}
		})
	}
}

// TestEmergencyIsNotOrdinary: who may read anyway does so as ever, and a grant changes nothing about it.
func TestEmergencyIsNotOrdinary(t *testing.T) {
	w := newWard()
	rivera := doctor("rivera")
	w.grant(rivera, "pat-1", time.Hour)
	a := newWardAccess(t, w)
	r := Request{Interaction: Read, Type: "Observation", Patients: []string{"pat-1"}}
	ctx := t.Context()
	if d := a.Check(ctx, rivera, r); !d.Allowed || d.Emergency != "" || d.Purpose != "TREAT" || d.Related != "Encounter" {
		t.Errorf("%+v", d)
	}
	r.Interaction = Search
	if f := a.Filter(t.Context(), rivera, r); f.Emergency == "" || f.Patient != "pat-1" || !f.Segments.Has(SegmentPart2) || f.Closed != 1<<SegmentPsychotherapy {
		t.Errorf("a search that part 2 records are in: %+v", f) // Check opens them under the grant, so the search finds them, under the grant
	}
	if n := testing.AllocsPerRun(100, func() {
		a.Check(t.Context(), rivera, Request{Interaction: Read, Type: "Patient", Patients: r.Patients})
	}); n > 0 && !raceEnabled {
		t.Errorf("an ordinary check beside a grant makes %v allocations", n)
	}
}

// TestEmergencySearch: the filter under a grant is the patient's compartment, closed where Check is.
func TestEmergencySearch(t *testing.T) {
	w := newWard()
	chen := doctor("chen")
	w.grant(chen, "pat-9", time.Hour)
	w.policy.Permissions = append(w.policy.Permissions, Permission{Role: "clinician", Type: "Condition", Interactions: "rs", Relation: RelationNone, Effect: Forbid, Segments: []string{"part2"}})
	a := newWardAccess(t, w)
	ask := func(resourceType string, patients ...string) Filter {
		return a.Filter(t.Context(), chen, Request{Interaction: Search, Type: resourceType, Patients: patients})
	}
	if f := ask("Observation", "pat-9"); f.Patient != "pat-9" || f.Practitioner != "" || f.All || f.Emergency == "" || f.Segments != 1<<SegmentPart2 || f.Closed != 1<<SegmentPsychotherapy {
		t.Errorf("%+v", f)
	}
	if f := ask("Condition", "pat-9"); f.Emergency == "" || f.Segments != 0 || !f.Closed.Has(SegmentPart2) || f.Closed != 1<<SegmentPart2|1<<SegmentPsychotherapy {
		t.Errorf("what is forbidden: %+v", f)
	}
	for _, patients := range [][]string{nil, {"pat-8"}, {"pat-8", "pat-9"}} {
		if f := ask("Observation", patients...); f.Emergency != "" || f.Practitioner != "chen" {
			t.Errorf("%v: %+v", patients, f)
		}
	}
}

// TestEmergencySearchShowsWhatCheckShows: where ordinary access lacks a segment only, a search under the grant shows no more of anything
// than reads of the same records would.
func TestEmergencySearchShowsWhatCheckShows(t *testing.T) {
	w := newWard()
	rivera := doctor("rivera")
	w.policy.Permissions = append(w.policy.Permissions,
		Permission{Role: "clinician", Type: "Goal", Interactions: "rs", View: "demographics", Relation: RelationTreatment, Purposes: []string{"TREAT"}})
	w.grant(rivera, "pat-1", time.Hour)
	// For emergencies alone: what the ordinary purpose is denied, and no grant opens.
	w.consents["pat-1"] = []ConsentRule{{Consent: "c", Permit: true, Actor: "Practitioner/rivera", Segments: 1 << SegmentPsychotherapy, Purposes: []string{"BTG"}}}
	a := newWardAccess(t, w)
	for _, resourceType := range []string{"Observation", "Goal"} {
		r := Request{Interaction: Search, Type: resourceType, Patients: []string{"pat-1"}}
		f := a.Filter(t.Context(), rivera, r)
		if f.Emergency == "" || f.Patient != "pat-1" {
			t.Fatalf("a search of %s is decided as %+v", resourceType, f)
		}
		for segment := SegmentGeneral; segment <= SegmentPsychotherapy; segment++ {
			r.Segment = segment
			d := a.Check(t.Context(), rivera, r)
			_, opened := JudgeConsents(w.consents["pat-1"], r.Type, segment, f.Purpose, time.Now())
			found := !f.Closed.Has(segment) || segment == SegmentGeneral
			if found = found && (f.Segments.Has(segment) || opened); found && !d.Allowed {
				t.Errorf("a search finds %s in segment %v, which Check refuses: %+v", resourceType, segment, d)
			}
			if found && f.View != d.View && d.View != "full" {
				t.Errorf("a search shows %s in segment %v in view %s, Check in %s", resourceType, segment, f.View, d.View)
			}
		}
	}
}

// TestEmergencyOfALaunch: an app that was launched for a patient shows that patient under a grant, and no other.
func TestEmergencyOfALaunch(t *testing.T) {
	for _, rules := range []bool{true, false} { // also where no rule of the role is about the type
		w := newWard()
		chen := doctor("chen")
		chen.Scopes, chen.Patient = ParseScopes("patient/*.rs"), "pat-9"
		w.grant(chen, "pat-9", time.Hour)
		w.grant(chen, "pat-8", time.Hour)
		if !rules {
			w.policy.Permissions = slices.DeleteFunc(w.policy.Permissions, func(p Permission) bool { return p.Role == "clinician" })
		}
		a := newWardAccess(t, w)
		for patient, allowed := range map[string]bool{"pat-9": true, "pat-8": false} {
			r := Request{Interaction: Read, Type: "Observation", Patients: []string{patient}}
			d := a.Check(t.Context(), chen, r)
			if d.Allowed != allowed || allowed != (d.Emergency == "g-"+patient) {
				t.Errorf("with rules %v, %s: %+v", rules, patient, d)
			}
			if judged, reason := Verdict(explained(t.Context(), a, chen, r)); judged != d.Allowed || reason != d.Reason {
				t.Errorf("with rules %v, %s is explained as %v, %s", rules, patient, judged, reason)
			}
			r.Interaction = Search
			if f := a.Filter(t.Context(), chen, r); allowed != (f.Emergency != "") || f.Allowed && f.Patient != "pat-9" {
				t.Errorf("with rules %v, a search of %s: %+v", rules, patient, f)
			}
		}
	}
}

// TestEmergencyEnds: by its time on the storage's clock, whatever the wall clock does; by revocation, at once after a Refresh; and while
// nothing is heard of the storage it opens nothing.
func TestEmergencyEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWard()
		chen := doctor("chen")
		w.grant(chen, "pat-9", 30*time.Minute)
		var step time.Duration
		a, err := NewAccess(t.Context(), AccessConfig{Storage: w, Now: func() time.Time { return time.Now().Add(step) }})
		if err != nil {
			t.Fatal(err)
		}
		defer a.Close()
		check := func(want Reason) {
			t.Helper()
			if d := a.Check(t.Context(), chen, Request{Interaction: Read, Type: "Patient", Patients: []string{"pat-9"}}); d.Reason != want {
				t.Errorf("%+v, want %s", d, want)
			}
		}
		refresh := func() {
			t.Helper()
			if err := a.Refresh(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		check(ReasonAllowed)
		step = -time.Hour // somebody sets the clock back
		time.Sleep(29 * time.Minute)
		check(ReasonUnavailable) // nothing was heard for long: it may be revoked
		refresh()
		check(ReasonAllowed)
		time.Sleep(time.Minute)
		refresh()
		check(ReasonRelationship)
		if _, ok := a.Granted("g-pat-9"); ok {
			t.Error("still in force")
		}
		step = 0
		w.grant(chen, "pat-9", time.Hour)
		refresh()
		check(ReasonAllowed)
		w.change(func() { w.grants, w.emergency = nil, w.emergency+1 })
		refresh()
		check(ReasonRelationship)
		w.grant(chen, "pat-9", time.Hour)
		refresh()
		check(ReasonAllowed)
		w.change(func() { // the role is taken away
			w.policy.Version++
			w.policy.Capabilities = slices.DeleteFunc(w.policy.Capabilities, func(c Capability) bool { return c.Name == emergencyCapability })
		})
		refresh()
		check(ReasonRelationship)
	})
}

// explained judges every gate of a request by itself, from the very facts that Check would use now: what the gates come to is what Check
// decides.
func explained(ctx context.Context, a *Access, p *Principal, r Request) []Gate {
	t := trial{s: a.policy.Load(), p: p, r: r, now: a.now()}
	t.signed = t.now
	t.reach = func() (bound, ok bool) {
		bound, _, ok = p.Scopes.reach(serves(p, t.s.held(p, t.now).names), r.Type, r.Interaction)
		return bound, ok
	}
	t.known = func(purpose string, fresh bool) (judged, error) {
		known, err := a.look(ctx, p, r, purpose, fresh, a.now())
		if err == nil && purpose == emergencyPurpose && !a.leased(a.clock()) {
			err = errors.New("not confirmed lately")
		}
		return known, err
	}
	t.grant = func() (string, bool) {
		if !p.mayBeRescued(r) {
			return "", false
		}
		g, ok := a.GrantOf(p, r.Patients)
		return g.ID, ok
	}
	return t.gates()
}

// TestExplainAgrees holds every gate, judged by itself, against the decision, over policies, people, records, consents and grants.
func TestExplainAgrees(t *testing.T) {
	roles := []string{"clinician", "nurse", "backend", "patient"}
	types := []string{"Patient", "Observation", "Consent"}
	purposes := []string{"TREAT", "HPAYMT", "BTG"}
	segments := []string{"part2", "psychotherapy"}
	patients := []string{"pat-1", "pat-2", "pat-9"}
	rapid.Check(t, func(t *rapid.T) {
		pick := func(label string, from []string) string { return rapid.SampledFrom(from).Draw(t, label) }
		some := func(label string, from []string) []string {
			return rapid.SliceOfNDistinct(rapid.SampledFrom(from), 0, len(from), rapid.ID[string]).Draw(t, label)
		}
		w := newWard()
		w.policy = Policy{Version: 1, EmergencyOverConsent: rapid.Bool().Draw(t, "over consent")}
		if rapid.Bool().Draw(t, "may have emergencies") {
			w.policy.Capabilities = []Capability{{Role: pick("who may", roles), Name: emergencyCapability}}
		}
		for range rapid.IntRange(0, 6).Draw(t, "rules") {
			x := Permission{Role: pick("role", roles), Type: pick("type", append(types, "*")), Interactions: pick("letters", []string{"r", "rs", "cruds"}),
				Segments: some("segments", segments)}
			if rapid.IntRange(0, 3).Draw(t, "effect") == 0 {
				x.Effect, x.Relation, x.Purposes = Forbid, RelationNone, some("forbidden for", purposes)
			} else {
				x.View, x.Relation = pick("view", []string{"full", "demographics"}), Relation(pick("relation", []string{"none", "treatment", "self"}))
				x.Purposes = append([]string{pick("purpose", purposes)}, "X")
				if rapid.Bool().Draw(t, "step-up") {
					x.StepUp = StepUp{MaxAge: time.Hour}
				}
			}
			w.policy.Permissions = append(w.policy.Permissions, x)
		}
		for _, patient := range some("have said", patients) {
			w.consents[patient] = []ConsentRule{{Consent: "c", Permit: rapid.Bool().Draw(t, "permit"), Actor: pick("about", []string{"", "Practitioner/rivera"}),
				Segments: SegmentSet(rapid.SampledFrom([]int{0, 2, 4}).Draw(t, "of")), Purposes: some("for", purposes)}}
		}
		p := doctor(pick("who", []string{"rivera", "chen"}))
		p.Roles = some("roles", roles)
		p.Scopes = ParseScopes(pick("scope", []string{"user/*.cruds", "patient/*.rs", "user/Patient.r", "system/*.cruds", ""}))
		p.Patient = pick("launched for", append([]string{""}, patients...))
		p.AuthTime = time.Now().Add(-rapid.SampledFrom([]time.Duration{0, 2 * time.Hour}).Draw(t, "ago"))
		if rapid.Bool().Draw(t, "emergency") {
			w.grant(p, pick("of", patients), time.Hour)
		}
		w.err = nil
		a, err := NewAccess(context.Background(), AccessConfig{Storage: w})
		if err != nil {
			t.Skip(err.Error())
		}
		defer a.Close()
		if rapid.IntRange(0, 9).Draw(t, "storage") == 0 {
			w.err = errors.New("away")
		}
		r := Request{Interaction: Interaction(pick("letter", []string{"c", "r", "u", "d", "s"})[0]), Type: pick("asked type", types), Patients: some("patients", patients),
			Purpose: pick("asked purpose", append([]string{"", "HRESCH"}, purposes...)), Segment: Segment(rapid.IntRange(0, 2).Draw(t, "segment"))}
		r.Stray = len(r.Patients) == 0 && rapid.Bool().Draw(t, "stray")
		d := a.Check(context.Background(), p, r)
		gates := explained(context.Background(), a, p, r)
		allowed, reason := Verdict(gates)
		if allowed != d.Allowed || reason != d.Reason {
			t.Fatalf("decided %+v, explained as %v, %s: %+v", d, allowed, reason, gates)
		}
		names := make([]string, len(gates))
		for i, g := range gates {
			names[i] = g.Name
			switch {
			case g.Name == GateView && allowed && g.Detail != d.View, g.Name == GateEmergency && allowed && (g.State == GatePassed) != (d.Emergency != ""):
				t.Errorf("decided %+v, gate %+v", d, g)
			case g.State == GateFailed && (g.Reason == "" || g.Name != GateEmergency && g.Reason != ReasonUnavailable && GateOf(g.Reason) != g.Name):
				t.Errorf("gate %+v", g)
			}
		}
		if !reflect.DeepEqual(names, GateNames()) {
			t.Errorf("gates %v", names)
		}
	})
}

// TestReplay: under the policy and with the facts of the time a recorded decision is explained as it was; under today's, what has changed
// is at its gate.
func TestReplay(t *testing.T) {
	w := newWard()
	a := newWardAccess(t, w)
	rivera := doctor("rivera")
	r := Request{Interaction: Read, Type: "Observation", Patients: []string{"pat-1"}}
	d := Recorded{Principal: rivera, Request: r, At: time.Now(), Allowed: true, Reason: ReasonAllowed, Related: "CareTeam"}
	was, err := Replay(d, w.policy)
	if err != nil {
		t.Fatal(err)
	}
	find := func(gates []Gate, name string) Gate {
		return gates[slices.IndexFunc(gates, func(g Gate) bool { return g.Name == name })]
	}
	if allowed, _ := Verdict(was); !allowed || find(was, GateRelationship).Detail != "CareTeam" || find(was, GateRole).Detail != "clinician:*:r:treatment" {
		t.Errorf("as it was: %+v", was)
	}
	now := a.ReplayNow(t.Context(), d)
	if allowed, _ := Verdict(now); !allowed || find(now, GateRelationship).Detail != "Encounter" {
		t.Errorf("today: %+v", now)
	}
	for gate, change := range map[string]func(*ward){
		GateRelationship: func(w *ward) { w.related = nil; w.epoch++ },
		GateConsent:      func(w *ward) { w.consents["pat-1"] = []ConsentRule{{Consent: "c"}}; w.epoch++ },
		GateForbid: func(w *ward) {
			w.policy.Permissions = append(w.policy.Permissions, Permission{Role: "clinician", Type: "*", Interactions: "rs", Relation: RelationNone, Effect: Forbid})
		},
		GateRole: func(w *ward) { w.policy = Policy{Version: w.policy.Version} },
	} {
		w := newWard()
		a := newWardAccess(t, w)
		if allowed, _ := Verdict(a.ReplayNow(t.Context(), d)); !allowed {
			t.Fatal("not allowed to begin with")
		}
		w.change(func() { change(w); w.policy.Version++ })
		if err := a.Refresh(t.Context()); err != nil {
			t.Fatal(err)
		}
		gates := a.ReplayNow(t.Context(), d)
		if allowed, reason := Verdict(gates); allowed || GateOf(reason) != gate || find(gates, gate).State != GateFailed {
			t.Errorf("%s: %v, %s, %+v", gate, allowed, reason, gates)
		}
	}
}

package auth

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

const (
	part2 = SegmentSet(1 << SegmentPart2)
	notes = SegmentSet(1 << SegmentPsychotherapy)
)

func TestJudgeConsents(t *testing.T) {
	now := time.Date(2026, 5, 6, 12, 0, 0, 0, time.UTC)
	deny, permit := ConsentRule{Consent: "a"}, ConsentRule{Consent: "a", Permit: true}
	with := func(r ConsentRule, change func(*ConsentRule)) ConsentRule {
		change(&r)
		return r
	}
	nested := func(r ConsentRule) ConsentRule { return with(r, func(r *ConsentRule) { r.Depth++ }) }
	about := func(r ConsentRule, set SegmentSet) ConsentRule {
		return with(r, func(r *ConsentRule) { r.Segments = set })
	}
	named := func(r ConsentRule) ConsentRule {
		return with(r, func(r *ConsentRule) { r.Actor = "Practitioner/rivera" })
	}
	purpose := func(r ConsentRule, p string) ConsentRule {
		return with(r, func(r *ConsentRule) { r.Purposes = []string{p} })
	}
	other := func(r ConsentRule) ConsentRule { return with(r, func(r *ConsentRule) { r.Consent = "b" }) }
	for _, c := range []struct {
		name           string
		rules          []ConsentRule
		segment        Segment
		denied, opened bool
	}{
		{"nothing", nil, 0, false, false},
		{"nothing, of a segment", nil, SegmentPart2, false, false},
		{"everybody is denied", []ConsentRule{deny}, 0, true, false},
		{"a permit beside it", []ConsentRule{deny, permit}, 0, true, false},
		{"an exception", []ConsentRule{deny, nested(permit)}, 0, false, false},
		{"an exception of another consent", []ConsentRule{deny, other(nested(permit))}, 0, true, false},
		{"an exception to the exception", []ConsentRule{deny, nested(permit), nested(nested(deny))}, 0, true, false},
		{"exceptions that contradict", []ConsentRule{deny, nested(permit), nested(deny)}, 0, true, false},
		{"an exception for another purpose", []ConsentRule{deny, purpose(nested(permit), "BTG")}, 0, true, false},
		{"denied for another purpose", []ConsentRule{purpose(deny, "HRESCH")}, 0, false, false},
		{"denied for this one", []ConsentRule{purpose(deny, "TREAT")}, 0, true, false},
		{"a segment is denied", []ConsentRule{about(deny, part2)}, 0, false, false},
		{"that segment", []ConsentRule{about(deny, part2)}, SegmentPart2, true, false},
		{"a permit opens no segment that it does not name", []ConsentRule{permit}, SegmentPart2, false, false},
		{"a permit opens a segment", []ConsentRule{about(permit, part2)}, SegmentPart2, false, true},
		{"and no other", []ConsentRule{about(permit, part2)}, SegmentPsychotherapy, false, false},
		{"psychotherapy notes are not opened to everybody", []ConsentRule{about(permit, notes)}, SegmentPsychotherapy, false, false},
		{"but to somebody", []ConsentRule{named(about(permit, notes))}, SegmentPsychotherapy, false, true},
		{"an exception to the opening", []ConsentRule{about(permit, part2), nested(deny)}, SegmentPart2, true, false},
		{"an opening as an exception", []ConsentRule{deny, nested(about(permit, part2))}, SegmentPart2, false, true},
		{"of which others are denied still", []ConsentRule{deny, nested(about(permit, part2))}, 0, true, false},
		{"opened by one, denied by another", []ConsentRule{about(permit, part2), other(deny)}, SegmentPart2, true, true},
		{"not yet", []ConsentRule{with(deny, func(r *ConsentRule) { r.From = now.Add(time.Nanosecond) })}, 0, false, false},
		{"from now on", []ConsentRule{with(deny, func(r *ConsentRule) { r.From = now })}, 0, true, false},
		{"until now", []ConsentRule{with(deny, func(r *ConsentRule) { r.Until = now })}, 0, false, false},
		{"still", []ConsentRule{with(deny, func(r *ConsentRule) { r.Until = now.Add(time.Nanosecond) })}, 0, true, false},
	} {
		for range 2 { // the order of rules does not matter
			if denied, opened := JudgeConsents(c.rules, "Observation", c.segment, "TREAT", now); denied != c.denied || opened != c.opened {
				t.Errorf("%s: denied %v, opened %v", c.name, denied, opened)
			}
			for i, j := 0, len(c.rules)-1; i < j; i, j = i+1, j-1 {
				c.rules[i], c.rules[j] = c.rules[j], c.rules[i]
			}
		}
	}
	// A consent by which everybody is denied can be found by whoever is to lift it; not by who is denied by name.
	if denied, _ := JudgeConsents([]ConsentRule{deny}, "Consent", 0, "TREAT", now); denied {
		t.Error("a consent hides itself")
	}
	if denied, _ := JudgeConsents([]ConsentRule{named(deny)}, "Consent", 0, "TREAT", now); !denied {
		t.Error("who is denied by name finds the consent")
	}
}

// TestPrecedence: forbid > consent > emergency > relationship, scope and role, each step against all that stand below it.
func TestPrecedence(t *testing.T) {
	chen, rivera := doctor("chen"), doctor("rivera")
	deny := ConsentRule{Consent: "c"}
	permit := func(purpose string) ConsentRule {
		return ConsentRule{Consent: "c", Depth: 1, Permit: true, Purposes: []string{purpose}}
	}
	forbid := Permission{Role: "clinician", Type: "*", Interactions: "cruds", Relation: RelationNone, Effect: Forbid}
	for _, c := range []struct {
		name     string
		who      *Principal
		segment  Segment
		consents []ConsentRule
		grant    bool
		over     bool // the setting
		forbid   []Permission
		reason   Reason
		purpose  string // of an allowance
	}{
		{"related", rivera, 0, nil, false, false, nil, ReasonAllowed, "TREAT"},
		{"not related", chen, 0, nil, false, false, nil, ReasonRelationship, ""},
		{"not related, in an emergency", chen, 0, nil, true, false, nil, ReasonAllowed, "BTG"},
		{"related, a segment", rivera, SegmentPart2, nil, false, false, nil, ReasonSegment, ""},
		{"related, a segment that is opened", rivera, SegmentPart2, []ConsentRule{{Consent: "c", Permit: true, Segments: part2}}, false, false, nil, ReasonAllowed, "TREAT"},
		{"not related, a segment that is opened", chen, SegmentPart2, []ConsentRule{{Consent: "c", Permit: true, Segments: part2}}, false, false, nil, ReasonRelationship, ""},
		{"a segment in an emergency", rivera, SegmentPart2, nil, true, false, nil, ReasonAllowed, "BTG"},
		{"notes in an emergency", rivera, SegmentPsychotherapy, nil, true, false, nil, ReasonSegment, ""},
		{"related, denied", rivera, 0, []ConsentRule{deny}, false, false, nil, ReasonConsent, ""},
		{"related, denied, in an emergency", rivera, 0, []ConsentRule{deny}, true, false, nil, ReasonConsent, ""},
		{"not related, denied, in an emergency", chen, 0, []ConsentRule{deny}, true, false, nil, ReasonConsent, ""},
		{"denied but in emergencies", chen, 0, []ConsentRule{deny, permit("BTG")}, true, false, nil, ReasonAllowed, "BTG"},
		{"denied but in emergencies, and this is none", rivera, 0, []ConsentRule{deny, permit("BTG")}, false, false, nil, ReasonConsent, ""},
		{"the setting lets emergencies through", chen, 0, []ConsentRule{deny}, true, true, nil, ReasonAllowed, "BTG"},
		{"the setting is about emergencies", rivera, 0, []ConsentRule{deny}, false, true, nil, ReasonConsent, ""},
		{"forbidden", rivera, 0, nil, false, false, []Permission{forbid}, ReasonForbidden, ""},
		{"forbidden, in an emergency", chen, 0, nil, true, true, []Permission{forbid}, ReasonForbidden, ""},
		{"forbidden, permitted by consent", rivera, SegmentPart2, []ConsentRule{{Consent: "c", Permit: true, Segments: part2}}, false, false, []Permission{forbid}, ReasonForbidden, ""},
		{"another letter is forbidden", rivera, 0, nil, false, false, []Permission{{Role: "clinician", Type: "*", Interactions: "c", Relation: RelationNone, Effect: Forbid}}, ReasonAllowed, "TREAT"},
		{"another purpose is forbidden", rivera, 0, nil, false, false, []Permission{{Role: "clinician", Type: "*", Interactions: "r", Relation: RelationNone, Effect: Forbid, Purposes: []string{"HRESCH"}}}, ReasonAllowed, "TREAT"},
		{"a segment is forbidden", rivera, 0, nil, false, false, []Permission{{Role: "clinician", Type: "*", Interactions: "r", Relation: RelationNone, Effect: Forbid, Segments: []string{"part2"}}}, ReasonAllowed, "TREAT"},
		{"that segment", rivera, SegmentPart2, []ConsentRule{{Consent: "c", Permit: true, Segments: part2}}, false, false, []Permission{{Role: "clinician", Type: "*", Interactions: "r", Relation: RelationNone, Effect: Forbid, Segments: []string{"part2"}}}, ReasonForbidden, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWard()
			w.consents["pat-1"] = c.consents
			w.policy.EmergencyOverConsent = c.over
			w.policy.Permissions = append(w.policy.Permissions, c.forbid...)
			if c.grant {
				w.grant(c.who, "pat-1", time.Minute)
			}
			a := newWardAccess(t, w)
			r := Request{Interaction: Read, Type: "Observation", Patients: []string{"pat-1"}, Segment: c.segment}
			for range 2 { // cold, then warm
				if d := a.Check(t.Context(), c.who, r); d.Reason != c.reason || d.Allowed != (c.reason == ReasonAllowed) || d.Allowed && d.Purpose != c.purpose {
					t.Errorf("%+v, want %s for %s", d, c.reason, c.purpose)
				}
				a.known.cache.Wait()
			}
		})
	}
}

// Consents are about others than the patient, and not about what the deployment does for itself.
func TestWhomConsentsAreAbout(t *testing.T) {
	w := newWard()
	w.consents["pat-1"] = []ConsentRule{{Consent: "c"}, {Consent: "d", Permit: true, Segments: notes, Actor: "Patient/pat-1"}}
	a := newWardAccess(t, w)
	patient := person("patient", "patient/*.rs", "Patient/pat-1", "pat-1")
	patient.Issuer = "https://issuer.test"
	service, system := person("backend", "system/*.cruds", "", ""), person("backend", "system/*.cruds", "", "")
	service.Issuer = "https://issuer.test"
	for _, c := range []struct {
		who    *Principal
		reason Reason
	}{{patient, ReasonAllowed}, {doctor("rivera"), ReasonConsent}, {service, ReasonConsent}, {system, ReasonAllowed}} {
		r := Request{Interaction: Read, Type: "Observation", Patients: []string{"pat-1"}}
		if d := a.Check(t.Context(), c.who, r); d.Reason != c.reason {
			t.Errorf("%s: %+v, want %s", c.who.Subject, d, c.reason)
		}
		r.Interaction = Search
		if f := a.Filter(t.Context(), c.who, r); f.Exempt != (c.reason == ReasonAllowed) {
			t.Errorf("%s: %+v", c.who.Subject, f)
		}
	}
	// 45 CFR 164.524(a)(1)(i): not the psychotherapy notes.
	if d := a.Check(t.Context(), patient, Request{Interaction: Read, Type: "Observation", Patients: []string{"pat-1"}, Segment: SegmentPsychotherapy}); d.Reason != ReasonSegment {
		t.Errorf("%+v", d)
	}
}

// A record of several patients is closed by a consent of any of them, and its segment opened by all of them together.
func TestConsentsOfSeveralPatients(t *testing.T) {
	w := newWard()
	w.consents["pat-1"] = []ConsentRule{{Consent: "c", Permit: true, Segments: part2}}
	a := newWardAccess(t, w)
	both := Request{Interaction: Read, Type: "Group", Patients: []string{"pat-1", "pat-2"}}
	for _, c := range []struct {
		second  []ConsentRule
		segment Segment
		reason  Reason
	}{
		{nil, 0, ReasonAllowed},
		{nil, SegmentPart2, ReasonSegment},
		{[]ConsentRule{{Consent: "d", Permit: true, Segments: part2}}, SegmentPart2, ReasonAllowed},
		{[]ConsentRule{{Consent: "d"}}, 0, ReasonConsent},
	} {
		w.change(func() { w.consents["pat-2"] = c.second; w.epoch++ })
		if err := a.Refresh(t.Context()); err != nil {
			t.Fatal(err)
		}
		both.Segment = c.segment
		for i := range 2 {
			both.Patients[0], both.Patients[1] = both.Patients[1], both.Patients[0]
			if d := a.Check(t.Context(), doctor("rivera"), both); d.Reason != c.reason {
				t.Errorf("%+v, segment %d, %d: %+v, want %s", c.second, c.segment, i, d, c.reason)
			}
			a.known.cache.Wait()
		}
	}
}

// sharded are facts whose people have shards of their own.
type sharded struct {
	*ward
	epochs Epochs
}

func (s *sharded) Epochs(context.Context) (Epochs, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.epochs, s.err
}

func (s *sharded) Facts(ctx context.Context, a Actor, patients []string) ([]Fact, error) {
	list, err := s.ward.Facts(ctx, a, patients)
	for i := range list {
		list[i].RelationshipShard, list[i].ConsentShard = a.Practitioner[0], patients[i][len(patients[i])-1]
	}
	return list, err
}

// TestShards: a change about one practitioner, or one patient, leaves what is known of others standing.
func TestShards(t *testing.T) {
	s := &sharded{ward: newWard()}
	s.related[[2]string{"okafor", "pat-1"}] = true
	s.epochs.Policy = s.policy.Version
	a, err := NewAccess(t.Context(), AccessConfig{Storage: s})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	pairs := [][2]string{{"rivera", "pat-1"}, {"rivera", "pat-2"}, {"okafor", "pat-1"}}
	asked := func() string {
		var cold []string
		for _, p := range pairs {
			before := s.asked()
			if d := a.Check(t.Context(), doctor(p[0]), Request{Interaction: Read, Type: "Patient", Patients: []string{p[1]}}); !d.Allowed {
				t.Fatalf("%v: %+v", p, d)
			}
			a.known.cache.Wait()
			if s.asked() != before {
				cold = append(cold, strings.Join(p[:], " of "))
			}
		}
		return strings.Join(cold, ", ")
	}
	bump := func(n *int64) {
		s.change(func() { *n++ })
		if err := a.Refresh(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		change *int64
		want   string
	}{
		{&s.epochs.Emergency, "rivera of pat-1, rivera of pat-2, okafor of pat-1"},
		{&s.epochs.Emergency, ""},
		{&s.epochs.Relationship['o'], "okafor of pat-1"},
		{&s.epochs.Relationship['r'], "rivera of pat-1, rivera of pat-2"},
		{&s.epochs.Relationship['x'], ""},
		{&s.epochs.Consent['1'], "rivera of pat-1, okafor of pat-1"},
		{&s.epochs.Consent['2'], "rivera of pat-2"},
		{&s.epochs.Consent['r'], ""},
	} {
		bump(c.change)
		if got := asked(); got != c.want {
			t.Errorf("asked for %q again, want %q", got, c.want)
		}
	}
}

// What forbids, and what is open by role, is in the filter.
func TestFilterCarriesGates(t *testing.T) {
	w := newWard()
	w.policy.Permissions = append(w.policy.Permissions,
		Permission{Role: "therapist", Type: "*", Interactions: "rs", View: "full", Relation: RelationTreatment, Purposes: []string{"TREAT"}, Segments: []string{"psychotherapy"}},
		Permission{Role: "therapist", Type: "*", Interactions: "s", Relation: RelationNone, Effect: Forbid, Segments: []string{"part2"}},
		Permission{Role: "therapist", Type: "Claim", Interactions: "s", Relation: RelationNone, Effect: Forbid})
	a := newWardAccess(t, w)
	p := doctor("rivera")
	p.Roles = []string{"therapist"}
	f := a.Filter(t.Context(), p, Request{Interaction: Search, Type: "Observation"})
	if want := (Filter{Decision: f.Decision, Practitioner: "rivera", Actor: Actor{Subject: "rivera", Practitioner: "rivera"}, Segments: notes, Closed: part2}); !f.Allowed || fmt.Sprint(f) != fmt.Sprint(want) {
		t.Errorf("got  %+v\nwant %+v", f, want)
	}
	if f := a.Filter(t.Context(), p, Request{Interaction: Search, Type: "Claim"}); f.Reason != ReasonForbidden {
		t.Errorf("%+v", f)
	}
}

// A purpose is one that a permission of the caller's has; others are refused, by whoever they are declared.
func TestPurposes(t *testing.T) {
	w := newWard()
	a := newWardAccess(t, w)
	for _, c := range []struct {
		purpose string
		reason  Reason
		applied string
	}{{"", ReasonAllowed, "TREAT"}, {"TREAT", ReasonAllowed, "TREAT"}, {"HPAYMT", ReasonPurpose, ""}, {"BTG", ReasonPurpose, ""}, {"ETREAT", ReasonPurpose, ""}, {"NOSUCH", ReasonPurpose, ""}} {
		d := a.Check(t.Context(), doctor("rivera"), Request{Interaction: Read, Type: "Patient", Patients: []string{"pat-1"}, Purpose: c.purpose})
		f := a.Filter(t.Context(), doctor("rivera"), Request{Interaction: Search, Type: "Patient", Purpose: c.purpose})
		if d.Reason != c.reason || f.Reason != c.reason || d.Allowed && (d.Purpose != c.applied || f.Purpose != c.applied) {
			t.Errorf("%q: %+v, %+v", c.purpose, d, f.Decision)
		}
	}
}

// Consents cost a decision no allocation either.
func TestConsentsAllocateNothing(t *testing.T) {
	w := newWard()
	w.consents["pat-1"] = []ConsentRule{
		{Consent: "c", Purposes: []string{"HRESCH"}}, {Consent: "d", Actor: "Practitioner/rivera"}, {Consent: "d", Depth: 1, Permit: true, Until: time.Now().Add(time.Hour)},
	}
	a := newWardAccess(t, w)
	p, r, ctx := doctor("rivera"), Request{Interaction: Read, Type: "Observation", Patients: []string{"pat-1"}}, t.Context()
	a.Check(ctx, p, r)
	a.known.cache.Wait()
	if n := testing.AllocsPerRun(1000, func() {
		if !a.Check(ctx, p, r).Allowed {
			t.Fatal("denied")
		}
	}); n != 0 && !raceEnabled {
		t.Errorf("%v allocations", n)
	}
}

// TestJudgeConsentsAsDefined holds the one pass over the rules against the definition, read out rule by rule.
func TestJudgeConsentsAsDefined(t *testing.T) {
	now := time.Now()
	rapid.Check(t, func(t *rapid.T) {
		var rules []ConsentRule
		for _, consent := range []string{"a", "b", "c"} {
			for range rapid.IntRange(0, 4).Draw(t, "rules of "+consent) {
				rules = append(rules, ConsentRule{
					Consent: consent, Depth: rapid.IntRange(0, 3).Draw(t, "depth"), Permit: rapid.Bool().Draw(t, "permit"),
					Actor:    rapid.SampledFrom([]string{"", "Practitioner/rivera"}).Draw(t, "actor"),
					Segments: SegmentSet(rapid.SampledFrom([]int{0, 2, 4, 6}).Draw(t, "segments")),
				})
			}
		}
		segment := Segment(rapid.IntRange(0, 2).Draw(t, "segment"))
		var denied, opened bool
		for i := range rules {
			c := &rules[i]
			overruled := slices.ContainsFunc(rules, func(o ConsentRule) bool {
				return o.Consent == c.Consent && o.Permit != c.Permit && o.about("Goal", segment, "TREAT", now) &&
					(o.Depth > c.Depth || c.Permit && o.Depth == c.Depth)
			})
			if !c.about("Goal", segment, "TREAT", now) || overruled {
				continue
			}
			denied = denied || !c.Permit
			opened = opened || c.opens(segment)
		}
		if d, o := JudgeConsents(rules, "Goal", segment, "TREAT", now); d != denied || o != opened {
			t.Fatalf("denied %t, opened %t, want %t, %t of %+v", d, o, denied, opened, rules)
		}
	})
}

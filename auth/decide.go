package auth

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"
)

const backendRole = "backend" // the only role for which system/ scopes count

// A decision passes gates, and the first that stays shut names the reason:
//
//	scope         the token's scopes cover type and interaction; Only is what they leave of the records
//	role          a rule of one of the caller's roles permits them; rules are tried widest view first
//	purpose       the rule has the purpose of use that was asked for
//	step-up       the sign-in is as strong and as fresh as the rule demands
//	compartment   who is bound to one patient stays with that patient
//	relationship  the caller is in treatment with the patient, when the rule demands it
//	consent       no consent of the patient keeps the caller out
//	segment       the role, or a consent, opens the segment that the record is in
//	forbid        no forbidding rule applies, which nothing overcomes
//
// Emergency access stands in for role, purpose, relationship and segment when one of these stayed shut, to read only.

// serves reports whether system/ scopes count: for a backend service (SMART Backend Services), not in a session that somebody signed
// in to, whatever roles that one has.
func serves(p *Principal, roles []string) bool {
	return p.FHIRUser == "" && p.AuthTime.IsZero() && slices.Contains(roles, backendRole)
}

// weigh tries the rules of the principal, widest first, and returns the first that applies, or the denial of the rule
// that came nearest. applies judges what a rule demands beyond role, letter, purpose and step-up.
func (a *Access) weigh(s *snapshot, p *Principal, i Interaction, resourceType, purpose string, applies func(r *rule, bound bool, purpose string, now time.Time) (Reason, string)) Decision {
	d := Decision{Purpose: purpose, Policy: s.version, Reason: ReasonScope}
	if p == nil {
		return d
	}
	now := a.now()
	h := s.held(p, now)
	bound, only, ok := p.Scopes.reach(serves(p, h.names), resourceType, i)
	if !ok {
		return d
	}
	d.Reason, d.Only = ReasonRole, only
	for list := s.all(h, resourceType, i); list.next(); {
		r := list.rule
		applied, ok := r.purpose(purpose)
		reason, related := ReasonPurpose, ""
		if ok {
			if reason = r.stepUp.judge(p, now); reason == ReasonAllowed {
				reason, related = applies(r, bound, applied, now)
			}
		}
		if reason == ReasonAllowed {
			return Decision{Allowed: true, View: r.view, Purpose: applied, Rule: r.name, Reason: reason, Policy: s.version, Related: related, Only: only}
		}
		if reason.nearness() > d.Reason.nearness() {
			d.Reason, d.Rule, d.Purpose, d.StepUp = reason, r.name, applied, StepUp{}
			if reason == ReasonStepUp {
				d.StepUp = r.stepUp
			}
		}
	}
	return d
}

// judge reports whether a sign-in is strong and fresh enough. A token that does not say when somebody signed in is as old as can be.
func (u StepUp) judge(p *Principal, now time.Time) Reason {
	if len(u.ACR) > 0 && !slices.Contains(u.ACR, p.ACR) || u.MaxAge > 0 && now.Sub(p.AuthTime) > u.MaxAge {
		return ReasonStepUp
	}
	return ReasonAllowed
}

// nearness orders denials by how many demands were met before the one that failed. A fact that could not be looked up
// comes last: with it the answer might have been yes, and the caller may try again.
func (r Reason) nearness() int {
	switch r {
	case ReasonRole:
		return 1
	case ReasonPurpose:
		return 2
	case ReasonStepUp:
		return 3
	case ReasonCompartment:
		return 4
	case ReasonRelationship:
		return 5
	case ReasonConsent:
		return 6
	case ReasonSegment:
		return 7
	case ReasonUnavailable:
		return 8
	default:
		return 0
	}
}

// Check decides about one record. A record in nobody's compartment (an Organization, say) needs no relationship, and
// those who are bound to one patient may read it, not write it. A stray is not one of these: it is somebody's, and only a
// rule without relation opens it.
func (a *Access) Check(ctx context.Context, p *Principal, r Request) Decision {
	s := a.policy.Load()
	d := a.weigh(s, p, r.Interaction, r.Type, r.Purpose, func(rule *rule, bound bool, purpose string, now time.Time) (Reason, string) {
		if (bound || rule.relation == RelationSelf) && (r.Stray || !own(p, r)) {
			return ReasonCompartment, ""
		}
		if rule.relation == RelationTreatment && r.Stray {
			return ReasonRelationship, ""
		}
		return a.facts(ctx, p, r, rule, purpose, now)
	})
	if !d.Allowed {
		d = a.rescue(ctx, p, r, d)
	}
	if !s.forbidding { // a decision is large enough for a copy of it to show
		return d
	}
	return s.forbid(p, a.now, r.Interaction, r.Type, r.Segment, d)
}

// own reports whether the record is open to somebody bound to the launch patient.
func own(p *Principal, r Request) bool {
	if p.Patient == "" {
		return false
	}
	if len(r.Patients) == 0 {
		return r.Interaction == Read || r.Interaction == Search
	}
	return slices.Contains(r.Patients, p.Patient)
}

// actor is whom facts about the principal are kept under.
func actor(p *Principal) Actor { return Actor{Subject: p.Subject, Practitioner: practitioner(p)} }

const practitioners = "Practitioner/"

// practitioner returns the id in a FHIRUser "Practitioner/ID". An absolute URL names a practitioner of another server,
// who may bear the id of one of ours.
func practitioner(p *Principal) string {
	id, ok := strings.CutPrefix(p.FHIRUser, practitioners)
	if !ok || !isID(id) {
		return ""
	}
	return id
}

// facts holds a request against what is known of the caller and the record's patients: a relationship with one of them, no consent of
// any of them against it, and the segment opened by the role or by all of them.
func (a *Access) facts(ctx context.Context, p *Principal, r Request, rule *rule, purpose string, now time.Time) (Reason, string) {
	treated := rule.relation == RelationTreatment && len(r.Patients) > 0
	exempt := len(r.Patients) == 0 || p.exempt(rule.relation)
	var known judged
	if treated || !exempt {
		if treated && !strings.HasPrefix(p.FHIRUser, practitioners) { // spares the look; one that is no id is related to nobody
			return ReasonRelationship, ""
		}
		var err error
		if known, err = a.look(ctx, p, r, purpose, treated, now); err != nil {
			return a.unknown(ctx, err), ""
		}
	}
	switch {
	case treated && known.related == "":
		return ReasonRelationship, ""
	case !exempt && known.denied:
		return ReasonConsent, ""
	case !rule.segments.Has(r.Segment) && (exempt || !known.opened):
		return ReasonSegment, ""
	case !treated:
		return ReasonAllowed, ""
	}
	return ReasonAllowed, known.related
}

// related looks for a treatment relationship with one patient alone.
func (a *Access) related(ctx context.Context, p *Principal, patient string, now time.Time) (Reason, string) {
	if practitioner(p) == "" {
		return ReasonRelationship, ""
	}
	known, err := a.look(ctx, p, Request{Patients: []string{patient}}, "", true, now)
	switch {
	case err != nil:
		return a.unknown(ctx, err), ""
	case known.related == "":
		return ReasonRelationship, ""
	}
	return ReasonAllowed, known.related
}

// unknown is the reason of a denial when facts could not be looked up. The text of a storage error may quote its arguments, which name
// a patient. What lasts is told by Run, once.
func (a *Access) unknown(ctx context.Context, err error) Reason {
	a.logger.DebugContext(ctx, "facts could not be looked up", "error_type", fmt.Sprintf("%T", err))
	return ReasonUnavailable
}

// closed returns the segments that a forbidding rule closes to an allowed search.
func (a *Access) closed(s *snapshot, p *Principal, r Request, d Decision) (set SegmentSet) {
	if !d.Allowed || !s.forbidding {
		return 0
	}
	for x := SegmentPart2; int(x) < len(segmentNames); x++ {
		if !s.forbid(p, a.now, r.Interaction, r.Type, x, d).Allowed {
			set |= 1 << x
		}
	}
	return set
}

// Type decides what can be decided without looking at a record: scope and role on the type. A denial here is 403; a
// denial by Check after an allowance here is answered as 404, so that existence does not leak. The view is that of the
// widest rule; Check may find that only a narrower one applies.
func (a *Access) Type(p *Principal, i Interaction, resourceType, purpose string) Decision {
	s := a.policy.Load()
	d := a.weigh(s, p, i, resourceType, purpose, func(r *rule, bound bool, _ string, _ time.Time) (Reason, string) {
		if (bound || r.relation == RelationSelf) && p.Patient == "" {
			return ReasonCompartment, ""
		}
		return ReasonAllowed, ""
	})
	if !d.Allowed {
		d = a.rescueType(p, i, resourceType, purpose, d)
	}
	return s.forbid(p, a.now, i, resourceType, SegmentGeneral, d)
}

// Filter decides about a search over a type. It does not look at Request.Patients: whatever the search asks for, only
// what the filter lets through may be found. For a type that is in no patient's compartment (Organization) Patient and
// Practitioner restrict nothing, as with Check.
func (a *Access) Filter(ctx context.Context, p *Principal, r Request) Filter {
	s := a.policy.Load()
	var f Filter
	f.Decision = a.weigh(s, p, r.Interaction, r.Type, r.Purpose, func(rule *rule, bound bool, _ string, now time.Time) (Reason, string) {
		f.Segments, f.Exempt = rule.segments, p.exempt(rule.relation)
		switch {
		case bound || rule.relation == RelationSelf:
			if p.Patient == "" {
				return ReasonCompartment, ""
			}
			related := ""
			if rule.relation == RelationTreatment {
				var reason Reason
				if reason, related = a.related(ctx, p, p.Patient, now); reason != ReasonAllowed {
					return reason, ""
				}
			}
			f.Patient = p.Patient
			return ReasonAllowed, related
		case rule.relation == RelationTreatment:
			id := practitioner(p)
			if id == "" {
				return ReasonRelationship, ""
			}
			f.Practitioner = id
		default:
			f.All = true
		}
		return ReasonAllowed, ""
	})
	if p != nil {
		f.Actor = actor(p)
	}
	if rescued, ok := a.rescueSearch(ctx, p, r); ok {
		return rescued
	}
	f.Decision = s.forbid(p, a.now, r.Interaction, r.Type, SegmentGeneral, f.Decision)
	f.Closed = a.closed(s, p, r, f.Decision)
	return f
}

// May reports whether a role of the principal has the capability (e.g. "audit:read").
func (a *Access) May(p *Principal, capability string) Decision {
	s := a.policy.Load()
	d := Decision{Reason: ReasonRole, Policy: s.version}
	if p == nil {
		return d
	}
	now := a.now()
	h := s.held(p, now)
	for _, c := range s.capabilities[capability] {
		if !h.set.has(c.role) {
			continue
		}
		if reason := c.stepUp.judge(p, now); reason != ReasonAllowed {
			d = Decision{Rule: c.rule, Reason: reason, Policy: s.version, StepUp: c.stepUp}
			continue
		}
		return Decision{Allowed: true, Rule: c.rule, Reason: ReasonAllowed, Policy: s.version}
	}
	return d
}

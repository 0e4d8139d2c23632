package auth

import (
	"context"
	"slices"
	"time"
)

// emergencies are the grants of emergency access that are in force; immutable.
type emergencies struct {
	epoch int64
	held  map[emergency]heldGrant
}

// emergency is whom a grant lets do what.
type emergency struct{ subject, session, patient string }

// heldGrant is a grant with its end on the clock of Access: a step of the wall clock does not lengthen it.
type heldGrant struct {
	Grant
	until time.Duration
}

// newEmergencies takes over what the storage told when it was asked. Of two grants for the same the one that lasts longer counts.
func newEmergencies(epoch int64, asked time.Duration, list []Grant) *emergencies {
	e := &emergencies{epoch: epoch, held: make(map[emergency]heldGrant, len(list))}
	for _, g := range list {
		key := emergency{g.Subject, g.Session, g.Patient}
		if h := (heldGrant{g, asked + g.Left}); h.until > e.held[key].until {
			e.held[key] = h
		}
	}
	return e
}

// in reports whether the grant is in force.
func (h heldGrant) in(wall time.Time, clock time.Duration) bool {
	return clock < h.until && wall.Before(h.Until)
}

// Emergency access, in what this package decides about.
const (
	emergencyPurpose    = "BTG" // purpose of use of everything that is read under a grant (v3-ActReason, "break the glass")
	emergencyView       = "full"
	emergencyCapability = "emergency:request" // whoever lost it has no use of a grant any more
)

// urgent reports whether a purpose of use that was asked for can be that of an emergency.
func urgent(purpose string) bool {
	return purpose == "" || purpose == "TREAT" || purpose == "ETREAT" || purpose == emergencyPurpose
}

// overcome reports whether a grant helps against a denial. Scopes, the strength of a sign-in, the bounds of a launch, explicit refusals
// and facts that are not known are not its to overcome.
func (r Reason) overcome() bool {
	switch r {
	case ReasonRole, ReasonPurpose, ReasonRelationship, ReasonConsent, ReasonSegment: // consents are asked about the emergency's own purpose
		return true
	}
	return false
}

// GrantOf returns the caller's grant for one of the patients while it is in force and the caller may use it; false when there is none.
func (a *Access) GrantOf(p *Principal, patients []string) (Grant, bool) {
	held := a.grants.Load().held
	if len(held) == 0 || p == nil {
		return Grant{}, false
	}
	wall, clock := a.now(), a.clock()
	for _, patient := range patients {
		if h, ok := held[emergency{p.Subject, p.Session, patient}]; ok && h.in(wall, clock) && a.policy.Load().has(p, wall, emergencyCapability) {
			return h.Grant, true
		}
	}
	return Grant{}, false
}

// Granted returns the grant with an id while it is in force.
func (a *Access) Granted(id string) (Grant, bool) {
	wall, clock := a.now(), a.clock()
	for _, h := range a.grants.Load().held {
		if h.ID == id && h.in(wall, clock) {
			return h.Grant, true
		}
	}
	return Grant{}, false
}

// rescue turns a denial into an allowance when the caller holds a grant for a patient of the record, to read. Psychotherapy notes stay
// shut (45 CFR 164.508(a)(2)), and so does what a patient's consent denies to the caller.
func (a *Access) rescue(ctx context.Context, p *Principal, r Request, d Decision) Decision {
	if r.Interaction != Read && r.Interaction != Search || r.Stray || !urgent(r.Purpose) || !d.Reason.overcome() || r.Segment == SegmentPsychotherapy {
		return d
	}
	if !p.mayBeRescued(r) {
		return d
	}
	g, ok := a.GrantOf(p, r.Patients)
	if !ok {
		return d
	}
	known, err := a.look(ctx, p, r, emergencyPurpose, false, a.now())
	switch {
	case err != nil || !a.leased(a.clock()): // it may have been revoked elsewhere
		return Decision{Reason: ReasonUnavailable, Purpose: emergencyPurpose, Policy: d.Policy}
	case known.denied && !a.policy.Load().emergencyOverConsent:
		return Decision{Reason: ReasonConsent, Purpose: emergencyPurpose, Policy: d.Policy}
	}
	return d.broken(g, r.Interaction, r.Type)
}

// mayBeRescued reports whether the token reaches the record by what somebody's scopes say: system/ scopes are nobody's, and a launch for
// another patient stays with that one, whatever gate stayed shut before its compartment was looked at.
func (p *Principal) mayBeRescued(r Request) bool {
	bound, _, ok := p.Scopes.reach(false, r.Type, r.Interaction)
	return ok && (!bound || own(p, r))
}

// broken is the allowance of a grant in the place of a denial. What granular scopes leave stays the bound.
func (d Decision) broken(g Grant, i Interaction, resourceType string) Decision {
	return Decision{
		Allowed: true, View: emergencyView, Purpose: emergencyPurpose, Rule: "emergency:" + resourceType + ":" + string(rune(i)) + ":grant",
		Reason: ReasonAllowed, Policy: d.Policy, Emergency: g.ID, Only: d.Only,
	}
}

// rescueType is rescue before a record is known: it may come to an allowance when the caller holds any grant.
func (a *Access) rescueType(p *Principal, i Interaction, resourceType, purpose string, d Decision) Decision {
	if p == nil || i != Read && i != Search || !urgent(purpose) || d.Reason != ReasonRole && d.Reason != ReasonPurpose {
		return d
	}
	for k := range a.grants.Load().held {
		if k.subject != p.Subject || k.session != p.Session {
			continue
		}
		if g, ok := a.GrantOf(p, []string{k.patient}); ok {
			return d.broken(g, i, resourceType)
		}
	}
	return d
}

// rescueSearch is rescue for a search that names one patient: with a grant it finds what Check lets the caller read under it. false
// leaves the search to what the caller may see anyway.
func (a *Access) rescueSearch(ctx context.Context, p *Principal, r Request) (Filter, bool) {
	if len(r.Patients) != 1 {
		return Filter{}, false
	}
	if _, ok := a.GrantOf(p, r.Patients); !ok {
		return Filter{}, false
	}
	r.Segment = SegmentGeneral
	general := a.Check(ctx, p, r)
	r.Segment = SegmentPart2
	part2 := a.Check(ctx, p, r)
	if general.Emergency == "" && part2.Emergency == "" || !general.Allowed {
		return Filter{}, false
	}
	// Psychotherapy notes are not found, whoever may open them otherwise: a consent is asked about the purpose of the grant here, and by
	// Check about the ordinary one.
	f := Filter{Decision: general, Patient: r.Patients[0], Actor: actor(p), Exempt: a.policy.Load().emergencyOverConsent, Closed: 1 << SegmentPsychotherapy}
	if part2.Allowed {
		f.Segments = 1 << SegmentPart2
	} else {
		f.Closed |= 1 << SegmentPart2
	}
	if general.Emergency == "" { // ordinary access but for the segment: what is found is found under the grant, and shown as ordinarily
		f.Decision, f.View = part2, general.View
	}
	return f, true
}

// has reports whether a role of the principal has a capability, however old the sign-in is.
func (s *snapshot) has(p *Principal, now time.Time, name string) bool {
	h := s.held(p, now)
	return slices.ContainsFunc(s.capabilities[name], func(c capability) bool { return h.set.has(c.role) })
}

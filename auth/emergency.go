package auth

// emergencies are the grants of emergency access that are in force; immutable.
type emergencies struct {
	epoch int64
	held  map[emergency]Grant
}

// emergency is whom a grant lets do what.
type emergency struct{ subject, session, patient string }

func newEmergencies(epoch int64, list []Grant) *emergencies {
	e := &emergencies{epoch: epoch, held: make(map[emergency]Grant, len(list))}
	for _, g := range list {
		e.held[emergency{g.Subject, g.Session, g.Patient}] = g
	}
	return e
}

// emergencyPurpose is the purpose of use of everything that is read under a grant (v3-ActReason, "break the glass").
const emergencyPurpose = "BTG"

// rescue turns a denial into an allowance when the caller holds a grant for the patient, to read. Scopes, explicit refusals of the
// patient and facts that are not known are not its to overcome.
func (a *Access) rescue(p *Principal, r Request, d Decision) Decision {
	if p == nil || r.Interaction != Read && r.Interaction != Search || r.Stray {
		return d
	}
	switch d.Reason {
	case ReasonRole, ReasonPurpose, ReasonRelationship, ReasonSegment:
	default:
		return d
	}
	held, now := a.grants.Load().held, a.now()
	if len(held) == 0 || !a.leased(a.clock()) {
		return d
	}
	for _, patient := range r.Patients {
		g, ok := held[emergency{p.Subject, p.Session, patient}]
		if ok && now.Before(g.Until) && r.Segment != SegmentPsychotherapy {
			return Decision{
				Allowed: true, View: "full", Purpose: emergencyPurpose, Rule: "emergency:" + r.Type + ":" + string(rune(r.Interaction)) + ":grant",
				Reason: ReasonAllowed, Policy: d.Policy, Emergency: g.ID, Only: d.Only,
			}
		}
	}
	return d
}

// rescueType is rescue before a record is known: it may come to an allowance when the caller holds any grant.
func (a *Access) rescueType(p *Principal, i Interaction, resourceType, _ string, d Decision) Decision {
	if p == nil || i != Read && i != Search || d.Reason != ReasonRole && d.Reason != ReasonPurpose {
		return d
	}
	now := a.now()
	for k, g := range a.grants.Load().held {
		if k.subject == p.Subject && k.session == p.Session && now.Before(g.Until) {
			return Decision{
				Allowed: true, View: "full", Purpose: emergencyPurpose, Rule: "emergency:" + resourceType + ":" + string(rune(i)) + ":grant",
				Reason: ReasonAllowed, Policy: d.Policy, Emergency: g.ID, Only: d.Only,
			}
		}
	}
	return d
}

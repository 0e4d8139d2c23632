package auth

import (
	"context"
	"slices"
	"time"
)

// Gate is one demand of a decision, judged by itself: also when another one has stopped the request before.
type Gate struct {
	Name   string
	State  GateState
	Reason Reason // of the denial, when it failed
	Detail string // what it was passed with: a rule, a purpose, a relationship's source, a grant's id; never PHI
}

// GateState is how a gate was found.
type GateState string

const (
	GatePassed     GateState = "passed"
	GateFailed     GateState = "failed"
	GateNotNeeded  GateState = "not needed"  // nothing was demanded
	GateNotReached GateState = "not reached" // not judged: what it needs was not there, or is not known any more
)

// Names of gates, in the order in which they are passed. GateEmergency stands in for those that emergency access overcomes.
const (
	GateScope        = "scope"
	GateRole         = "role"
	GatePurpose      = "purpose"
	GateStepUp       = "step-up"
	GateCompartment  = "compartment"
	GateRelationship = "relationship"
	GateConsent      = "consent"
	GateSegment      = "segment"
	GateEmergency    = "emergency"
	GateForbid       = "forbid"
	GateView         = "view"
)

// GateNames are the gates in their order.
func GateNames() []string {
	return []string{
		GateScope, GateRole, GatePurpose, GateStepUp, GateCompartment, GateRelationship, GateConsent, GateSegment, GateEmergency, GateForbid, GateView,
	}
}

// GateOf is the gate at which a reason stops a request.
func GateOf(r Reason) string {
	switch r {
	case ReasonScope:
		return GateScope
	case ReasonRole:
		return GateRole
	case ReasonPurpose:
		return GatePurpose
	case ReasonStepUp:
		return GateStepUp
	case ReasonCompartment:
		return GateCompartment
	case ReasonRelationship, ReasonUnavailable:
		return GateRelationship
	case ReasonConsent:
		return GateConsent
	case ReasonSegment:
		return GateSegment
	case ReasonForbidden:
		return GateForbid
	}
	return ""
}

// Verdict is what gates come to together: the decision that they explain.
func Verdict(gates []Gate) (allowed bool, reason Reason) {
	reason = ReasonAllowed
	var rescued, forbidden *Gate
	for i := range gates {
		switch g := &gates[i]; {
		case g.Name == GateEmergency:
			rescued = g
		case g.State != GateFailed:
		case g.Name == GateForbid:
			forbidden = g
		case reason == ReasonAllowed:
			reason = g.Reason
		}
	}
	if reason != ReasonAllowed && rescued != nil {
		switch rescued.State {
		case GatePassed:
			reason = ReasonAllowed
		case GateFailed:
			reason = rescued.Reason
		}
	}
	if reason == ReasonAllowed && forbidden != nil {
		reason = forbidden.Reason
	}
	return reason == ReasonAllowed, reason
}

// Recorded is a decision that was made, as far as the trail has it.
type Recorded struct {
	Principal *Principal // with the roles of the token, and with AuthTime and ACR when they are known; its scopes do not matter
	Request   Request
	At        time.Time
	Allowed   bool
	Reason    Reason
	Related   string // source of the treatment relationship
	Emergency string // id of the emergency access, "" for ordinary access
}

// Replay judges a recorded decision under a policy and with the facts that were recorded: what they do not tell is taken to have been as
// the decision says. Assignments of the policy are those of the moment.
func Replay(d Recorded, policy Policy) ([]Gate, error) {
	s, err := compile(policy)
	if err != nil {
		return nil, err
	}
	t := d.trial(s)
	t.now = d.At
	t.known = func(string, bool) (judged, error) {
		return judged{related: d.Related, denied: d.Reason == ReasonConsent, opened: d.Reason != ReasonSegment}, nil
	}
	return t.gates(), nil
}

// ReplayNow judges a recorded decision under today's policy, with today's roles, relationships and consents. The token's part of it (its
// scopes, the launch, how old the sign-in was) and the emergency access are as they were.
func (a *Access) ReplayNow(ctx context.Context, d Recorded) []Gate {
	t := d.trial(a.policy.Load())
	t.now = a.now()
	t.known = func(purpose string, fresh bool) (judged, error) {
		return a.look(ctx, d.Principal, d.Request, purpose, fresh, a.now())
	}
	return t.gates()
}

// trial prepares the judgement of a recorded decision.
func (d *Recorded) trial(s *snapshot) trial {
	p := *d.Principal
	bound := d.Reason == ReasonCompartment
	if p.Patient = ""; !bound && len(d.Request.Patients) > 0 {
		p.Patient = d.Request.Patients[0]
	}
	t := trial{s: s, p: &p, r: d.Request, signed: d.At, own: !bound}
	t.unsigned = p.AuthTime.IsZero() && p.ACR == "" && d.Reason != ReasonStepUp
	t.reach = func() (bool, bool) { return bound, d.Reason != ReasonScope }
	t.grant = func() (string, bool) {
		return d.Emergency, d.Emergency != "" && s.has(&p, t.now, emergencyCapability)
	}
	return t
}

// trial is the judgement of one request, with where its facts come from.
type trial struct {
	s        *snapshot
	p        *Principal
	r        Request
	now      time.Time // of roles
	signed   time.Time // against which the age of the sign-in counts
	unsigned bool      // nothing is known of the sign-in
	own      bool      // the compartment is taken to have been passed

	reach func() (bound, ok bool)                          // of the token's scopes
	known func(purpose string, fresh bool) (judged, error) // of relationships and consents
	grant func() (id string, ok bool)                      // of emergency access
}

func (t *trial) gates() []Gate {
	list := make([]Gate, 0, len(GateNames()))
	add := func(g Gate) { list = append(list, g) }
	if t.p == nil {
		add(Gate{Name: GateScope, State: GateFailed, Reason: ReasonScope})
		return t.rest(list)
	}
	bound, ok := t.reach()
	add(gate(GateScope, ok, ReasonScope, ""))
	var deciding *rule
	var best []Gate
	purpose, reason := t.r.Purpose, ReasonRole
	for rules := t.s.all(t.s.held(t.p, t.now), t.r.Type, t.r.Interaction); rules.next(); {
		found, applied := t.rule(rules.rule, bound)
		_, stopped := Verdict(found)
		if stopped == ReasonAllowed || stopped.nearness() > reason.nearness() {
			deciding, best, purpose, reason = rules.rule, found, applied, stopped
		}
		if stopped == ReasonAllowed {
			break
		}
	}
	if deciding == nil {
		add(Gate{Name: GateRole, State: GateFailed, Reason: ReasonRole})
	} else {
		add(Gate{Name: GateRole, State: GatePassed, Detail: deciding.name})
	}
	list = append(list, best...)
	view := ""
	if deciding != nil {
		view = deciding.view
	}
	if !ok {
		reason = ReasonScope
	}
	return t.end(list, reason, purpose, view)
}

// gate is one that was judged.
func gate(name string, passed bool, reason Reason, detail string) Gate {
	if passed {
		return Gate{Name: name, State: GatePassed, Detail: detail}
	}
	return Gate{Name: name, State: GateFailed, Reason: reason, Detail: detail}
}

// rule judges what one rule demands.
func (t *trial) rule(r *rule, bound bool) (list []Gate, purpose string) {
	purpose, ok := r.purpose(t.r.Purpose)
	list = append(list, gate(GatePurpose, ok, ReasonPurpose, purpose))
	switch {
	case len(r.stepUp.ACR) == 0 && r.stepUp.MaxAge == 0:
		list = append(list, Gate{Name: GateStepUp, State: GateNotNeeded})
	case t.unsigned:
		list = append(list, Gate{Name: GateStepUp, State: GateNotReached})
	default:
		list = append(list, gate(GateStepUp, r.stepUp.judge(t.p, t.signed) == ReasonAllowed, ReasonStepUp, t.p.ACR))
	}
	if bound || r.relation == RelationSelf {
		list = append(list, gate(GateCompartment, t.own || !t.r.Stray && own(t.p, t.r), ReasonCompartment, ""))
	} else {
		list = append(list, Gate{Name: GateCompartment, State: GateNotNeeded})
	}
	treated := r.relation == RelationTreatment && len(t.r.Patients) > 0
	exempt := len(t.r.Patients) == 0 || t.p.exempt(r.relation)
	var known judged
	var err error
	if (treated || !exempt) && !(treated && practitioner(t.p) == "") {
		known, err = t.known(purpose, treated)
	}
	unknown := func(name string) Gate { return Gate{Name: name, State: GateFailed, Reason: ReasonUnavailable} }
	switch {
	case r.relation == RelationTreatment && t.r.Stray:
		list = append(list, gate(GateRelationship, false, ReasonRelationship, ""))
	case !treated:
		list = append(list, Gate{Name: GateRelationship, State: GateNotNeeded})
	case err != nil:
		list = append(list, unknown(GateRelationship))
	default:
		list = append(list, gate(GateRelationship, known.related != "", ReasonRelationship, known.related))
	}
	switch {
	case exempt:
		list = append(list, Gate{Name: GateConsent, State: GateNotNeeded})
	case err != nil:
		list = append(list, unknown(GateConsent))
	default:
		list = append(list, gate(GateConsent, !known.denied, ReasonConsent, ""))
	}
	if t.r.Segment == SegmentGeneral {
		list = append(list, Gate{Name: GateSegment, State: GateNotNeeded})
	} else {
		opened := r.segments.Has(t.r.Segment) || !exempt && known.opened
		list = append(list, gate(GateSegment, opened, ReasonSegment, t.r.Segment.String()))
	}
	return list, purpose
}

// end judges emergency access, what is forbidden, and shows the view.
func (t *trial) end(list []Gate, reason Reason, purpose, view string) []Gate {
	emergency := Gate{Name: GateEmergency, State: GateNotNeeded}
	reads := t.r.Interaction == Read || t.r.Interaction == Search
	if reason.overcome() && reads && !t.r.Stray && urgent(t.r.Purpose) && t.r.Segment != SegmentPsychotherapy {
		if id, ok := t.grant(); ok {
			known, err := t.known(emergencyPurpose, false)
			switch {
			case err != nil:
				emergency = Gate{Name: GateEmergency, State: GateFailed, Reason: ReasonUnavailable, Detail: id}
			case known.denied && !t.s.emergencyOverConsent:
				emergency = Gate{Name: GateEmergency, State: GateFailed, Reason: ReasonConsent, Detail: id}
			default:
				emergency = Gate{Name: GateEmergency, State: GatePassed, Detail: id}
				purpose, view = emergencyPurpose, emergencyView
			}
		}
	}
	list = append(list, emergency)
	forbid := Gate{Name: GateForbid, State: GateNotNeeded}
	d := Decision{Allowed: true, Purpose: purpose}
	if emergency.State == GatePassed {
		d.Emergency = emergency.Detail
	}
	if d = t.s.forbid(t.p, func() time.Time { return t.now }, t.r.Interaction, t.r.Type, t.r.Segment, d); !d.Allowed {
		forbid = Gate{Name: GateForbid, State: GateFailed, Reason: ReasonForbidden, Detail: d.Rule}
	} else if t.s.forbidding {
		forbid.State = GatePassed
	}
	list = append(list, forbid)
	if allowed, _ := Verdict(list); allowed {
		list = append(list, Gate{Name: GateView, State: GatePassed, Detail: view})
	}
	return t.rest(list)
}

// rest adds the gates that were not judged, in their places.
func (t *trial) rest(list []Gate) []Gate {
	all := make([]Gate, 0, len(GateNames()))
	for _, name := range GateNames() {
		if at := slices.IndexFunc(list, func(g Gate) bool { return g.Name == name }); at >= 0 {
			all = append(all, list[at])
		} else {
			all = append(all, Gate{Name: name, State: GateNotReached})
		}
	}
	return all
}

// ExplainMay judges the gates of a capability for a principal, whose sign-in counts as of a moment.
func (a *Access) ExplainMay(p *Principal, capability string, signed time.Time) []Gate {
	s, now := a.policy.Load(), a.now()
	list := []Gate{{Name: GateRole, State: GateFailed, Reason: ReasonRole}}
	h := s.held(p, now)
	for _, c := range s.capabilities[capability] {
		if !h.set.has(c.role) {
			continue
		}
		strong := gate(GateStepUp, c.stepUp.judge(p, signed) == ReasonAllowed, ReasonStepUp, p.ACR)
		if list = []Gate{{Name: GateRole, State: GatePassed, Detail: c.rule}, strong}; strong.State == GatePassed {
			break
		}
	}
	t := trial{}
	all := t.rest(list)
	for i := range all {
		if n := all[i].Name; n != GateRole && n != GateStepUp {
			all[i].State = GateNotNeeded
		}
	}
	return all
}

// String is how policies spell the segment.
func (x Segment) String() string {
	if int(x) < len(segmentNames) {
		return segmentNames[x]
	}
	return "unknown"
}

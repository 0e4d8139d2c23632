package rest

import (
	"fmt"
	"strings"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/auth"
)

// whyJSON is a decision in words: one sentence, the gates in the order in which they are passed, and what a refused request
// would have needed.
type whyJSON struct {
	Sentence string     `json:"sentence"`
	Gates    []gateJSON `json:"gates"`
	Needed   string     `json:"needed,omitempty"`
}

type gateJSON struct {
	Gate   string `json:"gate"`  // see auth.GateNames
	State  string `json:"state"` // passed, failed, not reached, not needed
	Detail string `json:"detail,omitempty"`
}

func newGateJSON(g auth.Gate) gateJSON {
	return gateJSON{Gate: g.Name, State: string(g.State), Detail: g.Detail}
}

// explain says why an event's access was allowed or refused, in the words in which the event is shown: it adds no name that
// the reader does not see anyway. found is what the decision was made from.
func explain(e *eventJSON, found audit.AccessFacts) whyJSON {
	d := e.Decision
	who, what := e.Agent.User, e.Interaction
	if who == "" {
		who = "a caller without a valid token"
	}
	if len(e.Entities) > 0 {
		what += " " + e.Entities[0].Type
		if id := e.Entities[0].ID; id != "" {
			what += "/" + id
		}
	}
	if d.Reason == "" {
		return whyJSON{Sentence: fmt.Sprintf("No access decision was made about %s by %s.", what, who), Gates: []gateJSON{}}
	}
	w := whyJSON{Gates: gates(e, found)}
	if d.Allowed {
		w.Sentence = fmt.Sprintf("%s was allowed %s by rule %s of policy %d", who, what, d.Rule, d.Policy)
		if e.Purpose != "" {
			w.Sentence += " for purpose " + e.Purpose
		}
		if relation(d.Rule) == string(auth.RelationTreatment) {
			w.Sentence += ", being in treatment with the patient"
			if found.Related != "" {
				w.Sentence += " by " + found.Related
			}
		}
		if id := emergencyOf(e); id != "" {
			w.Sentence += ", under emergency access " + id
		}
		if d.View != "" {
			w.Sentence += ", in view " + d.View
		}
		w.Sentence += "."
		if e.Outcome > 0 && e.OutcomeDesc != "" {
			w.Sentence += " The request ended otherwise: " + e.OutcomeDesc + "."
		}
		return w
	}
	w.Sentence = fmt.Sprintf("%s was refused %s: %s (policy %d).", who, what, d.Reason, d.Policy)
	w.Needed = needed(auth.Reason(d.Reason))
	return w
}

// needed is what would have let a refused request through.
func needed(r auth.Reason) string {
	switch r {
	case auth.ReasonScope:
		return "a scope of the token that covers the type and the interaction"
	case auth.ReasonRole:
		return "a role that permits the interaction"
	case auth.ReasonPurpose:
		return "a purpose of use that the role's rule allows"
	case auth.ReasonCompartment:
		return "a token for this patient"
	case auth.ReasonRelationship:
		return "a treatment relationship with the patient: an Encounter or a CareTeam that names the practitioner, or a grant"
	case auth.ReasonStepUp:
		return "a sign-in that is as strong and as fresh as the rule demands"
	case auth.ReasonConsent:
		return "the patient's consent: one keeps the caller out"
	case auth.ReasonSegment:
		return "a role or a consent of the patient that opens the sensitive segment"
	case auth.ReasonForbidden:
		return "nothing: a rule forbids it, whatever else would permit it"
	case auth.ReasonUnavailable:
		return "the database, to look relationships and consents up; nothing was decided about the caller"
	}
	return ""
}

// emergencyOf is the emergency access that an event names, "" when it names none.
func emergencyOf(e *eventJSON) string {
	for _, n := range e.Entities {
		if n.Type == audit.EntityEmergency {
			return n.ID
		}
	}
	return ""
}

// gates tells how far a request came, from its event alone. The reason of a refusal is the gate that was nearest to opening, see
// auth.Access; what stands behind it was not reached.
func gates(e *eventJSON, found audit.AccessFacts) []gateJSON {
	d := e.Decision
	emergency := emergencyOf(e)
	rescued := emergency != "" && strings.HasPrefix(d.Rule, "emergency:")
	capability := len(strings.Split(d.Rule, ":")) == 3 // role and capability, which has a colon in it: no scopes, purposes or records
	failed := auth.GateOf(auth.Reason(d.Reason))
	details := map[string]string{
		auth.GateRole: d.Rule, auth.GatePurpose: e.Purpose, auth.GateRelationship: found.Related, auth.GateSegment: found.Segment, auth.GateView: d.View,
	}
	unneeded := map[string]bool{
		auth.GateEmergency: !rescued, auth.GateSegment: found.Segment == "", auth.GateRelationship: relation(d.Rule) != string(auth.RelationTreatment) && failed != auth.GateRelationship,
	}
	if rescued { // nobody knows any more which of them stayed shut: it stood in for all of them
		details[auth.GateRole], details[auth.GateEmergency] = "", emergency
		for _, name := range []string{auth.GateRole, auth.GatePurpose, auth.GateRelationship, auth.GateSegment} {
			unneeded[name] = true
		}
	}
	var list []gateJSON
	reached := true
	for _, name := range auth.GateNames() {
		g := gateJSON{Gate: name, State: string(auth.GatePassed), Detail: details[name]}
		switch {
		case !d.Allowed && name == failed:
			g.State, reached = string(auth.GateFailed), false
		case !reached:
			g.State, g.Detail = string(auth.GateNotReached), ""
		case capability && name != auth.GateRole && name != auth.GateStepUp, unneeded[name]:
			g.State = string(auth.GateNotNeeded)
		}
		list = append(list, g)
	}
	return list
}

// relation is the last part of a rule's name, role:type:letter:relation.
func relation(rule string) string {
	parts := strings.Split(rule, ":")
	if len(parts) != 4 {
		return ""
	}
	return parts[3]
}

package rest

import (
	"fmt"
	"strings"

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
	Gate   string `json:"gate"`  // scope, role, purpose, compartment, relationship, view
	State  string `json:"state"` // passed, failed, not reached, not needed
	Detail string `json:"detail,omitempty"`
}

// explain says why an event's access was allowed or refused, in the words in which the event is shown: it adds no name that
// the reader does not see anyway.
func explain(e *eventJSON) whyJSON {
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
	w := whyJSON{Gates: gates(e)}
	if d.Allowed {
		w.Sentence = fmt.Sprintf("%s was allowed %s by rule %s of policy %d", who, what, d.Rule, d.Policy)
		if e.Purpose != "" {
			w.Sentence += " for purpose " + e.Purpose
		}
		if relation(d.Rule) == string(auth.RelationTreatment) {
			w.Sentence += ", being in treatment with the patient"
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
	case auth.ReasonUnavailable:
		return "the database, to look the relationship up; nothing was decided about the caller"
	}
	return ""
}

// gates tells how far a request came. The reason of a refusal is the gate that was nearest to opening, see auth.Access.
func gates(e *eventJSON) []gateJSON {
	d := e.Decision
	relationship := relation(d.Rule)
	list := []gateJSON{
		{Gate: "scope"}, {Gate: "role", Detail: d.Rule}, {Gate: "purpose", Detail: e.Purpose}, {Gate: "compartment"},
		{Gate: "relationship", Detail: relationship}, {Gate: "view", Detail: d.View},
	}
	failed := len(list)
	switch auth.Reason(d.Reason) {
	case auth.ReasonScope:
		failed = 0
	case auth.ReasonRole:
		failed = 1
	case auth.ReasonPurpose:
		failed = 2
	case auth.ReasonCompartment:
		failed = 3
	case auth.ReasonRelationship, auth.ReasonUnavailable:
		failed = 4
	}
	capability := len(strings.Split(d.Rule, ":")) == 3 // role and capability, which has a colon in it: no scopes, purposes or records
	for i := range list {
		switch {
		case i == failed && !d.Allowed:
			list[i].State = "failed"
		case i > failed && !d.Allowed:
			list[i].State = "not reached"
		case capability && i != 1, i == 4 && relationship == string(auth.RelationNone):
			list[i].State = "not needed"
		default:
			list[i].State = "passed"
		}
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

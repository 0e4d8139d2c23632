package rest

import (
	"strings"
	"testing"

	"github.com/chartkeep/chartkeep/auth"
)

func TestExplain(t *testing.T) {
	event := func(allowed bool, rule string, reason auth.Reason) *eventJSON {
		return &eventJSON{
			Interaction: "read", Agent: agentJSON{User: "dr"}, Entities: []entityJSON{{Type: "Patient", ID: "p1"}}, Purpose: "TREAT",
			Decision: decisionJSON{Allowed: allowed, Rule: rule, Reason: string(reason), View: "full", Policy: 7},
		}
	}
	for _, tt := range []struct {
		name  string
		event *eventJSON
		gates string // scope role purpose compartment relationship view
		says  string
	}{
		{"treatment", event(true, "clinician:*:r:treatment", auth.ReasonAllowed), "passed passed passed passed passed passed",
			"dr was allowed read Patient/p1 by rule clinician:*:r:treatment of policy 7 for purpose TREAT, being in treatment with the patient, in view full."},
		{"directory", event(true, "clinician:Practitioner:r:none", auth.ReasonAllowed), "passed passed passed passed not-needed passed", "in view full."},
		{"capability", event(true, "officer:audit:read", auth.ReasonAllowed), "not-needed passed not-needed not-needed not-needed not-needed", "by rule officer:audit:read"},
		{"scope", event(false, "", auth.ReasonScope), "failed not-reached not-reached not-reached not-reached not-reached", "scope-missing"},
		{"role", event(false, "", auth.ReasonRole), "passed failed not-reached not-reached not-reached not-reached", "role-missing"},
		{"purpose", event(false, "billing:Claim:r:none", auth.ReasonPurpose), "passed passed failed not-reached not-reached not-reached", "purpose-not-allowed"},
		{"compartment", event(false, "patient:*:r:self", auth.ReasonCompartment), "passed passed passed failed not-reached not-reached", "outside-compartment"},
		{"relationship", event(false, "clinician:*:r:treatment", auth.ReasonRelationship), "passed passed passed passed failed not-reached", "relationship-missing"},
		{"facts", event(false, "clinician:*:r:treatment", auth.ReasonUnavailable), "passed passed passed passed failed not-reached", "facts-unavailable"},
	} {
		w := explain(tt.event)
		var states []string
		for _, g := range w.Gates {
			states = append(states, strings.ReplaceAll(g.State, " ", "-"))
		}
		if got := strings.Join(states, " "); got != tt.gates {
			t.Errorf("%s: gates %s", tt.name, got)
		}
		if !strings.Contains(w.Sentence, tt.says) || (w.Needed == "") != tt.event.Decision.Allowed {
			t.Errorf("%s: %+v", tt.name, w)
		}
	}
	if w := explain(&eventJSON{Interaction: "heartbeat", Agent: agentJSON{User: "system"}}); len(w.Gates) != 0 || !strings.HasPrefix(w.Sentence, "No access decision") {
		t.Errorf("an event without a decision: %+v", w)
	}
}

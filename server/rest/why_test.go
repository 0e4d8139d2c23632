package rest

import (
	"strings"
	"testing"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/auth"
)

func TestExplain(t *testing.T) {
	event := func(allowed bool, rule string, reason auth.Reason) *eventJSON {
		return &eventJSON{
			Interaction: "read", Agent: agentJSON{User: "dr"}, Entities: []entityJSON{{Type: "Patient", ID: "p1"}}, Purpose: "TREAT",
			Decision: decisionJSON{Allowed: allowed, Rule: rule, Reason: string(reason), View: "full", Policy: 7},
		}
	}
	emergency := event(true, "emergency:Patient:r:grant", auth.ReasonAllowed)
	emergency.Entities = append(emergency.Entities, entityJSON{Type: audit.EntityEmergency, ID: "3f0e6cd1-7ee9-4a54-9d8f-6a2f0f6f0a11"})
	letters := map[string]string{"passed": "p", "failed": "F", "not reached": "-", "not needed": "."}
	for _, tt := range []struct {
		name  string
		event *eventJSON
		found audit.AccessFacts
		gates string // passed p, failed F, not reached -, not needed .: scope role purpose step-up compartment relationship consent segment emergency forbid view
		says  string
	}{
		{"treatment", event(true, "clinician:*:r:treatment", auth.ReasonAllowed), audit.AccessFacts{Related: "CareTeam"}, "ppppppp..pp",
			"dr was allowed read Patient/p1 by rule clinician:*:r:treatment of policy 7 for purpose TREAT, being in treatment with the patient by CareTeam, in view full."},
		{"directory", event(true, "clinician:Practitioner:r:none", auth.ReasonAllowed), audit.AccessFacts{}, "ppppp.p..pp", "in view full."},
		{"part 2", event(true, "clinician:*:r:treatment", auth.ReasonAllowed), audit.AccessFacts{Related: "grant", Segment: "part2"}, "pppppppp.pp", "by grant"},
		{"emergency", emergency, audit.AccessFacts{}, "p..pp.p.ppp", "under emergency access 3f0e6cd1-7ee9-4a54-9d8f-6a2f0f6f0a11, in view full."},
		{"capability", event(true, "officer:audit:read", auth.ReasonAllowed), audit.AccessFacts{}, ".p.p.......", "by rule officer:audit:read"},
		{"scope", event(false, "", auth.ReasonScope), audit.AccessFacts{}, "F----------", "scope-missing"},
		{"role", event(false, "", auth.ReasonRole), audit.AccessFacts{}, "pF---------", "role-missing"},
		{"purpose", event(false, "billing:Claim:r:none", auth.ReasonPurpose), audit.AccessFacts{}, "ppF--------", "purpose-not-allowed"},
		{"step-up", event(false, "clinician:*:r:treatment", auth.ReasonStepUp), audit.AccessFacts{}, "pppF-------", "step-up-needed"},
		{"compartment", event(false, "patient:*:r:self", auth.ReasonCompartment), audit.AccessFacts{}, "ppppF------", "outside-compartment"},
		{"relationship", event(false, "clinician:*:r:treatment", auth.ReasonRelationship), audit.AccessFacts{}, "pppppF-----", "relationship-missing"},
		{"consent", event(false, "clinician:*:r:treatment", auth.ReasonConsent), audit.AccessFacts{}, "ppppppF----", "consent-denies"},
		{"segment", event(false, "clinician:*:r:treatment", auth.ReasonSegment), audit.AccessFacts{Segment: "part2"}, "pppppppF---", "segment-closed"},
		{"forbidden", event(false, "clinician:*:r:forbid", auth.ReasonForbidden), audit.AccessFacts{}, "ppppp.p..F-", "forbidden"},
		{"facts", event(false, "clinician:*:r:treatment", auth.ReasonUnavailable), audit.AccessFacts{}, "pppppF-----", "facts-unavailable"},
	} {
		w := explain(tt.event, tt.found)
		got := ""
		for _, g := range w.Gates {
			got += letters[g.State]
		}
		if got != tt.gates {
			t.Errorf("%s: gates %s", tt.name, got)
		}
		if !strings.Contains(w.Sentence, tt.says) || (w.Needed == "") != tt.event.Decision.Allowed {
			t.Errorf("%s: %+v", tt.name, w)
		}
	}
	if w := explain(&eventJSON{Interaction: "heartbeat", Agent: agentJSON{User: "system"}}, audit.AccessFacts{}); len(w.Gates) != 0 || !strings.HasPrefix(w.Sentence, "No access decision") {
		t.Errorf("an event without a decision: %+v", w)
	}
}

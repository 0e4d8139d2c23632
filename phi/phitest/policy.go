package phitest

import (
	"time"

	"github.com/chartkeep/chartkeep/auth"
)

// Policy is the policy that the migrations seed.
func Policy() auth.Policy {
	p := auth.Policy{Version: 1}
	segments := map[string][]string{"patient": {"part2"}, "backend": {"part2", "psychotherapy"}}
	allow := func(role, interactions, view string, relation auth.Relation, purposes []string, types ...string) {
		for _, t := range types {
			p.Permissions = append(p.Permissions, auth.Permission{
				Role: role, Type: t, Interactions: interactions, View: view, Relation: relation, Purposes: purposes,
				Effect: auth.Permit, Segments: segments[role],
			})
		}
	}
	treat, operate, pay := []string{"TREAT"}, []string{"HOPERAT"}, []string{"HPAYMT"}
	directory := []string{"Practitioner", "PractitionerRole", "Organization", "Location", "HealthcareService", "Endpoint"}
	allow("clinician", "cruds", "full", auth.RelationTreatment, treat, "*")
	allow("clinician", "rs", "full", auth.RelationNone, treat, directory...)
	allow("nurse", "crus", "full", auth.RelationTreatment, treat, "*")
	allow("nurse", "rs", "full", auth.RelationNone, treat, directory...)
	allow("registrar", "crs", "demographics", auth.RelationNone, operate, "Patient", "RelatedPerson")
	allow("registrar", "rs", "full", auth.RelationNone, operate, "Practitioner", "Organization", "Location")
	allow("billing", "rs", "demographics", auth.RelationNone, pay, "Patient")
	allow("billing", "rs", "billing", auth.RelationNone, pay, "Coverage", "Claim", "ExplanationOfBenefit", "Encounter")
	allow("billing", "rs", "full", auth.RelationNone, pay, "Organization", "Practitioner")
	allow("researcher", "rs", "deidentified", auth.RelationNone, []string{"HRESCH"}, "Patient", "Observation", "Condition",
		"Procedure", "MedicationRequest", "Immunization", "Encounter", "DiagnosticReport", "AllergyIntolerance")
	allow("patient", "rs", "full", auth.RelationSelf, []string{"PATRQT"}, "*")
	allow("backend", "cruds", "full", auth.RelationNone, []string{"TREAT", "HOPERAT", "HPAYMT", "HRESCH"}, "*")
	for _, c := range [][2]string{
		{"officer", "audit:read"}, {"officer", "latency:read"}, {"security", "audit:read"}, {"security", "latency:read"}, {"security", "metrics:read"},
		{"officer", "erasure:read"}, {"officer", "erasure:request"},
		{"officer", "erasure:approve"}, {"assessor", "audit:read-aliased"}, {"admin", "erasure:read"}, {"admin", "erasure:approve"}, {"registrar", "patient:merge"}, {"backend", "patient:merge"}, {"admin", "policy:read"}, {"admin", "policy:write"}, {"admin", "relationships:write"}, {"admin", "relationships:read"}, {"officer", "relationships:read"},
		{"admin", "assignment:write"}, {"officer", "policy:read"}, {"officer", "policy:approve"}, {"officer", "assignment:approve"},
		{"security", "policy:read"}, {"security", "policy:approve"}, {"security", "assignment:approve"},
		{"officer", "sessions:read"}, {"security", "sessions:read"}, {"admin", "sessions:read"}, {"security", "sessions:end"}, {"admin", "sessions:end"},
		{"clinician", "sessions:own"}, {"nurse", "sessions:own"}, {"registrar", "sessions:own"}, {"billing", "sessions:own"}, {"researcher", "sessions:own"},
		{"patient", "sessions:own"}, {"backend", "sessions:own"}, {"officer", "sessions:own"}, {"security", "sessions:own"}, {"admin", "sessions:own"}, {"assessor", "sessions:own"},
		{"security", "revocations:write"}, {"admin", "revocations:write"}, {"security", "workforce:terminate"}, {"admin", "workforce:terminate"},
	} {
		p.Capabilities = append(p.Capabilities, auth.Capability{Role: c[0], Name: c[1]})
	}
	for _, role := range []string{"clinician", "nurse"} {
		p.Capabilities = append(p.Capabilities, auth.Capability{Role: role, Name: "emergency:request", StepUp: auth.StepUp{MaxAge: 5 * time.Minute}},
			auth.Capability{Role: role, Name: "emergency:own"})
	}
	for _, role := range []string{"officer", "security"} {
		for _, name := range []string{"emergency:read", "emergency:revoke", "emergency:approve", "alerts:read", "alerts:write"} {
			p.Capabilities = append(p.Capabilities, auth.Capability{Role: role, Name: name})
		}
	}
	p.Capabilities = append(p.Capabilities, auth.Capability{Role: "officer", Name: "emergency:review"})
	for i := range p.Capabilities {
		switch c := &p.Capabilities[i]; c.Name {
		case "policy:write", "policy:approve", "assignment:write", "assignment:approve", "relationships:write",
			"sessions:end", "revocations:write", "workforce:terminate", "erasure:request", "erasure:approve", "emergency:approve":
			c.StepUp.MaxAge = 15 * time.Minute
		}
	}
	role := func(name, description string, workforce, approval bool) {
		p.Roles = append(p.Roles, auth.Role{Name: name, Description: description, Workforce: workforce, Approval: approval})
	}
	role("clinician", "Treats patients: full charts of those in treatment", true, false)
	role("nurse", "Nurses patients: full charts of those in treatment, without deleting", true, false)
	role("registrar", "Registers and merges patients: demographics", true, false)
	role("billing", "Bills: demographics, coverage, claims, encounters without clinical detail", true, false)
	role("researcher", "Researches: de-identified records", true, false)
	role("patient", "A patient, in the own records", false, false)
	role("backend", "A service with system scopes", false, false)
	role("officer", "Compliance officer: reads the trail, approves, opens no charts", true, true)
	role("security", "Security analyst: reads trail and metrics, approves, opens no charts", true, true)
	role("admin", "Administers roles and relationships, opens no charts", true, true)
	role("assessor", "Outside assessor: reads the trail with aliases in the place of people", true, false)
	apart := func(role, reason string, others ...string) {
		for _, other := range others {
			p.Conflicts = append(p.Conflicts, auth.Conflict{Role: role, Other: other, Reason: reason})
		}
	}
	apart("admin", "who administers access has none to charts", "clinician", "nurse", "registrar", "billing", "researcher")
	apart("admin", "who administers access is watched by another", "officer", "security", "assessor")
	apart("officer", "who reviews access to charts has none", "clinician", "nurse")
	apart("assessor", "an assessor is from outside, and sees people under aliases", "officer", "security", "clinician", "nurse", "registrar", "billing", "researcher")
	apart("backend", "a service is no person", "clinician", "nurse", "registrar", "billing", "researcher", "patient", "officer", "security", "admin", "assessor")
	return p
}

// Principal is a verified caller with one role and every scope of the level ("user", "patient", "system"). fhirUser
// is "Practitioner/id" of clinicians, and the launch patient is taken from "Patient/id".
func Principal(role, fhirUser string) *auth.Principal {
	level := "user"
	patient := ""
	switch role {
	case "backend":
		level = "system"
	case "patient":
		level, patient = "patient", fhirUser[len("Patient/"):]
	}
	now := time.Now()
	signedIn := now
	if role == "backend" { // nobody did
		signedIn = time.Time{}
	}
	return &auth.Principal{
		Subject: role + "-1", Issuer: "https://issuer.test", Client: "test-app", Session: "session-1", TokenID: "token-1",
		Roles: []string{role}, Scopes: auth.ParseScopes(level + "/*.cruds"), Patient: patient, FHIRUser: fhirUser,
		AuthTime: signedIn, Issued: now, Expires: now.Add(10 * time.Minute),
	}
}

package rest

import (
	"net/http"
	"strings"

	"github.com/go-json-experiment/json"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/auth"
	"github.com/chartkeep/chartkeep/phi/fhir"
)

// grantJSON is an explicit treatment grant. reason is for officers and must not describe the patient.
type grantJSON struct {
	Practitioner string `json:"practitioner"` // id of a Practitioner
	Patient      string `json:"patient"`      // id of a Patient
	Reason       string `json:"reason"`
}

// grant makes an explicit treatment relationship.
func (c *call) grant() error {
	if c.s.cfg.Relationships == nil {
		return notConfigured()
	}
	if err := c.media(mediaJSON); err != nil {
		return err
	}
	var g grantJSON
	if err := json.Unmarshal(c.http.Request().Body(), &g, json.RejectUnknownMembers(true)); err != nil {
		return invalid("the body is not a grant")
	}
	if !fhir.ValidID(g.Practitioner) || !fhir.ValidID(g.Patient) {
		return &refusal{status: http.StatusUnprocessableEntity, code: "value", text: "practitioner and patient are ids"}
	}
	if n := len(strings.TrimSpace(g.Reason)); n == 0 || n > 500 {
		return &refusal{status: http.StatusUnprocessableEntity, code: "value", text: "a reason of at most 500 bytes is needed"}
	}
	if err := c.administer(g.Practitioner, g.Patient, func() error {
		return c.s.cfg.Relationships.Grant(c.ctx, g.Practitioner, g.Patient, g.Reason, c.principal.Subject)
	}); err != nil {
		return err
	}
	return c.sendJSON(http.StatusCreated, g)
}

// ungrant ends one.
func (c *call) ungrant() error {
	if c.s.cfg.Relationships == nil {
		return notConfigured()
	}
	practitioner, patient := strings.Clone(c.http.Params("practitioner")), strings.Clone(c.http.Params("patient"))
	if !fhir.ValidID(practitioner) || !fhir.ValidID(patient) {
		return notFound()
	}
	if err := c.administer(practitioner, patient, func() error {
		return c.s.cfg.Relationships.Ungrant(c.ctx, practitioner, patient, c.principal.Subject)
	}); err != nil {
		return err
	}
	c.http.Response().SetStatusCode(http.StatusNoContent)
	return nil
}

// administer changes a relationship between an event of the intent and one of the outcome, and makes the change felt at
// once on this instance.
func (c *call) administer(practitioner, patient string, change func() error) error {
	intent := c.adminEvent(audit.TypePolicy)
	intent.Outcome = audit.Intent
	intent.Patient = patient
	intent.Entities = []audit.Entity{{Type: "Patient", ID: patient}, {Type: "Practitioner", ID: practitioner}}
	done := *intent // before the log owns it
	receipt, err := c.record(c.s.cfg.Level.Disclosure, intent)
	if err != nil {
		return err
	}
	done.Correlation, done.Outcome = receipt.Events()[0].ID, audit.Success
	done.Entities = append([]audit.Entity(nil), done.Entities...)
	failed := change()
	if failed != nil {
		done.Outcome, done.OutcomeDesc = audit.SeriousFailure, "try again later"
	}
	c.s.cfg.Access.Wake()
	if _, err := c.record(c.s.cfg.Level.Other, &done); err != nil {
		return err
	}
	if failed != nil {
		r := unavailable(failed)
		r.recorded = true
		return r
	}
	return nil
}

// roles shows the policy as it is stored.
func (c *call) roles() error {
	if c.s.cfg.Policy == nil {
		return notConfigured()
	}
	p, err := c.s.cfg.Policy.Policy(c.ctx)
	if err != nil {
		return unavailable(err)
	}
	if _, err := c.record(c.s.cfg.Level.Other, c.adminEvent(audit.TypePolicy)); err != nil {
		return err
	}
	return c.sendJSON(http.StatusOK, newPolicyJSON(p))
}

type policyJSON struct {
	Version      int64            `json:"version"`
	Permissions  []permissionJSON `json:"permissions"`
	Capabilities []capabilityJSON `json:"capabilities"`
}

type permissionJSON struct {
	Role         string   `json:"role"`
	Type         string   `json:"type"`
	Interactions string   `json:"interactions"`
	View         string   `json:"view"`
	Relation     string   `json:"relation"`
	Purposes     []string `json:"purposes"`
}

type capabilityJSON struct {
	Role string `json:"role"`
	Name string `json:"name"`
}

func newPolicyJSON(p auth.Policy) policyJSON {
	j := policyJSON{Version: p.Version, Permissions: []permissionJSON{}, Capabilities: []capabilityJSON{}}
	for _, r := range p.Permissions {
		j.Permissions = append(j.Permissions, permissionJSON{r.Role, r.Type, r.Interactions, r.View, string(r.Relation), append([]string{}, r.Purposes...)})
	}
	for _, r := range p.Capabilities {
		j.Capabilities = append(j.Capabilities, capabilityJSON{r.Role, r.Name})
	}
	return j
}

func notConfigured() *refusal {
	return &refusal{status: http.StatusNotImplemented, code: "not-supported", text: "not configured on this server"}
}

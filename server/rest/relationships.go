package rest

import (
	"net/http"
	"strings"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/auth"
	"github.com/chartkeep/chartkeep/phi/fhir"
)

// grantJSON is an explicit treatment grant. reason is for officers and must not describe the patient.
type grantJSON struct {
	Practitioner string    `json:"practitioner"` // id of a Practitioner
	Patient      string    `json:"patient"`      // id of a Patient
	Reason       string    `json:"reason"`
	From         time.Time `json:"from,omitzero"`  // now, when it is not said
	Until        time.Time `json:"until,omitzero"` // without end, when it is not said
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
	unprocessable := func(text string) error {
		return &refusal{status: http.StatusUnprocessableEntity, code: "value", text: text}
	}
	n := len(strings.TrimSpace(g.Reason))
	switch {
	case !fhir.ValidID(g.Practitioner) || !fhir.ValidID(g.Patient):
		return unprocessable("practitioner and patient are ids")
	case n == 0 || n > 500:
		return unprocessable("a reason of at most 500 bytes is needed")
	case !g.Until.IsZero() && (!g.Until.After(g.From) || !g.Until.After(time.Now())):
		return unprocessable("until is after from, and still to come")
	case c.principal.FHIRUser == "Practitioner/"+g.Practitioner:
		return unprocessable("a relationship is granted by somebody else than who it is for")
	}
	if err := c.administer(g.Practitioner, g.Patient, func() error {
		return c.s.cfg.Relationships.Grant(c.ctx, auth.Relationship{
			Practitioner: g.Practitioner, Patient: g.Patient, Reason: g.Reason, By: c.principal.Subject, From: g.From, Until: g.Until,
		})
	}); err != nil {
		return err
	}
	return c.sendJSON(http.StatusCreated, g)
}

// ungrant ends those of two.
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
	} else if err := c.s.cfg.Access.Refresh(c.ctx); err != nil { // it is done, and Run finds out as the other instances do
		c.s.cfg.Access.Wake()
	}
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

// maximalRelationships bounds a list.
const maximalRelationships = 500

type relationshipJSON struct {
	Practitioner string    `json:"practitioner"`
	Patient      string    `json:"patient"`
	Source       string    `json:"source"`          // Encounter, CareTeam, EpisodeOfCare or grant
	Record       string    `json:"record,omitzero"` // id of the record that states it
	From         time.Time `json:"from,omitzero"`   // of one that is still to begin, or of a grant
	Until        time.Time `json:"until,omitzero"`  // the end that was stated
	Ends         time.Time `json:"ends,omitzero"`   // with the tail after it
	Holds        bool      `json:"holds"`           // now
	Reason       string    `json:"reason,omitzero"` // of a grant
	GrantedBy    string    `json:"granted_by,omitzero"`
	GrantedAt    time.Time `json:"granted_at,omitzero"`
}

// relationships lists those of a practitioner, or of a patient.
func (c *call) relationships() error {
	if c.s.cfg.Relationships == nil {
		return notConfigured()
	}
	list, err := params(nil, c.http.Context().QueryArgs())
	if err != nil {
		return err
	}
	var practitioner, patient string
	for _, p := range list {
		switch {
		case p.Name == "practitioner" && practitioner == "" && fhir.ValidID(p.Value):
			practitioner = strings.Clone(p.Value)
		case p.Name == "patient" && patient == "" && fhir.ValidID(p.Value):
			patient = strings.Clone(p.Value)
		default:
			return invalid("practitioner and patient are ids, each at most once")
		}
	}
	if practitioner == "" && patient == "" {
		return invalid("practitioner or patient is needed")
	}
	found, err := c.s.cfg.Relationships.Relationships(c.ctx, practitioner, patient, maximalRelationships+1)
	if err != nil {
		return unavailable(err)
	}
	e := c.adminEvent(audit.TypePolicy)
	e.Patient = patient
	for _, about := range []audit.Entity{{Type: "Patient", ID: patient}, {Type: "Practitioner", ID: practitioner}} {
		if about.ID != "" {
			e.Entities = append(e.Entities, about)
		}
	}
	if _, err := c.record(c.s.cfg.Level.Disclosure, e); err != nil {
		return err
	}
	answer := struct {
		Relationships []relationshipJSON `json:"relationships"`
		More          bool               `json:"more"` // there are more than are listed
	}{Relationships: []relationshipJSON{}, More: len(found) > maximalRelationships}
	for _, r := range found[:min(len(found), maximalRelationships)] {
		answer.Relationships = append(answer.Relationships, relationshipJSON{
			r.Practitioner, r.Patient, r.Source, r.Record, r.From, r.Until, r.Ends, r.Holds, r.Reason, r.By, r.At,
		})
	}
	return c.sendJSON(http.StatusOK, answer)
}

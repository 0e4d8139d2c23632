package rest

import (
	"errors"
	"net/http"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/chartkeep/chartkeep/phi"
)

// erasureJSON is a request to erase a patient, and what became of it.
type erasureJSON struct {
	ID          string           `json:"id"`
	Patient     string           `json:"patient"`
	Reason      string           `json:"reason"`
	State       string           `json:"state"` // requested, withdrawn, executed
	RequestedBy string           `json:"requested_by"`
	RequestedAt time.Time        `json:"requested_at"`
	DecidedBy   string           `json:"decided_by,omitempty"`
	DecidedAt   *time.Time       `json:"decided_at,omitempty"`
	Scope       *scopeJSON       `json:"scope,omitempty"`       // of a request that was just made
	Certificate *phi.Certificate `json:"certificate,omitempty"` // of an executed one
	Note        string           `json:"note,omitempty"`        // the certificate as it was signed
}

// scopeJSON is what an erasure would destroy, and how much of others' stays.
type scopeJSON struct {
	Patients      []string        `json:"patients"`
	Keys          []phi.ErasedKey `json:"keys"`
	Records       int             `json:"records"`
	Versions      int             `json:"versions"`
	Tokens        int             `json:"tokens"`
	Relationships int             `json:"relationships"`
	Mentions      int             `json:"records_of_others"`
}

func newErasureJSON(e *phi.Erasure) erasureJSON {
	j := erasureJSON{
		ID: e.ID.String(), Patient: e.Patient, Reason: e.Reason, State: string(e.State), RequestedBy: e.RequestedBy, RequestedAt: e.RequestedAt,
		DecidedBy: e.DecidedBy,
	}
	if !e.DecidedAt.IsZero() {
		j.DecidedAt = &e.DecidedAt
	}
	return j
}

// officer is the caller as a person who asks for or decides about an erasure.
func (c *call) officer() phi.Officer {
	return phi.Officer{Agent: c.agent(), RequestID: c.requestID, Decision: newDecision(c.granted)}
}

// officersRefusal is an error of phi as a problem that says what is the matter: officers know of the patient already.
func officersRefusal(err error) error {
	e, ok := errors.AsType[*phi.Error](err)
	if !ok || len(e.Issues) == 0 || e.Kind == phi.Unavailable || e.Kind == phi.Integrity {
		return err
	}
	r := refused(err)
	r.text, r.challenge = e.Issues[0].Diagnostics, ""
	return r
}

// erasureID is the id in the path.
func (c *call) erasureID() (phi.UUID, error) {
	id, err := phi.ParseUUID(c.http.Params("id"))
	if err != nil {
		return id, notFound()
	}
	return id, nil
}

// requestErasure asks for a patient to be erased.
func (c *call) requestErasure() error {
	if c.s.cfg.Erasures == nil {
		return notConfigured()
	}
	if err := c.media(mediaJSON); err != nil {
		return err
	}
	var asked struct {
		Patient string `json:"patient"`
		Reason  string `json:"reason"`
	}
	if err := json.Unmarshal(c.http.Request().Body(), &asked, json.RejectUnknownMembers(true)); err != nil {
		return invalid("the body is not a request to erase")
	}
	e, scope, err := c.s.cfg.Erasures.Request(c.ctx, c.officer(), asked.Patient, asked.Reason)
	if err != nil {
		return officersRefusal(err)
	}
	j := newErasureJSON(e)
	j.Scope = &scopeJSON{scope.Patients, scope.Keys, scope.Records, scope.Versions, scope.Tokens, scope.Relationships, scope.Mentions}
	c.http.Response().Header.Set("Location", apiBase+"/erasures/"+j.ID)
	return c.sendJSON(http.StatusCreated, j)
}

// erasures lists requests, newest first.
func (c *call) erasures() error {
	if c.s.cfg.Erasures == nil {
		return notConfigured()
	}
	list, err := c.s.cfg.Erasures.List(c.ctx, c.officer())
	if err != nil {
		return err
	}
	page := struct {
		Erasures []erasureJSON `json:"erasures"`
	}{[]erasureJSON{}}
	for _, e := range list {
		page.Erasures = append(page.Erasures, newErasureJSON(e))
	}
	return c.sendJSON(http.StatusOK, page)
}

// erasure shows one, with its certificate.
func (c *call) erasure() error {
	if c.s.cfg.Erasures == nil {
		return notConfigured()
	}
	id, err := c.erasureID()
	if err != nil {
		return err
	}
	e, err := c.s.cfg.Erasures.Get(c.ctx, c.officer(), id)
	if err != nil {
		return officersRefusal(err)
	}
	j := newErasureJSON(e)
	if e.Certificate != nil {
		j.Note = string(e.Certificate)
		if j.Certificate, err = phi.ReadCertificate(e.Certificate); err != nil {
			return err
		}
	}
	return c.sendJSON(http.StatusOK, j)
}

// approveErasure executes one.
func (c *call) approveErasure() error {
	if c.s.cfg.Erasures == nil {
		return notConfigured()
	}
	id, err := c.erasureID()
	if err != nil {
		return err
	}
	certificate, err := c.s.cfg.Erasures.Approve(c.ctx, c.officer(), id)
	if err != nil {
		return officersRefusal(err)
	}
	c.s.cfg.Access.Wake() // relationships are gone
	return c.sendJSON(http.StatusOK, certificate)
}

// withdrawErasure ends one that waits.
func (c *call) withdrawErasure() error {
	if c.s.cfg.Erasures == nil {
		return notConfigured()
	}
	id, err := c.erasureID()
	if err != nil {
		return err
	}
	if err := c.s.cfg.Erasures.Withdraw(c.ctx, c.officer(), id); err != nil {
		return officersRefusal(err)
	}
	c.http.Response().SetStatusCode(http.StatusNoContent)
	return nil
}

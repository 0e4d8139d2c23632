package rest

import (
	"net/http"
	"slices"
	"time"

	"github.com/gofiber/fiber/v2/utils"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/auth"
)

// assignmentJSON is a role that somebody was given, or is to be given.
type assignmentJSON struct {
	ID          string    `json:"id"`
	Subject     string    `json:"subject"` // sub of the tokens, after the name of the issuer and "|" when it has one
	Role        string    `json:"role"`
	From        time.Time `json:"from"`
	Until       time.Time `json:"until,omitzero"` // exclusive
	Reason      string    `json:"reason"`
	Approval    bool      `json:"approval"` // it takes a second person
	State       string    `json:"state"`    // requested, approved, withdrawn, expired, ended
	RequestedBy string    `json:"requested_by"`
	RequestedAt time.Time `json:"requested_at"`
	ExpiresAt   time.Time `json:"expires_at"` // of a request
	DecidedBy   string    `json:"decided_by,omitempty"`
	DecidedAt   time.Time `json:"decided_at,omitzero"`
	EndedBy     string    `json:"ended_by,omitempty"`
	EndedAt     time.Time `json:"ended_at,omitzero"`
	EndReason   string    `json:"end_reason,omitempty"`
}

func newAssignmentJSON(a *auth.AssignmentRecord) assignmentJSON {
	return assignmentJSON{
		ID: a.ID, Subject: a.Subject, Role: a.Role, From: a.From, Until: a.Until, Reason: a.Reason, Approval: a.Approval, State: a.State,
		RequestedBy: a.RequestedBy, RequestedAt: a.RequestedAt, ExpiresAt: a.ExpiresAt, DecidedBy: a.DecidedBy, DecidedAt: a.DecidedAt,
		EndedBy: a.EndedBy, EndedAt: a.EndedAt, EndReason: a.EndReason,
	}
}

// assignmentWords are an assignment as an event has it.
func assignmentWords(a *auth.AssignmentRecord) []string {
	return []string{"subject " + a.Subject, "role " + a.Role, "state " + a.State}
}

// assignments lists who was given what, newest first.
func (c *call) assignments() error {
	if c.s.cfg.Policies == nil {
		return notConfigured()
	}
	asked, err := c.parameters("subject", "role", "state", "after", "limit")
	if err != nil {
		return err
	}
	after, limit, err := page(asked)
	if err != nil {
		return err
	}
	states := []string{auth.StateRequested, auth.StateApproved, auth.StateWithdrawn, auth.StateExpired, auth.StateEnded}
	if s := asked["state"]; s != "" && !slices.Contains(states, s) {
		return faulty(&fault{text: "there is no such state", parameter: "state", position: -1, allowed: states})
	}
	list, err := c.s.cfg.Policies.Assignments(c.ctx, auth.AssignmentFilter{Subject: asked["subject"], Role: asked["role"], State: asked["state"], After: after, Limit: limit})
	if err != nil {
		return policyRefusal(err)
	}
	if err := c.looked(); err != nil {
		return err
	}
	out := struct {
		Assignments []assignmentJSON `json:"assignments"`
		Next        string           `json:"next,omitempty"` // after of the next page
	}{Assignments: []assignmentJSON{}}
	for _, a := range list {
		out.Assignments = append(out.Assignments, newAssignmentJSON(a))
	}
	if len(list) == limit {
		out.Next = list[limit-1].ID
	}
	return c.sendJSON(http.StatusOK, out)
}

// assignmentByID shows one.
func (c *call) assignmentByID() error {
	if c.s.cfg.Policies == nil {
		return notConfigured()
	}
	id, err := c.pathUUID()
	if err != nil {
		return err
	}
	a, err := c.s.cfg.Policies.Assignment(c.ctx, id)
	if err != nil {
		return policyRefusal(err)
	}
	if err := c.looked(); err != nil {
		return err
	}
	return c.sendJSON(http.StatusOK, newAssignmentJSON(a))
}

// assign gives a role to somebody, or asks for it when the role takes a second person.
func (c *call) assign() error {
	if c.s.cfg.Policies == nil {
		return notConfigured()
	}
	var asked struct {
		Subject string    `json:"subject"`
		Role    string    `json:"role"`
		From    time.Time `json:"from,omitzero"` // now, when it is not said
		Until   time.Time `json:"until,omitzero"`
		Reason  string    `json:"reason"`
	}
	if err := c.policyBody(&asked); err != nil {
		return err
	}
	now := time.Now().UTC().Truncate(time.Microsecond)
	if asked.From.IsZero() {
		asked.From = now
	}
	wrong := func(pointer, text string) error {
		return &refusal{status: http.StatusUnprocessableEntity, code: "value", text: text, fault: &fault{parameter: pointer, position: -1}}
	}
	reason, err := reasonOf(asked.Reason)
	switch {
	case err != nil:
		return err
	case !auth.ValidSubject(asked.Subject):
		return wrong("/subject", "it is the subject of tokens, printable and of at most 400 bytes")
	case asked.Role == "" || len(asked.Role) > 63:
		return wrong("/role", "it is the name of a role")
	case !asked.Until.IsZero() && (!asked.Until.After(asked.From) || !asked.Until.After(now)):
		return wrong("/until", "it is after from, and still to come")
	}
	a := &auth.AssignmentRecord{
		ID: utils.UUIDv4(), Assignment: auth.Assignment{Subject: asked.Subject, Role: asked.Role, From: asked.From.UTC(), Until: asked.Until.UTC()}, Reason: reason,
		RequestedBy: c.principal.Subject,
	}
	if err := c.change([]audit.Entity{{Type: entityAssignment, ID: a.ID}}, func() ([]string, error) {
		err := c.s.cfg.Policies.Assign(c.ctx, a)
		return assignmentWords(a), err
	}); err != nil {
		return err
	}
	c.http.Response().Header.Set("Location", apiBase+"/assignments/"+a.ID)
	status := http.StatusCreated
	if a.State == auth.StateRequested {
		status = http.StatusAccepted
	}
	return c.sendJSON(status, newAssignmentJSON(a))
}

// approveAssignment puts one into force that waits.
func (c *call) approveAssignment() error {
	return c.decideAssignment(func(id string) (*auth.AssignmentRecord, error) {
		return c.s.cfg.Policies.ApproveAssignment(c.ctx, id, c.principal.Subject)
	})
}

// endAssignment ends one before its time, or withdraws one that waits.
func (c *call) endAssignment() error {
	var asked struct {
		Reason string `json:"reason"`
	}
	if err := c.policyBody(&asked); err != nil {
		return err
	}
	reason, err := reasonOf(asked.Reason)
	if err != nil {
		return err
	}
	return c.decideAssignment(func(id string) (*auth.AssignmentRecord, error) {
		return c.s.cfg.Policies.EndAssignment(c.ctx, id, c.principal.Subject, reason)
	})
}

// refuseAssignment refuses to approve one that waits.
func (c *call) refuseAssignment() error {
	return c.decideAssignment(func(id string) (*auth.AssignmentRecord, error) {
		a, err := c.s.cfg.Policies.Assignment(c.ctx, id)
		if err != nil {
			return nil, err
		}
		if a.State != auth.StateRequested { // whoever approves does not end what is in force
			return nil, auth.ErrDecided
		}
		return c.s.cfg.Policies.EndAssignment(c.ctx, id, c.principal.Subject, "refused")
	})
}

// decideAssignment does something about one.
func (c *call) decideAssignment(do func(id string) (*auth.AssignmentRecord, error)) error {
	if c.s.cfg.Policies == nil {
		return notConfigured()
	}
	id, err := c.pathUUID()
	if err != nil {
		return err
	}
	var a *auth.AssignmentRecord
	if err := c.change([]audit.Entity{{Type: entityAssignment, ID: id}}, func() (words []string, err error) {
		if a, err = do(id); err != nil {
			return nil, err
		}
		return assignmentWords(a), nil
	}); err != nil {
		return err
	}
	return c.sendJSON(http.StatusOK, newAssignmentJSON(a))
}

package rest

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/go-json-experiment/json"
	"github.com/gofiber/fiber/v2/utils"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/auth"
	"github.com/chartkeep/chartkeep/phi"
	"github.com/chartkeep/chartkeep/phi/fhir"
)

// Emergencies is the register of emergency access. What changes it takes effect on other instances within a second. Safe for
// concurrent use. Errors are those of package auth, where they are not that the storage is away.
type Emergencies interface {
	// RequestEmergency stores a request, and what tells officers of it, as one: granted, or, when the caller's limit of the shift is
	// used up, to be decided by another person. It fills in State, RequestedAt, Until and ReviewBy.
	RequestEmergency(ctx context.Context, e *auth.EmergencyAccess, limits auth.EmergencyLimits) error
	// ToldEmergency notes that the trail has the outcome of a request.
	ToldEmergency(ctx context.Context, id string) error
	// Emergency returns one with its reviews, EmergencyRegister many without.
	Emergency(ctx context.Context, id string) (*auth.EmergencyAccess, error)
	EmergencyRegister(ctx context.Context, q auth.EmergencyQuery) ([]*auth.EmergencyAccess, error)
	// DecideEmergency is another person's word on a request that waits.
	DecideEmergency(ctx context.Context, id, by string, grant bool, event string, limits auth.EmergencyLimits) error
	// EndEmergency ends one that is in force; state says whether by its holder (auth.EmergencyEnded) or not (auth.EmergencyRevoked).
	EndEmergency(ctx context.Context, id, by string, state auth.EmergencyState) error
	// ReviewEmergency stores what was found by somebody who neither had it nor granted it.
	ReviewEmergency(ctx context.Context, id string, r auth.EmergencyReview, event string, limits auth.EmergencyLimits) error
}

// leastJustification and mostJustification bound what is said about an emergency, in characters.
const (
	leastJustification = 20
	mostJustification  = 2000
)

// emergencyJSON is a line of the register.
type emergencyJSON struct {
	ID            string        `json:"id"`
	State         string        `json:"state"` // requested, granted, refused, ended, revoked, expired
	Subject       string        `json:"subject"`
	Client        string        `json:"client"`
	Patient       string        `json:"patient"`
	ReasonCode    string        `json:"reason_code"`
	RequestedAt   time.Time     `json:"requested_at"`
	Until         *time.Time    `json:"until,omitempty"`
	DecidedBy     string        `json:"decided_by,omitempty"`
	DecidedAt     *time.Time    `json:"decided_at,omitempty"`
	EndedBy       string        `json:"ended_by,omitempty"`
	EndedAt       *time.Time    `json:"ended_at,omitempty"`
	ReviewBy      *time.Time    `json:"review_by,omitempty"` // it waits for a review until then
	Overdue       bool          `json:"overdue"`
	Event         string        `json:"event"`
	Justification *remarkJSON   `json:"justification,omitempty"` // on an officer's page of one
	Reviews       []reviewJSON  `json:"reviews,omitempty"`       // of one
	Accesses      *accessesJSON `json:"accesses,omitempty"`      // of one
}

// remarkJSON is opened text. Damaged says that it does not open.
type remarkJSON struct {
	Text    string `json:"text"`
	Damaged bool   `json:"damaged"`
}

type reviewJSON struct {
	By      string      `json:"by"`
	At      time.Time   `json:"at"`
	Outcome string      `json:"outcome"`
	Note    *remarkJSON `json:"note,omitempty"`
}

// accessesJSON is what was done under emergency access, as far as the trail has it by now.
type accessesJSON struct {
	Events   int    `json:"events"`
	Complete bool   `json:"complete"` // false: there are more
	Link     string `json:"link"`
}

func newEmergencyJSON(e *auth.EmergencyAccess) emergencyJSON {
	optional := func(t time.Time) *time.Time {
		if t.IsZero() {
			return nil
		}
		return &t
	}
	return emergencyJSON{
		ID: e.ID, State: string(e.State), Subject: e.Subject, Client: e.Client, Patient: e.Patient, ReasonCode: e.Reason, RequestedAt: e.RequestedAt,
		Until: optional(e.Until), DecidedBy: e.DecidedBy, DecidedAt: optional(e.DecidedAt), EndedBy: e.EndedBy, EndedAt: optional(e.EndedAt),
		ReviewBy: optional(e.ReviewBy), Overdue: !e.ReviewBy.IsZero() && time.Now().After(e.ReviewBy), Event: e.Event,
	}
}

// unprocessable is 422 for an element of the body.
func unprocessable(element, text string, allowed ...string) *refusal {
	return &refusal{
		status: http.StatusUnprocessableEntity, code: "value", text: element + ": " + text,
		fault: &fault{parameter: element, position: -1, allowed: allowed},
	}
}

// requestEmergency opens one patient's chart to the caller, to read, from this session, for a while (45 CFR 164.312(a)(2)(ii)). Nobody
// looks whether there is such a patient, so the answer does not tell; one for a patient who is not there opens nothing.
func (c *call) requestEmergency() error {
	if c.s.cfg.Emergencies == nil {
		return notConfigured()
	}
	if err := c.media(mediaJSON); err != nil {
		return err
	}
	var asked struct {
		Patient string `json:"patient"`
		Reason  string `json:"reason_code"`
		Text    string `json:"text"`
	}
	if err := json.Unmarshal(c.http.Request().Body(), &asked, json.RejectUnknownMembers(true)); err != nil {
		return invalid("the body is not a request for emergency access")
	}
	asked.Text = strings.TrimSpace(asked.Text)
	switch n := utf8.RuneCountInString(asked.Text); {
	case !fhir.ValidID(asked.Patient):
		return unprocessable("patient", "an id is needed")
	case !slices.Contains(auth.EmergencyReasons(), asked.Reason):
		return unprocessable("reason_code", "one of the codes is needed", auth.EmergencyReasons()...)
	case n < leastJustification || n > mostJustification:
		return unprocessable("text", "from 20 to 2000 characters are needed")
	}
	e := &auth.EmergencyAccess{
		ID: utils.UUIDv4(), Subject: c.principal.Subject, Session: c.principal.Session, Client: c.principal.Client, Patient: asked.Patient, Reason: asked.Reason,
	}
	e.Justification = c.s.cfg.Records.SealRemark(asked.Text, aboutEmergency(e.ID))
	if err := c.emergency(e, []byte(e.Reason), func(intent string) error {
		e.Event = intent
		return c.s.cfg.Emergencies.RequestEmergency(c.ctx, e, c.s.cfg.Emergency)
	}); err != nil {
		return err
	}
	if err := c.s.cfg.Emergencies.ToldEmergency(c.ctx, e.ID); err != nil { // it is told once more, by whoever looks for what is not told
		c.s.logger.Warn("not noted that the outcome is recorded", "request_id", c.requestID, "error", err.Error())
	}
	status := http.StatusCreated
	if e.State == auth.EmergencyRequested {
		status = http.StatusAccepted
	}
	c.http.Response().Header.Set("Location", apiBase+"/emergency-access/"+e.ID)
	return c.sendJSON(status, newEmergencyJSON(e))
}

// aboutEmergency names emergency access in events.
func aboutEmergency(id string) audit.Entity { return audit.Entity{Type: audit.EntityEmergency, ID: id} }

// emergency changes the register between an event of the intent and one of the outcome, both in the database before the answer, and
// makes the change felt at once on this instance. What failed is in the outcome.
func (c *call) emergency(e *auth.EmergencyAccess, detail []byte, change func(intent string) error) error {
	intent := c.adminEvent(audit.TypePolicy)
	intent.Outcome, intent.Patient, intent.Entities, intent.Detail = audit.Intent, e.Patient, []audit.Entity{aboutEmergency(e.ID)}, detail
	done := *intent // before the log owns it
	receipt, err := c.record(audit.Database, intent)
	if err != nil {
		return err
	}
	done.Correlation, done.Outcome = receipt.Events()[0].ID, audit.Success
	failed := change(done.Correlation.String())
	var refused *refusal
	if failed != nil {
		refused = emergencyRefusal(failed)
		done.Outcome, done.OutcomeDesc = audit.MinorFailure, refused.text
		if refused.status >= http.StatusInternalServerError {
			done.Outcome = audit.SeriousFailure
		}
	} else if err := c.s.cfg.Access.Refresh(c.ctx); err != nil {
		c.s.logger.Warn("emergency access is changed, which takes effect here with the next look", "request_id", c.requestID, "error", err.Error())
		c.s.cfg.Access.Wake()
	}
	receipt, err = c.record(audit.Database, &done)
	switch {
	case err != nil:
		return err
	case refused != nil:
		refused.recorded, refused.event = true, receipt.Events()[0].ID
		return refused
	}
	return nil
}

// emergencyRefusal is an error of the register as an answer.
func emergencyRefusal(err error) *refusal {
	switch {
	case errors.Is(err, auth.ErrNoEmergency):
		return notFound()
	case errors.Is(err, auth.ErrEmergencyDecided):
		return &refusal{status: http.StatusConflict, code: "conflict", text: "the emergency access is past that"}
	case errors.Is(err, auth.ErrEmergencyPerson):
		return &refusal{status: http.StatusForbidden, code: "forbidden", text: "another person has to do that"}
	}
	return unavailable(err)
}

// emergencyAt finds the line of the register that the path names. Whoever sees only his own finds no other.
func (c *call) emergencyAt() (*auth.EmergencyAccess, error) {
	if c.s.cfg.Emergencies == nil {
		return nil, notConfigured()
	}
	id := strings.Clone(c.http.Params("id"))
	if !isUUID(id) {
		return nil, notFound()
	}
	e, err := c.s.cfg.Emergencies.Emergency(c.ctx, id)
	switch {
	case c.own && (errors.Is(err, auth.ErrNoEmergency) || err == nil && e.Subject != c.principal.Subject):
		return nil, c.others()
	case err != nil:
		return nil, emergencyRefusal(err)
	}
	return e, nil
}

// isUUID reports whether a path names something by a UUID in its usual spelling.
func isUUID(id string) bool {
	parsed, err := audit.ParseID(id)
	return err == nil && parsed.String() == id
}

// emergencyRegister lists emergency access, newest first: officers' lists hold everybody's, all others' their own.
func (c *call) emergencyRegister() error {
	if c.s.cfg.Emergencies == nil {
		return notConfigured()
	}
	asked, err := c.parameters("subject", "patient", "review", "before", "limit")
	if err != nil {
		return err
	}
	q := auth.EmergencyQuery{Subject: asked["subject"], Patient: asked["patient"], Review: asked["review"]}
	if c.own {
		if q.Subject != "" && q.Subject != c.principal.Subject {
			return c.others()
		}
		q.Subject = c.principal.Subject
	}
	if reviews := []string{"due", "overdue", "done"}; q.Review != "" && !slices.Contains(reviews, q.Review) {
		return faulty(&fault{text: "not one of the states", parameter: "review", position: -1, allowed: reviews})
	}
	if q.Before, q.Limit, err = older(asked); err != nil {
		return err
	}
	look := c.adminEvent(audit.TypePolicy)
	look.Patient = q.Patient
	if _, err := c.record(c.s.cfg.Level.Disclosure, look); err != nil {
		return err
	}
	list, err := c.s.cfg.Emergencies.EmergencyRegister(c.ctx, q)
	if err != nil {
		return emergencyRefusal(err)
	}
	page := struct {
		Emergencies []emergencyJSON `json:"emergency_access"`
		Next        string          `json:"next"` // id for before; "" when there are no more
	}{Emergencies: []emergencyJSON{}}
	for _, e := range list {
		page.Emergencies = append(page.Emergencies, newEmergencyJSON(e))
	}
	if len(list) == q.Limit {
		page.Next = list[len(list)-1].ID
	}
	return c.sendJSON(http.StatusOK, page)
}

// emergencyRead shows one, with what was said about it and what was done under it.
func (c *call) emergencyRead() error {
	e, err := c.emergencyAt()
	if err != nil {
		return err
	}
	about := aboutEmergency(e.ID)
	look := c.adminEvent(audit.TypePolicy)
	look.Patient, look.Entities = e.Patient, []audit.Entity{about}
	receipt, err := c.record(c.s.cfg.Level.Disclosure, look)
	if err != nil {
		return err
	}
	j := newEmergencyJSON(e)
	open := func(sealed []byte) (*remarkJSON, error) {
		if c.own || sealed == nil {
			return nil, nil
		}
		text, err := c.s.cfg.Records.OpenRemark(sealed, about, receipt)
		if failed, ok := errors.AsType[*phi.Error](err); ok && failed.Kind == phi.Integrity {
			return &remarkJSON{Damaged: true}, nil
		}
		return &remarkJSON{Text: text}, err
	}
	if j.Justification, err = open(e.Justification); err != nil {
		return err
	}
	if !c.own {
		for _, r := range e.Reviews {
			note, err := open(r.Remark)
			if err != nil {
				return err
			}
			j.Reviews = append(j.Reviews, reviewJSON{r.By, r.At, r.Outcome, note})
		}
		if j.Accesses, err = c.accesses(e); err != nil {
			return err
		}
	}
	return c.sendJSON(http.StatusOK, j)
}

// accesses counts what the trail has of emergency access.
func (c *call) accesses(e *auth.EmergencyAccess) (*accessesJSON, error) {
	found, err := c.s.cfg.Trail.Find(c.ctx, audit.Query{
		Terms: []audit.Term{audit.Is(audit.FieldAgent, e.Subject), audit.Is(audit.FieldEntity, audit.EntityEmergency+"/"+e.ID), audit.Is(audit.FieldPurpose, "BTG")},
		From:  e.RequestedAt.Add(-time.Minute), Limit: audit.MaxPage,
	})
	if err != nil {
		return nil, unavailable(err)
	}
	return &accessesJSON{len(found.Events), found.Next == audit.Position{}, apiBase + "/audit/events?emergency=" + e.ID}, nil
}

// endEmergency ends one that is in force: by whoever has it, or revoked by an officer.
func (c *call) endEmergency() error {
	e, err := c.emergencyAt()
	if err != nil {
		return err
	}
	state := auth.EmergencyRevoked
	if e.Subject == c.principal.Subject {
		state = auth.EmergencyEnded
	}
	if err := c.emergency(e, nil, func(string) error {
		return c.s.cfg.Emergencies.EndEmergency(c.ctx, e.ID, c.principal.Subject, state)
	}); err != nil {
		return err
	}
	c.http.Response().SetStatusCode(http.StatusNoContent)
	return nil
}

// decideEmergency is the second person's word on a request beyond the limit.
func (c *call) decideEmergency() error {
	e, err := c.emergencyAt()
	if err != nil {
		return err
	}
	if err := c.media(mediaJSON); err != nil {
		return err
	}
	var word struct {
		Decision string `json:"decision"`
	}
	if err := json.Unmarshal(c.http.Request().Body(), &word, json.RejectUnknownMembers(true)); err != nil {
		return invalid("the body is not a decision")
	}
	if words := []string{"grant", "refuse"}; !slices.Contains(words, word.Decision) {
		return unprocessable("decision", "one of the words is needed", words...)
	}
	if err := c.emergency(e, []byte(word.Decision), func(intent string) error {
		if e.Subject == c.principal.Subject {
			return auth.ErrEmergencyPerson
		}
		return c.s.cfg.Emergencies.DecideEmergency(c.ctx, e.ID, c.principal.Subject, word.Decision == "grant", intent, c.s.cfg.Emergency)
	}); err != nil {
		return err
	}
	if e, err = c.s.cfg.Emergencies.Emergency(c.ctx, e.ID); err != nil {
		return emergencyRefusal(err)
	}
	return c.sendJSON(http.StatusOK, newEmergencyJSON(e))
}

// reviewEmergency says what was found by somebody who looked into it (45 CFR 164.308(a)(1)(ii)(D)).
func (c *call) reviewEmergency() error {
	e, err := c.emergencyAt()
	if err != nil {
		return err
	}
	if err := c.media(mediaJSON); err != nil {
		return err
	}
	var found struct {
		Outcome string `json:"outcome"`
		Note    string `json:"note"`
	}
	if err := json.Unmarshal(c.http.Request().Body(), &found, json.RejectUnknownMembers(true)); err != nil {
		return invalid("the body is not a review")
	}
	r := auth.EmergencyReview{By: c.principal.Subject, Outcome: found.Outcome}
	note := strings.TrimSpace(found.Note)
	switch {
	case !slices.Contains(auth.EmergencyOutcomes(), found.Outcome):
		return unprocessable("outcome", "one of the words is needed", auth.EmergencyOutcomes()...)
	case utf8.RuneCountInString(note) > mostJustification:
		return unprocessable("note", "too long")
	case note == "" && found.Outcome != auth.ReviewAppropriate:
		return unprocessable("note", "what was found has to be said")
	case note != "":
		r.Remark = c.s.cfg.Records.SealRemark(note, aboutEmergency(e.ID))
	}
	if err := c.emergency(e, []byte(r.Outcome), func(intent string) error {
		if e.Subject == c.principal.Subject {
			return auth.ErrEmergencyPerson
		}
		return c.s.cfg.Emergencies.ReviewEmergency(c.ctx, e.ID, r, intent, c.s.cfg.Emergency)
	}); err != nil {
		return err
	}
	if e, err = c.s.cfg.Emergencies.Emergency(c.ctx, e.ID); err != nil {
		return emergencyRefusal(err)
	}
	return c.sendJSON(http.StatusOK, newEmergencyJSON(e))
}

// tellEmergency says in a header that the answer was made under emergency access, so that an app can show it.
func (c *call) tellEmergency() {
	id := c.trace.Emergency
	if id == "" {
		return
	}
	value := id
	if g, ok := c.s.cfg.Access.Granted(id); ok {
		value += "; until=" + g.Until.UTC().Format(time.RFC3339)
	}
	c.http.Response().Header.Set("X-Emergency-Access", value)
}

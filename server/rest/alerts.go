package rest

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/compliance"
)

// Alerts are what officers have to look at. Safe for concurrent use.
type Alerts interface {
	// Alerts returns a page, the last raised first.
	Alerts(ctx context.Context, q compliance.AlertQuery) ([]*compliance.Alert, error)
	// MoveAlert says that somebody has seen or closed one that is not closed; otherwise compliance.ErrNoAlert.
	MoveAlert(ctx context.Context, id, by string, to compliance.AlertState) (*compliance.Alert, error)
}

type alertJSON struct {
	ID       string     `json:"id"`
	Kind     string     `json:"kind"`
	Severity string     `json:"severity"` // info, warning, high, critical
	About    string     `json:"about"`
	Event    string     `json:"event,omitempty"` // newest event of the trail that tells of it
	State    string     `json:"state"`           // new, seen, closed
	Times    int64      `json:"times"`
	FirstAt  time.Time  `json:"first_at"`
	LastAt   time.Time  `json:"last_at"`
	SeenBy   string     `json:"seen_by,omitempty"`
	SeenAt   *time.Time `json:"seen_at,omitempty"`
	ClosedBy string     `json:"closed_by,omitempty"`
	ClosedAt *time.Time `json:"closed_at,omitempty"`
}

func newAlertJSON(a *compliance.Alert) alertJSON {
	j := alertJSON{
		ID: a.ID, Kind: string(a.Kind), Severity: string(a.Severity), About: a.About, Event: a.Event, State: string(a.State), Times: a.Times,
		FirstAt: a.FirstAt, LastAt: a.LastAt, SeenBy: a.SeenBy, ClosedBy: a.ClosedBy,
	}
	if !a.SeenAt.IsZero() {
		j.SeenAt = &a.SeenAt
	}
	if !a.ClosedAt.IsZero() {
		j.ClosedAt = &a.ClosedAt
	}
	return j
}

// alerts lists what officers have to look at.
func (c *call) alerts() error {
	if c.s.cfg.Alerts == nil {
		return notConfigured()
	}
	asked, err := c.parameters("state", "before", "limit")
	if err != nil {
		return err
	}
	q := compliance.AlertQuery{State: compliance.AlertState(asked["state"])}
	if states := []string{"new", "seen", "closed"}; q.State != "" && !slices.Contains(states, string(q.State)) {
		return faulty(&fault{text: "not one of the states", parameter: "state", position: -1, allowed: states})
	}
	if q.Before, q.Limit, err = older(asked); err != nil {
		return err
	}
	if _, err := c.record(c.s.cfg.Level.Other, c.adminEvent(audit.TypeAuditLogUsed)); err != nil {
		return err
	}
	list, err := c.s.cfg.Alerts.Alerts(c.ctx, q)
	if err != nil {
		return unavailable(err)
	}
	page := struct {
		Alerts []alertJSON `json:"alerts"`
		Next   string      `json:"next"` // id for before; "" when there are no more
	}{Alerts: []alertJSON{}}
	for _, a := range list {
		page.Alerts = append(page.Alerts, newAlertJSON(a))
	}
	if len(list) == q.Limit {
		page.Next = list[len(list)-1].ID
	}
	return c.sendJSON(http.StatusOK, page)
}

// older reads the parameters of a list that goes back: the id to go on after, and how many.
func older(asked map[string]string) (before string, limit int, err error) {
	if before = asked["before"]; before != "" && !isUUID(before) {
		return "", 0, faulty(&fault{text: "not an id", parameter: "before", position: -1})
	}
	limit, err = upTo(audit.MaxPage, asked, "limit", 50)
	return before, limit, err
}

// moveAlert says that the caller has seen or closed one.
func (c *call) moveAlert() error {
	if c.s.cfg.Alerts == nil {
		return notConfigured()
	}
	if err := c.media(mediaJSON); err != nil {
		return err
	}
	id := strings.Clone(c.http.Params("id"))
	if !isUUID(id) {
		return notFound()
	}
	var to struct {
		State string `json:"state"`
	}
	if err := json.Unmarshal(c.http.Request().Body(), &to, json.RejectUnknownMembers(true)); err != nil {
		return invalid("the body is not a state")
	}
	if states := []string{"seen", "closed"}; !slices.Contains(states, to.State) {
		return unprocessable("state", "one of the states is needed", states...)
	}
	intent := c.adminEvent(audit.TypeAuditLogUsed)
	intent.Outcome, intent.Entities, intent.Detail = audit.Intent, []audit.Entity{{Type: "Alert", ID: id}}, []byte(to.State)
	done := *intent // before the log owns it
	receipt, err := c.record(c.s.cfg.Level.Disclosure, intent)
	if err != nil {
		return err
	}
	done.Correlation, done.Outcome = receipt.Events()[0].ID, audit.Success
	a, failed := c.s.cfg.Alerts.MoveAlert(c.ctx, id, c.principal.Subject, compliance.AlertState(to.State))
	var refused *refusal
	switch {
	case errors.Is(failed, compliance.ErrNoAlert):
		refused = notFound()
		done.Outcome, done.OutcomeDesc = audit.MinorFailure, refused.text
	case failed != nil:
		refused = unavailable(failed)
		done.Outcome, done.OutcomeDesc = audit.SeriousFailure, refused.text
	}
	receipt, err = c.record(c.s.cfg.Level.Disclosure, &done)
	switch {
	case err != nil:
		return err
	case refused != nil:
		refused.recorded, refused.event = true, receipt.Events()[0].ID
		return refused
	}
	return c.sendJSON(http.StatusOK, newAlertJSON(a))
}

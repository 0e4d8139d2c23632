package rest

import (
	"encoding/hex"
	"net/http"
	"slices"
	"time"

	"github.com/chartkeep/chartkeep/audit"
)

// eventJSON is an event as officers see it, and assessors with aliases in the place of people. Times are RFC 3339 in UTC,
// durations microseconds, hashes and streams hex, ids UUIDs.
type eventJSON struct {
	ID          string       `json:"id"`
	Recorded    time.Time    `json:"recorded"`
	Ingested    time.Time    `json:"ingested,omitzero"`       // not known of events of the live trail
	Suspect     bool         `json:"clock_suspect,omitempty"` // recorded is not to be believed: the instance's clock was off
	Type        string       `json:"type"`
	Interaction string       `json:"interaction"`
	Action      string       `json:"action"`
	Outcome     int8         `json:"outcome"` // FHIR's 0, 4, 8, 12; -1 is an intent whose outcome is another event
	OutcomeDesc string       `json:"outcome_desc,omitempty"`
	Agent       agentJSON    `json:"agent"`
	Purpose     string       `json:"purpose,omitempty"`
	Patient     string       `json:"patient,omitempty"`
	Entities    []entityJSON `json:"entities"`
	Classes     []string     `json:"classes"`
	Decision    decisionJSON `json:"decision"` // why allowed, or why not
	RequestID   string       `json:"request_id,omitempty"`
	Correlation string       `json:"correlation,omitempty"`
	Searched    bool         `json:"searched"` // the event holds sealed search text
	Timing      timingJSON   `json:"timing"`
	Stream      string       `json:"stream"`
	Seq         uint64       `json:"seq"`
	Leaf        string       `json:"leaf"`
}

type agentJSON struct {
	User     string   `json:"user,omitempty"`
	Name     string   `json:"name,omitempty"`
	Client   string   `json:"client,omitempty"`
	Session  string   `json:"session,omitempty"`
	Roles    []string `json:"roles,omitempty"`
	Network  string   `json:"network,omitempty"`
	FHIRUser string   `json:"fhir_user,omitempty"`
}

type entityJSON struct {
	Type    string `json:"type"`
	ID      string `json:"id,omitempty"`
	Version int64  `json:"version,omitempty"`
}

type decisionJSON struct {
	Allowed bool   `json:"allowed"`
	Rule    string `json:"rule,omitempty"`
	Reason  string `json:"reason,omitempty"`
	View    string `json:"view,omitempty"`
	Policy  int64  `json:"policy,omitempty"`
}

type timingJSON struct {
	Total    uint32 `json:"total"`
	Auth     uint32 `json:"auth"`
	Decision uint32 `json:"decision"`
	Database uint32 `json:"database"`
	Crypto   uint32 `json:"crypto"`
	Audit    uint32 `json:"audit"`
}

// newEventJSON renders an event for the caller.
func (l *lens) newEventJSON(s *audit.Stored) eventJSON {
	e := &s.Event
	j := eventJSON{
		ID:          e.ID.String(),
		Recorded:    e.Recorded.UTC(),
		Ingested:    s.Ingested.UTC(),
		Suspect:     s.ClockSuspect(),
		Type:        string(e.Type),
		Interaction: e.Interaction,
		Action:      string(rune(e.Action)),
		Outcome:     int8(e.Outcome),
		OutcomeDesc: e.OutcomeDesc,
		Agent:       agentJSON(e.Agent),
		Purpose:     e.Purpose,
		Patient:     l.show(kindPatient, e.Patient),
		Entities:    make([]entityJSON, len(e.Entities)),
		Classes:     append([]string{}, e.Classes...),
		Decision:    decisionJSON(e.Decision),
		RequestID:   l.show(kindRequest, e.RequestID),
		Searched:    len(e.Query) > 0,
		Timing:      timingJSON(e.Timing),
		Stream:      hex.EncodeToString(s.Stream[:]),
		Seq:         s.Seq,
		Leaf:        hex.EncodeToString(s.Leaf[:]),
	}
	l.showAgent(&j.Agent)
	for i, n := range e.Entities {
		j.Entities[i] = entityJSON{n.Type, l.show(kindOf(n.Type), n.ID), n.Version}
	}
	if e.Correlation != (audit.ID{}) {
		j.Correlation = e.Correlation.String()
	}
	return j
}

// pageJSON is a page of events, newest first.
type pageJSON struct {
	Events   []eventJSON `json:"events"`
	Next     string      `json:"next"`     // cursor of older events; "" when there are none
	Prev     string      `json:"prev"`     // cursor of newer events; "" on the newest page
	Complete bool        `json:"complete"` // false: the page ended before it was full because looking took long; go on with the cursor
	Query    queryJSON   `json:"query"`
}

// events searches the trail, newest first. Who looks at the trail is an event of the trail itself, durable before
// anything is shown.
func (c *call) events() error {
	look, err := c.look("limit", "cursor")
	if err != nil {
		return err
	}
	if _, err := c.recordLook(look); err != nil {
		return err
	}
	found, err := c.s.cfg.Trail.Find(c.ctx, look.query)
	if err != nil {
		return unavailable(err)
	}
	page := pageJSON{
		Events: make([]eventJSON, 0, len(found.Events)), Query: look.shown,
		Complete: found.Next == audit.Position{} || len(found.Events) == look.query.Page(),
	}
	lens := c.lens()
	for i := range found.Events {
		page.Events = append(page.Events, lens.newEventJSON(&found.Events[i]))
	}
	// The way on is where the storage says, the way back begins at this page's own edge.
	on, back := &page.Next, &page.Prev
	if look.query.Forward {
		on, back = &page.Prev, &page.Next
		slices.Reverse(page.Events)
	}
	if found.Next != (audit.Position{}) {
		*on = c.s.cursors.seal(look, found.Next, look.query.Forward)
	}
	if edge := look.query.After; edge != (audit.Position{}) {
		if len(found.Events) > 0 {
			edge = found.Events[0].Position()
		}
		*back = c.s.cursors.seal(look, edge, !look.query.Forward)
	}
	return c.sendJSON(http.StatusOK, page)
}

func notFound() *refusal {
	return &refusal{status: http.StatusNotFound, code: "not-found", text: "no such resource"}
}

// unavailable is 503 for a storage that does not answer.
func unavailable(err error) *refusal {
	return &refusal{status: http.StatusServiceUnavailable, code: "transient", text: "try again later", cause: err}
}

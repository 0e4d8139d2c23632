package rest_test

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/compliance"
	"github.com/chartkeep/chartkeep/server/rest"
)

// tray is an Alerts in memory, which can be away.
type tray struct {
	list []*compliance.Alert
	away bool
}

func (t *tray) Alerts(_ context.Context, q compliance.AlertQuery) ([]*compliance.Alert, error) {
	if t.away {
		return nil, errors.New("database is away")
	}
	list := slices.DeleteFunc(slices.Clone(t.list), func(a *compliance.Alert) bool { return q.State != "" && a.State != q.State })
	return list[:min(len(list), q.Limit)], nil
}

func (t *tray) MoveAlert(_ context.Context, id, by string, to compliance.AlertState) (*compliance.Alert, error) {
	at := slices.IndexFunc(t.list, func(a *compliance.Alert) bool { return a.ID == id && a.State != compliance.AlertClosed })
	switch {
	case t.away:
		return nil, errors.New("database is away")
	case at < 0:
		return nil, compliance.ErrNoAlert
	}
	a := t.list[at]
	if a.State = to; to == compliance.AlertClosed {
		a.ClosedBy, a.ClosedAt = by, time.Now().UTC()
	} else {
		a.SeenBy, a.SeenAt = by, time.Now().UTC()
	}
	return a, nil
}

// TestAlerts lists alerts and moves them on; each step is an intent and an outcome in the trail, by whom.
func TestAlerts(t *testing.T) {
	now := time.Now().UTC()
	a := &tray{}
	for i := range 3 {
		a.list = append(a.list, &compliance.Alert{ID: "3f0e6cd1-7ee9-4a54-9d8f-6a2f0f6f0a1" + string(rune('0'+i)), Kind: compliance.AlertEmergency, Severity: compliance.High,
			About: "EmergencyAccess/x", Event: "3f0e6cd1-7ee9-7a54-9d8f-6a2f0f6f0a11", State: compliance.AlertNew, Times: 1, FirstAt: now, LastAt: now})
	}
	d := deploy(t, func(c *rest.Config) { c.Alerts = a })
	officer := d.as("officer")
	d.described(d.want(d.do("GET", "/v1/alerts", officer, ""), http.StatusOK))
	first := d.want(d.do("GET", "/v1/alerts?state=new&limit=2", officer, ""), http.StatusOK)
	if d.described(first); !strings.Contains(string(first.body), `"next":"`+a.list[1].ID+`"`) {
		t.Errorf("a page: %s", first.body)
	}
	for query, status := range map[string]int{"state=lost": 400, "before=x": 400, "limit=0": 400, "kind=x": 400} {
		d.want(d.do("GET", "/v1/alerts?"+query, officer, ""), status)
	}
	d.want(d.do("GET", "/v1/alerts", d.as("clinician"), ""), http.StatusForbidden)
	move := func(id, body string) answer {
		return d.do("POST", "/v1/alerts/"+id+"/state", officer, body, "Content-Type", "application/json")
	}
	id := a.list[0].ID
	seen := d.want(move(id, `{"state":"seen"}`), http.StatusOK)
	if !strings.Contains(string(seen.body), `"seen_by":"officer-1"`) {
		t.Errorf("seen: %s", seen.body)
	}
	events := d.eventsOf(seen.Header.Get("X-Request-Id"))
	if len(events) != 2 || events[1].Event.Outcome != audit.Intent || events[0].Event.Correlation != events[1].Event.ID ||
		!slices.Contains(events[0].Event.Entities, audit.Entity{Type: "Alert", ID: id}) || string(events[0].Event.Detail) != "seen" {
		t.Errorf("events: %+v", events)
	}
	d.want(move(id, `{"state":"closed"}`), http.StatusOK)
	d.want(move(id, `{"state":"seen"}`), http.StatusNotFound)
	for body, status := range map[string]int{`{"state":"new"}`: 422, `{}`: 422, `{"state":1}`: 400, `[]`: 400} {
		d.want(move(id, body), status)
	}
	d.want(move("x", `{"state":"seen"}`), http.StatusNotFound)
	a.away = true
	away := d.want(move(a.list[1].ID, `{"state":"seen"}`), http.StatusServiceUnavailable)
	if e := d.eventsOf(away.Header.Get("X-Request-Id")); len(e) != 2 || e[0].Event.Outcome != audit.SeriousFailure {
		t.Errorf("events of the failure: %+v", e)
	}
	d.want(d.do("GET", "/v1/alerts", officer, ""), http.StatusServiceUnavailable)
}

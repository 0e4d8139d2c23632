package rest_test

import (
	"context"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/auth"
	"github.com/chartkeep/chartkeep/server/rest"
)

// listed are relationships to be listed.
type listed struct {
	grants
	list    []auth.Relationship
	granted auth.Relationship
}

func (l *listed) Grant(_ context.Context, r auth.Relationship) error {
	l.granted = r
	return nil
}

func (l *listed) Relationships(_ context.Context, practitioner, patient string, limit int) ([]auth.Relationship, error) {
	return l.list[:min(limit, len(l.list))], l.note("list", practitioner, patient)
}

func TestRelationshipsAreListed(t *testing.T) {
	until := time.Date(2026, 5, 6, 0, 0, 0, 0, time.UTC)
	l := &listed{list: []auth.Relationship{
		{Practitioner: "dr", Patient: "p1", Source: "Encounter", Record: "e1", Until: until, Ends: until.AddDate(0, 0, 30), Holds: true},
		{Practitioner: "dr", Patient: "p1", Source: "grant", Reason: "ticket 7", By: "admin-1", At: until},
	}}
	d := deploy(t, func(c *rest.Config) { c.Relationships = l })
	a := d.want(d.do("GET", "/v1/relationships?patient=p1&practitioner=dr", d.as("officer"), ""), http.StatusOK)
	const want = `{"relationships":[{"practitioner":"dr","patient":"p1","source":"Encounter","record":"e1","until":"2026-05-06T00:00:00Z","ends":"2026-06-05T00:00:00Z","holds":true},` +
		`{"practitioner":"dr","patient":"p1","source":"grant","holds":false,"reason":"ticket 7","granted_by":"admin-1","granted_at":"2026-05-06T00:00:00Z"}],"more":false}`
	if strings.TrimSpace(string(a.body)) != want {
		t.Errorf("got  %s\nwant %s", a.body, want)
	}
	events := d.eventsOf(a.Header.Get("X-Request-Id"))
	if len(events) != 1 || events[0].Event.Patient != "p1" || events[0].Event.Type != audit.TypePolicy || events[0].Event.Action != audit.ActionRead {
		t.Errorf("events %+v", events)
	}
	for query, status := range map[string]int{
		"": 400, "?patient=": 400, "?patient=../x": 400, "?patient=p1&patient=p2": 400, "?user=x": 400, "?practitioner=dr": 200,
	} {
		d.want(d.do("GET", "/v1/relationships"+query, d.as("admin"), ""), status)
	}
	d.want(d.do("GET", "/v1/relationships?patient=p1", d.as("clinician"), ""), http.StatusForbidden)
	l.list = make([]auth.Relationship, 501)
	if a := d.want(d.do("GET", "/v1/relationships?patient=p1", d.as("admin"), ""), http.StatusOK); !strings.Contains(string(a.body), `"more":true`) {
		t.Error("it is not said that there are more")
	}
}

// A grant may have a beginning and an end, and is for somebody else.
func TestGrantsWithPeriods(t *testing.T) {
	l := &listed{}
	d := deploy(t, func(c *rest.Config) { c.Relationships = l })
	post := func(body string, status int) {
		t.Helper()
		d.want(d.do("POST", "/v1/relationships", d.as("admin"), body, "Content-Type", "application/json"), status)
	}
	soon, later := time.Now().Add(time.Hour).UTC().Truncate(time.Second), time.Now().Add(2*time.Hour).UTC().Truncate(time.Second)
	post(`{"practitioner":"dr","patient":"p1","reason":"x","from":"`+soon.Format(time.RFC3339)+`","until":"`+later.Format(time.RFC3339)+`"}`, 201)
	if !l.granted.From.Equal(soon) || !l.granted.Until.Equal(later) {
		t.Errorf("granted %+v", l.granted)
	}
	post(`{"practitioner":"dr","patient":"p1","reason":"x","until":"`+soon.Format(time.RFC3339)+`","from":"`+later.Format(time.RFC3339)+`"}`, 422)
	post(`{"practitioner":"dr","patient":"p1","reason":"x","until":"2020-01-01T00:00:00Z"}`, 422)
	post(`{"practitioner":"dr","patient":"p1","reason":"x","until":"tomorrow"}`, 400)
}

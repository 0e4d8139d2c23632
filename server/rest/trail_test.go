package rest_test

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/auth"
	"github.com/chartkeep/chartkeep/server/rest"
)

type shownEvent struct {
	ID, Type, Interaction, Action, Patient, Stream, Leaf string
	RequestID                                            string `json:"request_id"`
	Outcome                                              int
	Agent                                                struct{ User, Network string }
	Decision                                             struct {
		Allowed      bool
		Rule, Reason string
	}
	Entities []struct{ Type, ID string }
}

type shownPage struct {
	Events []shownEvent
	Next   string
}

func (d *deployment) search(query string) shownPage {
	d.t.Helper()
	d.events(audit.Query{})
	a := d.want(d.do("GET", "/v1/audit/events"+query, d.as("officer"), ""), http.StatusOK)
	var p shownPage
	check(d.t, json.Unmarshal(a.body, &p))
	return p
}

func TestTrail(t *testing.T) {
	d := deploy(t, nil)
	d.patient("p1")
	clinician := d.as("clinician")
	read := d.want(d.do("GET", "/fhir/R4/Patient/p1", clinician, ""), 200)
	refused := d.want(d.do("GET", "/fhir/R4/Patient/p2", clinician, ""), 404)

	page := d.search("?request_id=" + read.Header.Get("X-Request-Id"))
	if len(page.Events) != 1 {
		t.Fatalf("events %+v", page)
	}
	e := page.Events[0]
	if e.Interaction != "read" || e.Action != "R" || e.Outcome != 0 || e.Patient != "p1" || e.Agent.User != "clinician-1" || e.Agent.Network != "127.0.0.1" ||
		!e.Decision.Allowed || e.Decision.Rule == "" || len(e.Leaf) != 64 || len(e.Stream) != 32 {
		t.Errorf("event %+v", e)
	}
	a := d.want(d.do("GET", "/v1/audit/events/"+e.ID, d.as("security"), ""), http.StatusOK)
	var one shownEvent
	check(t, json.Unmarshal(a.body, &one))
	if one.ID != e.ID || one.Leaf != e.Leaf {
		t.Errorf("one event %+v, want %+v", one, e)
	}
	if page := d.search("?request_id=" + refused.Header.Get("X-Request-Id")); len(page.Events) != 1 || page.Events[0].Outcome != 4 {
		t.Errorf("refusal %+v", page)
	}
	for query, interaction := range map[string]string{
		"?patient=p1&agent=clinician-1": "read", "?patient=Patient/p1&interaction=read&outcome=0": "read", "?entity=Patient/p1&action=R&client=test-app": "read",
		"?type=110101&limit=1": "audit-search",
	} {
		if page := d.search(query); len(page.Events) == 0 || page.Events[0].Interaction != interaction {
			t.Errorf("%s: %+v", query, page)
		}
	}
	past := url.QueryEscape(time.Now().Add(-time.Hour).Format(time.RFC3339))
	if page := d.search("?to=" + past); len(page.Events) != 0 {
		t.Errorf("events before the start: %+v", page)
	}
	if page := d.search("?from=" + past); len(page.Events) == 0 {
		t.Error("no event since an hour ago")
	}

	// Paging newest first, every event once.
	seen, cursor := map[string]bool{}, ""
	for range 100 {
		page := d.search("?agent=clinician-1&limit=1&cursor=" + cursor)
		for _, e := range page.Events {
			if seen[e.ID] {
				t.Errorf("event %s twice", e.ID)
			}
			seen[e.ID] = true
		}
		if cursor = page.Next; cursor == "" {
			break
		}
	}
	if len(seen) != 3 { // a sign-in, a read and a refusal
		t.Errorf("paged over %d events of the clinician, want 3", len(seen))
	}

	for _, query := range []string{"?nothing=1", "?limit=0", "?limit=201", "?limit=x", "?outcome=5", "?action=XX", "?from=yesterday", "?cursor=abc", "?patient=", "?agent=a&agent=b", "?entity=Patient/..%2f"} {
		d.want(d.do("GET", "/v1/audit/events"+query, d.as("officer"), ""), http.StatusBadRequest)
	}
	for _, id := range []string{"x", "00000000-0000-0000-0000-000000000000", "018f3e1a-0000-7000-8000-000000000001"} {
		d.want(d.do("GET", "/v1/audit/events/"+id, d.as("officer"), ""), http.StatusNotFound)
	}
	for _, role := range []string{"clinician", "admin", "backend"} {
		d.want(d.do("GET", "/v1/audit/events", d.as(role), ""), http.StatusForbidden)
	}
}

// grants is a Relationships that can fail.
type grants struct {
	mu   sync.Mutex
	log  []string
	fail error
}

func (g *grants) note(parts ...string) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.fail == nil {
		g.log = append(g.log, strings.Join(parts, " "))
	}
	return g.fail
}

func (g *grants) Grant(_ context.Context, r auth.Relationship) error {
	return g.note("grant", r.Practitioner, r.Patient, r.Reason, r.By)
}

func (g *grants) Relationships(context.Context, string, string, int) ([]auth.Relationship, error) {
	return nil, g.note("list")
}

func (g *grants) Ungrant(_ context.Context, practitioner, patient, by string) error {
	return g.note("end", practitioner, patient, by)
}

func TestRelationships(t *testing.T) {
	g := &grants{}
	d := deploy(t, func(c *rest.Config) { c.Relationships = g })
	admin := d.as("admin")
	const good = `{"practitioner":"dr","patient":"p1","reason":"covering"}`
	made := d.want(d.do("POST", "/v1/relationships", admin, good, "Content-Type", "application/json"), http.StatusCreated)
	d.want(d.do("DELETE", "/v1/relationships/dr/p1", admin, ""), http.StatusNoContent)
	if got := strings.Join(g.log, "; "); got != "grant dr p1 covering admin-1; end dr p1 admin-1" {
		t.Errorf("changes: %s", got)
	}
	events := d.eventsOf(made.Header.Get("X-Request-Id"))
	if len(events) != 2 || events[0].Event.Outcome != audit.Success || events[1].Event.Outcome != audit.Intent ||
		events[0].Event.Correlation != events[1].Event.ID || events[0].Event.Type != audit.TypePolicy {
		t.Errorf("events %+v", events)
	}
	for body, status := range map[string]int{
		`{`: 400, `{"practitioner":"dr","patient":"p1","reason":"x","more":1}`: 400, `{"practitioner":"dr","practitioner":"dr","patient":"p1","reason":"x"}`: 400,
		`{"practitioner":"../x","patient":"p1","reason":"x"}`: 422, `{"practitioner":"dr","patient":"p1","reason":" "}`: 422, `{}`: 422,
	} {
		d.want(d.do("POST", "/v1/relationships", admin, body, "Content-Type", "application/json"), status)
	}
	d.want(d.do("POST", "/v1/relationships", admin, good, "Content-Type", "text/plain"), http.StatusUnsupportedMediaType)
	d.want(d.do("POST", "/v1/relationships", d.as("clinician"), good, "Content-Type", "application/json"), http.StatusForbidden)
	g.mu.Lock()
	g.fail = errors.New("database is away")
	g.mu.Unlock()
	failed := d.want(d.do("POST", "/v1/relationships", admin, good, "Content-Type", "application/json"), http.StatusServiceUnavailable)
	if e := d.eventsOf(failed.Header.Get("X-Request-Id")); len(e) != 2 || e[0].Event.Outcome != audit.SeriousFailure {
		t.Errorf("events of the failure: %+v", e)
	}
}

func TestRoles(t *testing.T) {
	d := deploy(t, nil)
	a := d.want(d.do("GET", "/v1/roles", d.as("admin"), ""), http.StatusOK)
	var p struct {
		Version int
		Roles   []struct {
			Name         string
			Permissions  []struct{ Type, Interactions, Relation string }
			Capabilities []struct{ Name string }
		}
	}
	check(t, json.Unmarshal(a.body, &p))
	if p.Version == 0 || len(p.Roles) < 10 || p.Roles[0].Permissions[0].Relation == "" || len(p.Roles[0].Capabilities) == 0 {
		t.Errorf("policy %s", a.body)
	}
	d.want(d.do("POST", "/v1/relationships", d.as("admin"), `{}`), http.StatusNotImplemented)
}

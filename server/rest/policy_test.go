package rest_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/auth"
	"github.com/chartkeep/chartkeep/phi/phitest"
	"github.com/chartkeep/chartkeep/server/rest"
)

// policies is a rest.Policies that remembers what it was asked and answers what it was told to; the rules are the database's, and are
// tested there.
type policies struct {
	mu          sync.Mutex
	err         error
	proposals   []*auth.Proposal
	assignments []*auth.AssignmentRecord
	asked       []string
}

var _ rest.Policies = (*policies)(nil)

func (p *policies) ask(what string) (unlock func(), err error) {
	p.mu.Lock()
	p.asked = append(p.asked, what)
	return p.mu.Unlock, p.err
}

// fail makes every call fail with an error, until it is nil.
func (p *policies) fail(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.err = err
}

func (p *policies) Current(context.Context) (auth.Policy, int64, error) {
	unlock, err := p.ask("current")
	defer unlock()
	return phitest.Policy(), 3, err
}

func (p *policies) Version(_ context.Context, version int64) (auth.PolicyVersion, auth.Document, error) {
	unlock, err := p.ask("version")
	defer unlock()
	if version == 0 {
		version = 3
	}
	return auth.PolicyVersion{Version: version, By: "admin-1", Summary: "seeded"}, auth.NewDocument(phitest.Policy()), err
}

func (p *policies) Versions(_ context.Context, below int64, limit int) ([]auth.PolicyVersion, error) {
	unlock, err := p.ask("versions")
	defer unlock()
	list := []auth.PolicyVersion{}
	for v := int64(3); v > 0 && len(list) < limit; v-- {
		if below == 0 || v < below {
			list = append(list, auth.PolicyVersion{Version: v, By: "admin-1", Summary: "seeded"})
		}
	}
	return list, err
}

func (p *policies) Propose(_ context.Context, x *auth.Proposal, dry bool) error {
	unlock, err := p.ask("propose")
	defer unlock()
	if err != nil {
		return err
	}
	x.Changes = auth.Compare(auth.NewDocument(phitest.Policy()), x.Document)
	if x.Widens, x.State = auth.Widens(x.Changes), auth.StateRequested; !x.Widens {
		x.State, x.Version = auth.StateApplied, 4
	}
	if !dry {
		p.proposals = append(p.proposals, x)
	}
	return nil
}

func (p *policies) Proposals(context.Context, string, int) ([]*auth.Proposal, error) {
	unlock, err := p.ask("proposals")
	defer unlock()
	return p.proposals, err
}

func (p *policies) Proposal(_ context.Context, id string) (*auth.Proposal, error) {
	unlock, err := p.ask("proposal")
	defer unlock()
	if err != nil {
		return nil, err
	}
	for _, x := range p.proposals {
		if x.ID == id {
			return x, nil
		}
	}
	return nil, auth.ErrNoSuch
}

func (p *policies) ApproveProposal(ctx context.Context, id, by string) (*auth.Proposal, error) {
	x, err := p.Proposal(ctx, id)
	if err == nil {
		x.State, x.DecidedBy, x.Version = auth.StateApplied, by, 4
	}
	return x, err
}

func (p *policies) WithdrawProposal(ctx context.Context, id, by string) error {
	x, err := p.Proposal(ctx, id)
	if err == nil {
		x.State, x.DecidedBy = auth.StateWithdrawn, by
	}
	return err
}

func (p *policies) Assign(_ context.Context, a *auth.AssignmentRecord) error {
	unlock, err := p.ask("assign")
	defer unlock()
	if err != nil {
		return err
	}
	current := phitest.Policy()
	if a.Approval, err = current.Assignable(a.Role, nil); err != nil {
		return err
	}
	if a.State = auth.StateApproved; a.Approval {
		a.State = auth.StateRequested
	}
	p.assignments = append(p.assignments, a)
	return nil
}

func (p *policies) Assignments(context.Context, auth.AssignmentFilter) ([]*auth.AssignmentRecord, error) {
	unlock, err := p.ask("assignments")
	defer unlock()
	return p.assignments, err
}

func (p *policies) Assignment(_ context.Context, id string) (*auth.AssignmentRecord, error) {
	unlock, err := p.ask("assignment")
	defer unlock()
	if err != nil {
		return nil, err
	}
	for _, a := range p.assignments {
		if a.ID == id {
			return a, nil
		}
	}
	return nil, auth.ErrNoSuch
}

func (p *policies) ApproveAssignment(ctx context.Context, id, by string) (*auth.AssignmentRecord, error) {
	a, err := p.Assignment(ctx, id)
	if err == nil {
		a.State, a.DecidedBy = auth.StateApproved, by
	}
	return a, err
}

func (p *policies) EndAssignment(ctx context.Context, id, by, reason string) (*auth.AssignmentRecord, error) {
	a, err := p.Assignment(ctx, id)
	if err == nil {
		a.State, a.EndedBy, a.EndReason = auth.StateEnded, by, reason
	}
	return a, err
}

// administrators are tokens of those who administer, signed in just now: their capabilities may take that.
func (d *deployment) administrator(role string) string {
	return d.issuer.token(d.t, d.base, role, "openid", func(c map[string]any) {
		c["auth_time"], c["acr"] = time.Now().Unix(), "urn:chartkeep:acr:mfa"
	})
}

// steps are the events of a request, the first one first.
func (d *deployment) steps(requestID string) []audit.Stored {
	events := d.eventsOf(requestID)
	slices.Reverse(events)
	return events
}

// problem is a refusal.
func (d *deployment) problem(a answer, status int, parameter, detail string) {
	d.t.Helper()
	d.want(a, status)
	var p struct{ Detail, Parameter string }
	check(d.t, json.Unmarshal(a.body, &p))
	if p.Parameter != parameter || !strings.Contains(p.Detail, detail) {
		d.t.Errorf("%s %s: %s", a.Request.Method, a.Request.URL.Path, a.body)
	}
}

// TestPolicyIsAdministered goes through the API of the policy and its events. The rules are the storage's.
func TestPolicyIsAdministered(t *testing.T) {
	store := &policies{}
	d := deploy(t, func(c *rest.Config) { c.Policies = store })
	admin, officer := d.administrator("admin"), d.administrator("officer")
	post := func(method, path, token, body string, headers ...string) answer {
		t.Helper()
		return d.do(method, path, token, body, append([]string{"Content-Type", "application/json"}, headers...)...)
	}
	for _, path := range []string{"/v1/roles", "/v1/roles/clinician", "/v1/policy", "/v1/policy?version=2", "/v1/policy/versions?limit=2", "/v1/policy/diff?from=1"} {
		a := d.want(d.do("GET", path, officer, ""), http.StatusOK)
		d.described(a)
		if events := d.steps(a.Header.Get("X-Request-Id")); len(events) != 1 || events[0].Event.Type != audit.TypePolicy || events[0].Event.Interaction != "policy-read" {
			t.Errorf("%s: %+v", path, events)
		}
		d.want(d.do("GET", path, d.as("clinician"), ""), http.StatusForbidden)
	}
	if tag := d.do("GET", "/v1/policy", officer, "").Header.Get("ETag"); tag != `W/"3"` {
		t.Errorf("ETag %s", tag)
	}
	d.problem(d.do("GET", "/v1/policy?version=x", officer, ""), 400, "version", "number")
	d.problem(d.do("GET", "/v1/policy/diff", officer, ""), 400, "from", "needed")
	d.problem(d.do("GET", "/v1/policy/versions?limit=501", officer, ""), 400, "limit", "500")
	d.want(d.do("GET", "/v1/roles/nobody", officer, ""), http.StatusNotFound)

	document := auth.NewDocument(phitest.Policy())
	document.Roles[0].Permissions[0].Interactions = "crus"
	body := func(d auth.Document, reason string, dry bool) string {
		b, err := json.Marshal(map[string]any{"document": d, "reason": reason, "dry_run": dry})
		check(t, err)
		return string(b)
	}
	less := body(document, "ticket 1", false)
	d.problem(post("POST", "/v1/policy/proposals", admin, less), http.StatusPreconditionRequired, "If-Match", "If-Match")
	d.problem(post("POST", "/v1/policy/proposals", admin, less, "If-Match", "*"), 400, "", "If-Match")
	d.problem(post("POST", "/v1/policy/proposals", admin, body(document, " ", false), "If-Match", `W/"3"`), 422, "/reason", "reason")
	d.problem(post("POST", "/v1/policy/proposals", admin, `{"document": {"roles": [{"nam": "x"}]}}`, "If-Match", `W/"3"`), 400, "/document/roles/0/nam", "no such member")
	d.problem(post("POST", "/v1/policy/proposals", admin, `{"document": {`, "If-Match", `W/"3"`), 400, "/document", "line 1")
	d.want(post("POST", "/v1/policy/proposals", officer, less, "If-Match", `W/"3"`), http.StatusForbidden)
	d.want(post("POST", "/v1/policy/proposals", admin, body(document, "x", true), "If-Match", `W/"3"`), http.StatusOK)
	if len(store.proposals) != 0 {
		t.Error("a dry run was stored")
	}
	a := d.want(post("POST", "/v1/policy/proposals", admin, less, "If-Match", `W/"3"`), http.StatusCreated)
	events := d.steps(a.Header.Get("X-Request-Id"))
	if len(events) != 2 || events[0].Event.Outcome != audit.Intent || events[1].Event.Outcome != audit.Success || events[1].Event.Correlation != events[0].Event.ID ||
		events[1].Event.Action != audit.ActionCreate || events[1].Event.Entities[0] != (audit.Entity{Type: "PolicyProposal", ID: store.proposals[0].ID}) ||
		!strings.Contains(string(events[1].Event.Detail), "may no longer delete") {
		t.Errorf("%+v", events)
	}
	if got := a.Header.Get("Location"); got != "/v1/policy/proposals/"+store.proposals[0].ID || store.proposals[0].RequestedBy != "admin-1" || store.proposals[0].Base != 3 {
		t.Errorf("%s, %+v", got, store.proposals[0].RequestedBy)
	}

	// Role by role.
	role := `{"role": {"name": "visitor", "workforce": true, "permissions": [{"type": "Location", "interactions": "r", "view": "full", "relation": "none", "purposes": ["TREAT"]}]}, "reason": "ticket 2"}`
	if a = d.want(post("POST", "/v1/roles", admin, role, "If-Match", `W/"3"`), http.StatusAccepted); !strings.Contains(string(a.body), "may now read Location") {
		t.Errorf("%s", a.body)
	}
	if events = d.steps(a.Header.Get("X-Request-Id")); len(events) != 2 || len(events[0].Event.Entities) != 2 || events[0].Event.Entities[1] != (audit.Entity{Type: "Role", ID: "visitor"}) {
		t.Errorf("%+v", events)
	}
	d.problem(post("POST", "/v1/roles", admin, strings.Replace(role, "visitor", "nurse", 1), "If-Match", `W/"3"`), 409, "/role/name", "already")
	d.problem(post("POST", "/v1/roles", admin, role, "If-Match", `W/"2"`), 412, "If-Match", "changed")
	d.problem(post("PUT", "/v1/roles/nurse", admin, role, "If-Match", `W/"3"`), 422, "/role/name", "path")
	d.want(post("PUT", "/v1/roles/nurse", admin, strings.Replace(role, "visitor", "nurse", 1), "If-Match", `W/"3"`), http.StatusCreated)
	d.want(post("PUT", "/v1/roles/nobody", admin, strings.Replace(role, "visitor", "nobody", 1), "If-Match", `W/"3"`), http.StatusNotFound)
	d.want(post("PUT", "/v1/roles/nurse/permissions", admin, `{"permissions": [], "reason": "x"}`, "If-Match", `W/"3"`), http.StatusCreated)
	if a = d.want(d.do("DELETE", "/v1/roles/assessor", admin, "", "If-Match", `W/"3"`), http.StatusAccepted); !strings.Contains(string(a.body), "no longer conflict") {
		t.Errorf("%s", a.body)
	}

	// Approving and refusing are the officer's, withdrawing is the administrator's.
	id := store.proposals[1].ID
	d.described(d.want(d.do("GET", "/v1/policy/proposals", officer, ""), http.StatusOK))
	d.described(d.want(d.do("GET", "/v1/policy/proposals/"+id, officer, ""), http.StatusOK))
	d.want(post("POST", "/v1/policy/proposals/"+id+"/approval", admin, ""), http.StatusForbidden)
	d.want(d.do("DELETE", "/v1/policy/proposals/"+id+"/approval", admin, ""), http.StatusForbidden)
	d.want(d.do("DELETE", "/v1/policy/proposals/"+id, officer, ""), http.StatusForbidden)
	d.want(d.do("GET", "/v1/policy/proposals/x", officer, ""), http.StatusNotFound)
	a = d.want(post("POST", "/v1/policy/proposals/"+id+"/approval", officer, ""), http.StatusOK)
	if events = d.steps(a.Header.Get("X-Request-Id")); len(events) != 2 || !strings.Contains(string(events[1].Event.Detail), "version 4") || store.proposals[1].DecidedBy != "officer-1" {
		t.Errorf("%+v", events)
	}
	d.want(d.do("DELETE", "/v1/policy/proposals/"+id+"/approval", officer, ""), http.StatusNoContent)
	d.want(d.do("DELETE", "/v1/policy/proposals/"+id, admin, ""), http.StatusNoContent)

	// What the storage refuses is said, and is an outcome of the trail; what fails is not the caller's fault.
	for _, c := range []struct {
		err    error
		status int
		detail string
		level  audit.Outcome
	}{
		{&auth.DocumentError{Pointer: "/roles/1/name", Text: "wrong"}, 422, "wrong", audit.MinorFailure},
		{auth.ErrPolicyChanged, 412, "changed meanwhile", audit.MinorFailure},
		{auth.ErrOnePerson, 409, "another person", audit.MinorFailure},
		{auth.ErrDecided, 409, "decided", audit.MinorFailure},
		{auth.ErrUnchanged, 409, "nothing would change", audit.MinorFailure},
		{auth.ErrNoSuch, 404, "no such", audit.MinorFailure},
		{errors.New("the database password is hunter2"), 503, "try again later", audit.SeriousFailure},
	} {
		store.fail(fmt.Errorf("doing: %w", c.err))
		a := d.want(post("POST", "/v1/policy/proposals/"+id+"/approval", officer, ""), c.status)
		events := d.steps(a.Header.Get("X-Request-Id"))
		if !strings.Contains(string(a.body), c.detail) || strings.Contains(string(a.body), "hunter2") || len(events) != 2 || events[1].Event.Outcome != c.level {
			t.Errorf("%v: %s, %+v", c.err, a.body, events)
		}
		if a.Header.Get("WWW-Authenticate") != "" {
			t.Errorf("%v is a challenge", c.err)
		}
	}
	store.fail(nil)
}

// TestRolesAreAssigned goes through the API of assignments.
func TestRolesAreAssigned(t *testing.T) {
	store := &policies{}
	d := deploy(t, func(c *rest.Config) { c.Policies = store })
	admin, officer := d.administrator("admin"), d.administrator("officer")
	post := func(path, token, body string) answer {
		t.Helper()
		return d.do("POST", path, token, body, "Content-Type", "application/json")
	}
	for body, c := range map[string]struct {
		status            int
		parameter, detail string
	}{
		`{"subject": "lee", "role": "nurse"}`:                                                 {422, "/reason", "reason"},
		`{"subject": "", "role": "nurse", "reason": "x"}`:                                     {422, "/subject", "subject"},
		`{"subject": "a\nb", "role": "nurse", "reason": "x"}`:                                 {422, "/subject", "subject"},
		`{"subject": "leе", "role": "nurse", "reason": "x"}`:                                  {422, "/subject", "subject"}, // a Cyrillic letter
		`{"subject": "lee", "role": "", "reason": "x"}`:                                       {422, "/role", "role"},
		`{"subject": "lee", "role": "nurse", "until": "2020-01-01T00:00:00Z", "reason": "x"}`: {422, "/until", "to come"},
		`{"subject": "lee", "role": "nurse", "from": "tomorrow", "reason": "x"}`:              {400, "/from", "another type"},
		`{"subject": "lee", "role": "nurse", "by": "me", "reason": "x"}`:                      {400, "/by", "no such member"},
		`{"subject": "lee", "role": "backend", "reason": "x"}`:                                {422, "role", "workforce"},
	} {
		d.problem(post("/v1/assignments", admin, body), c.status, c.parameter, c.detail)
	}
	d.want(post("/v1/assignments", officer, `{"subject": "lee", "role": "nurse", "reason": "x"}`), http.StatusForbidden)
	a := d.want(post("/v1/assignments", admin, `{"subject": "lee", "role": "nurse", "reason": "hired"}`), http.StatusCreated)
	lee := store.assignments[0]
	events := d.steps(a.Header.Get("X-Request-Id"))
	if len(events) != 2 || events[1].Event.Type != audit.TypePolicy || events[1].Event.Action != audit.ActionCreate || events[1].Event.Entities[0].ID != lee.ID ||
		!strings.Contains(string(events[1].Event.Detail), "subject lee") || lee.RequestedBy != "admin-1" || time.Since(lee.From) > time.Minute {
		t.Errorf("%+v, %+v", events, lee)
	}
	d.want(post("/v1/assignments", admin, `{"subject": "new", "role": "admin", "until": "2099-01-01T00:00:00Z", "reason": "hired"}`), http.StatusAccepted)
	path := "/v1/assignments/" + store.assignments[1].ID
	d.want(post(path+"/approval", admin, ""), http.StatusForbidden)
	d.described(d.want(d.do("GET", path, officer, ""), http.StatusOK))
	d.described(d.want(d.do("GET", "/v1/assignments?subject=new&state=requested", officer, ""), http.StatusOK))
	d.problem(d.do("GET", "/v1/assignments?state=open", officer, ""), 400, "state", "no such state")
	d.problem(d.do("GET", "/v1/assignments?after=x", officer, ""), 400, "after", "next")
	d.want(post(path+"/approval", officer, ""), http.StatusOK)
	if d.want(d.do("DELETE", path+"/approval", officer, ""), http.StatusConflict); store.assignments[1].State != auth.StateApproved {
		t.Error("who approves ended what is in force")
	}
	d.problem(post(path+"/end", admin, `{}`), 422, "/reason", "reason")
	d.want(post(path+"/end", officer, `{"reason": "left"}`), http.StatusForbidden)
	a = d.want(post(path+"/end", admin, `{"reason": "left"}`), http.StatusOK)
	if events = d.steps(a.Header.Get("X-Request-Id")); len(events) != 2 || events[1].Event.Action != audit.ActionDelete || store.assignments[1].EndReason != "left" {
		t.Errorf("%+v", events)
	}
	for err, detail := range map[error]string{
		&auth.ConflictError{Conflict: auth.Conflict{Role: "admin", Other: "nurse", Reason: "apart"}, Held: "nurse"}: "conflicts with nurse",
		auth.ErrOneself: "nobody gives himself", auth.ErrHeld: "already", auth.ErrLastAdmin: "nobody else",
	} {
		store.fail(err)
		a := d.want(post("/v1/assignments", admin, `{"subject": "lee", "role": "admin", "reason": "x"}`), http.StatusConflict)
		if !strings.Contains(string(a.body), detail) {
			t.Errorf("%v: %s", err, a.body)
		}
	}
}

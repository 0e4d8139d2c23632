package rest_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/auth"
)

// ward is a deployment with emergency access, a patient whom rivera treats and chen does not.
type ward struct {
	*deployment
	chen, officer, second string
}

func newWard(t *testing.T) *ward {
	t.Helper()
	w := &ward{deployment: deploy(t, nil)}
	w.patient("p-1")
	w.want(w.do("PUT", "/fhir/R4/Observation/o-1", w.as("backend"),
		`{"resourceType":"Observation","id":"o-1","status":"final","code":{"text":"x"},"subject":{"reference":"Patient/p-1"}}`), http.StatusCreated)
	w.chen = w.doctor("chen", "s-chen", time.Minute)
	w.officer = w.token("officer-1", "officer")
	w.second = w.token("officer-2", "officer")
	return w
}

// doctor is a token of a clinician who signed in a while ago.
func (w *ward) doctor(subject, session string, ago time.Duration) string {
	return w.issuer.token(w.t, w.base, "clinician", "user/*.cruds", func(c map[string]any) {
		c["sub"], c["sid"], c["fhirUser"], c["auth_time"] = subject, session, "Practitioner/"+subject, time.Now().Add(-ago).Unix()
	})
}

func (w *ward) token(subject, role string) string {
	return w.issuer.token(w.t, w.base, role, "user/*.cruds", func(c map[string]any) { c["sub"] = subject })
}

// post sends JSON.
func (w *ward) post(path, token, body string) answer {
	w.t.Helper()
	return w.do("POST", path, token, body, "Content-Type", "application/json")
}

// plantedReason is what the user writes: it may describe the patient, so it must not be anywhere in the clear.
const plantedReason = "Unresponsive in bay four, known to be allergic: " + plantedFamily

const asked = `{"patient":"p-1","reason_code":"life-threatening","text":"` + plantedReason + `"}`

// grantedJSON is as much of an answer as is needed.
type grantedJSON struct {
	ID, State, Subject, Event string
	Until, ReviewBy           time.Time
	Justification             *struct {
		Text    string
		Damaged bool
	}
	Reviews  []struct{ By, Outcome string }
	Accesses *struct {
		Events int
		Link   string
	}
}

func (w *ward) granted(a answer) (g grantedJSON) {
	w.t.Helper()
	check(w.t, json.Unmarshal(a.body, &g))
	return g
}

// TestEmergencyAccess is case 56, with what is around it: who asks, why, with which sign-in; what it opens, to whom and for how long; and
// that it is flagged wherever it was used.
func TestEmergencyAccess(t *testing.T) {
	w := newWard(t)
	w.want(w.do("GET", "/fhir/R4/Patient/p-1", w.chen, ""), http.StatusNotFound)
	for body, element := range map[string]string{
		`{"patient":"p-1","text":"` + plantedReason + `"}`:                              "reason_code",
		`{"patient":"p-1","reason_code":"curiosity","text":"` + plantedReason + `"}`:    "reason_code",
		`{"patient":"p-1","reason_code":"cover"}`:                                       "text",
		`{"patient":"p-1","reason_code":"cover","text":"        too short           "}`: "text",
		`{"reason_code":"cover","text":"` + plantedReason + `"}`:                        "patient",
		`{"patient":"../p","reason_code":"cover","text":"` + plantedReason + `"}`:       "patient",
	} {
		a := w.want(w.post("/v1/emergency-access", w.chen, body), http.StatusUnprocessableEntity)
		if !strings.Contains(string(a.body), `"parameter":"`+element+`"`) {
			t.Errorf("%s: %s", body, a.body)
		}
	}
	w.want(w.post("/v1/emergency-access", w.chen, `{"patient":"p-1","reason_code":"cover","text":"`+plantedReason+`","until":"2030"}`), http.StatusBadRequest)
	w.want(w.post("/v1/emergency-access", w.officer, asked), http.StatusForbidden)
	stale := w.want(w.post("/v1/emergency-access", w.doctor("chen", "s-chen", 6*time.Minute), asked), http.StatusUnauthorized)
	if c := stale.Header.Get("WWW-Authenticate"); !strings.Contains(c, "insufficient_user_authentication") || !strings.Contains(c, "max_age") {
		t.Errorf("a stale sign-in is challenged with %s", c)
	}

	a := w.want(w.post("/v1/emergency-access", w.chen, asked), http.StatusCreated)
	g := w.granted(a)
	if g.State != "granted" || g.Subject != "chen" || time.Until(g.Until).Round(time.Minute) != 30*time.Minute || a.Header.Get("Location") != "/v1/emergency-access/"+g.ID {
		t.Errorf("granted: %s", a.body)
	}
	// From the next request on it is read, searched, and flagged.
	for _, path := range []string{"Patient/p-1", "Observation/o-1", "Observation?patient=p-1", "Patient?_id=p-1", "Patient/p-1/_history"} {
		read := w.want(w.do("GET", "/fhir/R4/"+path, w.chen, ""), http.StatusOK)
		if !strings.Contains(string(read.body), `"id":"`) || strings.Contains(string(read.body), `"total":0`) {
			t.Errorf("%s finds %s", path, read.body)
		}
		if h := read.Header.Get("X-Emergency-Access"); h != g.ID+"; until="+g.Until.UTC().Format(time.RFC3339) {
			t.Errorf("%s is flagged %q", path, h)
		}
		events := w.eventsOf(read.Header.Get("X-Request-Id"))
		if len(events) == 0 {
			t.Errorf("%s left no event", path)
		}
		for _, s := range events {
			e := &s.Event
			named := slices.Contains(e.Entities, audit.Entity{Type: audit.EntityEmergency, ID: g.ID})
			if e.Purpose != "BTG" || !named || !strings.HasPrefix(e.Decision.Rule, "emergency:") || e.Patient != "p-1" {
				t.Errorf("the event of %s is %+v", path, e)
			}
		}
	}
	if h := w.want(w.do("GET", "/fhir/R4/Patient/p-1", w.as("clinician"), ""), http.StatusOK).Header.Get("X-Emergency-Access"); h != "" {
		t.Errorf("ordinary access is flagged %q", h)
	}
	w.want(w.do("PUT", "/fhir/R4/Patient/p-1", w.chen, `{"resourceType":"Patient","id":"p-1"}`), http.StatusForbidden)
	w.want(w.do("DELETE", "/fhir/R4/Observation/o-1", w.chen, ""), http.StatusNotFound)
	w.want(w.do("GET", "/fhir/R4/Patient/p-1", w.doctor("chen", "another", time.Minute), ""), http.StatusNotFound)
	w.want(w.do("GET", "/fhir/R4/Patient/p-1", w.doctor("lopez", "s-chen", time.Minute), ""), http.StatusNotFound)

	// Nobody learns from the answer whether there is such a patient, and one who is not there is not opened.
	unknown := w.granted(w.want(w.post("/v1/emergency-access", w.chen, strings.Replace(asked, "p-1", "nobody", 1)), http.StatusCreated))
	w.want(w.do("GET", "/fhir/R4/Patient/nobody", w.chen, ""), http.StatusNotFound)

	// Whoever has it sees and ends his own; nobody else's.
	w.described(w.want(w.do("GET", "/v1/emergency-access", w.chen, ""), http.StatusOK))
	own := w.want(w.do("GET", "/v1/emergency-access/"+g.ID, w.chen, ""), http.StatusOK)
	if w.described(own); w.granted(own).Justification != nil {
		t.Errorf("the user is shown %s", own.body)
	}
	lopez := w.doctor("lopez", "s-lopez", time.Minute)
	w.want(w.do("GET", "/v1/emergency-access/"+g.ID, lopez, ""), http.StatusNotFound)
	w.want(w.do("DELETE", "/v1/emergency-access/"+g.ID, lopez, ""), http.StatusNotFound)
	w.want(w.do("GET", "/v1/emergency-access?subject=chen", lopez, ""), http.StatusNotFound)
	if list := w.want(w.do("GET", "/v1/emergency-access", lopez, ""), http.StatusOK); strings.Contains(string(list.body), g.ID) {
		t.Errorf("somebody else is shown %s", list.body)
	}
	w.want(w.do("GET", "/v1/emergency-access/"+g.ID, w.as("billing"), ""), http.StatusForbidden)

	// Officers see why, what was done, and find it in the trail.
	page := w.want(w.do("GET", "/v1/emergency-access/"+g.ID, w.officer, ""), http.StatusOK)
	w.described(page)
	if got := w.granted(page); got.Justification == nil || got.Justification.Text != plantedReason || got.Accesses == nil || got.Accesses.Events < 5 {
		t.Errorf("an officer is shown %s", page.body)
	}
	found := w.want(w.do("GET", "/v1/audit/events?emergency="+g.ID+"&purpose=BTG", w.officer, ""), http.StatusOK)
	w.described(found)
	if n := strings.Count(string(found.body), `"purpose":"BTG"`); n < 5 {
		t.Errorf("%d events: %s", n, found.body)
	}
	w.want(w.do("GET", "/v1/audit/events?emergency=x", w.officer, ""), http.StatusBadRequest)
	w.described(w.want(w.do("GET", "/v1/emergency-access?review=due&patient=p-1&limit=1", w.officer, ""), http.StatusOK))
	w.want(w.do("GET", "/v1/emergency-access?review=never", w.officer, ""), http.StatusBadRequest)

	// While it is in force nobody reviews it; revoked, it is over at the next request, and then it is reviewed by another person.
	review := `{"outcome":"appropriate"}`
	w.want(w.post("/v1/emergency-access/"+g.ID+"/review", w.officer, review), http.StatusConflict)
	w.want(w.do("DELETE", "/v1/emergency-access/"+g.ID, w.officer, ""), http.StatusNoContent)
	w.want(w.do("GET", "/fhir/R4/Patient/p-1", w.chen, ""), http.StatusNotFound)
	w.want(w.do("DELETE", "/v1/emergency-access/"+g.ID, w.officer, ""), http.StatusConflict)
	for body, status := range map[string]int{`{"outcome":"fine"}`: 422, `{"outcome":"inappropriate"}`: 422, `{"outcome":1}`: 400} {
		w.want(w.post("/v1/emergency-access/"+g.ID+"/review", w.officer, body), status)
	}
	w.want(w.post("/v1/emergency-access/"+g.ID+"/review", w.token("security-1", "security"), review), http.StatusForbidden)
	w.want(w.post("/v1/emergency-access/"+g.ID+"/review", w.officer, `{"outcome":"needs-follow-up","note":"ask the ward about `+plantedFamily+`"}`), http.StatusOK)
	last := w.want(w.post("/v1/emergency-access/"+g.ID+"/review", w.second, review), http.StatusOK)
	if got := w.granted(last); !got.ReviewBy.IsZero() || len(got.Reviews) != 0 {
		t.Errorf("reviewed: %s", last.body)
	}
	w.want(w.post("/v1/emergency-access/"+g.ID+"/review", w.officer, review), http.StatusConflict)
	if got := w.granted(w.want(w.do("GET", "/v1/emergency-access/"+g.ID, w.officer, ""), http.StatusOK)); len(got.Reviews) != 2 || got.State != "revoked" {
		t.Errorf("after the reviews: %+v", got)
	}
	w.want(w.do("DELETE", "/v1/emergency-access/"+unknown.ID, w.chen, ""), http.StatusNoContent)
	for _, id := range []string{"x", "00000000-0000-4000-8000-000000000000"} {
		w.want(w.do("GET", "/v1/emergency-access/"+id, w.officer, ""), http.StatusNotFound)
		w.want(w.do("DELETE", "/v1/emergency-access/"+id, w.officer, ""), http.StatusNotFound)
		w.want(w.post("/v1/emergency-access/"+id+"/review", w.officer, review), http.StatusNotFound)
	}
	// What the user wrote is nowhere in the trail.
	for _, s := range w.events(audit.Query{}) {
		if strings.Contains(fmt.Sprintf("%+v %s", s.Event, s.Body), plantedFamily) {
			t.Errorf("an event holds what was written: %+v", s.Event)
		}
	}
}

// TestEmergencyExpires: a grant ends by its time, without anybody's doing.
func TestEmergencyExpires(t *testing.T) {
	w := newWard(t)
	now := time.Now()
	w.storage.Put(&auth.EmergencyAccess{
		ID: "3f0e6cd1-7ee9-4a54-9d8f-6a2f0f6f0a11", Subject: "chen", Session: "s-chen", Patient: "p-1", State: auth.EmergencyGranted, RequestedAt: now, Until: now.Add(3 * time.Second),
		ReviewBy: now.Add(time.Hour),
	})
	for _, status := range []int{http.StatusOK, http.StatusNotFound} {
		for deadline := now.Add(10 * time.Second); w.do("GET", "/fhir/R4/Patient/p-1", w.chen, "").StatusCode != status; time.Sleep(20 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("not %d in time", status)
			}
		}
	}
	if took := time.Since(now); took < 3*time.Second || took > 4*time.Second {
		t.Errorf("over after %v", took)
	}
	if g := w.granted(w.want(w.do("GET", "/v1/emergency-access/3f0e6cd1-7ee9-4a54-9d8f-6a2f0f6f0a11", w.chen, ""), http.StatusOK)); g.State != "expired" {
		t.Errorf("it is %s", g.State)
	}
	w.want(w.do("DELETE", "/v1/emergency-access/3f0e6cd1-7ee9-4a54-9d8f-6a2f0f6f0a11", w.chen, ""), http.StatusConflict)
}

// TestEmergencyIsDurableFirst: nothing is granted while the trail cannot take the event.
func TestEmergencyIsDurableFirst(t *testing.T) {
	w := newWard(t)
	w.want(w.do("GET", "/fhir/R4/Patient/p-1", w.chen, ""), http.StatusNotFound)
	check(t, w.log.Close())
	w.want(w.post("/v1/emergency-access", w.chen, asked), http.StatusServiceUnavailable)
	if n := w.storage.Count("RequestEmergency"); n != 0 {
		t.Errorf("stored %d times", n)
	}
}

// TestEmergencyLimit: beyond three in a shift another person decides, within the time that it would last.
func TestEmergencyLimit(t *testing.T) {
	w := newWard(t)
	for range 3 {
		w.want(w.post("/v1/emergency-access", w.chen, strings.Replace(asked, "p-1", "p-2", 1)), http.StatusCreated)
	}
	a := w.want(w.post("/v1/emergency-access", w.chen, asked), http.StatusAccepted)
	g := w.granted(a)
	if g.State != "requested" || !g.Until.IsZero() {
		t.Errorf("the fourth: %s", a.body)
	}
	w.want(w.do("GET", "/fhir/R4/Patient/p-1", w.chen, ""), http.StatusNotFound)
	other := w.doctor("lopez", "s-lopez", time.Minute)
	w.want(w.post("/v1/emergency-access", other, asked), http.StatusCreated) // the limit is one's own
	approval := "/v1/emergency-access/" + g.ID + "/approval"
	w.want(w.post(approval, w.chen, `{"decision":"grant"}`), http.StatusForbidden)
	w.want(w.post(approval, w.token("chen", "security"), `{"decision":"grant"}`), http.StatusForbidden) // the same person in another role
	w.want(w.post(approval, w.officer, `{"decision":"perhaps"}`), http.StatusUnprocessableEntity)
	w.want(w.post(approval, w.officer, `{"decision":"grant"}`), http.StatusOK)
	w.want(w.do("GET", "/fhir/R4/Patient/p-1", w.chen, ""), http.StatusOK)
	w.want(w.post(approval, w.second, `{"decision":"refuse"}`), http.StatusConflict)
	w.want(w.do("DELETE", "/v1/emergency-access/"+g.ID, w.chen, ""), http.StatusNoContent)
	w.want(w.post("/v1/emergency-access/"+g.ID+"/review", w.officer, `{"outcome":"appropriate"}`), http.StatusForbidden) // who granted it
	w.want(w.post("/v1/emergency-access/"+g.ID+"/review", w.second, `{"outcome":"appropriate"}`), http.StatusOK)
	refused := w.granted(w.want(w.post("/v1/emergency-access", w.chen, asked), http.StatusAccepted))
	w.want(w.post("/v1/emergency-access/"+refused.ID+"/approval", w.officer, `{"decision":"refuse"}`), http.StatusOK)
	w.want(w.do("GET", "/fhir/R4/Patient/p-1", w.chen, ""), http.StatusNotFound)
}

// TestDecisions follows a refusal by the id that its answer had, and an allowance: each gate as it was, and as it would be now.
func TestDecisions(t *testing.T) {
	w := newWard(t)
	type gate struct{ Gate, State, Detail string }
	var page struct {
		Token *struct {
			SignedIn string `json:"signed_in"`
		}
		Was, Now struct {
			Allowed bool
			Reason  string
			Exact   bool
			Gates   []gate
		}
		Same    bool
		Changed []string
		Found   map[string]string
	}
	explained := func(id string) {
		t.Helper()
		w.events(audit.Query{}) // everything has arrived
		a := w.want(w.do("GET", "/v1/decisions/"+id, w.officer, ""), http.StatusOK)
		w.described(a)
		page.Token, page.Changed, page.Found = nil, nil, nil
		page.Was.Gates, page.Now.Gates = nil, nil
		check(t, json.Unmarshal(a.body, &page))
		var names []string
		for _, g := range page.Was.Gates {
			names = append(names, g.Gate)
		}
		if !slices.Equal(names, auth.GateNames()) {
			t.Errorf("gates %v", names)
		}
	}
	state := func(list []gate, name string) string {
		return list[slices.IndexFunc(list, func(g gate) bool { return g.Gate == name })].State
	}
	refused := w.want(w.do("GET", "/fhir/R4/Patient/p-1", w.chen, ""), http.StatusNotFound)
	id := refused.Header.Get("X-Decision-Id")
	explained(id)
	if page.Was.Allowed || page.Was.Reason != "relationship-missing" || !page.Same || state(page.Was.Gates, "relationship") != "failed" || page.Token == nil {
		t.Errorf("%+v", page)
	}
	w.storage.Grant("chen", "p-1")
	w.want(w.do("GET", "/fhir/R4/Patient/p-1", w.chen, ""), http.StatusOK)
	explained(id)
	if page.Same || !page.Now.Allowed || !slices.Contains(page.Changed, "relationship") || state(page.Now.Gates, "relationship") != "passed" {
		t.Errorf("today: %+v", page)
	}
	// The allowance, with the source of the relationship.
	read := w.want(w.do("GET", "/fhir/R4/Patient/p-1", w.chen, ""), http.StatusOK)
	explained(w.eventsOf(read.Header.Get("X-Request-Id"))[0].Event.ID.String())
	if !page.Was.Allowed || !page.Same || page.Found["related"] != "grant" || len(page.Changed) > 0 {
		t.Errorf("an allowance: %+v", page)
	}
	// Emergency access is explained as that.
	lopez := w.doctor("lopez", "s-lopez", time.Minute)
	g := w.granted(w.want(w.post("/v1/emergency-access", lopez, asked), http.StatusCreated))
	read = w.want(w.do("GET", "/fhir/R4/Patient/p-1", lopez, ""), http.StatusOK)
	event := w.eventsOf(read.Header.Get("X-Request-Id"))[0].Event.ID.String()
	explained(event)
	if !page.Was.Allowed || page.Found["emergency_access"] != g.ID || state(page.Was.Gates, "emergency") != "passed" || state(page.Now.Gates, "relationship") != "failed" || !page.Same {
		t.Errorf("emergency access: %+v", page)
	}
	inspected := w.want(w.do("GET", "/v1/audit/events/"+event, w.officer, ""), http.StatusOK)
	w.described(inspected)
	if !strings.Contains(string(inspected.body), "under emergency access "+g.ID) {
		t.Errorf("why: %s", inspected.body)
	}
	// A capability, and no decision at all.
	forbidden := w.want(w.do("GET", "/v1/audit/events", w.chen, ""), http.StatusForbidden)
	if !strings.Contains(string(forbidden.body), `"decision_id":"`+forbidden.Header.Get("X-Decision-Id")) {
		t.Errorf("the problem is %s", forbidden.body)
	}
	explained(forbidden.Header.Get("X-Decision-Id"))
	if page.Now.Allowed || !page.Same || state(page.Now.Gates, "role") != "failed" || state(page.Now.Gates, "scope") != "not needed" {
		t.Errorf("a capability: %+v", page)
	}
	for _, id := range []string{"x", "00000000-0000-7000-8000-000000000001"} {
		w.want(w.do("GET", "/v1/decisions/"+id, w.officer, ""), http.StatusNotFound)
	}
	w.want(w.do("GET", "/v1/decisions/"+id, w.chen, ""), http.StatusForbidden)
	// Every refusal has an id that an officer can ask for, and no allowance tells one.
	for _, a := range []answer{
		w.do("GET", "/fhir/R4/Patient/nobody", w.chen, ""), w.do("GET", "/fhir/R4/Patient/p-1", "", ""), w.do("GET", "/nowhere", "", ""),
		w.do("DELETE", "/fhir/R4/Patient/p-1", w.token("b", "billing"), ""),
	} {
		id := a.Header.Get("X-Decision-Id")
		if found := w.events(audit.Query{Terms: []audit.Term{audit.Is(audit.FieldID, id)}}); id == "" || len(found) != 1 || found[0].Event.RequestID != a.Header.Get("X-Request-Id") {
			t.Errorf("%s %s: decision %q leads to %d events", a.Request.Method, a.Request.URL.Path, id, len(found))
		}
	}
	if id := read.Header.Get("X-Decision-Id"); id != "" {
		t.Errorf("an allowance has a decision id %s", id)
	}
}

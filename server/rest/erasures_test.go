package rest_test

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/phi/phitest"
)

// TestErasure is asked for by one officer and executed by another; from then on the patient's records answer 410 to whoever may
// see them, are found by no search and take no writes.
func TestErasure(t *testing.T) {
	d := deploy(t, nil)
	d.patient("p-1")
	d.patient("p-2")
	note := `{"resourceType":"Observation","id":"o-1","status":"final","code":{"text":"x"},"subject":{"reference":"Patient/p-1"}}`
	d.want(d.do("PUT", "/fhir/R4/Observation/o-1", d.as("backend"), note), http.StatusCreated)
	officer, other := d.as("officer"), d.issuer.token(t, d.base, "officer", "user/*.cruds", func(c map[string]any) { c["sub"] = "officer-2" })
	post := func(token, path, body string) answer {
		return d.do("POST", path, token, body, "Content-Type", "application/json")
	}
	for _, refused := range []struct {
		token, body string
		status      int
	}{
		{d.as("admin"), `{"patient":"p-1","reason":"case 1"}`, http.StatusForbidden},
		{d.as("clinician"), `{"patient":"p-1","reason":"case 1"}`, http.StatusForbidden},
		{officer, `{"patient":"p-9","reason":"case 1"}`, http.StatusNotFound},
		{officer, `{"patient":"../p","reason":"case 1"}`, http.StatusBadRequest},
		{officer, `{"patient":"p-1","reason":" "}`, http.StatusBadRequest},
		{officer, `{"patient":"p-1"}`, http.StatusBadRequest},
		{officer, `{"patient":"p-1","reason":"r","by":"x"}`, http.StatusBadRequest},
	} {
		d.want(post(refused.token, "/v1/erasures", refused.body), refused.status)
	}
	a := d.want(post(officer, "/v1/erasures", `{"patient":"p-1","reason":"case 1"}`), http.StatusCreated)
	var e struct {
		ID    string
		Scope struct{ Records, Relationships int }
	}
	check(t, json.Unmarshal(a.body, &e))
	if e.Scope.Records != 2 || e.Scope.Relationships != 1 || a.Header.Get("Location") != "/v1/erasures/"+e.ID {
		t.Errorf("requested: %s", a.body)
	}
	d.want(post(officer, "/v1/erasures", `{"patient":"p-1","reason":"again"}`), http.StatusConflict)
	if problem := d.want(post(officer, "/v1/erasures/"+e.ID+"/approval", ""), http.StatusForbidden); !strings.Contains(string(problem.body), "another person") {
		t.Errorf("the same person is told %s", problem.body)
	}
	d.storage.Place(phitest.Hold{Patient: "p-1"})
	if problem := d.want(post(other, "/v1/erasures/"+e.ID+"/approval", ""), http.StatusConflict); !strings.Contains(string(problem.body), "legal hold") {
		t.Errorf("a hold says %s", problem.body)
	}
	d.storage.Lift()
	d.want(d.do("GET", "/fhir/R4/Patient/p-1", d.as("clinician"), ""), http.StatusOK)
	d.described(d.want(d.do("GET", "/v1/erasures", officer, ""), http.StatusOK))
	d.described(d.want(d.do("GET", "/v1/erasures/"+e.ID, d.as("admin"), ""), http.StatusOK))
	for _, status := range []int{http.StatusForbidden, http.StatusOK} {
		token := other
		if status == http.StatusForbidden {
			token = d.as("security")
		}
		d.want(post(token, "/v1/erasures/"+e.ID+"/approval", ""), status)
	}
	shown := d.want(d.do("GET", "/v1/erasures/"+e.ID, officer, ""), http.StatusOK)
	d.described(shown)
	if !strings.Contains(string(shown.body), `"approved_by":"officer-2"`) {
		t.Errorf("the erasure is %s", shown.body)
	}
	d.want(post(other, "/v1/erasures/"+e.ID+"/approval", ""), http.StatusConflict)
	d.want(d.do("DELETE", "/v1/erasures/"+e.ID, officer, ""), http.StatusConflict)
	d.want(d.do("DELETE", "/v1/erasures/00000000-0000-4000-8000-000000000000", officer, ""), http.StatusNotFound)
	d.want(d.do("GET", "/v1/erasures/x", officer, ""), http.StatusNotFound)

	for _, request := range [][3]string{
		{"GET", "Patient/p-1", ""}, {"GET", "Observation/o-1", ""}, {"GET", "Observation/o-1/_history", ""}, {"GET", "Observation/o-1/_history/1", ""},
		{"PUT", "Observation/o-1", note}, {"DELETE", "Observation/o-1", ""}, {"DELETE", "Patient/p-1", ""},
		{"PUT", "Patient/p-1", `{"resourceType":"Patient","id":"p-1"}`},
	} {
		if gone := d.want(d.do(request[0], "/fhir/R4/"+request[1], d.as("backend"), request[2]), http.StatusGone); !strings.Contains(string(gone.body), "erased") {
			t.Errorf("%s says %s", request[1], gone.body)
		}
	}
	d.want(d.do("POST", "/fhir/R4/Observation", d.as("backend"), strings.Replace(note, `"id":"o-1",`, "", 1)), http.StatusUnprocessableEntity)
	d.want(d.do("GET", "/fhir/R4/Patient/p-1", d.as("clinician"), ""), http.StatusNotFound) // the relationship is gone, too
	for _, search := range []string{"Patient?_id=p-1,p-2", "Patient?_lastUpdated=ge2020", "Patient?identifier=" + plantedMRN, "Patient?family=" + plantedFamily} {
		found := d.want(d.do("GET", "/fhir/R4/"+search, d.as("backend"), ""), http.StatusOK)
		if strings.Contains(string(found.body), `"id":"p-1"`) || !strings.Contains(string(found.body), `"id":"p-2"`) {
			t.Errorf("%s found %s", search, found.body)
		}
	}
	if found := d.want(d.do("GET", "/fhir/R4/Observation?_id=o-1", d.as("backend"), ""), http.StatusOK); strings.Contains(string(found.body), `"id":"o-1"`) {
		t.Errorf("the observation is found: %s", found.body)
	}
	d.want(post(officer, "/v1/erasures", `{"patient":"p-1","reason":"again"}`), http.StatusGone)

	withdrawn := d.want(post(officer, "/v1/erasures", `{"patient":"p-2","reason":"case 2"}`), http.StatusCreated)
	check(t, json.Unmarshal(withdrawn.body, &e))
	d.want(d.do("DELETE", "/v1/erasures/"+e.ID, officer, ""), http.StatusNoContent)
	d.want(post(other, "/v1/erasures/"+e.ID+"/approval", ""), http.StatusConflict)
	d.want(d.do("GET", "/fhir/R4/Patient/p-2", d.as("clinician"), ""), http.StatusOK)

	// An intent and an outcome for each step that was allowed to begin, none without the other.
	for interaction, want := range map[string]int{"erasure-request": 2 * 8, "patient-shred": 2 * 5, "erasure-withdraw": 2 * 3} {
		var intents, outcomes int
		for _, s := range d.events(audit.Query{Terms: []audit.Term{audit.Is(audit.FieldInteraction, interaction)}}) {
			switch {
			case s.Event.Outcome == audit.Intent:
				intents++
			case s.Event.Correlation != (audit.ID{}):
				outcomes++
			}
		}
		if intents != outcomes || intents+outcomes != want {
			t.Errorf("%s: %d intents, %d outcomes; want %d together", interaction, intents, outcomes, want)
		}
	}
}

// TestErasureWithoutTrail does nothing while the trail cannot take the event.
func TestErasureWithoutTrail(t *testing.T) {
	d := deploy(t, nil)
	d.patient("p-1")
	a := d.want(d.do("POST", "/v1/erasures", d.as("officer"), `{"patient":"p-1","reason":"case 1"}`, "Content-Type", "application/json"), http.StatusCreated)
	var e struct{ ID string }
	check(t, json.Unmarshal(a.body, &e))
	check(t, d.log.Close())
	second := d.issuer.token(t, d.base, "officer", "user/*.cruds", func(c map[string]any) { c["sub"] = "officer-2" })
	d.want(d.do("POST", "/v1/erasures/"+e.ID+"/approval", second, ""), http.StatusServiceUnavailable)
	if n := d.storage.Count("Erase"); n != 0 {
		t.Errorf("the storage erased %d times", n)
	}
}

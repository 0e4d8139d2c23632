package rest_test

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/chartkeep/chartkeep/auth"
)

// TestStepUp is case 53: who signed in too long ago, or too weakly, is told how to sign in, before any record is looked at.
func TestStepUp(t *testing.T) {
	d := deploy(t, nil)
	d.patient("p1")
	const demand = `Bearer realm="chartkeep", error="insufficient_user_authentication", `
	since := func(role, scope string, age time.Duration, acr string) string {
		return d.issuer.token(t, d.base, role, scope, func(c map[string]any) {
			if c["acr"] = acr; acr == "" {
				delete(c, "acr")
			}
			if c["auth_time"] = time.Now().Add(-age).Unix(); age == 0 {
				delete(c, "auth_time")
			}
			if role == "clinician" {
				c["fhirUser"] = "Practitioner/" + rivera
			}
		})
	}
	erase := func(token string) answer {
		return d.do("POST", "/v1/erasures", token, `{"patient":"p1","reason":"asked for"}`, "Content-Type", "application/json")
	}
	for name, c := range map[string]struct {
		age       time.Duration
		challenge string
	}{"just now": {time.Minute, ""}, "too old": {16 * time.Minute, demand + `max_age="900"`}, "not said": {0, demand + `max_age="900"`}} {
		a := erase(since("officer", "openid", c.age, ""))
		if got := a.Header.Get("WWW-Authenticate"); got != c.challenge || (a.StatusCode == 401) != (c.challenge != "") {
			t.Errorf("capability, signed in %s: %d %s", name, a.StatusCode, got)
		}
		if c.challenge == "" {
			continue
		}
		checkEveryAnswer(t, name, a)
		found := d.eventsOf(a.Header.Get("X-Request-Id"))
		if len(found) != 1 || found[0].Event.Decision.Reason != string(auth.ReasonStepUp) || found[0].Event.Decision.Rule != "officer:erasure:request" {
			t.Errorf("signed in %s: %+v", name, found)
		}
	}
	// The same of a type of records: the answer does not depend on what is there, nor on whose it is.
	d.storage.ChangePolicy(func(p *auth.Policy) {
		for i := range p.Permissions {
			if r := &p.Permissions[i]; r.Role == "clinician" && r.Type == "*" {
				r.StepUp = auth.StepUp{ACR: []string{"urn:chartkeep:acr:mfa", "urn:chartkeep:acr:phr"}, MaxAge: time.Hour}
			}
		}
	})
	for deadline := time.Now().Add(5 * time.Second); d.do("GET", "/fhir/R4/Patient/p1", since("clinician", "user/*.cruds", time.Minute, ""), "").StatusCode != 401; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the policy did not arrive")
		}
	}
	d.want(d.do("GET", "/fhir/R4/Patient/p1", since("clinician", "user/*.cruds", time.Minute, "urn:chartkeep:acr:phr"), ""), http.StatusOK)
	want := demand + `acr_values="urn:chartkeep:acr:mfa urn:chartkeep:acr:phr", max_age="3600"`
	bodies := map[string]bool{}
	for _, weak := range []string{
		since("clinician", "user/*.cruds", time.Minute, ""), since("clinician", "user/*.cruds", time.Minute, "urn:chartkeep:acr:pwd"),
		since("clinician", "user/*.cruds", 2*time.Hour, "urn:chartkeep:acr:mfa"),
	} {
		for _, a := range []answer{
			d.do("GET", "/fhir/R4/Patient/p1", weak, ""), d.do("GET", "/fhir/R4/Patient/nobody", weak, ""), d.do("GET", "/fhir/R4/Patient?family=x", weak, ""),
			d.do("GET", "/fhir/R4/Patient/p1/_history", weak, ""), d.do("DELETE", "/fhir/R4/Patient/p1", weak, ""),
			d.do("PUT", "/fhir/R4/Patient/p1", weak, `{"resourceType":"Patient","id":"p1"}`), d.do("POST", "/fhir/R4/Patient", weak, `{"resourceType":"Patient"}`),
		} {
			d.want(a, http.StatusUnauthorized)
			bodies[string(a.body)] = true
			if got := a.Header.Get("WWW-Authenticate"); got != want {
				t.Errorf("%s %s: %s", a.Request.Method, a.Request.URL.Path, got)
			}
			found := d.eventsOf(a.Header.Get("X-Request-Id"))
			if len(found) != 1 || found[0].Event.Decision.Reason != string(auth.ReasonStepUp) || found[0].Event.Decision.Allowed {
				t.Errorf("%s %s: events %+v", a.Request.Method, a.Request.URL.Path, found)
			}
		}
	}
	if len(bodies) != 1 {
		t.Errorf("%d different answers", len(bodies))
	}
	// An entry of a batch says it as its status.
	a := d.do("POST", "/fhir/R4", since("clinician", "user/*.cruds", time.Minute, ""),
		`{"resourceType":"Bundle","type":"batch","entry":[{"request":{"method":"GET","url":"Patient/p1"}}]}`)
	if a.StatusCode != 200 || !strings.Contains(string(a.body), `"status":"401 Unauthorized"`) {
		t.Errorf("batch: %d %s", a.StatusCode, a.body)
	}
}

package main

import (
	"context"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/chartkeep/chartkeep/auth"
	"github.com/chartkeep/chartkeep/server/demo"
)

// TestConsentOverTheWire: a restriction takes effect with the request that follows it, and within a second on another instance; it ends with
// the Consent. A purpose that is not the caller's is refused and recorded.
func TestConsentOverTheWire(t *testing.T) {
	t.Parallel()
	d := demoFresh(t, "--patients", "1")
	one, err := readPopulation(d.dir)
	if err != nil {
		t.Fatal(err)
	}
	rivera, app := d.token(t, "dr-rivera"), d.token(t, "app-backend")
	patient := "/fhir/R4/Patient/" + one.PatientOne
	want := func(what string, res answered, status int) {
		t.Helper()
		if res.StatusCode != status {
			t.Errorf("%s: %s, want %d\n%s", what, res.Status, status, res.body)
		}
	}
	total := func() any {
		t.Helper()
		return d.do(t, "GET", "/fhir/R4/Observation?patient="+one.PatientOne+"&_count=200", rivera, "").json(t)["total"]
	}

	// Another instance, as far as decisions go.
	db := d.open(t)
	t.Cleanup(db.Close)
	other, err := auth.NewAccess(t.Context(), auth.AccessConfig{Storage: db.Auth()})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 2)
	go func() { ended <- other.Run(ctx) }()
	go func() { ended <- db.Listen(ctx, other.Wake) }()
	t.Cleanup(func() {
		stop()
		<-ended
		<-ended
		other.Close()
	})
	principal := &auth.Principal{Subject: "x", Issuer: "x", Roles: []string{"clinician"}, Scopes: auth.ParseScopes("user/*.cruds"), FHIRUser: "Practitioner/" + demo.RiveraID}
	elsewhere := func(reason auth.Reason) {
		t.Helper()
		read := func() auth.Reason {
			return other.Check(ctx, principal, auth.Request{Interaction: auth.Read, Type: "Patient", Patients: []string{one.PatientOne}}).Reason
		}
		for began := time.Now(); read() != reason; time.Sleep(time.Millisecond) {
			if time.Since(began) > time.Second {
				t.Fatalf("on another instance it is %s for a second, want %s", read(), reason)
			}
		}
	}

	want("before", d.do(t, "GET", patient, rivera, ""), http.StatusOK)
	if n := total(); n == 0.0 {
		t.Fatal("the patient has no observations")
	}
	elsewhere(auth.ReasonAllowed)
	consent := `{"resourceType":"Consent","id":"restriction","status":"active","scope":{"coding":[{"system":"http://terminology.hl7.org/CodeSystem/consentscope","code":"patient-privacy"}]},` +
		`"category":[{"text":"privacy"}],"patient":{"reference":"Patient/` + one.PatientOne + `"},"policyRule":{"text":"ours"},` +
		`"provision":{"type":"deny","class":[{"code":"Observation"}],"actor":[{"role":{"coding":[{"code":"IRCP"}]},"reference":{"reference":"Practitioner/` + demo.RiveraID + `"}}]}}`
	stored := d.do(t, "PUT", "/fhir/R4/Consent/restriction", app, consent, "Prefer: return=OperationOutcome")
	want("restricting", stored, http.StatusCreated)
	if !strings.Contains(string(stored.body), "Consent.provision.class") {
		t.Errorf("what is not applied is not said: %s", stored.body)
	}
	denied := d.do(t, "GET", patient, rivera, "")
	want("restricted", denied, http.StatusNotFound)
	if unknown := d.do(t, "GET", "/fhir/R4/Patient/nobody", rivera, ""); string(unknown.body) != string(denied.body) {
		t.Errorf("a restricted patient is answered\n%s\nan unknown one\n%s", denied.body, unknown.body)
	}
	if n := total(); n != 0.0 {
		t.Errorf("a search finds %v", n)
	}
	want("restricted, writing", d.do(t, "POST", "/fhir/R4/Observation", rivera,
		`{"resourceType":"Observation","status":"final","code":{"text":"x"},"subject":{"reference":"Patient/`+one.PatientOne+`"}}`), http.StatusForbidden)
	want("others", d.do(t, "GET", patient, d.token(t, "nurse-okafor"), ""), http.StatusOK)
	want("the patient", d.do(t, "GET", patient, d.token(t, "patient-1"), ""), http.StatusOK)
	elsewhere(auth.ReasonConsent)
	officer := d.token(t, "officer-diaz")
	if e := d.events(t, officer, "patient="+one.PatientOne+"&interaction=consent-change&limit=5", 1); len(e) != 1 {
		t.Errorf("the change of the Consent is recorded as %v", e)
	}
	want("lifting", d.do(t, "DELETE", "/fhir/R4/Consent/restriction", app, ""), http.StatusNoContent)
	want("lifted", d.do(t, "GET", patient, rivera, ""), http.StatusOK)
	elsewhere(auth.ReasonAllowed)

	for _, purpose := range []string{"HRESCH", "BTG", "NOSUCHCODE"} {
		res := d.do(t, "GET", patient, rivera, "", "X-Purpose-Of-Use: "+purpose)
		want(purpose, res, http.StatusForbidden)
		e := d.events(t, officer, "request_id="+res.Header.Get("X-Request-Id"), 1)
		if decision, _ := e[0]["decision"].(map[string]any); decision["reason"] != "purpose-not-allowed" || e[0]["purpose"] != purpose {
			t.Errorf("%s is recorded as %v", purpose, e[0])
		}
	}
}
